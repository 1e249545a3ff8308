"""Numbers -> what people look at: files that are either whole or not there, and a table on the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sightline.errors import UserError
from sightline.evaluate.task import Score, Share

_LONGEST_CELL = 32_767
"""Characters that a cell of a spreadsheet holds (Excel's limit)."""


def save_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    _save(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_xlsx(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
    """Write a table as a spreadsheet; texts stay texts, even those that look like a formula or a number.

    Control characters, which the format cannot hold, are written as \\xNN.
    """
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")

    def cell(value: str | int) -> Any:
        if isinstance(value, int):
            return value
        text = ILLEGAL_CHARACTERS_RE.sub(lambda found: f"\\x{ord(found[0]):02x}", value)
        made = WriteOnlyCell(sheet, text[:_LONGEST_CELL])
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
        table.add_row(name, f"{share.value * 100:.1f}", f"{share.half_width * 100:.1f}", str(share.total))

    add("Average", score.overall)
    if score.vanilla is not None and score.vanilla.total != score.overall.total:
        add("each row by itself", score.vanilla)
    table.add_section()
    for name, share in score.table.items():
        add(name, share)
    console = Console(highlight=False)
    # Not the table's own title, which would break long paths into pieces.
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(table)


def _save(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path} ({error.strerror}); make room or choose another --work-dir") from error
