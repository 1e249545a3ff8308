"""Encoded prompts and what people wrote -> what a terminal shows of it: painted, folded, without control characters."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

MARKS = ("⟦", "⟧")
"""Around the targets, where there are no colours."""

GREEN = "bold green"
"""How `Prompter.explain` paints targets."""


def marks_for(console: Console) -> tuple[str, str]:
    """What stands around targets on this terminal: nothing where it has colours."""
    return MARKS if console.color_system is None or console.no_color else ("", "")


def folded(numbers: np.ndarray) -> str:
    """Numbers in a row, those that are repeated more than twice written once: 1 319 -100*576 2."""
    runs = [(number, len(list(same))) for number, same in groupby(numbers.tolist())]
    return " ".join(f"{number}*{times}" if times > 2 else " ".join([str(number)] * times) for number, times in runs)


def printable(text: str) -> str:
    """The text on one line, control characters as escapes: nothing that a row holds can steer the terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
