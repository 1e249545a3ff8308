"""A checkpoint of a run -> a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sightline.errors import CheckpointError
from sightline.model.restore import learned_folder, recipe_of, restore
from sightline.model.save import save
from sightline.model.weights import STATE, find_checkpoint
from sightline.recipe import Recipe, differences
from sightline.runtime import pick_device, pick_dtype, say

PLACES = ("llm", "vision_tower", "from_model", "projector_from")
"""Values of the model's section that say where something lies: it may have been moved since."""


def checkpoint_to_hf(recipe: Recipe, checkpoint: Path, out: Path, *, fp32: bool, max_shard_size: str) -> Path:
    """Put the model of a recipe together, load what a checkpoint has learned, merge adapters and save it.

    Raises CheckpointError when the checkpoint is damaged or of another recipe, or `out` is not to be written to.
    """
    _check_folder(out)
    folder = find_checkpoint(checkpoint)
    _check_recipe(folder, recipe)
    dtype = torch.float32 if fp32 else _dtype(recipe)
    vlm = restore(folder, recipe, dtype=dtype)
    try:
        return save(vlm, out, dtype=dtype, max_shard_size=max_shard_size)
    except OSError as error:
        raise _not_writable(out, error) from error


def merge(source: Path, out: Path, *, fp32: bool, max_shard_size: str) -> Path:
    """The same by the recipe that lies in the folder: a run, its `learned` folder or a checkpoint."""
    folder = learned_folder(source) or find_checkpoint(source)
    return checkpoint_to_hf(recipe_of(folder), folder, out, fp32=fp32, max_shard_size=max_shard_size)


def _check_folder(out: Path) -> None:
    """Now rather than after minutes of loading."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        taken = not out.name or (out.exists() and any(out.iterdir()))
    except OSError as error:
        raise _not_writable(out, error) from error
    if taken:
        raise CheckpointError(f"{out} is there already; name a folder that is new or empty")


def _not_writable(out: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot write {out}: {error.strerror}; choose another folder")


def _check_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse a recipe that makes another model of the same tensors; remark upon one that names other places."""
    try:
        then, then_places = _model_of(json.loads((folder / STATE).read_text(encoding="utf-8"))["identity"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {STATE} cannot be read; convert an older one"
        ) from error
    now, now_places = _model_of(recipe.identity())
    # A value that only one of them knows is of another version of Sightline.
    if differing := differences(_shared(then, now), _shared(now, then)):
        raise CheckpointError(f"{folder} was made with another recipe: {'; '.join(differing)}")
    if moved := differences(then_places, now_places):
        say(f"{'; '.join(moved)}: this must be the same weights, of which the checkpoint keeps only what learned")


def _model_of(identity: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What determines the model among all that determines a run; and where its parts lie."""
    model = {key: value for key, value in identity["model"].items() if key not in PLACES}
    places = {key: identity["model"].get(key) for key in PLACES}
    return {"model": model, "tune": identity["tune"], "run": identity["run"]}, {"model": places}


def _shared(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """The values whose keys are in both, on all levels."""
    return {
        key: _shared(value, others[key]) if isinstance(value, dict) and isinstance(others[key], dict) else value
        for key, value in values.items()
        if key in others
    }


def _dtype(recipe: Recipe) -> torch.dtype:
    """The number format of training; converting needs no accelerator, wherever the run was."""
    device = recipe.engine.device
    return pick_dtype(recipe.engine.dtype, pick_device("cpu" if device == "cpu" else "auto"))
