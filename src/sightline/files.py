"""What this process writes -> files and folders that appear whole or not at all, and in the place of nobody else's.

A file has no name while it is written (where the system knows such files; else one that nobody can guess), and gets its
own at the end. A folder NAME grows in `.NAME.<random>.partial`, beside a mark that its writer holds locked: so what a
killed process has left is told from what another one is writing, and from what only looks alike.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from sightline.errors import CheckpointError

_MARK, _NEW, _OLD = "mark.json", "new", "old"
"""In a folder that is being written: who made it, what will take the name, and what had it until then."""

_held: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()


@contextmanager
def whole_file(path: Path, *, replace: bool = False) -> Iterator[IO[bytes]]:
    """A file to write to, which takes its name when the block ends without an error.

    Raises FileExistsError where something has that name, also where it has appeared meanwhile. `replace`: what was
    there goes; whoever says so knows that it is ours.
    """
    if not replace:
        refuse_existing(path)
    file, draft = _draft(path)
    try:
        with file:
            yield file
            file.flush()
            if draft is None:
                if not replace and _link(file, path):
                    return
                draft = _hidden(path, "tmp")
                if not _link(file, draft):
                    with open(draft, "xb") as copy:
                        file.seek(0)
                        shutil.copyfileobj(file, copy)
        if replace:
            os.replace(draft, path)
        else:
            give_name(draft, path)
    finally:
        if draft is not None:
            with suppress(OSError):
                draft.unlink()


def write_whole(path: Path, content: str | bytes, *, replace: bool = False) -> None:
    """The same for a text or bytes that are there at once; half characters (surrogates) of a text as escapes."""
    with whole_file(path, replace=replace) as file:
        file.write(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))


def refuse_existing(path: Path) -> None:
    """Raise FileExistsError where something has that name, be it a link to nowhere."""
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "it is there already", str(path))


def give_name(draft: Path, path: Path) -> None:
    """Rename a file to a name that is free; raises FileExistsError where it is not."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "it is there already", str(path)) from None
    except OSError:  # a disk without hard links, which leaves a moment between looking and renaming
        refuse_existing(path)
        draft.rename(path)
    else:
        draft.unlink()


def is_own(folder: Path, mark: str, text: str) -> bool:
    """Whether a folder is ours to fill and to clear: it holds a file that says so, written as long as it was empty."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / mark
    if not any(folder.iterdir()):
        with suppress(FileExistsError):  # by another process, just now
            write_whole(path, text)
    return path.is_file() and not path.is_symlink() and path.read_bytes() == text.encode()


def open_own(path: Path, mode: str) -> IO[bytes]:
    """Open a work file whose name is known, to go on with it; OSError where it is a link, which is not followed."""

    def opener(name: str, flags: int) -> int:
        try:
            return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(errno.ELOOP, "it is a link, which is not followed", name) from None
            raise

    file: IO[bytes] = open(path, mode, opener=opener)  # noqa: SIM115
    return file


def hold(path: Path) -> IO[bytes]:
    """Open a file to read it and to add to it, and lock it until it is closed, or this process ends in whatever way.

    Raises BlockingIOError where another process holds it. Processes that this one forks do not hold it.
    """
    while True:
        file = open_own(path, "a+b")
        try:
            _lock(file)
            there = os.path.lexists(path) and os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
        except BaseException:
            file.close()
            raise
        if there:
            _held.add(file)
            return file
        file.close()  # whoever held it has put it away meanwhile


@contextmanager
def appearing(folder: Path, *, needs: int, replace: bool = False) -> Iterator[Path]:
    """A folder to write to, which takes its name when all is written; `needs` bytes must be free.

    The name must be free then, or an empty folder's. `replace`: what was there before goes at the last moment; whoever
    says so knows that it is ours. Raises CheckpointError when there is no space, and when something has appeared.
    """
    if folder.is_dir():
        folder = folder.resolve()  # a link to another disk stays one, and that disk takes the files
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent, folder.name)
    free = shutil.disk_usage(folder.parent).free
    if free < needs:
        raise CheckpointError(f"no space left for {folder}: needs {needs / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")
    half = _hidden(folder, "partial")
    new = half / _NEW / folder.name
    half.mkdir()
    try:
        with hold(half / _MARK) as mark:
            # Only now: whoever finds the mark empty knows that its writer may not have locked it yet.
            mark.write(json.dumps({"made by": "sightline", "half of": folder.name, "as": half.name}).encode())
            mark.flush()
            new.mkdir(parents=True)
            yield new
            _let_read(new)
            if replace and folder.exists():
                folder.rename(half / _OLD)
            _take_name(new, folder)
    except BaseException as error:  # also Ctrl-C: half of a large model is not for the user to find
        _clear(half, folder)
        if _disk_is_full(error):
            raise CheckpointError(
                f"no space left while writing {folder}; free some and try again (a run goes on with --resume)"
            ) from error
        raise
    _clear(half, folder)


def sweep(parent: Path, pattern: str) -> None:
    """Remove what killed processes left of folders of these names that were to appear, and put back what they replaced.

    Nothing that this module has not made, and nothing that a living process is writing.
    """
    for half in parent.glob(".*.partial"):
        name = _half_of(half)
        if name is None or not fnmatchcase(name, pattern):
            continue
        with suppress(OSError), open_own(half / _MARK, "r+b") as mark:
            if _lock(mark):
                _clear(half, parent / name)


def _half_of(half: Path) -> str | None:
    """The name that a half-written folder was to take; None where it is not proven to be one."""
    try:
        with open_own(half / _MARK, "rb") as file:
            said = json.loads(file.read(10_000))
        return str(said["half of"]) if said["as"] == half.name and not half.is_symlink() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _clear(half: Path, folder: Path) -> None:
    """Remove a half-written folder; where it had not yet taken the place of the old one, that comes back."""
    old = half / _OLD
    if old.exists() and (half / _NEW / folder.name).exists():
        if os.path.lexists(folder):
            return  # something that is not ours has taken the place in between: nothing is lost, all of it stays
        old.rename(folder)
    shutil.rmtree(half, ignore_errors=True)


def _take_name(new: Path, folder: Path) -> None:
    try:
        new.rename(folder)  # to the system an empty folder is no obstacle; a full one, a file and a link are
    except OSError as error:
        if os.path.lexists(folder):
            raise CheckpointError(f"{folder} has appeared meanwhile and stays as it is; name another folder") from error
        raise


def _hidden(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.{ending}")


def _draft(path: Path) -> tuple[IO[bytes], Path | None]:
    """A new file beside `path`, and its name, where it has one: a process that is killed leaves none without."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with suppress(OSError):  # a file system that has none, or an error that the other way will show as well
            return os.fdopen(os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666), "w+b"), None
    draft = _hidden(path, "tmp")
    return open(draft, "x+b"), draft


def _link(file: IO[bytes], path: Path) -> bool:
    """Give a file without a name one that is free; False where that cannot be done."""
    try:
        # With a folder's number, for without one Python would link the link in /proc itself.
        os.link(f"/proc/self/fd/{file.fileno()}", path, src_dir_fd=file.fileno())
    except OSError:
        return False
    return True


def _lock(file: IO[bytes]) -> bool:
    """Whether this process has the file alone now, as far as the system tells; BlockingIOError where another has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
    return True


def _let_go() -> None:
    """In a forked process: what it has of the locks would outlive the process that took them."""
    for file in [file for file in _held if not file.closed]:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, file.fileno(), inheritable=False)
        os.close(nothing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _disk_is_full(error: BaseException | None) -> bool:
    """safetensors says so in words of its own, and torch behind an error of its own."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in ("No space left", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _let_read(folder: Path) -> None:
    """Give all files the rights of a new one: safetensors makes its for their owner alone."""
    new = folder / ".new"
    new.touch()
    rights = new.stat().st_mode
    new.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(rights)
