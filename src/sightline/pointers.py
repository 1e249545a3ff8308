"""A file -> whether it is the pointer that git-lfs leaves in the place of another, which it has not fetched."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sightline.errors import ModelError

POINTER = b"version https://git-lfs.github.com/spec/"
"""How the small file begins that git leaves in the place of a large one, where git-lfs did not fetch it."""


def refuse_pointer(path: str | Path) -> None:
    """Raise ModelError where a file is such a pointer."""
    with suppress(OSError), open(path, "rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ModelError(f"{path} is a pointer of git-lfs, not the file itself: `git lfs pull` brings it")
