"""What a run has learned, without the models that it began with: small, and enough to chat, evaluate and convert."""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from runs import Interrupted, contents, until
from safetensors.torch import load_file, save_file
from tuned import PROJECTOR, TEXT, expected, tuning, write_world

from sightline import cli
from sightline.errors import CheckpointError
from sightline.model.batched import replies
from sightline.model.flags import load_model, model_flags
from sightline.model.load import VLM
from sightline.recipe import load_recipe
from sightline.train.loop import train
from sightline.types import ImageRef, ask

QUESTION = "What colour is this square?"
SHORT = ["optim.max_steps=4", "optim.lr=1e-2", "run.save_every=2", "tune.llm_lora.dropout=0.1"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'sightline-vlm[quantize]'")
    return write_world(tmp_path_factory.mktemp("world"))


def picture(path: Path) -> Path:
    return path.parent / "world" / "images" / "0_0.jpg"


def recipe_changes(path: Path, llm: str) -> list[str]:
    return [*tuning(path, llm, "lora", "full"), *SHORT]


@pytest.fixture(scope="module")
def finished(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str, torch.Tensor]]:
    """A run by adapters that wrote no whole model, and what its model said and thought at the end; one for each way."""
    made: dict[str, tuple[Path, str, torch.Tensor]] = {}

    def run(llm: str) -> tuple[Path, str, torch.Tensor]:
        if llm not in made:
            folder, said, thought = tmp_path_factory.mktemp(llm) / "run", [], []

            def look(step: int, vlm: VLM) -> None:
                question = [ask(QUESTION, [ImageRef(str(picture(path)))])]
                said.extend(replies(vlm, [question], max_new_tokens=8, batch_size=1))
                thought.append(logits(vlm, path))

            recipe = load_recipe(str(path), [*recipe_changes(path, llm), "run.export=false"])
            assert train(recipe, folder, after_step=look) == folder / "learned"
            made[llm] = folder, said[-1], thought[-1]
        return made[llm]

    return run


def logits(vlm: VLM, path: Path) -> torch.Tensor:
    encoded = vlm.prompter.encode([ask(QUESTION, [ImageRef(str(picture(path)))])])
    pixels = vlm.prompter.pixel_values(vlm.prompter.pixels(encoded.images))
    with torch.no_grad():
        result: torch.Tensor = vlm.model(input_ids=torch.from_numpy(encoded.ids)[None], pixel_values=pixels).logits
    return result


def loaded(run: Path, *words: str) -> VLM:
    """The model as all commands load it."""
    parser = argparse.ArgumentParser()
    model_flags(parser)
    return load_model(parser.parse_args([str(run), "--device", "cpu", *words]))


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("llm", ["lora", "qlora"])
def test_it_is_small_and_takes_no_space_twice(path: Path, finished: Any, llm: str) -> None:
    run, *_ = finished(llm)
    assert not (run / "hf").exists()
    assert {file.name for file in (run / "learned").iterdir()} == {"weights.safetensors", "recipe.yaml", "state.json"}
    weights = run / "learned" / "weights.safetensors"
    assert load_file(weights).keys() == expected(llm, "lora", "full")
    assert weights.samefile(run / "checkpoint-4" / "weights.safetensors")
    whole = sum((path.parent / name / "model.safetensors").stat().st_size for name in ("wide", "tower"))
    assert weights.stat().st_size < whole / 3


@pytest.mark.parametrize("llm", ["lora", "qlora"])
@pytest.mark.parametrize("place", ["", "learned", "checkpoint-4"])
def test_chat_takes_it_as_it_is(
    path: Path, finished: Any, llm: str, place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said, _ = finished(llm)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    flags = ["--image", picture(path), "--temperature", 0, "--max-new-tokens", 8, "--device", "cpu"]
    code, out, err = command(capsys, "chat", run / place, *flags)
    assert (code, out.strip()) == (0, said.strip())
    assert "holds what was learned on" in err


@pytest.mark.parametrize("llm", ["lora", "qlora"])
def test_it_is_the_model_that_was_trained(path: Path, finished: Any, llm: str) -> None:
    """To the last digit on 4 bits, where adapters stay beside the weights; merged, up to rounding."""
    run, _, thought = finished(llm)
    vlm = loaded(run)
    assert not vlm.model.training and not any(p.requires_grad for p in vlm.model.parameters())
    now = logits(vlm, path)
    if llm == "qlora":
        assert torch.equal(now, thought)
        assert sum(module.__class__.__name__ == "Linear4bit" for module in vlm.model.modules()) == 2 * 14
    torch.testing.assert_close(now, thought, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("llm", ["lora", "qlora"])
def test_it_answers_in_half_precision(path: Path, finished: Any, llm: str) -> None:
    run, _, thought = finished(llm)
    vlm = loaded(run, "--torch-dtype", "bf16")
    kinds = {p.dtype for p in vlm.model.parameters()}
    assert kinds == {torch.bfloat16} | ({torch.uint8} if llm == "qlora" else set())
    torch.testing.assert_close(logits(vlm, path).float(), thought, rtol=0.1, atol=0.1)


def test_evaluations_take_it_as_it_is(
    path: Path, finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, *_ = finished("qlora")
    shown = base64.b64encode(picture(path).read_bytes()).decode()
    header = ("index", "question", "A", "B", "image", "answer", "category", "l2-category", "split")
    row = ("0", QUESTION, "red", "blue", shown, "A", "x", "y", "dev")
    (tmp_path / "q.tsv").write_text("\n".join("\t".join(cells) for cells in (header, row)), encoding="utf-8")
    flags = ["--work-dir", tmp_path / "out", "--max-new-tokens", 4, "--device", "cpu"]
    code, out, err = command(capsys, "mmbench", run, "--data-path", tmp_path / "q.tsv", *flags)
    assert (code == 0 and "100.0% of 1" in out) or "0.0% of 1" in out, err
    turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": "0", "image": picture(path).name, "conversations": turns}]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    words = ["eval-answers", run, "--data-path", tmp_path / "rows.json", "--image-folder", picture(path).parent]
    code, out, err = command(capsys, *words, *flags)
    assert code == 0, err


@pytest.mark.parametrize("llm", ["lora", "qlora"])
def test_it_becomes_the_whole_model_that_another_run_wrote(
    path: Path, finished: Any, llm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, *_ = finished(llm)
    train(load_recipe(str(path), recipe_changes(path, llm)), tmp_path / "run")
    assert load_file(tmp_path / "run" / "learned" / "weights.safetensors").keys() == expected(llm, "lora", "full")
    for place in ("", "learned", "checkpoint-4"):
        code, out, _ = command(capsys, "convert", "merge", run / place, tmp_path / f"merged{place}")
        assert code == 0 and out == f"{tmp_path / f'merged{place}'}\n"
        assert contents(tmp_path / f"merged{place}") == contents(tmp_path / "run" / "hf")
    code, _, _ = command(capsys, "convert", "pth_to_hf", run / "recipe.yaml", run, tmp_path / "converted")
    assert code == 0 and contents(tmp_path / "converted") == contents(tmp_path / "run" / "hf")


def test_qlora_is_merged_into_the_weights_before_four_bits(path: Path, finished: Any, tmp_path: Path) -> None:
    """W + B A alpha / r for the language model's own W, to the last digit of float32; all else is as it was."""
    run, *_ = finished("qlora")
    assert cli.main(["convert", "merge", str(run), str(tmp_path / "out")]) == 0
    merged, base = (load_file(place / "model.safetensors") for place in (tmp_path / "out", path.parent / "wide"))
    learned = load_file(run / "learned" / "weights.safetensors")
    changed = 0
    for name, weight in base.items():
        adapter = f"{TEXT}{name.removeprefix('model.').removesuffix('.weight')}.lora_{{}}.default.weight"
        new = merged[f"language_model.{name}"]
        if adapter.format("A") in learned:
            delta = learned[adapter.format("B")] @ learned[adapter.format("A")] * 2
            torch.testing.assert_close(new, weight + delta, rtol=1e-6, atol=1e-7)
            changed += int(not torch.equal(new, weight))
        else:
            assert torch.equal(new[: len(weight)], weight)
    assert changed == 14


def test_another_base_is_refused(path: Path, finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(finished("lora")[0], tmp_path / "run")
    tiny.make_llm(tmp_path / "other", seed=1)
    text = (run / "learned" / "recipe.yaml").read_text(encoding="utf-8")
    assert text.count(str(path.parent / "llm")) == 1
    (run / "learned" / "recipe.yaml").write_text(text.replace(str(path.parent / "llm"), str(tmp_path / "other")))
    for words in (["chat", run], ["convert", "merge", run, tmp_path / "out"]):
        code, _, err = command(capsys, *words)
        line = err.splitlines()[-1]
        assert code == 2 and "was learned on another language model: " in line and "recipe.yaml" in line


def test_a_base_that_is_gone_is_refused_and_may_be_named_anew(
    path: Path, finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said, _ = finished("lora")
    run = shutil.copytree(run, tmp_path / "run")
    recipe = run / "learned" / "recipe.yaml"
    there = recipe.read_text(encoding="utf-8")
    recipe.write_text(there.replace(str(path.parent / "tower"), str(tmp_path / "gone")))
    code, _, err = command(capsys, "chat", run)
    line = err.splitlines()[-1]
    assert code == 2 and str(tmp_path / "gone") in line and f"name the place of these models in {recipe}" in line
    moved = shutil.copytree(path.parent / "tower", tmp_path / "moved")
    recipe.write_text(there.replace(str(path.parent / "tower"), str(moved)))
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    flags = ["--image", picture(path), "--temperature", 0, "--max-new-tokens", 8, "--device", "cpu"]
    assert command(capsys, "chat", run, *flags)[1].strip() == said.strip()


def test_a_run_does_not_go_on_from_another_base(path: Path, tmp_path: Path) -> None:
    """Weights that were changed in place, which no recipe tells."""
    llm = shutil.copytree(path.parent / "llm", tmp_path / "llm")
    recipe = load_recipe(str(path), [*recipe_changes(path, "lora"), f"model.llm={llm}"])
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", after_step=until(3))
    tiny.make_llm(llm, seed=1)
    with pytest.raises(CheckpointError, match="checkpoint-2 was learned on another language model"):
        train(recipe, tmp_path / "run", resume="auto")


def test_it_is_no_checkpoint_to_go_on_from(path: Path, finished: Any, tmp_path: Path) -> None:
    run, *_ = finished("lora")
    recipe = load_recipe(str(path), [*recipe_changes(path, "lora"), "run.export=false"])
    with pytest.raises(CheckpointError, match=r"learned holds no state of the optimiser; go on from a checkpoint"):
        train(recipe, tmp_path / "new", resume=str(run / "learned"))


def test_its_projector_may_be_used(path: Path, finished: Any, tmp_path: Path) -> None:
    run, *_ = finished("lora")
    changes = [f"model.projector_from={run}", "tune.projector=frozen", "tune.llm=lora", "optim.max_steps=1"]
    train(load_recipe(str(path), changes), tmp_path / "run")
    theirs = load_file(run / "learned" / "weights.safetensors")
    ours = load_file(tmp_path / "run" / "hf" / "model.safetensors")
    for name in ("linear_1.weight", "linear_2.bias"):
        assert torch.equal(ours[f"multi_modal_projector.{name}"], theirs[f"{PROJECTOR}{name}"])


def test_where_a_whole_model_is_needed_it_is_said(
    path: Path, finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, *_ = finished("lora")
    parts = ["model.llm=null", "model.vision_tower=null", f"model.from_model={run}"]
    code, _, err = command(capsys, "train", path, *parts, "--work-dir", tmp_path / "run")
    assert code == 2 and "make a whole model of it with sightline convert merge" in err.splitlines()[-1]
    code, _, err = command(capsys, "chat", run, "--bits", 8)
    assert code == 2 and "was learned on whole weights" in err and "sightline convert merge" in err


def not_finite(learned: Path) -> None:
    weights = load_file(learned / "weights.safetensors")
    name = min(name for name in weights if "lora_B" in name)
    (learned / "weights.safetensors").unlink()
    save_file({**weights, name: weights[name] * float("nan")}, learned / "weights.safetensors")


def another_note(learned: Path) -> None:
    state = json.loads((learned / "state.json").read_text(encoding="utf-8"))
    (learned / "state.json").unlink()
    (learned / "state.json").write_text(json.dumps(state | {"base": {"llm": 5}}), encoding="utf-8")


@pytest.mark.parametrize(("change", "words"), [(not_finite, "entries that are not finite"), (another_note, "its base")])
def test_contents_that_are_none(
    finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], words: str
) -> None:
    run = shutil.copytree(finished("lora")[0], tmp_path / "run")
    change(run / "learned")
    code, _, err = command(capsys, "chat", run)
    assert code == 2 and "is damaged" in err.splitlines()[-1] and words in err.splitlines()[-1]


@pytest.mark.parametrize("name", ["weights.safetensors", "recipe.yaml", "state.json"])
def test_damage_is_named(finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    run = shutil.copytree(finished("lora")[0], tmp_path / "run")
    (run / "learned" / name).write_bytes(b"{")
    code, _, err = command(capsys, "chat", run)
    assert code == 2 and name.split(".")[0] in err.splitlines()[-1] and "Traceback" not in err
