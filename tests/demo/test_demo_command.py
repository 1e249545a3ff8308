"""`sightline demo` as people call it: what cannot work is refused in one line, before anything is drawn."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sightline.demo import command, results
from sightline.evaluate.answers import AnswerRow
from sightline.types import Message


@pytest.mark.parametrize("seed", ["-1", "text", "1e3", "", str(2**64)])
def test_a_seed_out_of_bounds(tmp_path: Path, seed: str) -> None:
    words = ("demo", "--quick", "--work-dir", str(tmp_path / "new"), f"--seed={seed}")
    done = subprocess.run([sys.executable, "-m", "sightline", *words], capture_output=True, text=True)
    assert done.returncode == 2 and "is not a whole number from 0 to 2**64 - 1" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ("demo", "--quick", "--work-dir", str(tmp_path / "file"))
    done = subprocess.run([sys.executable, "-m", "sightline", *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "choose another --work-dir" in done.stderr


def test_a_reader_that_has_gone_stops_no_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    asked: list[Message] = []

    def reply(_: object, messages: list[Message], *__: object) -> list[str]:
        asked.append(messages[-1])
        return ["A red circle."]

    monkeypatch.setattr("sightline.model.generate.reply", reply)
    monkeypatch.setattr("sightline.data.sources.open_rows", lambda _: [{"image": "x.png"}])
    monkeypatch.setattr(sys, "stdout", Gone())
    command._chat(None, _World(tmp_path), tmp_path)  # type: ignore[arg-type]
    assert len(asked) == 3


class _World:
    def __init__(self, folder: Path) -> None:
        self.images, self.heldout = folder, folder / "heldout.json"


def test_printed_commands_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    command._step("a step", "sightline", "train", "--work-dir", Path("my runs/demo"))
    assert capsys.readouterr().err.splitlines()[-1] == "$ sightline train --work-dir 'my runs/demo'"


@pytest.mark.parametrize("number", [0, 1, 13, 14, 96, 432])
def test_samples_are_of_every_kind(number: int) -> None:
    answers = [AnswerRow(str(at), str(at * 9 // number), (), "?", "a", "a", True) for at in range(number)]
    samples = results._samples(answers)
    assert len(samples) == min(number, 14)
    assert {sample.note for sample in samples} == {row.category for row in answers}
    assert all(sample.right for sample in samples)
    assert np.all(np.diff([int(sample.note) for sample in samples]) >= 0)
