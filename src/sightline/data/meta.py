"""An InternVL meta file (names of sets, with their rows, images and repeats) -> the sets it stands for."""

from __future__ import annotations

import json
import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import DataError, short, shown

_LARGEST = 4 * 1024 * 1024
"""A meta file has a few lines for each set; nothing larger is looked into."""


@dataclass(frozen=True, slots=True)
class MetaEntry:
    """One set of a meta file."""

    name: str
    path: str
    """The file of rows (`annotation`)."""
    images: str | None
    """The folder of images (`root`)."""
    repeat: float
    """`repeat_time`: from 1 on, how often the set is seen in an epoch; below, the share of its rows, from the first."""
    length: int | None
    """How many rows the meta file says that there are."""


def is_meta(path: str | Path) -> bool:
    """Whether a file is one JSON object whose values are objects with an `annotation`; looks into small files only."""
    path = Path(path)
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return False
        with path.open("rb") as file:
            if not file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{"):
                return False
        sets = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(sets, dict)
        and bool(sets)
        and all(isinstance(entry, dict) for entry in sets.values())
        and any("annotation" in entry for entry in sets.values())
    )


def meta_entries(path: str | Path) -> tuple[MetaEntry, ...]:
    """The sets of a meta file, in its order; paths are looked for from here, then from beside the meta file.

    Raises DataError that names the set and the key.
    """
    path = Path(path)
    try:
        sets = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the meta file cannot be read ({error})") from None
    if not isinstance(sets, dict) or not sets:
        raise DataError(f'{path}: expected {{"name": {{"annotation": ..., "root": ...}}, ...}}')
    return tuple(_entry(path, name, entry) for name, entry in sets.items())


def _entry(path: Path, name: str, entry: Any) -> MetaEntry:
    where = f"{path}: {short(name)}"
    if not isinstance(entry, dict) or not isinstance(entry.get("annotation"), str) or not entry["annotation"]:
        raise DataError(f"{where}: no 'annotation', the file of rows")
    root = entry.get("root", entry.get("media_root"))
    if root is not None and not isinstance(root, str):
        raise DataError(f"{where}: 'root' is {type(root).__name__}, not a folder")
    repeat = entry.get("repeat_time", 1)
    if isinstance(repeat, bool) or not isinstance(repeat, int | float) or not 0 < repeat < 1e6:
        raise DataError(f"{where}: 'repeat_time' is {shown(repeat)}; write a number above 0")
    if repeat > 1 and repeat != int(repeat):
        raise DataError(f"{where}: 'repeat_time' is {repeat}; above 1 it must be whole")
    length = entry.get("length")
    return MetaEntry(
        name=name,
        path=found_beside(path, entry["annotation"], where, "annotation"),
        images=found_beside(path, root, where, "root") if root else None,
        repeat=float(repeat),
        length=length if isinstance(length, int) and not isinstance(length, bool) else None,
    )


def found_beside(meta: Path, name: str, where: str, key: str) -> str:
    """What a file that lists sets names by a path, seen from here or from beside that file."""
    for candidate in (Path(name), meta.parent / name):
        if os.path.exists(candidate):  # not candidate.exists(), which raises for a name that is too long
            return str(candidate)
    raise DataError(f"{where}: {shown(key)} {name[:100]} does not exist, seen from here or from {meta.parent}")
