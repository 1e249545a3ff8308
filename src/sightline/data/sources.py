"""A JSON array or JSON Lines file -> rows by number, parsed when asked for."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline.errors import DataError

Row = dict[str, Any]

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Rows:
    """The rows of one file; holds their places, not their contents."""

    path: Path
    spans: np.ndarray
    """int64 [N, 2]: first byte and the byte after the last, of each row."""
    content: mmap.mmap | bytes

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> Row:
        start, end = self.spans[number]
        row = json.loads(self.content[start:end])
        if not isinstance(row, dict):
            raise DataError(f"{self.origin(number)}: expected an object {{...}}, found {type(row).__name__}")
        return row

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    def origin(self, number: int) -> str:
        """How messages call a row; rows are counted from 1."""
        return f"{self.path}: row {number + 1}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.spans)


def open_rows(path: str | Path) -> Rows:
    """Find the rows of a `.json` (an array of objects) or `.jsonl` file (an object a line).

    Raises DataError naming the byte and the row where the file is missing, empty, broken off or no JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"data file {path} is missing" if not path.exists() else f"data file {path} is not a file")
    content = _map(path)
    start = _first(content)
    if start is None:
        raise DataError(f"{path}: the file is empty")
    spans = _array(path, content, start) if content[start : start + 1] == b"[" else _lines(path, content)
    if not spans:
        raise DataError(f"{path}: the file holds no rows")
    return Rows(path, np.array(spans, dtype=np.int64), content)


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def _reopen(path: Path, spans: np.ndarray) -> Rows:
    return Rows(path, spans, _map(path))


def _first(content: mmap.mmap | bytes) -> int | None:
    found = re.compile(rb"\S").search(content, len(_BOM) if content[: len(_BOM)] == _BOM else 0)
    return found.start() if found else None


def _array(path: Path, content: mmap.mmap | bytes, start: int) -> list[tuple[int, int]]:
    """The spans of the elements of an array, found by the JSON scanner itself."""
    try:
        text = str(content, "utf-8") if isinstance(content, bytes) else content[:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; the file is damaged or was cut off") from error
    ascii_only = len(text) == len(content)
    decode = json.JSONDecoder().raw_decode
    spans: list[tuple[int, int]] = []
    # `at` counts characters, `byte` counts bytes; they differ as soon as a character takes more than one byte.
    at = byte = 0

    def advance(to: int) -> int:
        nonlocal at, byte
        byte += to - at if ascii_only else len(text[at:to].encode())
        at = to
        return byte

    def broken(reason: str) -> DataError:
        return DataError(
            f"{path}: {reason} at byte {byte}, in row {len(spans) + 1}; the file is damaged or was cut off"
        )

    advance(text.index("[") + 1)
    while True:
        advance(_skip(text, at))
        if text[at : at + 1] == "]" and not spans:
            break
        try:
            _, end = decode(text, at)
        except json.JSONDecodeError as error:
            advance(min(error.pos, len(text)))
            raise broken(f"broken JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:
            raise broken(f"JSON that cannot be read ({error})") from None
        first = byte
        spans.append((first, advance(end)))
        advance(_skip(text, at))
        mark = text[at : at + 1]
        if mark == "]":
            break
        if mark != ",":
            raise broken("the array breaks off" if not mark else f"expected ',' or ']', found {mark!r}")
        advance(at + 1)
    advance(at + 1)
    advance(_skip(text, at))
    if at < len(text):
        raise broken("there is more text after the array")
    return spans


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def _lines(path: Path, content: mmap.mmap | bytes) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        line = content[start:end]
        if line.strip():
            try:
                json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: byte {start + error.start} is not UTF-8, in row {len(spans) + 1}") from None
            except json.JSONDecodeError as error:
                if not spans:
                    _refuse_object(path, content)
                byte = start + len(error.doc[: error.pos].encode()) + len(_BOM) * line.startswith(_BOM)
                raise DataError(f"{path}: broken JSON ({error.msg}) at byte {byte}, in row {len(spans) + 1}") from None
            except (ValueError, RecursionError) as error:
                where = f"at byte {start}, in row {len(spans) + 1}"
                raise DataError(f"{path}: JSON that cannot be read ({error}) {where}") from None
            spans.append((start, end))
        start = end + 1
    return spans


def _refuse_object(path: Path, content: mmap.mmap | bytes) -> None:
    try:
        whole = json.loads(content[:])
    except ValueError:
        return
    keys = ", ".join(map(repr, whole))
    raise DataError(f"{path}: the file is one object (with {keys}); expected an array of rows, or one object a line")
