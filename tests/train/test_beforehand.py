"""Before a weight is loaded: what could learn nothing ends, and what is easily overlooked is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from sightline import cli
from sightline.recipe import load_recipe
from sightline.train import loop


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose rows are text alone."""
    path = tiny.write_recipe(tmp_path)
    turns = [{"from": "human", "value": "What is red?"}, {"from": "gpt", "value": "A colour."}]
    (tmp_path / "text.json").write_text(json.dumps([{"id": n, "conversations": turns} for n in range(8)]))
    return path


def check(recipe: Path, *changes: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    text = recipe.read_text()
    for change in changes:
        old, new = change.split(" -> ")
        assert old in text, (old, text)
        text = text.replace(old, new)
    (recipe.parent / "changed.yaml").write_text(text)
    code = cli.main(["recipe", "check", str(recipe.parent / "changed.yaml")])
    return code, capsys.readouterr().out


@pytest.mark.parametrize(
    ("tune", "who"),
    [
        (("tune.llm=frozen",), "only the projector learns"),
        (("tune.llm=frozen", "tune.projector=frozen", "tune.vision_tower=full"), "only the vision tower learns"),
        (("tune.llm=frozen", "tune.vision_tower=lora"), "only the projector and the vision tower learn"),
    ],
)
def test_without_an_image_nothing_but_the_language_model_learns(
    recipe: Path, tune: tuple[str, ...], who: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "assemble", lambda *_: pytest.fail("a weight was loaded"))
    data = f"data.0.path={recipe.parent / 'text.json'}"
    assert cli.main(["train", str(recipe), *tune, data, "--work-dir", str(recipe.parent / "run")]) == 2
    said = capsys.readouterr().err
    assert f"error: {who} (section tune), and none of 8 rows has an image" in said


def test_a_language_model_learns_from_text_alone(recipe: Path) -> None:
    changed = load_recipe(str(recipe), [f"data.0.path={recipe.parent / 'text.json'}", "optim.max_steps=1"])
    assert (loop.train(changed, recipe.parent / "run") / "config.json").is_file()


def test_a_new_projector_is_told(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(recipe), "optim.max_steps=1", "--work-dir", str(recipe.parent / "run")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "projector: new, of random weights (model.projector_from is not set)" in said
    assert "warning: the language model learns beside it" in said
    again = ["train", str(recipe), "optim.max_steps=1", f"model.projector_from={recipe.parent / 'run'}"]
    assert cli.main([*again, "--work-dir", str(recipe.parent / "run2")]) == 0
    assert "projector: new" not in capsys.readouterr().err


def test_recipe_check_tells_it_too(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = check(recipe, capsys=capsys)
    assert code == 0 and "projector: new" in out and "warning: the language model learns beside it" in out
    code, out = check(recipe, "llm: full -> llm: frozen", capsys=capsys)
    assert "projector: new" in out and "warning" not in out, "the first stage begins so"
    code, out = check(recipe, "projector: full -> projector: frozen", capsys=capsys)
    assert "it is frozen as well (tune.projector)" in out


def test_a_batch_larger_than_the_data(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "24 rows make 1 step of 24, not of batch.global_batch=128: an epoch is one step; set batch.global_batch=3 "
    code, out = check(recipe, "global_batch: 6 -> global_batch: 128", capsys=capsys)
    assert code == 0 and said in out
    arguments: list[Any] = ["train", recipe, "batch.global_batch=128", "--work-dir", recipe.parent / "run"]
    assert cli.main([str(word) for word in arguments]) == 0
    assert said in " ".join(capsys.readouterr().err.split())
    code, out = check(recipe, capsys=capsys)
    assert "make 1 step" not in out
