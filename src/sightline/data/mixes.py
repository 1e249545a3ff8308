"""A data mix of LLaVA-NeXT and LLaVA-OneVision (a YAML file that lists sets) -> the sets, and how much of each."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sightline.data.meta import found_beside
from sightline.errors import DataError, RecipeError, listed, shown
from sightline.recipes import read_yaml

_STRATEGY = re.compile(r"(all|first|end|random)(?::(\d{1,12})(%?))?")
_READ = ("json_path", "sampling_strategy")


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One set of a mix."""

    path: str
    """The file of rows (`json_path`)."""
    part: Literal["all", "first", "end", "random"]
    """Which of its rows (`sampling_strategy`)."""
    amount: int | None
    percent: bool

    def rows(self, length: int) -> int:
        """How many rows that is of a file with so many: as LLaVA-NeXT counts them, a begun row is a row."""
        if self.amount is None:
            return length
        wanted = math.ceil(self.amount * length / 100) if self.percent else self.amount
        return min(length, wanted)


def is_mix(path: str | Path) -> bool:
    """Whether a file is a YAML of `datasets`, each with its `json_path`."""
    path = Path(path)
    return path.suffix in (".yaml", ".yml") and path.is_file() and _sets(path) is not None


def mix_entries(path: str | Path) -> tuple[MixEntry, ...]:
    """The sets of a mix, in its order; paths are looked for from here, then from beside the file.

    Raises DataError that names the set and the key.
    """
    path = Path(path)
    return tuple(_entry(path, number, entry) for number, entry in enumerate(_sets(path) or [], 1))


def _sets(path: Path) -> list[Any] | None:
    try:
        sets = read_yaml(path, path.name)[0].get("datasets")
    except RecipeError:
        return None
    if not isinstance(sets, list) or not any(isinstance(entry, dict) and "json_path" in entry for entry in sets):
        return None
    return sets


def _entry(path: Path, number: int, entry: Any) -> MixEntry:
    where = f"{path}: set {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str) or not entry["json_path"]:
        raise DataError(f"{where}: no 'json_path', the file of rows")
    if others := [key for key in entry if key not in _READ]:
        raise DataError(f"{where}: {listed(others, 4)}: not read; known: {', '.join(_READ)}")
    strategy = entry.get("sampling_strategy", "all")
    match = _STRATEGY.fullmatch(strategy) if isinstance(strategy, str) else None
    if match is None or match[2] in ("0", "00"):
        raise DataError(
            f"{where}: 'sampling_strategy' is {shown(strategy)}; write all, first:N, end:N or random:N, or N% for N"
        )
    if re.search(r"[{}*]", entry["json_path"]):
        raise DataError(f"{where}: 'json_path' {shown(entry['json_path'])} is a pattern; list its files one by one")
    part: Any = match[1]
    amount = None if match[2] is None or part == "all" else int(match[2])
    return MixEntry(found_beside(path, entry["json_path"], where, "json_path"), part, amount, match[3] == "%")
