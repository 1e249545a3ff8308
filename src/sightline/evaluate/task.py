"""The values between a data file, a model's answers and the numbers that come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from sightline.types import Message

_Z = 1.959964
"""The normal distribution has 95 % of its mass within this many standard deviations."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked, and what it should say."""

    id: str
    messages: tuple[Message, ...]
    truth: str | None
    """None where the file keeps the answers to itself (test splits)."""
    category: str = "all"
    origin: str = ""
    """Where it comes from, for error messages: "file.json: row 1342"."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with the model's answer."""

    question: Question
    answer: str

    @property
    def right(self) -> bool:
        """Exactly the truth, but for blanks around it."""
        return self.question.truth is not None and self.answer.strip() == self.question.truth.strip()


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many."""

    right: int
    total: int
    independent: int | None = None
    """Trials that count for the uncertainty where some of the total repeat each other; None: all of them."""

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else 0.0

    @property
    def half_width(self) -> float:
        """Half of the 95 % confidence interval (Wilson's, so that 0 % and 100 % have one too)."""
        trials = self.total if self.independent is None else self.independent
        if not trials:
            return 1.0
        spread = self.value * (1 - self.value) / trials + _Z**2 / (4 * trials**2)
        return _Z * sqrt(spread) / (1 + _Z**2 / trials)


@dataclass(frozen=True, slots=True)
class Score:
    """What a benchmark found."""

    name: str
    overall: Share
    table: Mapping[str, Share]
    """The same by category."""
    parsed: float = 1.0
    """Share of the answers that could be understood at all; the others count as wrong."""
    vanilla: Share | None = None
    """Multiple choice: each row by itself, where `overall` wants all rows of a circle right."""

    @property
    def value(self) -> float:
        return self.overall.value

    @property
    def half_width(self) -> float:
        return self.overall.half_width
