"""The names of known sets of data -> what they consist of, where each part belongs, which rows they hold.

The sets themselves are the YAML files in the folder `known`; their trees are those of XTuner's documentation.
"""

from __future__ import annotations

import difflib
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from sightline.errors import UserError, UserErrors, shown
from sightline.recipe import DataRecipe
from sightline.recipes import read_yaml

ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")


@dataclass(frozen=True, slots=True)
class Part:
    """Something that lies at one place: a file, a folder of pictures, a link to another part."""

    name: str
    place: str
    """Relative to the root of all data."""
    about: str = ""
    url: str | None = None
    size: int | None = None
    """Bytes to fetch, as its source rounds them."""
    checksum: str | None = None
    """`sha256:...` or `md5:...` of what the URL gives."""
    pictures: int | None = None
    """How many the folder holds when it is complete."""
    take: tuple[str, ...] = ()
    """The files that belong into the folder; of an archive, these alone, wherever they lie in it."""
    jpg: bool = False
    """Pictures are to be called .jpg, whatever they are: the rows name them so."""
    link: str | None = None
    """The place that this one leads to."""
    by_hand: str | None = None
    """What a person has to do, where no program may or can."""
    made_by: str | None = None
    """The command that makes it of other parts; `{root}` stands for the root."""
    licence: str | None = None

    @property
    def is_folder(self) -> bool:
        return self.link is None and PurePosixPath(self.place).suffix not in (".json", ".jsonl", ".tsv")

    @property
    def ending(self) -> str:
        """`.zip`, `.tar.gz`, ... of the archive that the URL gives."""
        path = urllib.parse.urlsplit(self.url or "").path
        return next((ending for ending in ARCHIVES if path.endswith(ending)), "")


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file of rows, as a recipe names it."""

    path: str
    images: str
    """The folder that its image paths are relative to."""
    form: str
    rows: int | None = None
    """How many it holds, as documented."""


@dataclass(frozen=True, slots=True)
class KnownSet:
    """Parts that belong together, and the files of rows among them."""

    name: str
    about: str
    parts: tuple[Part, ...]
    files: tuple[KnownFile, ...]
    """Relative to the root; none where a set is no training data."""


@cache
def known_sets() -> Mapping[str, KnownSet]:
    """All known sets by name."""
    paths = sorted((Path(__file__).parent / "known").glob("*.yaml"))
    families = [read_yaml(path, path.name)[0] for path in paths]
    parts = {name: _part(name, spec) for family in families for name, spec in family["parts"].items()}
    return {name: _set(name, spec, parts) for family in families for name, spec in family["sets"].items()}


def find_set(name: str) -> KnownSet:
    """The set of a name; UserError with the nearest names for an unknown one."""
    known = known_sets()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=3)
    near += [other for other in known if name.lower() in other and other not in near][: 3 - len(near)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise UserError(f"no known set of data is called {shown(name)}; {hint}")


def known_entries(name: str, root: str) -> tuple[KnownFile, ...]:
    """The files of rows that `use: NAME` stands for, their paths under `root`.

    Raises UserError for an unknown name, and for a set that holds no rows to train on.
    """
    known = find_set(name)
    if not known.files:
        trainable = [other.name for other in known_sets().values() if other.files]
        raise UserError(f"{name} ({known.about}) holds no rows to train on; those that do: {', '.join(trainable)}")
    base = Path(root)
    return tuple(
        KnownFile(str(base / file.path), str(base / file.images), file.form, file.rows) for file in known.files
    )


def check_names(entries: Sequence[DataRecipe]) -> None:
    """Raise UserError, with a line for each `use` of a recipe that is no known set of rows."""
    problems = []
    for number, entry in enumerate(entries):
        try:
            if entry.use is not None:
                known_entries(entry.use, "")
        except UserError as error:
            problems.append(f"data.{number}.use: {error}")
    if problems:
        raise UserErrors(*problems)


def _part(name: str, spec: dict[str, Any]) -> Part:
    return Part(name, **{**spec, "take": tuple(spec.get("take", ()))})


def _set(name: str, spec: dict[str, Any], parts: Mapping[str, Part]) -> KnownSet:
    files = tuple(KnownFile(**{"form": "llava", **file}) for file in spec.get("files", ()))
    return KnownSet(name, spec["about"], tuple(parts[part] for part in spec["parts"]), files)
