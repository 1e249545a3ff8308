"""Numbers and times -> a few characters for people."""

from __future__ import annotations

import math


def short(value: float, digits: int = 3) -> str:
    """A number in a few characters: 0.15, 2e-05, 12.3k, 7.1M."""
    if not math.isfinite(value):
        return f"{value:g}"
    value = float(f"{value:.{digits}g}")
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.12g}{letter}"
    return f"{value:.12g}"


def duration(seconds: float) -> str:
    """A time for people: 8 s, 3 min 12 s, 2 h 05 min, 1 d 03 h."""
    whole = max(round(seconds), 0)
    for unit, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // part:02d} {part_name}"
    return f"{whole} s"


def counted(number: int, what: str) -> str:
    """How many of something: 1 row, 1,234 rows."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
