"""A multiple-choice TSV as MMBench publishes it -> checked rows; cells stay the strings that they are."""

from __future__ import annotations

import base64
import binascii
import csv
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sightline.errors import DataError, shown
from sightline.types import IMAGE, ImageRef

Cells = dict[str, str]
CIRCLE = 1_000_000
"""Rows whose indices agree modulo this ask the same question with its options in another order."""

_MOST_DIGITS = 15
"""Of an index: spreadsheets keep no more, and no image is so short, which tells an index in its place from one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One row: a question about an image, with options of which one is right."""

    number: int
    """Place in the file, counted from 1 without the line of names."""
    index: int
    question: str
    hint: str
    options: Mapping[str, str]
    """Letter -> text; only those that the row has."""
    image: bytes
    answer: str | None
    """A letter of the options; None where the file has no answers."""
    category: str | None = None
    l2_category: str | None = None
    """None where the file has no such column."""
    split: str | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    number: int
    reason: str


def read_choices(path: str | Path) -> tuple[list[Choice], list[BadRow]]:
    """All rows of a TSV: those that can be asked, and those that cannot.

    A cell `None`, `NA` or `nan` is that text; an option whose cell is empty does not exist. Raises DataError where the
    file itself is at fault: missing, empty, no TSV, without a column that is needed, an index twice.
    """
    path = Path(path)
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path}: the file holds no rows")
    missing = [name for name in ("index", "image", "question", "A") if name not in rows[0]]
    if missing:
        there = _named(rows[0])
        raise DataError(f"{path}: no column {', '.join(map(repr, missing))} (there are: {there})")
    by_index = _by_index(path, rows)
    has_answers = any(row.get("answer") for row in rows)
    images: dict[int, bytes] = {}
    good, bad = [], []
    for number, row in enumerate(rows, 1):
        try:
            good.append(_choice(number, row, by_index, images, has_answers))
        except DataError as error:
            bad.append(BadRow(number, str(error)))
    return good, bad


def refuse(path: str | Path, bad: list[BadRow]) -> None:
    """Raise a DataError that names the bad rows, if there are any."""
    if bad:
        others = ", ".join(str(row.number) for row in bad[1:11]) + (", ..." if len(bad) > 11 else "")
        more = f" (also rows that cannot be used: {others})" if len(bad) > 1 else ""
        first = f"{path}: row {bad[0].number}: {bad[0].reason}"
        raise DataError(f"{first}{more}; mend the file, or leave bad rows out with --skip-bad-rows")


def _rows(path: Path) -> Iterator[Cells]:
    if not path.is_file():
        raise DataError(f"data file {path} is missing" if not path.exists() else f"data file {path} is not a file")
    # Images are cells of megabytes; the largest limit that a C long holds on every system.
    csv.field_size_limit(2**31 - 1)
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t", strict=True)
            names = next((cells for cells in reader if cells), None)
            if names is None:
                raise DataError(f"{path}: the file is empty")
            if len(set(names)) < len(names):
                raise DataError(f"{path}: a column name comes twice: {_named(names)}")
            for cells in reader:
                if not cells:
                    continue
                number += 1
                if len(cells) != len(names):
                    found = f"{len(cells)} cells, but {len(names)} columns"
                    raise DataError(f"{path}: row {number}: {found}; is the file tab-separated?")
                yield dict(zip(names, cells, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: after row {number}: the file is not UTF-8 ({error.reason}); save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{path}: row {number + 1}: broken quotes ({error}): a cell that begins with a quotation mark ends with "
            f"one, and those inside are doubled; mend it, or copy the file again if it was cut off"
        ) from error


def _by_index(path: Path, rows: list[Cells]) -> dict[int, Cells]:
    by_index: dict[int, Cells] = {}
    first: dict[int, int] = {}
    for number, row in enumerate(rows, 1):
        if not _is_index(row["index"]):
            wanted = f"a whole number of at most {_MOST_DIGITS} digits"
            raise DataError(f"{path}: row {number}: the index {shown(row['index'][:40])} is not {wanted}")
        index = int(row["index"])
        if index in by_index:
            raise DataError(f"{path}: row {number}: the index {index} is already that of row {first[index]}")
        by_index[index], first[index] = row, number
    return by_index


def _choice(
    number: int, row: Cells, by_index: Mapping[int, Cells], images: dict[int, bytes], has_answers: bool
) -> Choice:
    options = {letter: row[letter] for letter in string.ascii_uppercase if row.get(letter, "").strip()}
    answer = row.get("answer") or None
    if not row["question"].strip():
        raise DataError("the question is empty")
    if len(options) < 2:
        raise DataError(f"there is {'only option ' + next(iter(options)) if options else 'no option'}; two are needed")
    if has_answers and answer is None:
        raise DataError("the answer is empty, while other rows have one")
    if answer is not None and answer not in options:
        raise DataError(f"the answer {shown(answer[:40])} is not among the options {', '.join(options)}")
    for text in (row["question"], row.get("hint", ""), *options.values()):
        if IMAGE in text:
            raise DataError(f"the text holds {IMAGE}, which stands for an image")
    return Choice(
        number=number,
        index=int(row["index"]),
        question=row["question"],
        hint=row.get("hint", ""),
        options=options,
        image=_image(int(row["index"]), by_index, images),
        answer=answer,
        category=row.get("category"),
        l2_category=row.get("l2-category"),
        split=row.get("split"),
    )


def _image(index: int, by_index: Mapping[int, Cells], images: dict[int, bytes]) -> bytes:
    """The image of a row, by way of the rows that its cell refers to; each image is decoded and kept once."""
    from sightline.prompt.images import check_image

    way = [index]
    while _is_index(cell := by_index[index]["image"]):
        index = int(cell)
        if index not in by_index:
            raise DataError(f"the image refers to index {index}, which no row has")
        if index in way:
            raise DataError(f"the image refers to itself: {' -> '.join(map(str, [*way, index]))}")
        way.append(index)
    if index not in images:
        if not cell:
            raise DataError("the image is empty")
        try:
            data = base64.b64decode("".join(cell.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"the image is neither base64 nor the index of a row ({error})") from error
        check_image(ImageRef(data))
        images[index] = data
    return images[index]


def _named(columns: Iterable[str]) -> str:
    """Short, because in a file without a line of names they are the first row, image and all."""
    return ", ".join(repr(name[:40]) for name in columns)


def _is_index(cell: str) -> bool:
    return cell.isascii() and cell.isdecimal() and len(cell) <= _MOST_DIGITS
