"""`sightline demo`: the whole way on a world that is drawn for it, by the functions that the other commands call."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from sightline.errors import UserError
from sightline.runtime import console, say

if TYPE_CHECKING:
    from sightline.demo.backbones import Backbones
    from sightline.demo.world import World
    from sightline.evaluate.answers import AnswersResult
    from sightline.evaluate.task import Score
    from sightline.model.load import VLM
    from sightline.recipe import Recipe
    from sightline.types import Message

MARK = "demo.json"
"""Says that a folder is the demo's own: only then are earlier runs in it replaced."""


@dataclass(frozen=True, slots=True)
class Demands:
    """What a demo must reach, or something is broken; shares of right answers."""

    heldout: float
    seeing: float
    """By how much real pictures must beat grey ones."""
    before: float
    """At most so much of the questions after the captioning stage."""


# The aim of the full demo is 0.95, and 0.90 of the circles. These are floors: when a small model begins to look things
# up is a matter of luck.
FULL = Demands(heldout=0.70, seeing=0.30, before=0.15)
QUICK = Demands(heldout=0.35, seeing=0.08, before=0.15)


@dataclass(frozen=True, slots=True)
class Scores:
    """Everything that is measured."""

    before: AnswersResult
    after: AnswersResult
    grey: AnswersResult
    choice_before: Score
    choice: Score


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a smaller world and less learning, in under a minute")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of all training (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Draw a world, train a model that sees it, and show the result.

    Draws pictures with captions, questions and answers; trains a small language model on text and a small CLIP by
    contrast; puts them together; trains the projector (stage 1) and then the whole (stage 2); exports, chats and
    evaluates. Needs no GPU, no weights and no network. The files are such as yours will be, and so are the commands.
    """
    began = time.perf_counter()
    folder = _own_folder(args.work_dir)
    import torch

    # In models as small as these a second thread waits more than it works.
    torch.set_num_threads(1)
    from sightline.demo.backbones import backbones
    from sightline.demo.world import draw_world
    from sightline.model.load import load

    _step("drawing the world")
    world = draw_world(folder / "world", seed=args.seed, quick=args.quick)
    say(", ".join(f"{name}: {count:,} rows" for name, count in world.counts.items()))
    _step("training the language model and the vision tower")
    parts = backbones(world, folder / "backbones", quick=args.quick)

    first = _stage("demo_pretrain", folder / "pretrain", world, parts, args)
    vlm = load(first, device="cpu")
    before = _answers(vlm, world)
    choice_before = _choices(vlm, world, folder / "mmbench_before", first)

    second = _stage("demo_finetune", folder / "finetune", world, parts, args, projector_from=folder / "pretrain")
    vlm = load(second, device="cpu")
    _chat(vlm, world, second)
    scores = Scores(
        before=before,
        after=_answers(vlm, world),
        grey=_answers(vlm, world, blank=True),
        choice_before=choice_before,
        choice=_choices(vlm, world, folder / "mmbench", second),
    )
    minutes = (time.perf_counter() - began) / 60
    _show(scores)
    report = _report(folder, scores, minutes)
    say(f"the whole way took {minutes:.1f} minutes; the model is in {second}, the report in {report}")
    _demand(scores, QUICK if args.quick else FULL)


def _own_folder(folder: Path) -> Path:
    """Make room for a new demo where an earlier one was; what it learned of language and vision is kept."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise UserError(f"{folder} is not empty and not the demo's; choose another --work-dir")
    for name in ("world", "pretrain", "finetune", "mmbench", "mmbench_before"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(json.dumps({"made by": "sightline demo"}), encoding="utf-8")
    return folder


def _step(text: str, command: str = "") -> None:
    console.rule(f"[bold]{text}", align="left")
    if command:
        console.print(f"$ {command}", style="cyan", markup=False, soft_wrap=True)


def _stage(
    name: str,
    run_folder: Path,
    world: World,
    parts: Backbones,
    args: argparse.Namespace,
    projector_from: Path | None = None,
) -> Path:
    from sightline.recipe import load_recipe
    from sightline.train.loop import train

    data = (world.pretrain,) if name == "demo_pretrain" else world.finetune
    overrides = [
        f"model.llm={parts.llm}",
        f"model.vision_tower={parts.vision_tower}",
        *(f"data.{number}.path={path}" for number, path in enumerate(data)),
        *(f"data.{number}.images={world.images}" for number in range(len(data))),
        f"run.seed={args.seed}",
    ]
    if projector_from is not None:
        overrides.append(f"model.projector_from={projector_from}")
    if args.quick and projector_from is not None:
        overrides += [f"data.{number}.repeat={times}" for number, times in enumerate((2, 1, 1))]
    recipe = load_recipe(name, overrides)
    _check(recipe, run_folder.with_name(f"{run_folder.name}_data.html"), f"{name} {' '.join(overrides)}")
    _step(
        "stage 1: the projector learns to caption" if projector_from is None else "stage 2: the model learns to answer",
        f"sightline train {name} {' '.join(overrides)} --work-dir {run_folder}",
    )
    return train(recipe, run_folder)


def _check(recipe: Recipe, page: Path, arguments: str) -> None:
    """Look at every row and picture, as one should before a day of training."""
    from sightline.data.check import check
    from sightline.data.check_page import write_check_page
    from sightline.data.check_tables import print_numbers
    from sightline.data.checked import write_findings
    from sightline.model.assemble import make_prompter

    _step("checking the data", f"sightline data check {arguments} --html {page}")
    settings = {"tokenizer": str(recipe.model.llm), "template": recipe.model.template}
    limit, title = recipe.batch.max_length, Path(recipe.data[0].path or "").name
    checked = check(recipe.data, make_prompter(recipe.model), limit, console, title=title, settings=settings, sample=12)
    print_numbers(checked, console)
    findings = write_findings(checked.found, page.with_name(f"{page.stem}_findings.jsonl"))
    write_check_page(checked, page, findings.name)


def _answers(vlm: VLM, world: World, blank: bool = False) -> AnswersResult:
    from sightline.evaluate.answers import evaluate_answers

    option = " --blank-images" if blank else ""
    _step(
        "held-out questions on grey pictures" if blank else "held-out questions",
        f"sightline eval-answers MODEL --data-path {world.heldout} --image-folder {world.images}{option}",
    )
    result = evaluate_answers(vlm, world.heldout, world.images, blank_images=blank, batch_size=64, max_new_tokens=60)
    say(f"{result.score.overall.right} of {result.score.overall.total} right ({result.score.value:.1%})")
    return result


def _choices(vlm: VLM, world: World, work_dir: Path, model: Path) -> Score:
    from sightline.evaluate.choice import evaluate_choices

    _step("multiple choice", f"sightline mmbench {model} --data-path {world.mmbench} --work-dir {work_dir}")
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
    _step("a chat about a picture it has never seen", f"sightline chat {model} --image {path}")
    memory = Memory()
    messages: list[Message] = []
    for question in ("Describe the picture.", "How many shapes are there?", "What is in the northwest?"):
        messages.append(ask(question, [] if messages else [image]))
        answer = "".join(reply(vlm, messages, Sampling(max_new_tokens=60), memory)).strip()
        messages.append(Message("assistant", (Text(answer),)))
        print(f"USER: {question}\nASSISTANT: {answer}", flush=True)


def _show(scores: Scores) -> None:
    table = Table(title="What the model knows", title_style="bold")
    for column in ("", "after stage 1", "after stage 2", "grey pictures"):
        table.add_column(column, justify="left" if not column else "right")

    def cells(*found: float | None) -> list[str]:
        return ["" if value is None else f"{value:.1%}" for value in found]

    table.add_row(
        "held-out answers, exact", *cells(scores.before.score.value, scores.after.score.value, scores.grey.score.value)
    )
    for name, share in scores.after.score.table.items():
        others = (scores.before.score.table[name].value, share.value, scores.grey.score.table[name].value)
        table.add_row(f"  {name}", *cells(*others), style="dim")
    table.add_row("multiple choice, circular", *cells(scores.choice_before.value, scores.choice.value, None))
    console.print(table)


def _report(folder: Path, scores: Scores, minutes: float) -> Path:
    from sightline.evaluate.task import Share
    from sightline.train.report import Sample, ScoreRow, read_run, write_report
    from sightline.train.report import Score as Cell

    def cell(share: Share) -> Cell:
        return Cell(share.value, share.half_width, share.total)

    rows = [
        ScoreRow(
            "held-out answers, exact",
            {
                "after stage 1": cell(scores.before.score.overall),
                "after stage 2": cell(scores.after.score.overall),
                "grey pictures": cell(scores.grey.score.overall),
            },
        ),
        *(
            ScoreRow(
                name,
                {
                    "after stage 1": cell(scores.before.score.table[name]),
                    "after stage 2": cell(share),
                    "grey pictures": cell(scores.grey.score.table[name]),
                },
            )
            for name, share in scores.after.score.table.items()
        ),
        ScoreRow(
            "multiple choice, circular",
            {"after stage 1": cell(scores.choice_before.overall), "after stage 2": cell(scores.choice.overall)},
        ),
    ]
    answers = scores.after.answers
    wrong = [row for row in answers if not row.right][:4]
    # A few of every kind: the answers come kind after kind.
    right = [row for row in answers if row.right][:: max(1, len(answers) // 14)][:14]
    samples = [
        Sample(
            pictures=row.images,
            question=row.question,
            answer=row.answer,
            truth=row.truth,
            right=row.right,
            note=row.category,
        )
        for row in [*right, *wrong]
    ]
    facts = {
        "held-out answers": f"{scores.after.score.value:.1%}",
        "multiple choice": f"{scores.choice.value:.1%}",
        "without seeing": f"{scores.grey.score.value:.1%}",
        "the whole way": f"{minutes:.1f} min",
    }
    return write_report(
        folder / "report.html",
        title="Sightline demo",
        runs=[read_run(folder / "pretrain"), read_run(folder / "finetune")],
        samples=samples,
        scores=rows,
        facts=facts,
    )


def _demand(scores: Scores, demands: Demands) -> None:
    """Raise when the model has not learned what it should: then something is broken."""
    after, grey, before = scores.after.score.value, scores.grey.score.value, scores.before.score.value
    found = {
        f"held-out answers >= {demands.heldout:.0%}": after >= demands.heldout,
        f"held-out answers >= those on grey pictures + {demands.seeing:.0%}": after >= grey + demands.seeing,
        f"held-out answers after stage 1 <= {demands.before:.0%}": before <= demands.before,
    }
    missed = [demand for demand, met in found.items() if not met]
    if missed:
        raise RuntimeError(f"the demo did not reach: {'; '.join(missed)}")
