"""Rows as they come -> files that outlive a kill, and in the end one LLaVA file in the order of the pictures' names.

data.json                 written when every picture has been asked about
data.json.partial.jsonl   during the work: a row a line, usable as it is
data.json.log.jsonl       stays: what was asked, what each picture cost, which have no row and why
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sightline.data.sources import Row, open_rows
from sightline.errors import DataError, UserError
from sightline.files import give_name, hold, open_own, whole_file

Settings = dict[str, Any]
"""What the rows of one file have in common."""


@dataclass
class Journal:
    """The files of one output and what they hold; one process writes them at a time."""

    out: Path
    settings: Settings | None
    """Those that its rows were made with."""
    rows: list[Row]
    was_there: bool
    """Whether the rows of an output are among these."""
    spent: Counter[str]
    """What all replies have cost, those of earlier starts included."""
    _log: IO[bytes]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def done(self) -> set[str]:
        """The pictures that have a row."""
        return {row["image"] for row in self.rows}

    def begin(self, settings: Settings) -> None:
        """Note what the next rows are made with."""
        if settings != self.settings:
            self.settings = settings
            _append(self._log, {"settings": settings})

    def add(self, name: str, row: Row | None, spent: Counter[str], failed: str | None) -> None:
        """Keep what became of a picture: first what it cost, then its row. From any thread."""
        with self._lock:
            self.spent += spent
            _append(self._log, {"image": name, "spent": dict(spent)} | ({"failed": failed} if failed else {}))
            if row is not None:
                with _writing(partial_of(self.out)), open_own(partial_of(self.out), "ab") as file:
                    _append(file, row)
                self.rows.append(row)

    def finish(self) -> None:
        """Write the output and let go of the partial file."""
        with _writing(self.out):
            # What was there when the journal was opened is in the rows; what has appeared since is not ours.
            with whole_file(self.out, replace=self.was_there) as file:
                for number, row in enumerate(sorted(self.rows, key=lambda row: row["image"])):
                    file.write((b",\n" if number else b"[\n") + _to_json(row))
                file.write(b"\n]\n")
                file.flush()
                os.fsync(file.fileno())
            partial_of(self.out).unlink(missing_ok=True)


def partial_of(out: Path) -> Path:
    return out.with_name(out.name + ".partial.jsonl")


def log_of(out: Path) -> Path:
    return out.with_name(out.name + ".log.jsonl")


@contextmanager
def open_journal(out: Path, *, again: bool) -> Iterator[Journal]:
    """What is there of an output, ready to be gone on with; `again`: put it aside under another name, begin anew.

    Raises UserError where the output is not this command's, damaged, or being written by another process.
    """
    if not again and not log_of(out).exists() and (out.exists() or partial_of(out).exists()):
        raise UserError(f"{out} was not written by `data synthesize`; choose another --out (or put it aside: --again)")
    log = _locked(out)
    try:
        if again:
            _put_aside(out)
            log.close()
            log = _locked(out)
        _check_log(out, log)
        _mend(log_of(out))
        settings, spent = _read_log(log_of(out))
        if partial_of(out).exists():
            _mend(partial_of(out))
        yield Journal(out, settings, _read_rows(out), out.exists(), spent, log)
    finally:
        log.close()


def _locked(out: Path) -> IO[bytes]:
    """The log, opened to be added to; held by this process until it ends, however it ends."""
    with _writing(log_of(out)):
        try:
            return hold(log_of(out))
        except BlockingIOError:
            words = f"{out} is being written by another process; wait for it, or choose another --out"
            raise UserError(words) from None


def _check_log(out: Path, log: IO[bytes]) -> None:
    """Before anything is mended in it: is this a log of ours?"""
    log.seek(0)
    line = log.readline()
    try:
        ours = not line.endswith(b"\n") or not {"settings", "image"}.isdisjoint(dict(json.loads(line)))
    except (ValueError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise UserError(f"{log_of(out)} was not written by `data synthesize`; choose another --out")


def _put_aside(out: Path) -> None:
    files = [path for path in (out, partial_of(out), log_of(out)) if path.exists() and path.stat().st_size]
    number = 1
    while any(os.path.lexists(path.with_name(f"{path.name}.{number}")) for path in files):
        number += 1
    for path in files:
        with _writing(path):
            give_name(path, path.with_name(f"{path.name}.{number}"))


def _mend(path: Path) -> None:
    """Cut off a last line that a kill has broken off; its picture is asked about once more."""
    with _writing(path), open_own(path, "r+b") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        if start == len(content):
            return
        try:
            json.loads(content[start:])
        except ValueError:
            file.truncate(start)
        else:
            file.write(b"\n")


def _read_log(path: Path) -> tuple[Settings | None, Counter[str]]:
    settings, spent = None, Counter[str]()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            event = json.loads(line)
            if "settings" in event:
                settings = dict(event["settings"])
            spent.update(event.get("spent", {}))
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path}: line {number} is damaged ({error}); repair it, or begin anew: --again") from None
    return settings, spent


def _read_rows(out: Path) -> list[Row]:
    rows: list[Row] = []
    for path in (out, partial_of(out)):
        if not path.exists() or not path.stat().st_size:
            continue
        # A kill between the two last steps of finish() leaves the same rows in both files.
        known = {row["image"] for row in rows}
        found = open_rows(path)
        for number, row in enumerate(found):
            if not isinstance(row.get("image"), str):
                raise DataError(f"{found.origin(number)} names no picture; it was not written by `data synthesize`")
            if row["image"] not in known:
                rows.append(row)
    return rows


def _append(file: IO[bytes], value: Mapping[str, Any]) -> None:
    with _writing(Path(file.name)):
        file.write(_to_json(value) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _to_json(value: Mapping[str, Any]) -> bytes:
    # Half a character (a surrogate), which UTF-8 cannot hold, stays the escape that it was.
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); nothing written before is lost") from error
