"""The fuzzer itself: it calls wrong what is wrong, and half a minute of it finds nothing here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forms import passed_over
from judge import run, verdict

from sightline.data import formats

HERE = Path(__file__).parent


def fail() -> tuple[int, str]:
    raise ValueError("planted")


def hang() -> tuple[int, str]:
    time.sleep(600)
    return 0, ""


def grow() -> tuple[int, str]:
    return len(bytearray(40_000_000_000)) % 2, ""


def start() -> tuple[int, str]:
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return 0, ""


def paint() -> tuple[int, str]:
    print("error: \x1b[2J")
    return 2, ""


def say_much() -> tuple[int, str]:
    print("error: " + "x" * 5000)
    return 2, ""


@pytest.mark.parametrize(
    ("work", "found"),
    [
        (lambda: (0, ""), None),
        (lambda: print("error: this file is damaged") or (2, ""), None),
        (fail, "traceback: ValueError: planted"),
        (hang, "hang: "),
        (grow, "memory: MemoryError"),
        (start, "foreign program: subprocess.Popen"),
        (paint, "control character '\\x1b'"),
        (say_much, "an error of 5007 characters"),
        (lambda: (2, ""), "exit code 2 without an error"),
        (lambda: (1, ""), "exit code 1"),
        (lambda: (0, "text-1"), "lost: text-1"),
    ],
)
def test_what_must_not_happen_is_found(work: Callable[[], tuple[int, str]], found: str | None, tmp_path: Path) -> None:
    said = verdict(run(work, tmp_path / "output", seconds=2 if work is hang else 60))
    assert said == found if found is None else said is not None and said.startswith(found)


def test_a_text_under_a_key_that_is_not_told_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [{"user": "text-0-q", "assistant": "text-0-a", "source": "text-0-s", "thought": "text-0-t"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"texts": turns, "note": {"deep": ["text-1-n"]}}))
    assert passed_over(tmp_path / "rows.jsonl") == ""
    monkeypatch.setattr(formats, "told", lambda *_: ())
    lost = "text-0-t under texts > thought; text-1-n under note > deep"
    assert passed_over(tmp_path / "rows.jsonl") == lost


def test_half_a_minute_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "fuzz.py"), "--minutes", "0.5", "--seed", "1", "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    inputs = re.search(r"^(\d+) inputs, 0 failures of 0 kinds, seed 1$", done.stdout, re.MULTILINE)
    assert inputs is not None and int(inputs[1]) >= 10
