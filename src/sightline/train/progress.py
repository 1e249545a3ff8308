"""The record of a step -> the line that people read: smoothed, short, as wide as their terminal."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from sightline.page.numbers import duration, short


class Smooth:
    """What people see of loss, speed and waiting: the recent past without the first step's warm-up; never in a file."""

    def __init__(self, window: int = 50) -> None:
        self._recent: deque[tuple[int, float, float]] = deque(maxlen=window)
        self._count = 0
        self._mean = self._weight = 0.0
        self.loss = math.nan

    def add(self, loss: float, tokens: int, seconds: float, waited: float = 0.0) -> None:
        if self._count == 1:
            self._recent.clear()
        self._count += 1
        self._recent.append((tokens, seconds, waited))
        self.loss = loss
        if math.isfinite(loss):  # a loss that is no number is shown as it is and spoils no mean
            self._mean, self._weight = 0.95 * self._mean + 0.05 * loss, 0.95 * self._weight + 0.05
            self.loss = self._mean / self._weight

    @property
    def tokens_per_second(self) -> float:
        return sum(tokens for tokens, _, _ in self._recent) / self._seconds

    @property
    def data_share(self) -> float:
        """Of the time, the part in which the step waited for its data."""
        return min(sum(waited for _, _, waited in self._recent) / self._seconds, 1.0)

    @property
    def _seconds(self) -> float:
        return max(sum(seconds for _, seconds, _ in self._recent), 1e-9)


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
    if "mfu" in record:
        shown["mfu"] = f"mfu {record['mfu']:.0%}"
    shown["waiting"] = f"waiting {smooth.data_share:.0%}"
    if record["memory_gb"] is not None:
        shown["memory"] = f"{record['memory_gb']:.1f} GB"
    return shown | {"left": f"{duration(record['eta_seconds'])} left"}


def progress_line(record: Mapping[str, Any], smooth: Smooth, num_steps: int, width: int) -> Text:
    """One line of at most `width` columns; in a narrow terminal the less important parts are left out."""
    shown = pieces(record, smooth, num_steps)
    for piece in ("memory", "fill", "mfu", "waiting", "lr", "speed", "left"):
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
