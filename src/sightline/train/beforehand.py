"""A recipe, and how many rows and images it has -> why it would learn nothing, and what is easily overlooked in it."""

from __future__ import annotations

from collections.abc import Iterator

from sightline.errors import DataError
from sightline.recipe import Recipe


def check_learnable(recipe: Recipe, rows: int, images: int) -> None:
    """Raise DataError where no row can teach what learns: without an image, nothing but the language model is used."""
    if images or recipe.tune.llm != "frozen":
        return
    learning = {"the projector": recipe.tune.projector, "the vision tower": recipe.tune.vision_tower}
    names = " and ".join(name for name, how in learning.items() if how != "frozen")
    verb = "learn" if " and " in names else "learns"
    raise DataError(
        f"only {names} {verb} (section tune), and none of {rows:,} rows has an image, so nothing would be learned: see "
        f"what `sightline data check` says of the rows' keys",
        "image_missing",
    )


def remarks(recipe: Recipe, rows: int | None) -> Iterator[str]:
    """What is worth a line before hours are spent; `rows` are those of an epoch, None where they are not known."""
    model, tune = recipe.model, recipe.tune
    if model.projector_from is None and model.from_model is None:
        yield "projector: new, of random weights (model.projector_from is not set)"
        if tune.projector == "frozen":
            yield "warning: it is frozen as well (tune.projector), so images will stay noise to the language model"
        elif tune.llm != "frozen":
            yield (
                "warning: the language model learns beside it; the second stage begins with the projector of the "
                "first: model.projector_from=RUN"
            )
    size = recipe.batch.global_batch
    if rows is not None and rows < size:
        yield (
            f"{rows:,} rows make 1 step of {rows:,}, not of batch.global_batch={size:,}: an epoch is one step; set "
            f"batch.global_batch={max(1, rows // 8):,} or less for more of them"
        )
