"""A file of rows -> rows by number, parsed when asked for; of a JSON file it holds their places, not their contents."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sightline.data.mistakes import check_lines, foreign, line_of, mistake, not_utf8
from sightline.data.stored import key_of, read_array, write_array
from sightline.errors import DataError

Row = dict[str, Any]

_BOM = b"\xef\xbb\xbf"
_WHITE = re.compile(r"[ \t\r\n]*")
_INK = re.compile(rb"[^ \t\r\n]")
_WINDOW = 16 * 1024 * 1024
"""Bytes of an array that are decoded at a time; more where a single row is longer."""
_BETWEEN = "Expecting ',' delimiter"
"""What the parser of JSON would say between two rows of an array, which are read one by one."""
_PLACES, _PROBE = 64, 16 * 1024


class Rows(Protocol):
    """The rows of one data file, whatever its format; travels to other processes without its contents."""

    @property
    def path(self) -> Path: ...

    @property
    def fingerprint(self) -> str:
        """Changes when the file may have changed."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Row:
        """Read a row; raises DataError, beginning with its origin, where it is no object."""

    def __iter__(self) -> Iterator[Row]: ...

    def origin(self, number: int) -> str:
        """How messages call a row; rows are counted from 1."""


@dataclass(frozen=True)
class JsonRows:
    """The rows of a JSON array or a JSON Lines file."""

    path: Path
    spans: np.ndarray
    """int64 [N, 2]: first byte and the byte after the last, of each row."""
    content: mmap.mmap | bytes
    fingerprint: str
    stored: Path | None = None
    """Where `spans` lies, if anywhere: other processes map it instead of getting a copy."""

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> Row:
        start, end = self.spans[number].tolist()
        try:
            row = json.loads(self.content[start:end].decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.origin(number)}: {_why(self.content, error, start, end)}", "broken_json") from None
        if not isinstance(row, dict):
            raise DataError(f"{self.origin(number)}: expected an object {{...}}, found {type(row).__name__}", "form")
        return row

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    def origin(self, number: int) -> str:
        return f"{self.path}: row {number + 1}"

    def __reduce__(self) -> tuple[Any, ...]:
        spans = self.spans if self.stored is None else None
        return _reopen, (self.path, spans, self.fingerprint, self.stored)


@dataclass(frozen=True)
class Tail:
    """The last rows of a file; messages call them by their places in it."""

    rows: Rows
    start: int

    def __len__(self) -> int:
        return len(self.rows) - self.start

    def __getitem__(self, number: int) -> Row:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.rows[self.start + number]

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    def origin(self, number: int) -> str:
        return self.rows.origin(self.start + number)

    @property
    def path(self) -> Path:
        return self.rows.path

    @property
    def fingerprint(self) -> str:
        return key_of(self.rows.fingerprint, self.start)


def open_rows(path: str | Path, cache: Path | None = None) -> Rows:
    """Find the rows of a `.json` (an array of objects) or `.jsonl` file (an object a line), or open a table.

    The places of the rows are kept in the folder `cache` and found again by the file's fingerprint. Raises DataError
    where the file is missing, empty, or an array that breaks off (with byte and row). A broken line of a `.jsonl` is
    that row's error: it is raised when the row is read.
    """
    from sightline.data.tables import is_table, open_table

    if is_table(path):
        return open_table(path)
    path = Path(path)
    if not path.is_file():
        raise DataError(f"data file {path} is missing" if not path.exists() else f"data file {path} is not a file")
    found = fingerprint_file(path)
    stored = cache / f"rows-{key_of(found, 'spans 1')}.npy" if cache is not None else None
    spans = read_array(stored)
    content = _map(path)
    if spans is None:
        spans = _find(path, content)
        if stored is not None and write_array(stored, spans):
            spans = read_array(stored)
        else:
            stored = None
    assert spans is not None
    return JsonRows(path, spans, content, found, stored)


def fingerprint_file(path: Path) -> str:
    """Size, time of the last change, and 64 pieces of 16 KiB spread over the file, as one short hash.

    Reading all of a file of many gigabytes at each start would cost minutes where it is not in memory. Every program
    that writes to a file sets its time; what goes unseen is a change of the same size whose time was set back and that
    touches none of the pieces. The reverse happens more often and costs only time: a copy is looked at anew.
    """
    facts = path.stat()
    digest = hashlib.blake2b(f"{facts.st_size} {facts.st_mtime_ns} ".encode(), digest_size=16)
    with path.open("rb") as file:
        for at in sorted({(facts.st_size - _PROBE) * place // (_PLACES - 1) for place in range(_PLACES)}):
            file.seek(max(0, at))
            digest.update(file.read(_PROBE))
    return digest.hexdigest()


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def _reopen(path: Path, spans: np.ndarray | None, fingerprint: str, stored: Path | None) -> JsonRows:
    if spans is None:
        assert stored is not None
        spans = np.load(stored, mmap_mode="r")
    return JsonRows(path, spans, _map(path), fingerprint, stored)


def _find(path: Path, content: mmap.mmap | bytes) -> np.ndarray:
    first = _INK.search(content, len(_BOM) if content[: len(_BOM)] == _BOM else 0)
    if first is None:
        raise DataError(f"{path}: the file is empty")
    if what := foreign(content):
        raise DataError(f"{path} is {what}", "broken_json")
    start = first.start()
    spans = _array(path, content, start + 1) if content[start : start + 1] == b"[" else _lines(path, content, start)
    if not spans:
        raise DataError(f"{path}: the file holds no rows")
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def _array(path: Path, content: mmap.mmap | bytes, byte: int) -> array[int]:
    """First and last byte of the elements of an array, found by the JSON scanner itself, a window at a time."""
    spans: array[int] = array("q")
    decode = json.JSONDecoder().raw_decode
    # `at` counts the characters of the window; `byte` is its place in the file, `limit` the end of the window there.
    text, at, limit, size = "", 0, byte, _WINDOW

    def bytes_to(to: int) -> int:
        return byte + (to - at if text.isascii() else len(text[at:to].encode()))

    def broken(reason: str, where: int) -> DataError:
        row, line = len(spans) // 2 + 1, line_of(content, where)
        return DataError(f"{path}: {reason} at line {line} (byte {where}), in row {row}", "broken_json")

    while True:
        # A row, and the mark behind it; what does not fit into the window is read again in one that begins with it.
        is_last = limit == len(content)
        first = _skip(text, at)
        end = mark = len(text)
        try:
            if text[first : first + 1] == "]" and not spans:
                mark = first
            elif first < len(text) or is_last:
                _, end = decode(text, first)
                mark = _skip(text, end)
        except json.JSONDecodeError as error:
            near_the_end = error.pos >= len(text) - 16 or error.msg.startswith("Unterminated string")
            if is_last or not near_the_end:
                where = bytes_to(min(error.pos, len(text)))
                what = mistake(content, where, error.msg, len(content))
                raise broken(f"broken JSON ({what})", where) from None
            mark = len(text)
        except (ValueError, RecursionError) as error:
            raise broken(f"JSON that cannot be read ({error})", bytes_to(first)) from None
        if mark == len(text) and not is_last:
            size = size * 2 if at == 0 and text else _WINDOW
            text, limit = _window(path, content, byte, min(byte + size, len(content)))
            at = 0
            continue
        if mark != first or text[mark : mark + 1] != "]":
            spans.append(bytes_to(first))
            spans.append(bytes_to(end))
        byte, at = bytes_to(mark), mark
        if text[mark : mark + 1] == "]":
            break
        if text[mark : mark + 1] != ",":
            found = text[mark : mark + 1]
            if not found:
                raise broken("the array breaks off, the file was cut off", byte)
            raise broken(f"broken JSON ({mistake(content, byte, _BETWEEN, len(content))})", byte)
        byte, at = byte + 1, at + 1
    behind = _INK.search(content, byte + 1)
    if behind is not None:
        raise broken("there is more text after the array", behind.start())
    return spans


def _window(path: Path, content: mmap.mmap | bytes, start: int, end: int) -> tuple[str, int]:
    """The text from `start` to `end`, or up to three bytes less where a character is cut; and where it ends."""
    data = content[start:end]
    try:
        return data.decode("utf-8"), end
    except UnicodeDecodeError as error:
        if end < len(content) and error.start > len(data) - 4 and error.end == len(data):
            return data[: error.start].decode("utf-8"), start + error.start
        where = start + error.start
        guess = not_utf8(data, error.start) or "; the file is damaged or was cut off"
        raise DataError(f"{path}: byte {where} is not UTF-8{guess}", "broken_json") from error


def _skip(text: str, at: int) -> int:
    found = _WHITE.match(text, at)
    assert found is not None
    return found.end()


def _lines(path: Path, content: mmap.mmap | bytes, start: int) -> array[int]:
    spans: array[int] = array("q")
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        line = content[start:end]
        if line.strip():
            if not spans:
                check_lines(path, content, start)
            spans.append(start)
            spans.append(end)
        start = end + 1
    return spans


def _why(content: mmap.mmap | bytes, error: Exception, start: int, end: int) -> str:
    """Why a row cannot be read, with its place in the file."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {start + error.start} is not UTF-8{not_utf8(error.object, error.start)}"
    if isinstance(error, json.JSONDecodeError):
        where = start + len(error.doc[: error.pos].encode())
        return f"broken JSON ({mistake(content, where, error.msg, end)}) at byte {where}"
    return f"JSON that cannot be read ({error}) at byte {start}"
