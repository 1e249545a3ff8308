"""What `log-dataset` prints: into a pipe with marks, on a terminal with colours, and only what was asked for."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
from tiny import write_recipe

from sightline.errors import DataError, ModelError, UserError
from sightline.train.log_dataset import arguments, run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("log"))


def printed(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    parser = argparse.ArgumentParser()
    arguments(parser)
    run(parser.parse_intermixed_args([str(argument) for argument in argv]))
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_a_pipe_shows_the_targets_between_marks(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, recipe, "-n", 1).splitlines()
    row = json.loads((recipe.parent / "world" / "data.json").read_text())[0]
    answer = row["conversations"][1]["value"]
    # vicuna: the system prompt, the picture as 16 tokens (56 px in patches of 14), the question, the answer.
    assert lines[0].startswith(f"{recipe.parent}/world/data.json: row 1 (id '0'): ")
    assert lines[0].endswith(" targets, 1 images")
    assert lines[1].startswith("<s>A chat between a curious user") and lines[1].endswith("USER: <image> x 16 tokens")
    assert lines[2] == f"What colour is this square? ASSISTANT:⟦ {answer}</s>⟧"
    assert lines[3:] == [""]


def test_the_first_conversations_of_each_file(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, recipe).count("⟦") == 3
    assert printed(capsys, recipe, "-n", 6).count("⟦") == 7  # the sixth has two turns
    assert printed(capsys, recipe, "-n", 10, "data.0.head=2").count("tokens, ") == 2
    assert printed(capsys, recipe, "-n", 0) == ""
    two = json.dumps(
        [{"path": str(recipe.parent / "world/data.json"), "images": str(recipe.parent / "world/images")}] * 2
    )
    assert printed(capsys, recipe, "-n", 1, f"data={two}").count("row 1 ") == 2


def test_overrides_change_what_is_seen(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, recipe, "--cfg-options", "model.template=plain", "--show", "text", "-n", "1")
    assert "<s><image> x 16 tokens⟦It is a " in text and "USER" not in text


def test_numbers_and_targets_alone(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = printed(capsys, recipe, "--show", "masked_text", "-n", 6).splitlines()
    assert sum(line.startswith("⟦ ") and line.endswith("</s>⟧") for line in targets) == 7
    ids = printed(capsys, recipe, "--show", "input_ids", "-n", 1).splitlines()[1]
    labels = printed(capsys, recipe, "--show", "labels", "-n", 1).splitlines()[1]
    assert ids.startswith("input_ids: 1 ") and "*16 " in ids
    assert labels.startswith("labels: -100*") and labels.endswith(" 2")
    assert ids.endswith(labels.split("*")[1].split(" ", 1)[1])
    everything = printed(capsys, recipe, "--show", "all", "-n", 1)
    assert ids in everything and labels in everything and everything.count("⟦") == 2


def test_a_terminal_has_colours(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = printed(capsys, recipe, "-n", 1)
    assert "\x1b[1;32m It is a " in text and "⟦" not in text
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(capsys, recipe, "-n", 1)
    assert "ASSISTANT:" in text and "⟦ It is a " in text and "\x1b[1;32m" not in text


def test_bad_rows_stop_or_are_passed_over(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads((recipe.parent / "world" / "data.json").read_text())
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"id": "bad"}, *rows]))
    with pytest.raises(DataError) as error:
        printed(capsys, recipe, f"data.0.path={path}")
    assert str(error.value) == f"{path}: row 1: no 'conversations' in the row (it has: 'id')"
    text = printed(capsys, recipe, f"data.0.path={path}", "data.0.on_bad_row=skip", "-n", 2)
    assert "row 2 (id '0')" in text and "row 3 (id '1')" in text and "row 1 " not in text


def test_a_length_that_the_model_does_not_have(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"^batch\.max_length 513: .* has positions for 512 tokens only"):
        printed(capsys, recipe, "batch.max_length=513")


def test_a_recipe_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError):
        printed(capsys, "no/such/recipe.yaml")


def test_nothing_that_a_row_holds_steers_the_terminal(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"from": "human", "value": "What\x1b[31m?"}, {"from": "gpt", "value": "A\nline\u202e."}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "\x1b[2J", "conversations": turns}]))
    data = f"data.0.path={tmp_path / 'data.json'}"
    text = printed(capsys, recipe, data, "--show", "all")
    assert "(id '\\x1b[2J')" in text and "What\\x1b[31m? ASSISTANT:⟦ A\nline\\u202e.</s>⟧\n" in text
    assert text.count("⟦ A\nline\\u202e.</s>⟧\n") == 2
    assert all(char.isprintable() for char in text.replace("\n", ""))
