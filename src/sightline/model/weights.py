"""The tensors that a run has learned, found in its folder and put into a model of the same tuning and base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sightline.errors import CheckpointError
from sightline.recipe import TuneRecipe

PREFIX = "checkpoint-"
WEIGHTS, STATE, RECIPE = "weights.safetensors", "state.json", "recipe.yaml"

LEARNED = "learned"
"""The folder of a run that holds what it has learned, and no more: to be put on the models that it began with."""

FINISHED = "hf"
"""The folder of a run that holds the finished model, as transformers reads it."""

SAMPLED = 256
"""Numbers of each tensor that a fingerprint looks at."""


def trainable_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that learn, by name: what a checkpoint has to keep."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def fingerprints(model: Any) -> dict[str, str]:
    """What the parts of a model begin with, before anything learns: equal for equal numbers, in whatever files."""
    parts = {
        "llm": [model.model.language_model, model.lm_head],
        "vision_tower": [model.model.vision_tower],
        "projector": [model.model.multi_modal_projector],
    }
    return {
        name: fingerprint(tensor for module in modules for tensor in module.state_dict().values())
        for name, modules in parts.items()
    }


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """The fingerprint of tensors in this order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        sample = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // SAMPLED)]
        digest.update(f"{list(tensor.shape)}".encode())
        digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_base(folder: Path, now: Mapping[str, str], tune: TuneRecipe) -> None:
    """Raise CheckpointError where the model is not the one that the tensors in `folder` were learned on.

    `now` are the fingerprints of the model. Of a part that was learned in full nothing else is left, so it may differ.
    """
    try:
        then = json.loads((folder / STATE).read_text(encoding="utf-8")).get("base")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder} is damaged: {STATE} cannot be read; take an older one") from error
    matters = {
        "language model": ("llm", tune.llm != "full" or tune.freeze_layers is not None),
        "vision tower": ("vision_tower", tune.vision_tower != "full" or tune.vision_last_n is not None),
        "projector": ("projector", tune.projector == "frozen"),
    }
    # Without a note it is of a version of Sightline that made none.
    if then and (not isinstance(then, dict) or then.keys() != now.keys()):
        raise CheckpointError(f"{folder} is damaged: what {STATE} says of its base is unreadable; take an older one")
    other = [name for name, (part, counts) in matters.items() if then and counts and then[part] != now[part]]
    if other:
        raise CheckpointError(
            f"{folder} was learned on another {' and another '.join(other)}: the recipe's has other weights now; name "
            f"the one that it was learned on (section model of {folder / RECIPE})"
        )


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [folder for folder in run.glob(f"{PREFIX}*") if folder.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix(PREFIX)))


def find_checkpoint(path: Path) -> Path:
    """A checkpoint by its own path, or the newest of the run at that path; raises CheckpointError if it is neither."""
    if (path / STATE).is_file():
        return path
    newest = checkpoints(path)
    if not newest:
        raise CheckpointError(f"{path} is neither a checkpoint nor a run with checkpoints")
    return newest[-1]


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Put the tensors that learn back into a model that was tuned in the same way."""
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged ({error}); take an older one") from error
    own = trainable_state(model)
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())
        raise CheckpointError(
            f"{folder} holds other tensors than this recipe tunes ({len(odd)} differ, such as {odd[0]})"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != weights[name].shape:
                raise CheckpointError(f"{folder}: {name} is {list(weights[name].shape)}, expected {list(tensor.shape)}")
            if not weights[name].isfinite().all():
                raise CheckpointError(f"{folder} is damaged: {name} has entries that are not finite; take an older one")
            tensor.copy_(weights[name])
