"""A checkpoint of a run -> a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import torch

from sightline.errors import CheckpointError
from sightline.model.assemble import assemble, make_prompter
from sightline.model.save import save
from sightline.model.tune import apply_tuning, merge_adapters
from sightline.model.weights import find_checkpoint, load_weights
from sightline.recipe import Recipe
from sightline.runtime import pick_device, pick_dtype, seed_everything


def checkpoint_to_hf(recipe: Recipe, checkpoint: Path, out: Path, *, fp32: bool, max_shard_size: str) -> Path:
    """Put the model of a recipe together, load what a checkpoint has learned, merge adapters and save it.

    Raises CheckpointError when the checkpoint is of another recipe, or `out` holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty; name another folder")
    folder = find_checkpoint(checkpoint)
    # A projector that is new and frozen is in no checkpoint: it must be drawn as the run drew it.
    seed_everything(recipe.run.seed)
    vlm = assemble(recipe.model, make_prompter(recipe.model))
    apply_tuning(vlm.model, recipe.tune, recipe.optim)
    load_weights(folder, vlm.model)
    merge_adapters(vlm.model)
    dtype = torch.float32 if fp32 else pick_dtype(recipe.engine.dtype, pick_device(recipe.engine.device))
    return save(vlm, out, dtype=dtype, max_shard_size=max_shard_size)
