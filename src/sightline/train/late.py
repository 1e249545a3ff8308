"""Samples that cannot be read during a run -> remarks, its list of bad rows, the targets that a step lacks."""

from __future__ import annotations

from collections.abc import Sequence

from sightline.data.collate import LeftOut
from sightline.data.dataset import BadRow, Dataset, list_of_bad_rows
from sightline.page.numbers import counted
from sightline.runtime import say
from sightline.train.engine import Engine
from sightline.train.folder import BAD_ROWS, RunFolder

_NAMED = 10
"""So many are named on the terminal; all of them are in the list."""


class Late:
    """Counts them over all ranks."""

    def __init__(self, engine: Engine, folder: RunFolder, dataset: Dataset) -> None:
        self._engine, self._folder, self._dataset = engine, folder, dataset
        self._rows: dict[str, BadRow] = {}

    def add(self, step: int, left_out: Sequence[LeftOut]) -> int:
        """Note what a rank left out of a step; returns how many targets all of them lack."""
        lost = int(self._engine.sum(float(sum(1 + one.targets for one in left_out))))
        if not lost:
            return 0
        everywhere = self._engine.gather(list(left_out))
        new = {one.row.origin: one.row for one in everywhere if one.row.origin not in self._rows}
        if new and self._engine.is_main:
            for number, row in enumerate(new.values(), len(self._rows)):
                if number < _NAMED:
                    say(f"step {step} goes on without {row.origin}: {row.reason}")
            self._folder.write(
                BAD_ROWS, list_of_bad_rows([*self._dataset.bad_rows, *self._rows.values(), *new.values()])
            )
        self._rows |= new
        return sum(one.targets for one in everywhere)

    def tell(self) -> None:
        """At the end of a run."""
        if self._rows:
            rows = counted(len(self._rows), "row")
            say(f"{rows} could not be read during the run and taught nothing; {self._folder.path / BAD_ROWS} has all")
