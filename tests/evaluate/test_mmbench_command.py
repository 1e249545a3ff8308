"""The command `sightline mmbench`: its flags, what it refuses, what it leaves out and says so; the model is a fake."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_model import FakeModel

from sightline.errors import DataError, UserError
from sightline.evaluate import choice
from sightline.evaluate.choice import evaluate_choices

Tsv = Callable[..., Path]


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    choice.arguments(parser)
    return parser.parse_args(list(words))


def test_the_command_passes_its_flags_on(
    model: FakeModel, tsv: Tsv, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tsv({}, {"answer": "B"})
    choice.run(
        parse(
            "folder/model",
            "--data-path",
            str(path),
            "--work-dir",
            str(tmp_path / "out"),
            "--prompt-template",
            "vicuna",
            "--torch-dtype",
            "fp16",
            "--bits",
            "4",
            "--batch-size",
            "3",
            "--stop-words",
            "</s>",
            "###",
            "--max-new-tokens",
            "7",
            "--seed",
            "1",
        )
    )
    (loaded,) = model.loaded
    assert loaded == {"path": "folder/model", "device": "auto", "dtype": "fp16", "template": "vicuna", "bits": 4}
    (call,) = model.calls
    assert (call["batch_size"], call["max_new_tokens"], call["stop"]) == (3, 7, ["</s>", "###"])
    out = capsys.readouterr().out
    assert "MMBench (" in out and "50.0" in out and "100.0% of 2 answers name an option" in out


def test_a_test_split_is_written_for_submission(
    model: FakeModel, tsv: Tsv, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tsv({}, {}, without=("answer",))
    choice.run(parse("m", "--data-path", str(path), "--work-dir", str(tmp_path / "out")))
    (folder,) = (tmp_path / "out").iterdir()
    assert (folder / "mmbench_result.xlsx").exists() and not (folder / "mmbench_result.json").exists()
    assert "for submission" in capsys.readouterr().out
    with pytest.raises(DataError, match="has no answers to score with"):
        evaluate_choices(model.vlm, path, tmp_path / "out", model_name="m")


def test_bad_rows_stop_the_command_before_the_model_is_loaded(
    model: FakeModel, tsv: Tsv, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("m", "--data-path", str(tsv({}, {"answer": "C"})), "--work-dir", str(tmp_path / "out"))
    with pytest.raises(DataError, match="row 2: the answer 'C' is not among the options A, B"):
        choice.run(parse(*words))
    assert model.loaded == []
    choice.run(parse(*words, "--skip-bad-rows"))
    (folder,) = (tmp_path / "out").iterdir()
    assert json.loads((folder / "bad_rows.json").read_text()) == [
        {"row": 2, "reason": "the answer 'C' is not among the options A, B"},
    ]
    assert json.loads((folder / "mmbench_result.json").read_text())["details"]["rows_left_out"] == 1
    assert "1 row cannot be used and is left out" in capsys.readouterr().err


def test_questions_beyond_the_context_are_bad_rows(model: FakeModel, tsv: Tsv, tmp_path: Path) -> None:
    path = tsv({}, {"question": "word " * 200}, {"answer": "C"})
    model.limit = 150
    words = ("m", "--data-path", str(path), "--work-dir", str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"row 2: the question takes 2\d\d tokens and its answer up to 100"):
        evaluate_choices(model.vlm, tsv({}, {"question": "word " * 200}), tmp_path / "out", model_name="m")
    tsv({}, {"question": "word " * 200}, {"answer": "C"})
    choice.run(parse(*words, "--skip-bad-rows"))
    (folder,) = (tmp_path / "out").iterdir()
    assert [bad["row"] for bad in json.loads((folder / "bad_rows.json").read_text())] == [2, 3]
    assert len(model.asked) == 1
    tsv({"question": "word " * 200})
    with pytest.raises(DataError, match="row 1: the question takes"):
        choice.run(parse(*words, "--skip-bad-rows"))


def test_paths_are_no_markup(model: FakeModel, tsv: Tsv, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tsv({}).rename(tmp_path / "a[red]b[]]c.tsv")
    choice.run(parse("m", "--data-path", str(path), "--work-dir", str(tmp_path / "[bold]")))
    said = capsys.readouterr()
    assert str(path) in said.out and f"1 rows of {path}; results go to {tmp_path / '[bold]'}" in said.err


def test_a_file_of_bad_rows_alone_is_refused(model: FakeModel, tsv: Tsv) -> None:
    with pytest.raises(DataError, match="row 1: there is only option B"):
        choice.run(parse("m", "--data-path", str(tsv({"A": ""})), "--skip-bad-rows"))


def test_a_work_dir_that_cannot_be_made_is_named(model: FakeModel, tsv: Tsv, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make a folder for the results"):
        evaluate_choices(model.vlm, tsv({}), tmp_path / "file" / "out", model_name="m")
