"""A run with tiles through the commands that people use: check, train, resume, convert, chat, evaluate."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from runs import Interrupted, contents, losses, until
from safetensors.torch import load_file

from sightline import cli
from sightline.model.load import load
from sightline.recipe import load_recipe
from sightline.train.loop import train

NEXT = {"next": True, "grid_pinpoints": [[56, 112], [112, 56], [112, 112]]}
LORA = {"llm": "lora", "llm_lora": {"r": 4, "alpha": 8}, "vision_tower": "lora", "projector": "full"}


@pytest.fixture(scope="module", params=["full", "lora"])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of four steps whose run, saved twice, is beside it in `run`."""
    folder = tmp_path_factory.mktemp("world")
    llm, tower = str(folder / "llm"), str(folder / "tower")
    path = tiny.write_recipe(
        folder,
        model={"llm": llm, "vision_tower": tower, "template": "vicuna", **NEXT},
        tune=LORA if request.param == "lora" else {"llm": "full", "vision_tower": "full", "projector": "full"},
        optim={"lr": 0.01, "max_steps": 4},
        run={"save_every": 2, "keep": 3},
    )
    rng = np.random.default_rng(0)
    for name, size in (("0_0.jpg", (200, 90)), ("4_0.jpg", (400, 300)), ("4_1.jpg", (50, 170))):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(folder / "world/images" / name)
    train(load_recipe(str(path)), folder / "run")
    return path


def test_the_newline_has_learned(recipe: Path) -> None:
    run = recipe.parent / "run"
    first, last = (load_file(run / f"checkpoint-{step}" / "weights.safetensors") for step in (2, 4))
    (name,) = (name for name in last if name.endswith("image_newline"))
    assert (first[name] - last[name]).abs().max() > 1e-4
    assert load_file(run / "hf" / "model.safetensors")["image_newline"].shape == (64,)
    assert losses(run)[-1] < losses(run)[0]


def test_a_run_that_was_cut_off_ends_alike(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(load_recipe(str(recipe)), tmp_path / "run", after_step=until(3))
    train(load_recipe(str(recipe)), tmp_path / "run", resume="auto")
    assert losses(tmp_path / "run")[-1] == losses(recipe.parent / "run")[-1]


def test_a_checkpoint_becomes_the_model_that_the_run_wrote(recipe: Path, tmp_path: Path) -> None:
    run = recipe.parent / "run"
    assert cli.main(["convert", "pth_to_hf", str(recipe), str(run), str(tmp_path / "out")]) == 0
    assert contents(tmp_path / "out") == contents(run / "hf")


def test_it_chats_about_several_pictures(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(recipe.parent / "world/images" / name) for name in ("0_0.jpg", "4_1.jpg")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Compare <image> and <image>.\nAnd now?\n"))
    words = ["--image", *images, "--temperature", "0", "--max-new-tokens", "6", "--device", "cpu"]
    assert cli.main(["chat", str(recipe.parent / "run"), *words]) == 0
    assert capsys.readouterr().out


def test_its_answers_are_counted(recipe: Path, tmp_path: Path) -> None:
    data, images = recipe.parent / "world/data.json", recipe.parent / "world/images"
    words = ["--data-path", str(data), "--image-folder", str(images), "--work-dir", str(tmp_path), "--device", "cpu"]
    assert cli.main(["eval-answers", str(recipe.parent / "run"), *words, "--limit", "8", "--batch-size", "3"]) == 0
    (result,) = tmp_path.glob("*/answers_result.json")
    assert json.loads(result.read_text())


def test_it_chooses_among_options(recipe: Path, tmp_path: Path) -> None:
    picture = base64.b64encode((recipe.parent / "world/images/4_0.jpg").read_bytes()).decode()
    head = ["index", "question", "A", "B", "answer", "category", "image"]
    rows = ["\t".join(map(str, cells)) for cells in (head, [1, "What is it?", "red", "blue", "A", "kind", picture])]
    (tmp_path / "mmb.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = ["--data-path", str(tmp_path / "mmb.tsv"), "--work-dir", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(["mmbench", str(recipe.parent / "run"), *words, "--max-new-tokens", "4"]) == 0
    assert len(list((tmp_path / "out").glob("*/answers.jsonl"))) == 1


def test_the_data_are_checked_and_shown_with_their_own_numbers(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "check", str(recipe)]) == 0
    assert "16, and up to 72 of its tiles" in " ".join(capsys.readouterr().out.split())
    model, data = str(recipe.parent / "run"), str(recipe.parent / "world/data.json")
    images = str(recipe.parent / "world/images")
    assert cli.main(["data", "show", data, "5", "--images", images, "--tokenizer", model]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    tiles = load(recipe.parent / "run", device="cpu").prompter.tiles
    assert tiles is not None
    for width, height in ((400, 300), (50, 170)):
        assert f"{width} x {height} px" in shown and f"{tiles.tokens(width, height)} tokens" in shown


def test_a_row_whose_picture_has_no_room_is_bad(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", str(recipe), "batch.max_length=110"]) == 2
    assert "max_length 110 cuts an image" in " ".join(capsys.readouterr().out.split())
