"""Data sets -> what a check found: the pass over all rows that a run makes too, as figures, findings and a sample."""

from __future__ import annotations

import numpy as np
from rich.console import Console

from sightline.data.checked import Checked, Found, GoodRow, LongRow, SetFacts
from sightline.data.index import Index, open_index
from sightline.data.painted import good_row
from sightline.prompt.prompter import Prompter
from sightline.recipe import DataRecipe

LONGEST = 10
"""So many of the longest rows are named."""


def check(
    entries: tuple[DataRecipe, ...],
    prompter: Prompter | None,
    max_length: int | None,
    console: Console,
    *,
    title: str,
    settings: dict[str, str],
    seed: int = 0,
    sample: int = 0,
    decode: bool = False,
) -> Checked:
    """Look at every row and every image; without a prompter at everything but lengths and targets.

    `seed` decides what an epoch consists of where a set gives only a part of itself; `sample` is the number of usable
    rows to show. Raises DataError only for what leaves nothing to look at: a missing file, an array that breaks off.
    """
    index = open_index(entries, prompter, max_length, console, decode=decode)
    good = np.flatnonzero(~index.bad)
    counted = good if prompter is not None else good[:0]
    return Checked(
        title=title,
        sets=_sets(index, seed),
        found=tuple(Found(*_file_and_row(index, source, row), finding) for source, row, finding in index.findings()),
        settings=settings,
        tokens=index.tokens[counted],
        targets=index.targets[counted],
        images=index.images[good],
        sizes=index.sizes[index.sizes.any(axis=1)],
        longest=_longest(index, counted),
        sample=_sample(index, good, prompter, sample),
    )


def _file_and_row(index: Index, source: int, row: int) -> tuple[str, int]:
    file, _, number = index.origin(source, row).rpartition(": row ")
    return file, int(number)


def _sets(index: Index, seed: int) -> tuple[SetFacts, ...]:
    samples = index.samples(seed)
    facts = []
    for number, source in enumerate(index.sources):
        start, end = index.starts[number : number + 2].tolist()
        own = samples[(samples >= start) & (samples < end)]
        facts.append(
            SetFacts(
                name=source.name,
                rows=end - start,
                bad=int(index.bad[start:end].sum()),
                used=len(own),
                images=int(index.images[own].sum()),
                tokens=int(index.tokens[own].sum()),
                targets=int(index.targets[own].sum()),
            )
        )
    return tuple(facts)


def _longest(index: Index, lines: np.ndarray) -> tuple[LongRow, ...]:
    order = lines[np.argsort(-index.tokens[lines], kind="stable")[:LONGEST]]
    return tuple(
        LongRow(
            index.origin(*index.where[line].tolist()),
            int(index.tokens[line]),
            int(index.targets[line]),
            int(index.images[line]),
        )
        for line in order
    )


def _sample(index: Index, good: np.ndarray, prompter: Prompter | None, count: int) -> tuple[GoodRow, ...]:
    """Usable rows drawn from all sets, the same each time."""
    chosen = np.sort(np.random.default_rng(0).permutation(good)[: max(count, 0)])
    rows = []
    for source_number, row in index.where[chosen].tolist():
        source = index.sources[source_number]
        encoded = None if prompter is None else source.encode(row)
        rows.append(good_row(source.conversation(row), source.prompter, encoded))
    return tuple(rows)
