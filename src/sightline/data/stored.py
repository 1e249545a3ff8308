"""Files that appear whole or not at all, and keys that name what they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from sightline.files import whole_file
from sightline.runtime import say

_said: set[Path] = set()


def key_of(*facts: object) -> str:
    """A short name for everything that a stored result depends on."""
    return hashlib.blake2b("\0".join(map(str, facts)).encode(), digest_size=12).hexdigest()


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> bool:
    """Write a file of the cache; says so once, and returns False, where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, replace=True) as file:
            write(file)
    except OSError as error:
        if path.parent not in _said:
            _said.add(path.parent)
            say(f"cannot write to the cache {path.parent} ({error.strerror}); going on without it")
        return False
    return True


def write_array(path: Path, array: np.ndarray) -> bool:
    return write_whole(path, lambda file: np.save(file, array))


def read_array(path: Path | None) -> np.ndarray | None:
    """A stored array, mapped into memory; None where it is not there or damaged."""
    if path is None or not path.is_file():
        return None
    try:
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # nothing can be mapped of an array without entries
            array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array
