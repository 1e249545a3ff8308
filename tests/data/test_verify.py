"""Rows against the pictures on a disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.cli import main
from sightline.data.layouts import known_entries
from sightline.data.verify import match_pictures


def test_names_that_no_disk_knows_are_missing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    names = ["a.jpg", "a\0b.jpg", "x\0y/c.jpg", "\ud800/d.jpg"]
    (tmp_path / "rows.json").write_text(json.dumps([{"image": name} for name in names]))
    found = match_pictures(str(tmp_path / "rows.json"), str(tmp_path))
    assert (found.rows, found.pictures, found.missing) == (4, 4, tuple(sorted(names[1:])))


def test_no_name_steers_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = known_entries("llava_pretrain_558k", str(tmp_path))
    Path(file.path).parent.mkdir(parents=True)
    Path(file.path).write_text(json.dumps([{"image": "\x1b[2J/a\u202e.jpg"}]))
    assert main(["data", "verify", "llava_pretrain_558k", "--root", str(tmp_path)]) == 2
    assert r"/\x1b[2J, such as \x1b[2J/a\u202e.jpg" in capsys.readouterr().out
