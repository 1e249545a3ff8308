"""The folder of a demo: nothing in it is replaced that is not the demo's, and every refusal is one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.demo.folder import CLEARED, MADE, MARK, own_folder
from sightline.errors import UserError

HOLD = """
import sys
from pathlib import Path
from sightline.demo.folder import own_folder
with own_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_earlier_demos_left_is_cleared_and_what_they_learned_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with own_folder(folder):
        assert (folder / MARK).read_text() == MADE
        for name in (*CLEARED, "backbones"):
            (folder / name / "x").mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")
    with own_folder(folder):
        assert {path.name for path in folder.iterdir()} == {MARK, "backbones", "notes.txt"}
        assert (folder / "backbones" / "x").is_dir()


@pytest.mark.parametrize("mark", [None, '{"mine": 1}', "", b"\xff\x00", MADE + " and more"])
def test_a_foreign_folder_is_left_as_it_is(tmp_path: Path, mark: str | bytes | None) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "mine.txt").write_text("mine")
    if mark is not None:
        (tmp_path / MARK).write_bytes(mark.encode() if isinstance(mark, str) else mark)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="is not empty and not the demo's"), own_folder(tmp_path):
        raise AssertionError("entered")
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_first_demo_that_could_not_even_write_its_mark(tmp_path: Path) -> None:
    (tmp_path / MARK).touch()
    with own_folder(tmp_path):
        assert (tmp_path / MARK).read_text() == MADE


def test_what_cannot_be_a_folder_is_one_line(tmp_path: Path) -> None:
    file, dangling, loop = tmp_path / "file", tmp_path / "dangling", tmp_path / "loop"
    file.touch()
    dangling.symlink_to("nowhere")
    loop.symlink_to("loop")
    for folder in (file, file / "x", dangling, loop, tmp_path / ("x" * 300), Path("/proc/none")):
        refusal = f"^cannot write to the folder {re.escape(str(folder))} .* choose another --work-dir$"
        with pytest.raises(UserError, match=refusal), own_folder(folder):
            raise AssertionError("entered")


def test_a_link_to_a_folder_is_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    with own_folder(tmp_path / "link"):
        assert (tmp_path / "there" / MARK).is_file()


def test_what_a_link_in_it_points_to_is_not_removed(tmp_path: Path) -> None:
    folder, other = tmp_path / "demo", tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with own_folder(folder):
        (folder / "world").symlink_to(other)
    with pytest.raises(UserError, match=r"cannot remove .*world of an earlier demo"), own_folder(folder):
        raise AssertionError("entered")
    assert (other / "mine.txt").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / MARK).write_text(MADE)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        (tmp_path / "world").mkdir()
        with pytest.raises(UserError, match="another demo runs in"), own_folder(tmp_path):
            raise AssertionError("entered")
        assert (tmp_path / "world").is_dir()
        first.kill()
        first.wait()
        with own_folder(tmp_path):
            assert not (tmp_path / "world").exists(), "a killed demo holds nothing"


def test_an_error_of_the_demo_is_not_one_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="something else"), own_folder(tmp_path):
        raise FileNotFoundError(os.strerror(2), "something else")
