"""Rows -> a JSON array, JSON Lines or Parquet file, which appears under its name when it is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from sightline.data.sources import Row
from sightline.errors import DataError, MissingExtra, UserError, short, shown
from sightline.files import whole_file

if TYPE_CHECKING:
    import pyarrow as pa

_LINE_ENDS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}
"""Programs that split a text into lines take these for ends of lines; as escapes they are the same JSON."""
_GROUP_ROWS, _GROUP_BYTES = 1000, 16 * 1024 * 1024
"""A row group of a Parquet file ends with the first of these: what a reader decodes to get at one row."""


class Writer(Protocol):
    def write(self, row: Row) -> None: ...


@contextmanager
def writing(path: Path, kind: str) -> Iterator[Writer]:
    """A writer of `array`, `lines` or `parquet`; the file is there, whole, when the block ends without an error.

    Raises UserError where the file is there already or cannot be written.
    """
    refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            if kind == "parquet":
                with _parquet(file) as writer:
                    yield writer
            else:
                yield (lines := _Lines(file, is_array=kind == "array"))
                lines.end()
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        if error.filename != str(path):
            raise UserError(f"cannot write {path} ({error.strerror})") from error
        raise UserError(f"{path} has appeared meanwhile; remove it or choose another name") from error
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error})") from error


def refuse_existing(path: Path) -> None:
    """Raises UserError where there is something of that name, which would be written over."""
    if os.path.lexists(path):
        raise UserError(f"{path} is there already; remove it or choose another name")


def to_json(row: Row) -> bytes:
    """A row on one line. Raises DataError naming the key that JSON cannot hold."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        for key, value in row.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{shown(key)} cannot be written as JSON ({error}); --drop {short(key)} leaves it out"
                ) from None
        raise
    try:
        return text.translate(_LINE_ENDS).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 has no bytes for, but an escape in JSON has
        return json.dumps(row).encode()


class _Lines:
    def __init__(self, file: IO[bytes], is_array: bool) -> None:
        self._file, self._is_array, self._rows = file, is_array, 0

    def write(self, row: Row) -> None:
        before = b"" if not self._is_array else b",\n" if self._rows else b"[\n"
        self._file.write(before + to_json(row) + (b"" if self._is_array else b"\n"))
        self._rows += 1

    def end(self) -> None:
        if self._is_array:
            self._file.write(b"\n]\n" if self._rows else b"[]\n")


@contextmanager
def _parquet(out: IO[bytes]) -> Iterator[Writer]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "data", "writing Parquet files") from error
    text = {"dtype": "string", "_type": "Value"}
    features = {
        "id": text,
        "messages": [{"role": text, "content": text}],
        "images": [{"_type": "Image"}],
        "extra_json": text,
    }
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
            ("extra_json", pa.string()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    with pq.ParquetWriter(out, schema) as file:
        groups = _Groups(file, schema)
        yield groups
        groups.flush()


class _Groups:
    def __init__(self, file: Any, schema: pa.Schema) -> None:
        self._file, self._schema = file, schema
        self._rows: list[Row] = []
        self._bytes = 0

    def write(self, row: Row) -> None:
        import pyarrow as pa

        try:
            pa.Table.from_pylist([row], schema=self._schema)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
            raise DataError(f"the row cannot be written to a Parquet file ({' '.join(str(error).split())})") from None
        self._rows.append(row)
        self._bytes += sum(len(image["bytes"] or b"") for image in row["images"])
        if len(self._rows) == _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._bytes = [], 0
