"""Numbers -> what people look at: files that are either whole or not there, and a table on the terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sightline.errors import UserError
from sightline.evaluate.task import Score, Share
from sightline.files import whole_file
from sightline.terminal import printable

_LONGEST_CELL = 32_767
"""Characters that a cell of a spreadsheet holds (Excel's limit)."""

_CUT = " [cut: a cell holds no more]"
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def to_json(value: Any, indent: int | None = None) -> bytes:
    """A value as JSON in UTF-8; half characters (surrogates), which UTF-8 cannot hold, as escapes."""
    return json.dumps(value, indent=indent, ensure_ascii=False, default=str).encode(errors="backslashreplace") + b"\n"


def save_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    _save(path, lambda file: file.write(to_json(value, indent=2)))


def score_json(score: Score) -> dict[str, Any]:
    """The values by name, `Average` first, and under `details` how sure they are and out of how many questions."""
    kept = ("Average", "details", "answers")
    by_category = {f"{name} (category)" if name in kept else name: share for name, share in score.table.items()}
    shares = {"Average": score.overall, **by_category}
    details = {
        "half_width_95": {name: share.half_width for name, share in shares.items()},
        "questions": {name: share.total for name, share in shares.items()},
    }
    return {**{name: share.value for name, share in shares.items()}, "details": details}


def save_xlsx(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
    """Write a table as a spreadsheet; texts stay texts, even those that look like a formula or a number.

    Characters that the format cannot hold are written as \\xNN or \\uNNNN; texts that a cell has no room
    for are cut, and say so.
    """
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")

    def cell(value: str | int) -> Any:
        if isinstance(value, int):
            return value
        text = _NOT_IN_XML.sub(lambda found: ascii(found[0])[1:-1], value)
        if len(text) > _LONGEST_CELL:
            text = text[: _LONGEST_CELL - len(_CUT)] + _CUT
        made = WriteOnlyCell(sheet, text)
        made.data_type = "s"
        return made

    sheet.append([cell(name) for name in columns])
    for row in rows:
        sheet.append([cell(value) if value != "" else None for value in row])
    _save(path, book.save)


def show(score: Score, title: str) -> None:
    """Print a score as a table, in per cent, each with half of its 95 % confidence interval."""
    table = Table()
    for name in ("Category", "Accuracy (%)", "± (95 %)", "Questions"):
        table.add_column(name, justify="left" if name == "Category" else "right")

    def add(name: str, share: Share) -> None:
        table.add_row(
            Text(printable(name)), f"{share.value * 100:.1f}", f"{share.half_width * 100:.1f}", str(share.total)
        )

    add("Average", score.overall)
    if score.vanilla is not None and score.vanilla.total != score.overall.total:
        add("each row by itself", score.vanilla)
    table.add_section()
    for name, share in score.table.items():
        add(name, share)
    console = Console(highlight=False)
    # Not the table's own title, which would break long paths into pieces.
    console.print(Text(printable(title), "bold"), soft_wrap=True)
    console.print(table)


def _save(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Into a folder of the run's own."""
    try:
        with whole_file(path, replace=True) as file:
            write(file)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); make room or choose another --work-dir") from error
