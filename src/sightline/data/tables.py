"""Parquet files and folders of Hugging Face `datasets` -> rows by number, decoded when asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sightline.data.sources import Row, fingerprint_file
from sightline.data.stored import key_of
from sightline.data.unpack import PICTURES
from sightline.errors import DataError, MissingExtra

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 32
"""Rows of a Parquet file decoded at a time; with pictures inside, a few megabytes."""
_SPLIT = re.compile(r"(train|training|validation|valid|val|dev|test)(?=$|[-_.])")

_UNREADABLE = (
    *(OSError, ValueError, TypeError, ArithmeticError, LookupError, NotImplementedError, MemoryError),
    *(ImportError, StopIteration),
)
"""What pyarrow raises for damage, and for dates, zones and types of which it can make nothing in Python."""


@dataclass(frozen=True)
class Table:
    """The rows of one or more files of the same kind; holds their places, not their contents."""

    path: Path
    """The file, folder or pattern that was opened."""
    files: tuple[Path, ...]
    starts: np.ndarray
    """int64 [files + 1]: the number of each file's first row, then of all rows."""
    _open: dict[int, _File] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, number: int) -> Row:
        if not 0 <= number < len(self):
            raise IndexError(number)
        file, row = self._place(number)
        try:
            return without_nulls(self._file(file).row(row))
        except _UNREADABLE as error:
            raise DataError(f"{self.origin(number)}: cannot be read ({_line(error)})") from None

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    def origin(self, number: int) -> str:
        """How messages call a row: its file, and its place in that file, counted from 1."""
        file, row = self._place(number)
        return f"{self.files[file]}: row {row + 1}"

    @property
    def fingerprint(self) -> str:
        """Changes when a file may have changed."""
        return key_of(*(f"{path.name} {fingerprint_file(path)}" for path in self.files))

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self.path, self.files, self.starts)  # a worker opens the files itself

    def _place(self, number: int) -> tuple[int, int]:
        file = int(np.searchsorted(self.starts, number, side="right")) - 1
        return file, number - int(self.starts[file])

    def _file(self, number: int) -> _File:
        if number not in self._open:
            while len(self._open) >= 8:  # a data set may have hundreds
                self._open.pop(next(iter(self._open)))
            self._open[number] = _open_file(self.files[number])
        return self._open[number]


def is_table(path: str | Path) -> bool:
    """Whether a path is meant as a table: a .parquet or .arrow file, a folder, or a pattern (`train-*.parquet`)."""
    path = Path(path)
    return path.suffix in (".parquet", ".arrow") or path.is_dir()


def open_table(path: str | Path) -> Table:
    """Open a Parquet or Arrow file, a folder of them, a folder that `save_to_disk` wrote, or a pattern.

    Raises DataError where there is nothing of the kind, or where a folder has several splits; MissingExtra.
    """
    path = Path(path)
    files = _files(path)
    starts = [0]
    for file in files:
        try:
            starts.append(starts[-1] + _open_file(file).num_rows)
        except _UNREADABLE as error:
            raise DataError(f"{file} cannot be read ({_line(error)}); it is damaged or was cut off") from None
    if not starts[-1]:
        raise DataError(f"{path}: the table holds no rows")
    return Table(path, files, np.array(starts, dtype=np.int64))


def without_nulls(row: Row) -> Row:
    """The row without its empty columns: in a table, null is what an absent key is in JSON."""
    return {key: value for key, value in row.items() if value is not None}


def _files(path: Path) -> tuple[Path, ...]:
    if "*" in path.name or "?" in path.name:
        files = sorted(path.parent.glob(path.name))
        if not files:
            raise DataError(f"no file is called {path}")
        return tuple(files)
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise DataError(f"data file {path} is missing")
    if (path / "state.json").is_file():
        return _saved(path)
    if (path / "dataset_dict.json").is_file():
        splits = sorted(child for child in path.iterdir() if (child / "state.json").is_file())
        if len(splits) == 1:
            return _saved(splits[0])
        raise DataError(f"{path} has several splits; name one of {', '.join(map(str, splits)) or 'none'}")
    inside = _inside(path)
    for suffix in (".parquet", ".arrow"):
        files = [file for file in inside if file.suffix == suffix]
        if files:
            return _one_split(path, files, suffix)
    hint = ""
    if rows := [file for file in inside if file.suffix in (".json", ".jsonl")]:
        hint = f"; name a file of rows, such as {rows[0]}"
    elif any(file.suffix.lower() in PICTURES for file in inside):
        hint = "; it holds pictures: `sightline data synthesize` has a model write rows about them"
    raise DataError(
        f"the folder {path} holds no .parquet or .arrow files, and no data set that `save_to_disk` wrote{hint}"
    )


def _inside(folder: Path) -> list[Path]:
    """The files of a folder and of those inside it, in order, but for hidden ones and what `datasets` caches."""
    try:
        return sorted(file for file in folder.rglob("*.*") if not _is_hidden(file.relative_to(folder)))
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be looked through: {error}") from None


def _saved(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that `save_to_disk` wrote, in the order that its state tells."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder / 'state.json'} is not what `save_to_disk` writes") from None
    if state.get("_indices_files"):
        raise DataError(f"{folder}: its rows are chosen by an index file; save it again after `flatten_indices()`")
    files = tuple(folder / name for name in names)
    for file in files:
        if not file.is_file() or file.parent != folder:
            raise DataError(f"{file}, which {folder / 'state.json'} names, is missing")
    return files


def _one_split(path: Path, files: list[Path], suffix: str) -> tuple[Path, ...]:
    splits: dict[str, Path] = {}
    for file in files:
        for name in (file.name, *reversed(file.relative_to(path).parts[:-1])):
            if match := _SPLIT.match(name):
                splits.setdefault(match[1], file)
                break
    if len(splits) < 2:
        return tuple(files)
    ways = [
        str(file.parent if _SPLIT.match(file.name) is None else file.with_name(f"{name}*{suffix}"))
        for name, file in splits.items()
    ]
    raise DataError(f"{path} has the splits {', '.join(splits)}; name one: {' or '.join(ways)}")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts) or path.name.startswith("cache-")


def _open_file(path: Path) -> _File:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingExtra("pyarrow", "data", f"reading {path}") from error
    with path.open("rb") as file:
        head = file.read(6)
    if head[:4] == b"PAR1":
        return _ParquetFile(path)
    return _ArrowFile(path, is_stream=head != b"ARROW1")


class _File(Protocol):
    """One open file."""

    num_rows: int

    def row(self, number: int) -> Row: ...


class _ParquetFile:
    """Reads on from where it was; going back begins the row group again, for there is no way to a row inside of it."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
        meta = self._file.metadata
        self._groups = np.cumsum([0, *(meta.row_group(i).num_rows for i in range(meta.num_row_groups))])
        self.num_rows = int(self._groups[-1])
        self._group = -1
        self._from = 0
        self._batch: pa.RecordBatch | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def row(self, number: int) -> Row:
        group = int(np.searchsorted(self._groups, number, side="right")) - 1
        if group != self._group or number < self._from or self._batch is None:
            self._batches = self._file.iter_batches(_BATCH, row_groups=[group], use_threads=False)
            self._group, self._from, self._batch = group, int(self._groups[group]), next(self._batches)
        while number >= self._from + self._batch.num_rows:
            self._from += self._batch.num_rows
            self._batch = next(self._batches)
        return self._batch.slice(number - self._from, 1).to_pylist()[0]


class _ArrowFile:
    """Rows of a mapped file are found at once, and only they are read."""

    def __init__(self, path: Path, is_stream: bool) -> None:
        import pyarrow as pa

        mapped = pa.memory_map(str(path))
        if is_stream:
            self._batches = list(pa.ipc.open_stream(mapped))
        else:
            reader = pa.ipc.open_file(mapped)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.num_rows = int(self._starts[-1])

    def row(self, number: int) -> Row:
        batch = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._batches[batch].slice(number - int(self._starts[batch]), 1).to_pylist()[0]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
