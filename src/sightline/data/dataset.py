"""An index -> the samples of an epoch, encoded when asked for; rows that cannot be used stop the run or are listed."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rich.console import Console

from sightline.data.index import Cache, Index, open_index
from sightline.data.inspect import Source
from sightline.data.verdict import KINDS
from sightline.errors import DataError
from sightline.page.numbers import counted
from sightline.prompt.prompter import Prompter
from sightline.recipe import DataRecipe
from sightline.runtime import rank, say
from sightline.types import Conversation, Encoded


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    origin: str
    kind: str
    """A key of KINDS."""
    reason: str

    def as_json(self) -> dict[str, Any]:
        file, _, row = self.origin.rpartition(": row ")
        remedy = KINDS[self.kind].remedy
        return {"file": file, "row": int(row), "kind": self.kind, "reason": self.reason, "remedy": remedy}


@dataclass(frozen=True)
class Dataset:
    """The samples of an epoch, in order: usable rows, repeated as the recipe says."""

    index: Index
    samples: np.ndarray
    """int64 [S]: the line of the index of each sample."""
    bad_rows: tuple[BadRow, ...]
    """Rows that would be samples if they were usable."""
    prompter: Prompter
    """That of the model; a set may have one with another template."""
    max_length: int

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def where(self) -> np.ndarray:
        """int64 [S, 2]: source and row of each sample."""
        return self.index.where[self.samples]

    @cached_property
    def tokens(self) -> np.ndarray:
        """int64 [S]: length of each sample, image tokens included, after cutting at max_length."""
        return self.index.tokens[self.samples].astype(np.int64)

    @cached_property
    def targets(self) -> np.ndarray:
        """int64 [S]"""
        return self.index.targets[self.samples].astype(np.int64)

    @cached_property
    def images(self) -> np.ndarray:
        """int64 [S]: how many"""
        return self.index.images[self.samples].astype(np.int64)

    def conversation(self, sample: int) -> Conversation:
        """Read a sample from its file again."""
        source, row = self.where[sample].tolist()
        return self.index.sources[source].conversation(row)

    def origin(self, sample: int) -> str:
        """How messages call the row of a sample."""
        source, row = self.where[sample].tolist()
        return self.index.origin(source, row)

    def encode(self, sample: int) -> Encoded:
        """A sample as the model sees it."""
        source, row = self.where[sample].tolist()
        return self.index.sources[source].encode(row)

    def may_lose(self, sample: int) -> bool:
        """Whether the run goes on without a sample that cannot be read."""
        return self.index.sources[int(self.where[sample][0])].on_bad_row == "skip"

    def lost(self, sample: int, error: DataError) -> BadRow:
        """A sample that cannot be read, although nothing was found when its row was looked at."""
        origin = self.origin(sample)
        return BadRow(origin, error.kind, str(error).removeprefix(f"{origin}: "))

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a sample, its order or its tokens may have changed; not when a file is copied or renamed."""
        digest = hashlib.sha256()
        for array in (self.index.digests[self.samples], self.tokens, self.targets, self.images):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """Counts for people, reports and the run folder."""
        return {
            "rows": len(self),
            "bad_rows": len(self.bad_rows),
            "images": int(self.images.sum()),
            "text_only_rows": int((self.images == 0).sum()),
            "tokens": int(self.tokens.sum()),
            "targets": int(self.targets.sum()),
            "longest": int(self.tokens.max(initial=0)),
            "fingerprint": self.fingerprint,
        }

    def length_histogram(self, bins: int = 24) -> list[tuple[int, int]]:
        """How many samples have up to so many tokens: (upper end, count)."""
        width = -(-int(self.tokens.max()) // bins)
        counts = np.bincount((self.tokens - 1) // width)
        return [((number + 1) * width, int(count)) for number, count in enumerate(counts)]

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.index, self.samples, self.bad_rows, self.prompter, self.max_length)


def open_dataset(
    entries: Sequence[DataRecipe],
    prompter: Prompter,
    max_length: int,
    console: Console,
    *,
    seed: int = 0,
    cache: Cache = "user",
) -> Dataset:
    """Index all sets and choose the samples of an epoch.

    Rows that cannot be used stop with a DataError, or are set aside where the entry says `on_bad_row: skip`.
    """
    index = open_index(entries, prompter, max_length, console, cache)
    _tell_keys(index)
    bad = _bad_rows(index, seed)
    fatal = [row for source, row in bad if source.on_bad_row == "stop"]
    if fatal:
        first = fatal[0]
        more = f" (and {len(fatal) - 1} more bad rows)" if len(fatal) > 1 else ""
        raise DataError(f"{first.origin}: {first.reason}{more}; `on_bad_row: skip` leaves such rows out", first.kind)
    samples = index.samples(seed)
    if not len(samples):
        raise DataError(f"no usable rows in {', '.join(source.name for source in index.sources)}")
    return Dataset(index, samples, tuple(row for _, row in bad), prompter, max_length)


def _tell_keys(index: Index) -> None:
    """Say which keys of the rows play no part: a line for each file and key."""
    if rank() == 0:
        for source, known in zip(index.sources, index.surveys, strict=True):
            for finding in known.told_once():
                say(f"{source.name}: {finding.reason} ({counted(finding.rows, 'row')})")


def list_of_bad_rows(rows: Iterable[BadRow]) -> str:
    """Rows that were left out, one JSON object a line."""
    return "".join(json.dumps(row.as_json(), ensure_ascii=False) + "\n" for row in rows)


def _bad_rows(index: Index, seed: int) -> list[tuple[Source, BadRow]]:
    wanted = set(index.bad_lines(seed).tolist())
    found: list[tuple[Source, BadRow]] = []
    for number, (source, known) in enumerate(zip(index.sources, index.surveys, strict=True)):
        if not known.bad.any():
            continue
        reasons = defaultdict(list)
        for row, finding in known.findings():
            if finding.bad and int(index.starts[number]) + row in wanted:
                reasons[row].append(finding)
        for row, why in reasons.items():
            bad = BadRow(source.rows.origin(row), why[0].kind, "; also: ".join(finding.reason for finding in why))
            found.append((source, bad))
    return found
