"""Files of rows that cannot be read -> what they are instead, or which mistake is where, in words."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from typing import Any

from sightline.errors import DataError, listed, shown
from sightline.pointers import POINTER

Content = mmap.mmap | bytes

_LARGEST_OBJECT = 256 * 1024 * 1024
"""Only smaller files are parsed whole, to tell an object over many lines from broken lines."""
_CHUNK = 16 * 1024 * 1024
_FIRST_LINES = 5
_TURNS = {"conversations", "conversation", "messages", "texts", "query"}

_FOREIGN = {
    POINTER: "a pointer of git-lfs, not the data: `git lfs pull` brings them",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"PAR1": "a Parquet file; call it .parquet",
    b"<": "a page of the web or XML, not JSON: fetch the data again",
}
"""How a file begins -> what it is."""

_WORDS = {
    "Expecting property name enclosed in double quotes": "a key without double quotes",
    "Expecting ',' delimiter": "a comma is missing",
    "Expecting ':' delimiter": "a colon is missing",
    "Unterminated string starting at": "a text that does not end",
    "Expecting value": "what is no value of JSON",
    "Extra data": "more text behind the row",
}
_PYTHON = {b"None": "null", b"True": "true", b"False": "false"}


def foreign(content: Content) -> str | None:
    """What a file is that is no JSON at all, with what to do; None where it may be rows."""
    return next((what for begins, what in _FOREIGN.items() if content[: len(begins)] == begins), None)


def mistake(content: Content, where: int, message: str, end: int) -> str:
    """What is wrong with the JSON at a byte, in words; `message` is what Python's parser says, `end` the text's."""
    before, after = content[max(0, where - 4096) : where].rstrip(), content[where : min(where + 64, end)]
    if message.startswith("Illegal trailing comma") or (after[:1] in (b"}", b"]") and before.endswith(b",")):
        return "a comma too many"
    if after.startswith((b"//", b"/*", b"#")):
        return "a comment, which JSON has none of"
    if after.startswith(b"'"):
        return "single quotes, where JSON has double ones"
    if word := re.match(rb"None|True|False", after):
        return f"{word[0].decode()}, which JSON calls {_PYTHON[word[0]]}"
    if message.startswith("Invalid control character"):
        return "a line break inside of a text" if after[:1] in (b"\n", b"\r") else "a control character in a text"
    if not after.strip() and not message.startswith("Unterminated"):
        return "it breaks off"
    if message == "Extra data" and after.startswith(b","):
        return "a comma behind the row"
    return _WORDS.get(message, message)


def line_of(content: Content, where: int) -> int:
    """The line of a byte, counted from 1."""
    return 1 + sum(content[at : min(at + _CHUNK, where)].count(b"\n") for at in range(0, where, _CHUNK))


def not_utf8(data: bytes, at: int) -> str:
    """What to say of bytes that are no UTF-8 from `at` on: Chinese as other programs of Windows save it is told."""
    sample = data[: at + 64 * 1024]
    try:
        text = sample[: sample.rfind(b"\n") + 1 or None].decode("gb18030")
    except UnicodeDecodeError:
        return ""
    beyond = [char for char in text if not char.isascii()]
    chinese = sum("\u4e00" <= char <= "\u9fff" or "\u3000" <= char <= "\u303f" or char >= "\uff00" for char in beyond)
    is_likely = chinese > 0.9 * len(beyond) and re.search("[\u4e00-\u9fff]{2}", text)
    return " (GBK?); save it as UTF-8" if is_likely else ""


def check_lines(path: object, content: Content, start: int) -> None:
    """Raise a DataError where a file that is no array cannot be a row a line: it would be nothing but errors."""
    lines = list(_first_lines(content, start))
    other = DataError(f"{path}: no JSON rows: the file begins with {_beginning(lines[0])}", "broken_json")
    may_be_rows = any(line.startswith(b"{") for line in lines)
    try:
        first = lines[0].decode("utf-8")
    except UnicodeDecodeError as error:
        if guess := not_utf8(lines[0], error.start):
            raise DataError(f"{path}: byte {start + error.start} is not UTF-8{guess}", "broken_json") from None
        if not may_be_rows:
            raise other from None
        return
    row = _parsed(first)
    if isinstance(row, dict) and len(lines) == 1 and _looks_like_rows(row):
        raise one_object(path, row)
    if row is not None:
        return
    if not may_be_rows:
        raise other
    if len(lines) == 1 or isinstance(_parsed(lines[1].decode("utf-8", "replace")), dict):
        return  # a line that is broken, among others
    if len(content) <= _LARGEST_OBJECT:
        _check_whole(path, content, start, start + len(lines[0]))


def _check_whole(path: object, content: Content, start: int, first_line: int) -> None:
    """Raise a DataError where what begins in the first line goes on in the next ones."""
    try:
        text = content[start:].decode("utf-8")
        whole, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        where = start + len(text[: error.pos].encode())
        if where > first_line:
            what = mistake(content, where, error.msg, len(content))
            at = f"line {line_of(content, where)} (byte {where})"
            raise DataError(f"{path}: broken JSON ({what}) at {at}", "broken_json") from None
        return
    except (ValueError, RecursionError):
        return
    if text[end:].strip():
        raise DataError(
            f"{path}: objects over several lines, one behind the other; write an array of rows, or one object a line",
            "form",
        )
    if isinstance(whole, dict):
        raise one_object(path, whole)


def one_object(path: object, whole: dict[str, Any]) -> DataError:
    """The error for a file that is one object instead of rows."""
    keys = f"{len(whole):,} keys ({listed(whole, 3)})" if len(whole) > 3 else listed(whole) or "no keys"
    if _looks_like_rows(whole):
        return DataError(
            f"{path}: one object with {keys}, whose values look like rows; write them as an array, [{{...}}, ...]",
            "form",
        )
    return DataError(
        f"{path}: the file is one object (with {keys}); expected an array of rows, or one object a line", "form"
    )


def _looks_like_rows(whole: dict[str, Any]) -> bool:
    values = list(whole.values())
    if not values or not all(isinstance(value, dict) for value in values) or _TURNS & whole.keys():
        return False
    return len(values) > 3 or any(_TURNS & value.keys() for value in values)


def _first_lines(content: Content, start: int) -> Iterator[bytes]:
    found = 0
    while start < len(content) and found < _FIRST_LINES:
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        if line := content[start:end].rstrip():
            found += 1
            yield line
        start = end + 1


def _beginning(line: bytes) -> str:
    return shown(line[:40].decode("utf-8", "replace"))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
