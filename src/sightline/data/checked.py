"""What a check of data found, as plain values, and its figures: what terminal, page and JSON are drawn from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline.data.verdict import KINDS, Finding
from sightline.errors import UserError
from sightline.files import whole_file
from sightline.page.numbers import counted
from sightline.types import ImageRef

Paint = Literal["role", "text", "image", "target"]
"""What a piece of a shown conversation is."""


@dataclass(frozen=True, slots=True)
class Found:
    """A finding and its row."""

    file: str
    row: int
    """Counted from 1."""
    finding: Finding

    @property
    def origin(self) -> str:
        return f"{self.file}: row {self.row}"


@dataclass(frozen=True, slots=True)
class SetFacts:
    """One data set of several."""

    name: str
    rows: int
    """All rows that were looked at, bad ones included."""
    bad: int
    used: int
    """The samples of an epoch: usable rows, repeated or drawn as the recipe says."""
    images: int
    """Of the samples of an epoch, as are tokens and targets."""
    tokens: int
    """0 without a tokenizer."""
    targets: int


@dataclass(frozen=True, slots=True)
class LongRow:
    """One of the longest rows."""

    origin: str
    tokens: int
    targets: int
    images: int


@dataclass(frozen=True, slots=True)
class GoodRow:
    """A usable row to look at."""

    origin: str
    images: tuple[ImageRef, ...]
    pieces: tuple[tuple[str, Paint], ...]
    """The conversation as the model sees it, cut where the paint changes."""
    tokens: int
    targets: int


def _none() -> np.ndarray:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Checked:
    """All that a check found."""

    title: str
    """The recipe, file or folder that was checked."""
    sets: tuple[SetFacts, ...]
    found: tuple[Found, ...]
    settings: dict[str, str] = field(default_factory=dict)
    """What the rows were checked against: tokenizer, template, max_length."""
    tokens: np.ndarray = field(default_factory=_none)
    """int64 [N] of each usable row; empty without a tokenizer, as are the targets."""
    targets: np.ndarray = field(default_factory=_none)
    images: np.ndarray = field(default_factory=_none)
    """int64 [N]: images of each usable row."""
    sizes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    """int64 [M, 2]: width and height of each image, upright."""
    longest: tuple[LongRow, ...] = ()
    sample: tuple[GoodRow, ...] = ()

    @property
    def bad(self) -> tuple[Found, ...]:
        return tuple(found for found in self.found if found.finding.bad)

    @property
    def bad_rows(self) -> int:
        """How many rows cannot be used; one of them may have several findings."""
        return sum(one.bad for one in self.sets)


def complaint(checked: Checked) -> str:
    """The bad rows in one line, which names the first; an empty string for none."""
    if not checked.bad:
        return ""
    first = checked.bad[0]
    others = checked.bad_rows - 1
    more = f" (and {counted(others, 'more bad row')})" if others > 0 else ""
    return f"{first.origin}: {first.finding.reason}{more}"


def by_kind(found: Sequence[Found]) -> dict[str, list[Found]]:
    """Findings under their kinds, in the order of KINDS."""
    groups: dict[str, list[Found]] = {kind: [] for kind in KINDS}
    for one in found:
        groups[one.finding.kind].append(one)
    return {kind: ones for kind, ones in groups.items() if ones}


def histogram(values: np.ndarray, most: int = 24) -> list[tuple[int, int]]:
    """At most `most` equal bins, `(upper end, count)`: the first begins at 0, the last holds the largest value."""
    if not len(values):
        return []
    width = -(-(int(values.max()) + 1) // most)
    counts = np.bincount(values // width)
    return [((number + 1) * width - 1, int(count)) for number, count in enumerate(counts)]


def common_sizes(sizes: np.ndarray, most: int = 8) -> list[tuple[str, int]]:
    """The most frequent sizes of images, such as ("640 x 480", 1200)."""
    counted = Counter(map(tuple, sizes.tolist())).most_common(most)
    return [(f"{width} x {height}", count) for (width, height), count in counted]


def spread(values: np.ndarray) -> dict[str, int]:
    """The shape of a distribution in a few numbers; empty for no values."""
    if not len(values):
        return {}
    shares = {"median": 50, "p95": 95, "p99": 99}
    points = np.percentile(values, list(shares.values()), method="higher").astype(int).tolist()
    middle = dict(zip(shares, points, strict=True))
    return {"smallest": int(values.min()), **middle, "largest": int(values.max())}


def numbers(checked: Checked) -> dict[str, Any]:
    """All figures as plain JSON data."""
    keys = ("rows", "bad", "used", "images", "tokens", "targets")
    return {
        "settings": checked.settings,
        **{key: sum(getattr(one, key) for one in checked.sets) for key in keys},
        "sets": [{"name": one.name, **{key: getattr(one, key) for key in keys}} for one in checked.sets],
        "tokens_per_row": spread(checked.tokens),
        "targets_per_row": spread(checked.targets),
        "images_per_row": spread(checked.images),
        "image_width": spread(checked.sizes[:, 0]),
        "image_height": spread(checked.sizes[:, 1]),
        "findings": {kind: len(ones) for kind, ones in by_kind(checked.found).items()},
        "longest": [{"row": one.origin, "tokens": one.tokens, "targets": one.targets} for one in checked.longest],
    }


_KEYS = ("file", "row", "bad", "kind", "reason", "remedy")
"""Of a line of findings."""


def refuse_foreign_findings(path: Path) -> None:
    """Raise UserError where there is something at a path that `write_findings` has not written."""
    try:
        with path.open("rb") as file:
            line = file.readline(1_000_000)
        ours = not line or tuple(json.loads(line)) == _KEYS
    except FileNotFoundError:
        ours = not path.is_symlink()
    except (ValueError, TypeError, RecursionError):
        ours = False
    except OSError as error:
        raise UserError(f"cannot write the findings {path} ({error.strerror})") from error
    if not ours:
        raise UserError(f"{path} is there already and no list of findings; remove it or choose another name")


def write_findings(found: Sequence[Found], path: Path) -> Path:
    """All findings, a JSON object a line.

    Raises UserError when they cannot be written, or would replace what is no such list.
    """
    refuse_foreign_findings(path)
    try:
        with whole_file(path, replace=True) as file:
            for one in found:
                kind = KINDS[one.finding.kind]
                values = (one.file, one.row, kind.bad, one.finding.kind, one.finding.reason, kind.remedy)
                record = dict(zip(_KEYS, values, strict=True))
                file.write((json.dumps(record, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(f"cannot write the findings {path} ({error.strerror})") from error
    return path
