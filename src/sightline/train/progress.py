"""The record of a step -> the line that people read: smoothed, short, as wide as their terminal."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.text import Text


class Smooth:
    """What people see of loss and speed: the recent past, without the first step's warm-up. Never written to a file."""

    def __init__(self, window: int = 50) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=window)
        self._count = 0
        self._mean = self._weight = 0.0
        self.loss = math.nan

    def add(self, loss: float, tokens: int, seconds: float) -> None:
        if self._count == 1:
            self._recent.clear()
        self._count += 1
        self._recent.append((tokens, seconds))
        self.loss = loss
        if math.isfinite(loss):  # a loss that is no number is shown as it is and spoils no mean
            self._mean, self._weight = 0.95 * self._mean + 0.05 * loss, 0.95 * self._weight + 0.05
            self.loss = self._mean / self._weight

    @property
    def tokens_per_second(self) -> float:
        return sum(tokens for tokens, _ in self._recent) / max(sum(seconds for _, seconds in self._recent), 1e-9)


def pieces(record: Mapping[str, Any], smooth: Smooth, num_steps: int) -> dict[str, str]:
    """The parts of a progress line in the order in which they are shown."""
    rates = dict.fromkeys(f"{value:.1e}" for value in record["lr"].values())  # equal ones once, order kept
    shown = {
        "step": f"step {record['step']}/{num_steps}",
        "loss": f"loss {smooth.loss:.4f}",
        "lr": f"lr {'/'.join(rates)}",
        "speed": f"{short(smooth.tokens_per_second)} tokens/s",
    }
    if record["fill"] is not None:
        shown["fill"] = f"fill {record['fill']:.0%}"
    if record["memory_gb"] is not None:
        shown["memory"] = f"{record['memory_gb']:.1f} GB"
    return shown | {"left": f"{duration(record['eta_seconds'])} left"}


def progress_line(record: Mapping[str, Any], smooth: Smooth, num_steps: int, width: int) -> Text:
    """One line of at most `width` columns; in a narrow terminal the less important parts are left out."""
    shown = pieces(record, smooth, num_steps)
    for piece in ("memory", "fill", "lr", "speed", "left"):
        if len("  ".join(shown.values())) > width:
            shown.pop(piece, None)
    room = min(width - len("  ".join(shown.values())) - 2, 24)
    line = Text(shown.pop("step"), no_wrap=True, overflow="ellipsis")
    if room >= 8:
        full = round(room * min(record["step"] / num_steps, 1.0))
        line.append("  ").append("━" * full, style="green").append("━" * (room - full), style="bright_black")
    for name, piece in shown.items():
        line.append("  ").append(piece, style="bold" if name == "loss" else "")
    return line


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
