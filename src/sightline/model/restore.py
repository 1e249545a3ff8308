"""What a run has learned -> the model: the recipe's parts once more, and the learned tensors put on them."""

from __future__ import annotations

from pathlib import Path

import torch

from sightline.errors import CheckpointError, ModelError
from sightline.model.adapters import merge_adapters
from sightline.model.assemble import assemble, check_bits, make_prompter
from sightline.model.load import VLM
from sightline.model.reading import model_folder
from sightline.model.tune import apply_tuning, quantize, settle
from sightline.model.weights import LEARNED, RECIPE, STATE, WEIGHTS, check_base, fingerprints, load_weights
from sightline.recipe import Recipe, load_recipe
from sightline.runtime import pick_device, pick_dtype, say, seed_everything


def learned_folder(path: str | Path) -> Path | None:
    """The folder of what was learned, where the path is one, or a run that ended without a whole model."""
    if model_folder(path) != path:
        return None
    candidates = (Path(path), Path(path, LEARNED))
    return next((folder for folder in candidates if all((folder / name).is_file() for name in (WEIGHTS, STATE))), None)


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a learned folder or a checkpoint was made with, which names its base."""
    if not (folder / RECIPE).is_file():
        raise CheckpointError(f"{folder} is damaged: it has no {RECIPE}")
    recipe = load_recipe(str(folder / RECIPE))
    if "image_place" in (folder / RECIPE).read_text(encoding="utf-8"):
        return recipe
    # Of a version that kept every image in its place: its model has learnt so.
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"image_place": "kept"})})


def restore(
    folder: Path, recipe: Recipe, *, dtype: torch.dtype, device: torch.device | None = None, merged: bool = True
) -> VLM:
    """The model as it was when `folder` was written, its frozen weights in `dtype`.

    Adapters are merged into whole weights, or with `merged=False` stay beside the weights that they were trained on, of
    4 bits (made on `device`) where the recipe says so. Raises CheckpointError when the base is another one, ModelError
    when it is gone.
    """
    spec = recipe.model
    if recipe.tune.projector == "full":
        # The learned one takes the place of the one that the run began with, which need not be there any more.
        spec = spec.model_copy(update={"projector_from": None})
    try:
        prompter = make_prompter(spec)
        if not merged:
            assert device is not None
            check_bits(spec, recipe.tune, device)
        # What is new and frozen is in no file: it must be drawn as the run drew it.
        seed_everything(recipe.run.seed)
        vlm = assemble(spec, prompter)
    except ModelError as error:
        where = f"name the place of these models in {folder / RECIPE} (section model)"
        raise ModelError(f"{error}; {folder} holds only what was learned on top: {where}") from error
    check_base(folder, fingerprints(vlm.model), recipe.tune)
    if not merged and recipe.tune.quantized:
        assert device is not None
        quantize(vlm.model, recipe.tune, device=device, dtype=dtype)
    apply_tuning(vlm.model, recipe.tune, recipe.optim)
    settle(vlm.model, dtype)
    load_weights(folder, vlm.model)
    if merged:
        merge_adapters(vlm.model)
    return vlm


def answering(folder: Path, device: str, dtype: str, *, template: str | None = None, bits: int | None = None) -> VLM:
    """What a run has learned, on its base and ready to answer; on 4 bits where it was learned on those."""
    recipe = recipe_of(folder)
    quantized = recipe.tune.quantized
    if bits is not None and not (quantized and bits == 4):
        raise ModelError(
            f"--bits {bits}: {folder} was learned on {'4 bits' if quantized else 'whole weights'} and is loaded so; to "
            f"quantise it otherwise, make a whole model of it first: sightline convert merge {folder} OUT"
        )
    if template is not None:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"template": template})})
    where = pick_device(device)
    say(f"{folder} holds what was learned on {recipe.model.from_model or recipe.model.llm}, which is loaded first")
    chosen = pick_dtype(dtype, where)
    vlm = restore(folder, recipe, device=where, dtype=chosen, merged=not quantized)
    vlm.model.eval().requires_grad_(False)
    settle(vlm.model, chosen)  # now also what has learned
    vlm.model.to(where)
    return vlm
