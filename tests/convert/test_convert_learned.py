"""What a run has learned, exported apart: the same model on the same parts, or one line on why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from sightline import cli
from sightline.convert import anything
from sightline.recipe import load_recipe
from sightline.train.loop import train

LORA = {"r": 4, "alpha": 8}
TUNES = {
    "both": {"llm": "lora", "llm_lora": LORA, "vision_tower": "lora", "vision_lora": LORA},
    "scaled": {"llm": "lora", "llm_lora": {**LORA, "rslora": True}},
    "dora": {"llm": "lora", "llm_lora": {**LORA, "dora": True}},
    "some": {"llm": "lora", "llm_lora": {**LORA, "target_modules": ["q_proj"]}, "vision_tower": "full"},
    "last": {"llm": "frozen", "vision_tower": "lora", "vision_lora": LORA, "vision_last_n": 1},
    "full": {"llm": "full", "vision_tower": "frozen"},
}
FOLDERS = {
    "both": {"llm_adapter", "visual_encoder_adapter"},
    "scaled": {"llm_adapter"},
    "dora": {"llm_adapter"},
    "some": {"llm_adapter", "visual_encoder"},
    "last": {"visual_encoder_adapter"},
    "full": set(),
}


def learned(folder: Path, tune: dict[str, object]) -> Path:
    recipe = tiny.write_recipe(folder, tune=tune, optim={"lr": 0.01, "max_steps": 2})
    train(load_recipe(str(recipe), []), folder / "run")
    return folder / "run" / "checkpoint-2"


def convert(*words: str | Path) -> int:
    return cli.main(["convert", *map(str, words), "--to", "xtuner", "--learned"])


@pytest.mark.parametrize("kind", TUNES)
def test_it_is_the_same_model_on_the_parts_that_it_was_learned_on(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    run = learned(tmp_path, TUNES[kind])
    assert convert(run, out) == 0
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert folders == FOLDERS[kind] | {"projector"}
    assert (out / "model.safetensors").exists() == (kind == "full")
    named = {"llm": str(tmp_path / "llm"), "vision_tower": str(tmp_path / "tower")}
    here = {"full": "llm", "some": "vision_tower"}.get(kind)
    rest = {part: name for part, name in named.items() if part != here}
    found = anything.read(out, anything.Parts(**rest, template="vicuna"))
    whole = anything.read(run)
    assert found.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(found.tensors[name].read(), tensor.read(), rtol=0, atol=1e-6)


def refusal(capsys: pytest.CaptureFixture[str], code: int, out: Path) -> str:
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(said) == 1
    assert not out.exists() and not list(out.parent.glob(".out*"))
    return said[0]


def test_more_than_adapters_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = {"llm": "lora", "llm_lora": {**LORA, "modules_to_save": ["lm_head"]}}
    code = convert(learned(tmp_path, tune), tmp_path / "out")
    assert "was learned beside the adapters: leave out --learned" in refusal(capsys, code, tmp_path / "out")


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = learned(tmp_path, TUNES["full"]).parent
    code = convert(run / "hf", tmp_path / "out")
    assert "is a Hugging Face LLaVA; name the learned/ folder of a run" in refusal(capsys, code, tmp_path / "out")


def test_formats_without_a_place_for_adapters_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["convert", str(tmp_path), str(tmp_path / "out"), "--learned"])
    assert "--learned is for --to xtuner" in refusal(capsys, code, tmp_path / "out")
