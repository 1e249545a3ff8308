"""`sightline demo`: the whole way on a world that is drawn for it, by the functions that the other commands call."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.runtime import console, say

if TYPE_CHECKING:
    from sightline.demo.world import World
    from sightline.evaluate.answers import AnswersResult
    from sightline.evaluate.task import Score
    from sightline.model.load import VLM
    from sightline.recipe import Recipe
    from sightline.types import Message


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a smaller world and less learning, in about a minute")
    parser.add_argument("--seed", type=_seed, default=0, help="of the world and of all training (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Draw a world, train a model that sees it, and show the result.

    Draws pictures with captions, questions and answers; trains a small language model on text and a small CLIP by
    contrast; puts them together; trains the projector (stage 1) and then the whole (stage 2); exports, chats and
    evaluates. Needs no GPU, no weights and no network. The files are such as yours will be, and so are the commands.
    """
    from sightline.demo.folder import own_folder

    with own_folder(args.work_dir):
        _whole_way(args.work_dir, args.seed, quick=args.quick)


def _whole_way(folder: Path, seed: int, *, quick: bool) -> None:
    began = time.perf_counter()
    import torch

    # In models as small as these a second thread waits more than it works.
    torch.set_num_threads(1)
    from sightline.demo import results
    from sightline.demo.backbones import backbones
    from sightline.demo.world import draw_world
    from sightline.model.load import load

    _step("drawing the world")
    world = draw_world(folder / "world", seed=seed, quick=quick)
    say(", ".join(f"{name}: {count:,} rows" for name, count in world.counts.items()))
    _step("training the language model and the vision tower")
    parts = backbones(world, folder / "backbones", quick=quick)
    common = [f"model.llm={parts.llm}", f"model.vision_tower={parts.vision_tower}", f"run.seed={seed}"]

    overrides = [*common, *_data([world.pretrain], world.images)]
    first = _train("stage 1: the projector learns to caption", "demo_pretrain", overrides, folder / "pretrain")
    vlm = load(first, device="cpu")
    before = _answers(vlm, world, first)
    choice_before = _choices(vlm, world, folder / "mmbench_before", first)

    overrides = [*common, *_data(world.finetune, world.images), f"model.projector_from={folder / 'pretrain'}"]
    if quick:
        # Fewer rows, so fewer of them a step, and gentler ones.
        overrides += [f"data.{number}.repeat={times}" for number, times in enumerate((2, 1, 1))]
        overrides += ["batch.global_batch=16", "optim.lr=5e-3"]
    second = _train("stage 2: the model learns to answer", "demo_finetune", overrides, folder / "finetune")
    vlm = load(second, device="cpu")
    _chat(vlm, world, second)
    scores = results.Scores(
        before=before,
        after=_answers(vlm, world, second),
        grey=_answers(vlm, world, second, blank=True),
        choice_before=choice_before,
        choice=_choices(vlm, world, folder / "mmbench", second),
    )
    minutes = (time.perf_counter() - began) / 60
    results.show(scores)
    report = results.report(folder, scores, minutes)
    say(f"the whole way took {minutes:.1f} minutes; the model is in {second}, the report in {report}")
    results.demand(scores, results.QUICK if quick else results.FULL)


def _step(text: str, *command: object) -> None:
    console.rule(f"[bold]{text}", align="left")
    if command:
        console.print(f"$ {shlex.join(map(str, command))}", style="cyan", markup=False, soft_wrap=True)


def _data(files: Iterable[Path], images: Path) -> list[str]:
    """What of a recipe says where its data are."""
    return [
        override
        for number, file in enumerate(files)
        for override in (f"data.{number}.path={file}", f"data.{number}.images={images}")
    ]


def _train(title: str, name: str, overrides: list[str], run_folder: Path) -> Path:
    """A stage, as one should go about it: look at every row and picture, then train; returns the model's folder."""
    from sightline.recipe import load_recipe
    from sightline.train.loop import train

    recipe = load_recipe(name, overrides)
    page = run_folder.with_name(f"{run_folder.name}_data.html")
    _step("checking the data", "sightline", "data", "check", name, *overrides, "--html", page)
    _check(recipe, page)
    _step(title, "sightline", "train", name, *overrides, "--work-dir", run_folder)
    return train(recipe, run_folder)


def _check(recipe: Recipe, page: Path) -> None:
    from sightline.data.check import check
    from sightline.data.check_page import write_check_page
    from sightline.data.check_tables import print_numbers
    from sightline.data.checked import write_findings
    from sightline.model.assemble import make_prompter

    settings = {"tokenizer": str(recipe.model.llm), "template": recipe.model.template}
    limit, title = recipe.batch.max_length, Path(recipe.data[0].path or "").name
    checked = check(recipe.data, make_prompter(recipe.model), limit, console, title=title, settings=settings, sample=12)
    print_numbers(checked, console)
    findings = write_findings(checked.found, page.with_name(f"{page.stem}_findings.jsonl"))
    write_check_page(checked, page, findings.name)


def _answers(vlm: VLM, world: World, model: Path, blank: bool = False) -> AnswersResult:
    from sightline.evaluate.answers import evaluate_answers

    data = ("--data-path", world.heldout, "--image-folder", world.images)
    option = ("--blank-images",) if blank else ()
    title = "held-out questions on grey pictures" if blank else "held-out questions"
    _step(title, "sightline", "eval-answers", model, *data, *option)
    result = evaluate_answers(vlm, world.heldout, world.images, blank_images=blank, batch_size=64, max_new_tokens=60)
    say(f"{result.score.overall.right} of {result.score.overall.total} right ({result.score.value:.1%})")
    return result


def _choices(vlm: VLM, world: World, work_dir: Path, model: Path) -> Score:
    from sightline.evaluate.choice import evaluate_choices

    _step("multiple choice", "sightline", "mmbench", model, "--data-path", world.mmbench, "--work-dir", work_dir)
    score = evaluate_choices(vlm, world.mmbench, work_dir, model_name=str(model), batch_size=64, max_new_tokens=40)
    say(f"{score.value:.1%} of the circles right")
    return score


def _chat(vlm: VLM, world: World, model: Path) -> None:
    """Three questions about the first held-out picture, in one conversation."""
    from sightline.data.sources import open_rows
    from sightline.model.generate import Memory, Sampling, reply
    from sightline.types import ImageRef, Message, Text, ask

    row = next(row for row in open_rows(world.heldout) if isinstance(row["image"], str))
    path = str(world.images / row["image"])
    image = ImageRef(path)
    _step("a chat about a picture it has never seen", "sightline", "chat", model, "--image", path)
    memory = Memory()
    messages: list[Message] = []
    for question in ("Describe the picture.", "How many shapes are there?", "What is in the northwest?"):
        messages.append(ask(question, [] if messages else [image]))
        answer = "".join(reply(vlm, messages, Sampling(max_new_tokens=60), memory)).strip()
        messages.append(Message("assistant", (Text(answer),)))
        with suppress(BrokenPipeError):  # `| head`: who has read enough wants the rest done all the same
            print(f"USER: {question}\nASSISTANT: {answer}", flush=True)


def _seed(text: str) -> int:
    """A type of argparse: a number that numpy, torch and a recipe take."""
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**64 - 1")
    return int(text)
