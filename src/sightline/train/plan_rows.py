"""What the rows of a recipe look like: read, known by the name of their set, told by the user, or assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np

from sightline.data.dataset import Dataset, open_dataset
from sightline.data.layouts import KnownFile, known_entries, known_sets
from sightline.errors import RecipeError
from sightline.model.estimate import Operations
from sightline.model.estimate_models import blank_model
from sightline.recipe import DataRecipe, Recipe
from sightline.runtime import console

TEXT = {
    "blip_laion_cc_sbu_558k.json": ((1.0, 24, 24, 1),),
    "llava_v1_5_mix665k.json": ((0.939, 230, 115, 1), (0.061, 1300, 650, 0)),
}
"""Known files -> (share of rows, tokens of text, targets, images).

The lengths are estimates from the composition of the sets, for Vicuna's tokenizer; half of the text as targets is an
assumption. `--data` reads the real ones.
"""

TYPICAL = ((1.0, 230, 115, 1),)
"""What is assumed of other files: rows like those of mix665k with a picture."""


@dataclass(frozen=True)
class Kind:
    """Rows of one length."""

    share: float
    tokens: int
    """Image tokens included, cut at max_length."""
    targets: float
    images: float


@dataclass(frozen=True)
class Rows:
    """The rows of an epoch."""

    count: int | None
    """None: nobody said how many."""
    kinds: tuple[Kind, ...]
    source: str
    """Where the figures come from, in words."""

    def mean(self, name: str) -> float:
        """The mean of `tokens`, `targets` or `images` over all rows."""
        return float(sum(kind.share * getattr(kind, name) for kind in self.kinds))

    def operations(self, cost: Operations, tiles_per_image: int) -> float:
        """Operations of a mean row."""
        return sum(
            kind.share
            * (
                cost.count((kind.tokens,), targets=0, tiles=0)
                + cost.per_target * kind.targets
                + cost.per_tile * kind.images * tiles_per_image
            )
            for kind in self.kinds
        )


def read_rows(recipe: Recipe) -> Rows:
    """Index the data, as training does before its first step."""
    from sightline.model.assemble import make_prompter

    prompter = make_prompter(recipe.model)
    return rows_of(open_dataset(recipe.data, prompter, recipe.batch.max_length, console, seed=recipe.run.seed))


def rows_of(data: Dataset) -> Rows:
    """What is in an indexed data set."""
    lengths, which, number = np.unique(data.tokens, return_inverse=True, return_counts=True)
    targets, images = (np.bincount(which, weights=values) / number for values in (data.targets, data.images))
    kinds = zip(number / len(data), lengths, targets, images, strict=True)
    made = tuple(Kind(float(share), int(length), float(t), float(i)) for share, length, t, i in kinds)
    return Rows(len(data), made, "as its files say")


def guess_rows(recipe: Recipe) -> Rows:
    """Known sets by their names; other files as rows of a typical length."""
    blank, longest = blank_model(recipe.model), recipe.batch.max_length
    image = blank.tokens_per_image
    files = [(entry, file) for entry in recipe.data for file in _files(entry)]
    counts = [_used(entry, file.rows) for entry, file in files]
    total = None if None in counts else sum(count for count in counts if count is not None)
    kinds, unknown = [], []
    for (_, file), count in zip(files, counts, strict=True):
        name = PurePath(file.path).name
        if name not in TEXT:
            unknown.append(name)
        weight = count / total if total and count is not None else 1 / len(files)
        for share, text, targets, images in TEXT.get(name, TYPICAL):
            if images and blank.tiles_per_image == 1 and image >= longest:
                raise RecipeError(f"batch.max_length {longest}: a picture alone takes {image} tokens")
            length = min(text + images * image, longest)
            kinds.append(Kind(weight * share, length, min(targets, length), images))
    source = "lengths estimated from what its set consists of" if not unknown else _assumed(unknown)
    return Rows(total, tuple(kinds), source)


def told(rows: Rows, count: int | None, tokens: int | None, targets: int | None, images: int | None) -> Rows:
    """The same with what the user says himself."""
    if count is not None:
        rows = replace(rows, count=count)
    if tokens is None and targets is None and images is None:
        return rows
    tokens = round(rows.mean("tokens")) if tokens is None else tokens
    kind = Kind(
        1.0,
        tokens,
        min(rows.mean("targets"), tokens) if targets is None else targets,
        rows.mean("images") if images is None else images,
    )
    return replace(rows, kinds=(kind,), source="as given on the command line")


def _assumed(names: Sequence[str]) -> str:
    several = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"lengths assumed for {names[0]}{several}: read them with --data, or give --tokens, --targets, --images"


def _files(entry: DataRecipe) -> tuple[KnownFile, ...]:
    if entry.use is not None:
        return known_entries(entry.use, entry.root or "data")
    assert entry.path is not None
    name = PurePath(entry.path).name
    known = {PurePath(file.path).name: file.rows for one in known_sets().values() for file in one.files}
    return (KnownFile(entry.path, entry.images or "", entry.form or "", known.get(name)),)


def _used(entry: DataRecipe, rows: int | None) -> int | None:
    """Rows of an epoch: the first `head`, of these a share, as often as they are repeated."""
    if rows is None and entry.head is None:
        return None
    first = min(rows if rows is not None else entry.head or 0, entry.head or rows or 0)
    return round(first * entry.ratio) * entry.repeat
