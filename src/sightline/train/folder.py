"""`--work-dir` -> a run's folder: held by one run at a time, and nothing in it is replaced that no run has written.

written.jsonl   what was written, a line each, with the SHA-256 of what is written at one stroke; locked during the run
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sightline.errors import CheckpointError, UserError
from sightline.files import hold, write_whole
from sightline.recipe import Recipe, dump_recipe
from sightline.runtime import rank, say
from sightline.train.metrics import FILE as LOG

WRITTEN = "written.jsonl"
FACTS, BAD_ROWS, REPORT = "run.json", "bad_rows.jsonl", "report.html"
FINISHED, LEARNED, RECIPE = "hf", "learned", "recipe.yaml"
"""As in model/weights.py, which would import torch for every `--help`."""

RECIPE_BESIDE = "recipe_of_run.yaml"
"""Where a run's recipe goes when the folder has a `recipe.yaml` of the user's."""

_FIRST = {"made by": "sightline train"}


@dataclass
class RunFolder:
    """The folder and what is known to be the run's in it."""

    path: Path
    _file: IO[bytes] | None
    """The list; None on all ranks but the first, which write nothing."""
    _written: set[tuple[str, str]] = field(default_factory=set)
    """Names with digests; without one, whatever has the name is the run's."""
    _recipe: str = ""
    """The digest of the recipe of the run that wrote them."""
    _unstored: list[dict[str, Any]] = field(default_factory=list)
    """Lines that wait until something is written."""

    def owns(self, name: str) -> bool:
        """Whether what has this name, if anything, was written by the run."""
        path = self.path / name
        if not os.path.lexists(path) or (name, "") in self._written:
            return True
        digests = {digest for written, digest in self._written if written == name}
        return bool(digests) and path.is_file() and _digest(path.read_bytes()) in digests

    def note(self, name: str, digest: str = "") -> None:
        """Say what is about to be written. Raises CheckpointError where there is something of that name, not ours."""
        if not self.owns(name):
            raise CheckpointError(
                f"{self.path / name} was not written by this run; put it aside, or choose another --work-dir"
            )
        if (name, digest) not in self._written:
            self._keep(name, digest)
        self._store()

    def write(self, name: str, text: str) -> None:
        """Write a file of the run."""
        content = text.encode(errors="backslashreplace")
        self.note(name, _digest(content))
        try:
            write_whole(self.path / name, content, replace=True)
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path / name}: {error.strerror}") from error

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the recipe: beside one of the user's, which stays as it is."""
        name = RECIPE
        if os.path.lexists(self.path / RECIPE_BESIDE) or not self.owns(RECIPE):
            name = RECIPE_BESIDE
            say(f"the recipe of this run is in {self.path / name}; what you have in {RECIPE} stays as it is")
        self.write(name, dump_recipe(recipe))

    def begin(self, recipe: Recipe, checkpoint: Path | None) -> None:
        """See to it that nothing is in the way of the run, which goes on from a checkpoint of this folder, if from any.

        What a run of the same recipe wrote before it had a checkpoint is this run's; CheckpointError for the rest.
        """
        if checkpoint is not None:
            if not self._written:  # a run of a version that kept no list
                for name in (LOG, FACTS, BAD_ROWS, REPORT, FINISHED, LEARNED):
                    self._keep(name)
                if (checkpoint / RECIPE).is_file():
                    self._keep(RECIPE, _digest((checkpoint / RECIPE).read_bytes()))
        else:
            same = self._recipe == _recipe_digest(recipe)
            self._written = {one for one in self._written if same and one[0] != REPORT}
            for name in (LOG, FACTS, BAD_ROWS, REPORT):
                if not self.owns(name):
                    raise CheckpointError(
                        f"{self.path / name} is there already, and not of this run; put it aside, or choose another "
                        f"--work-dir"
                    )
        self._recipe = _recipe_digest(recipe)
        self._unstored.append({"recipe": self._recipe})

    def _keep(self, name: str, digest: str = "") -> None:
        self._written.add((name, digest))
        self._unstored.append({"wrote": name} | ({"sha256": digest} if digest else {}))

    def _store(self) -> None:
        assert self._file is not None, "the first rank writes"
        first = [] if os.fstat(self._file.fileno()).st_size else [_FIRST]
        self._file.write(b"".join(map(_line, [*first, *self._unstored])))
        self._file.flush()
        self._unstored.clear()


@contextmanager
def claimed(path: Path) -> Iterator[RunFolder]:
    """Hold a run's folder; the first of several ranks does so for all. What was made for nothing goes again.

    Raises UserError where another run writes to it.
    """
    if rank() > 0:
        yield RunFolder(path, None)
        return
    try:
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        file = hold(path / WRITTEN)
    except BlockingIOError:
        raise UserError(f"another run is writing to {path}; wait for it, or choose another --work-dir") from None
    except OSError as error:
        raise CheckpointError(f"cannot write to {path}: {error.strerror}; choose another --work-dir") from error
    with file:
        try:
            yield _read(path, file)
        finally:
            if not os.fstat(file.fileno()).st_size:
                with suppress(OSError):
                    (path / WRITTEN).unlink()
                    for folder in made:
                        folder.rmdir()


def _read(path: Path, file: IO[bytes]) -> RunFolder:
    found = RunFolder(path, file)
    file.seek(0)
    content, first = file.read(), _line(_FIRST)
    whole = content[: content.rfind(b"\n") + 1]
    try:
        if content[: len(first)] != first[: len(content)]:
            raise ValueError(content)
        for record in map(json.loads, whole.splitlines()[1:]):
            if "wrote" in record:
                found._written.add((record["wrote"], record.get("sha256", "")))
            else:
                found._recipe = record["recipe"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{path / WRITTEN} is not the list of what a run has written; put it aside, or choose another --work-dir"
        ) from None
    file.truncate(len(whole))  # a kill may have left half a line
    return found


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _recipe_digest(recipe: Recipe) -> str:
    return _digest(json.dumps(recipe.identity(), sort_keys=True).encode())
