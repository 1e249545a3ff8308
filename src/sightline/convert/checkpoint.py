"""A checkpoint of a run, by its recipe -> a source to convert; adapters become part of the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sightline.convert import run
from sightline.convert.source import Source
from sightline.convert.tensors import stored
from sightline.errors import CheckpointError
from sightline.model.restore import learned_folder, recipe_of, restore
from sightline.model.save import hub_state
from sightline.model.weights import STATE, find_checkpoint
from sightline.recipe import Recipe, differences
from sightline.runtime import pick_device, pick_dtype, say

PLACES = ("llm", "vision_tower", "from_model", "projector_from")
"""Values of the model's section that say where something lies: it may have been moved since."""


def source_of(recipe: Recipe, checkpoint: Path, *, fp32: bool) -> Source:
    """Put the model of a recipe together, load what a checkpoint has learned, and merge adapters.

    `checkpoint` is a folder of ours, or a file or folder of XTuner's. Raises CheckpointError when it is damaged or of
    another recipe.
    """
    if _is_of_xtuner(checkpoint):
        from sightline.convert import pth

        return pth.read(checkpoint, recipe)
    folder = learned_folder(checkpoint) or find_checkpoint(checkpoint)
    recipe = _as_drawn(recipe, _check_recipe(folder, recipe))
    dtype = torch.float32 if fp32 else _dtype(recipe)
    if not run.was_drawn(recipe):
        return run.read(folder, recipe, dtype=dtype)
    vlm = restore(folder, recipe, dtype=dtype)
    state = hub_state(vlm.model.state_dict(), vlm.model.config, moved=False)
    tensors = {name: stored(tensor.detach()) for name, tensor in state.items()}
    # What has learned is still in float32.
    return Source(folder, run.KIND, vlm.model.config, vlm.prompter, tensors).to(dtype)


def source_of_run(path: Path) -> Source:
    """The same by the recipe that lies in the folder: a run, its `learned` folder or a checkpoint."""
    folder = learned_folder(path) or find_checkpoint(path)
    return source_of(recipe_of(folder), folder, fp32=False)


def _is_of_xtuner(path: Path) -> bool:
    """A file of mmengine, or a folder of DeepSpeed."""
    return path.is_file() or any(path.glob("**/*model_states.pt"))


def _check_recipe(folder: Path, recipe: Recipe) -> int:
    """Refuse a recipe that makes another model of the same tensors; remark upon one that names other places.

    Returns the seed of the run, by which what is new and frozen was drawn: `train --seed` changes no model otherwise.
    """
    try:
        identity = json.loads((folder / STATE).read_text(encoding="utf-8"))["identity"]
        (then, then_places), seed = _model_of(identity), int(identity["run"]["seed"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {STATE} cannot be read; convert an older one"
        ) from error
    now, now_places = _model_of(recipe.identity())
    # A value that only one of them knows is of another version of Sightline.
    if differing := differences(_shared(then, now), _shared(now, then)):
        raise CheckpointError(f"{folder} was made with another recipe: {'; '.join(differing)}")
    if moved := differences(then_places, now_places):
        say(f"{'; '.join(moved)}: this must be the same weights, of which the checkpoint keeps only what learned")
    return seed


def _as_drawn(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"seed": seed})})


def _model_of(identity: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What determines the model among all that determines a run; and where its parts lie."""
    model = {key: value for key, value in identity["model"].items() if key not in PLACES}
    places = {key: identity["model"].get(key) for key in PLACES}
    return {"model": model, "tune": identity["tune"]}, {"model": places}


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
