"""A file of rows appears whole under its name, or not at all, and takes no other's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.data.writers import to_json, writing
from sightline.errors import DataError, UserError

KINDS = ("array", "lines", "parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_among_the_folders_of_the_output(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("no folder")
    out = tmp_path / "file" / "out"
    with pytest.raises(UserError) as error, writing(out, kind):
        pass
    assert str(error.value).startswith(f"cannot write {out} (")


@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_leaves_nothing(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "out", kind):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_two_processes_that_write_the_same_file_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="has appeared meanwhile"), writing(out, "lines") as late:
        late.write({"of": "the late one"})
        monkeypatch.setattr("os.getpid", lambda: 1)  # the other process
        with writing(out, "lines") as early:
            early.write({"of": "the early one"})
    assert out.read_text() == '{"of": "the early one"}\n'
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


KILLED = """
import os, pathlib, signal, sys
from sightline.data.writers import writing
with writing(pathlib.Path(sys.argv[1]), sys.argv[2]) as writer:
    writer.write({"id": "1", "messages": [], "images": [], "extra_json": None})
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="files without a name are Linux's")
def test_a_kill_leaves_nothing(tmp_path: Path) -> None:
    for kind in KINDS:
        died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out"), kind], check=False, timeout=60)
        assert died.returncode == -signal.SIGKILL and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [float("inf"), -float("inf"), float("nan")])
def test_a_number_that_json_does_not_have(number: float) -> None:
    """`1e999` in a row is read as infinity, which no other program would read back."""
    for row in ({"id": 1, "score": number}, {"id": 1, "score": {"a": [number]}}):
        with pytest.raises(DataError, match=r"^'score' cannot be written as JSON \(.*\); --drop score leaves it out$"):
            to_json(row)
