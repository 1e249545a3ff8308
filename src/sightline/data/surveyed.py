"""What was seen of rows, as arrays: in memory, in the files of the blocks of a pass, in a folder that is mapped."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.inspect import stamp
from sightline.data.stored import read_array, write_array, write_whole
from sightline.data.verdict import KINDS, Finding
from sightline.errors import CheckpointError
from sightline.files import appearing


@dataclass(frozen=True)
class Survey:
    """What is known of the rows of a file, or of a block of them; bad ones included."""

    tokens: np.ndarray
    """int32 [N], as targets and images"""
    targets: np.ndarray
    images: np.ndarray
    bad: np.ndarray
    """bool [N]"""
    digests: np.ndarray
    """uint64 [N]"""
    sizes: np.ndarray
    """int32 [M, 2]: width and height of all images"""
    found: np.ndarray
    """uint8: the findings, `[row, kind, reason, rows]` as JSON, one a line; once a block where `told_once`"""
    watched: np.ndarray
    """uint8: path and stamp of everything whose change makes this wrong, as one JSON object"""
    stored: Path | None = None
    """The folder that the arrays are mapped from."""

    def findings(self) -> Iterator[tuple[int, Finding]]:
        """Rows (counted from 0) and what was found in them, in order; what is told once, in the first of its rows."""
        lines = [json.loads(line) for line in self.found.tobytes().splitlines()]
        counts: Counter[tuple[str, str]] = Counter()
        for _, kind, reason, rows in lines:
            counts[kind, reason] += rows if _told_once(kind) else 0
        for row, kind, reason, _ in lines:
            if not _told_once(kind):
                yield row, Finding(kind, reason)
            elif rows := counts.pop((kind, reason), 0):
                yield row, Finding(kind, reason, rows)

    def told_once(self) -> Iterator[Finding]:
        """Those of the findings that lie in how the file is written."""
        return (finding for _, finding in self.findings() if _told_once(finding.kind))

    def holds(self) -> bool:
        """Whether the folders of images, and the files that could not be read, are as they were."""
        watched: dict[str, int] = json.loads(self.watched.tobytes())
        return all(stamp(path) == then for path, then in watched.items())

    def __reduce__(self) -> tuple[Any, ...]:
        if self.stored is not None:
            return mapped, (self.stored,)
        return Survey, tuple(getattr(self, field.name) for field in fields(self))


ARRAYS = tuple(field.name for field in fields(Survey) if field.name != "stored")
"""Their names, which are those of their files too."""


def joined(blocks: Sequence[Survey]) -> Survey:
    """What is known of the rows of all blocks, one behind the other."""
    watched: dict[str, int] = {}
    for block in blocks:
        for path, then in json.loads(block.watched.tobytes()).items():
            watched[path] = min(then, watched.get(path, then))
    arrays = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in ARRAYS}
    return _survey(arrays | {"watched": as_bytes(json.dumps(watched))})


def as_lines(findings: Iterable[tuple[int, Finding]]) -> str:
    """What was found in rows, as a block of a survey keeps it."""
    lines: dict[tuple[object, ...], tuple[int, Finding, int]] = {}
    for number, (row, finding) in enumerate(findings):
        key = (finding.kind, finding.reason) if _told_once(finding.kind) else (number,)
        first, _, rows = lines.get(key, (row, finding, 0))
        lines[key] = (first, finding, rows + 1)
    return "".join(json.dumps([row, one.kind, one.reason, rows]) + "\n" for row, one, rows in lines.values())


def _told_once(kind: str) -> bool:
    """A bad row keeps its own line, because it is left out by it."""
    return KINDS[kind].once and not KINDS[kind].bad


def keep_block(block: Survey, folder: Path, number: int) -> bool:
    """Store a block of the survey that will lie in `folder`; False where that cannot be done, which is said."""
    arrays: dict[str, Any] = {name: getattr(block, name) for name in ARRAYS}
    return write_whole(folder.with_suffix(".blocks") / f"{number:06}.npz", lambda file: np.savez(file, **arrays))


def kept_blocks(folder: Path | None) -> dict[int, Survey]:
    """The blocks that an earlier pass has stored and that still hold."""
    found: dict[int, Survey] = {}
    for file in folder.with_suffix(".blocks").glob("*.npz") if folder is not None else ():
        try:
            with np.load(file, allow_pickle=False) as arrays:
                block = _survey(dict(arrays))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue  # damaged: the block is looked at again
        if block.holds():
            found[int(file.stem)] = block
    return found


def store(result: Survey, folder: Path) -> Survey:
    """Write the arrays into a folder that appears when it is complete, and map them from there."""
    try:
        with appearing(folder, needs=0, replace=True) as draft:
            if not all(write_array(draft / f"{name}.npy", getattr(result, name)) for name in ARRAYS):
                raise OSError  # which has been said
    except (OSError, CheckpointError):  # or another process was faster
        return result
    return mapped(folder) or result


def mapped(folder: Path) -> Survey | None:
    """What a folder holds, mapped into memory; None where there is none, or it is damaged."""
    arrays = {name: read_array(folder / f"{name}.npy") for name in ARRAYS}
    whole = {name: array for name, array in arrays.items() if array is not None}
    return _survey(whole, folder) if len(whole) == len(ARRAYS) else None


def as_bytes(text: str) -> np.ndarray:
    """uint8: lines of JSON, as a survey holds them."""
    return np.frombuffer(text.encode("ascii"), dtype=np.uint8)


def _survey(arrays: dict[str, np.ndarray], stored: Path | None = None) -> Survey:
    given: dict[str, Any] = {name: arrays[name] for name in ARRAYS}
    return Survey(**given, stored=stored)
