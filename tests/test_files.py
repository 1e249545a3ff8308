"""Files and folders are whole or not there, of one process alone, and in the place of nobody else's."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from runs import contents, half_written

from sightline import files
from sightline.errors import CheckpointError
from sightline.files import appearing, give_name, hold, is_own, open_own, sweep, whole_file, write_whole

posix = pytest.mark.skipif(sys.platform == "win32", reason="no locks there")

WAITS = """
import sys, pathlib
from sightline.files import appearing, hold, whole_file
path = pathlib.Path(sys.argv[1])
with {block} as it:
    {inside}
    print("inside", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def beside(block: str, inside: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, inside of a block, until a line is written to it."""
    command = [sys.executable, "-c", WAITS.format(block=block, inside=inside), str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "inside\n"
        yield process


@pytest.fixture(params=["unnamed", "named", "no way from /proc", "no hard links"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What systems and disks offer."""
    if request.param in ("named", "no hard links"):
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    if request.param == "no way from /proc":
        monkeypatch.setattr(files, "_link", lambda file, path: False)
    if request.param == "no hard links":

        def link(*_: Any, **__: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("way")
def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path) as file:
        file.write(b"all")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), whole_file(path, replace=True) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"file": b"all"}
    write_whole(path, "a new one \ud800", replace=True)
    assert contents(tmp_path) == {"file": b"a new one \\ud800"}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("what", ["file", "folder", "link", "link to nowhere"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_has_the_name_stays(tmp_path: Path, what: str, when: str) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_bytes(b"theirs")

    def appear() -> None:
        if what == "file":
            path.write_bytes(b"theirs")
        elif what == "folder":
            path.mkdir()
        else:
            path.symlink_to(other if what == "link" else "nowhere")

    if when == "before":
        appear()
    with pytest.raises(FileExistsError) as error, whole_file(path) as file:
        file.write(b"ours")
        appear()
    assert error.value.filename == str(path)
    assert b"ours" not in contents(tmp_path).values() and {entry.name for entry in tmp_path.iterdir()} == {
        "file",
        "other",
    }


@pytest.mark.usefixtures("way")
def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "file").symlink_to("theirs")
    write_whole(tmp_path / "file", b"ours", replace=True)
    assert contents(tmp_path) == {"theirs": b"theirs", "file": b"ours"} and not (tmp_path / "file").is_symlink()


@pytest.mark.usefixtures("way")
@posix
def test_others_may_read_it_as_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="files without a name are Linux's")
def test_a_kill_leaves_no_file(tmp_path: Path) -> None:
    with beside("whole_file(path)", "it.write(b'half'); it.flush()", tmp_path / "file") as process:
        assert list(tmp_path.iterdir()) == []
        process.kill()
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_given_once(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        give_name(tmp_path / "a", tmp_path / "b")
    give_name(tmp_path / "a", tmp_path / "c")
    assert contents(tmp_path) == {"b": b"b", "c": b"a"}


@pytest.mark.parametrize("mode", ["wb", "ab", "r+b"])
def test_a_work_file_is_not_followed_where_it_is_a_link(tmp_path: Path, mode: str) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "file.part").symlink_to("theirs")
    with pytest.raises(OSError, match="it is a link, which is not followed"):
        open_own(tmp_path / "file.part", mode)
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_a_folder_is_ours_by_what_was_written_while_it_was_empty(tmp_path: Path) -> None:
    mark = ("mark.txt", "ours\n")
    assert is_own(tmp_path / "new", *mark) and is_own(tmp_path / "new", *mark)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").touch()
    assert not is_own(tmp_path / "theirs", *mark)
    (tmp_path / "theirs" / "mark.txt").symlink_to(tmp_path / "new" / "mark.txt")
    assert not is_own(tmp_path / "theirs", *mark)


@posix
def test_one_process_holds_and_a_kill_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with beside("hold(path)", "pass", path) as process:
        with pytest.raises(BlockingIOError):
            hold(path)
        process.kill()
        process.wait()
        with hold(path), pytest.raises(BlockingIOError):
            hold(path)  # nor twice in one process
    with hold(path):
        pass


FORKS = """
import os, pathlib, sys, time
from sightline.files import hold
it = hold(pathlib.Path(sys.argv[1]))
if not os.fork():
    print(os.getpid(), flush=True)
time.sleep(30)
"""


@posix
def test_what_is_forked_does_not_hold(tmp_path: Path) -> None:
    """A data worker may outlive the process that was killed."""
    command = [sys.executable, "-c", FORKS, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with pytest.raises(BlockingIOError):
                hold(tmp_path / "lock")
            process.kill()
            process.wait()
            with hold(tmp_path / "lock"):
                os.kill(child, 0)  # which is still there
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_lock_that_was_put_away_is_none(tmp_path: Path) -> None:
    held = hold(tmp_path / "log")
    (tmp_path / "log").rename(tmp_path / "log.1")
    with held, hold(tmp_path / "log") as mine:
        assert os.path.samestat(os.fstat(mine.fileno()), (tmp_path / "log").stat())


@pytest.mark.parametrize("what", ["full folder", "file", "link", "empty folder"])
def test_a_folder_takes_no_name_that_has_appeared(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "out"

    def write() -> None:
        with appearing(folder, needs=0) as new:
            (new / "ours").write_text("ours")
            if what == "file":
                folder.write_text("theirs")
            elif what == "link":
                folder.symlink_to("nowhere")
            else:
                folder.mkdir()
            if what == "full folder":
                (folder / "theirs").write_text("theirs")

    if what == "empty folder":  # in which nothing can be lost
        write()
        assert contents(tmp_path) == {"out/ours": b"ours"}
        return
    with pytest.raises(CheckpointError, match=r"^\S+/out has appeared meanwhile and stays as it is; name another"):
        write()
    assert b"ours" not in contents(tmp_path).values() and [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert folder.is_symlink() or b"theirs" in contents(tmp_path).values()


@posix
def test_two_writers_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with beside("appearing(path, needs=0)", "(it / 'first').write_text('first')", out) as process:
        with appearing(out, needs=0) as new:
            (new / "second").write_text("second")
            sweep(tmp_path, "*")
            assert len(list(tmp_path.glob(".out.*.partial"))) == 2, "one is another process's, one is ours"
        _, said = process.communicate("\n")
        assert process.returncode == 1 and "out has appeared meanwhile" in said.splitlines()[-1]
    assert contents(tmp_path) == {"out/second": b"second"}


@posix
def test_only_what_is_proven_ours_and_dead_is_swept(tmp_path: Path) -> None:
    left = half_written(tmp_path / "out")
    assert (left / "new" / "out" / "rubbish").is_file()
    mark = json.loads((left / "mark.json").read_text())
    alike = (".out.partial", ".out.0123456789abcdef.partial", ".out.fedcba9876543210.partial", ".other.x.partial")
    for name in alike:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    (tmp_path / alike[2] / "mark.json").write_text(json.dumps(mark))  # a copy: it names another folder
    (tmp_path / alike[3] / "mark.json").symlink_to(left / "mark.json")
    (tmp_path / ".link.partial").symlink_to(left)
    other = half_written(tmp_path / "else")
    with appearing(tmp_path / "out", needs=0) as new:
        (new / "file").touch()
    there = {*alike, ".link.partial", other.name, "out"}
    assert {entry.name for entry in tmp_path.iterdir()} == there
    sweep(tmp_path, "e*")
    assert {entry.name for entry in tmp_path.iterdir()} == there - {other.name}


KILLED_BETWEEN = """
import os, signal, sys, pathlib
from sightline import files

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

files._take_name = die
with files.appearing(pathlib.Path(sys.argv[1]), needs=0, replace=True) as new:
    (new / "file").write_text("new")
"""


@posix
def test_a_kill_between_the_old_and_the_new_loses_neither(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "file").write_text("old")
    died = subprocess.run([sys.executable, "-c", KILLED_BETWEEN, str(folder)], check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL and not folder.exists()
    sweep(tmp_path, "checkpoint-*")
    assert contents(tmp_path) == {"checkpoint-2/file": b"old"}
