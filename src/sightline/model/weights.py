"""The tensors that a run has learned, found in its folder and put into a model of the same tuning."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sightline.errors import CheckpointError

PREFIX = "checkpoint-"
WEIGHTS, STATE = "weights.safetensors", "state.json"


def trainable_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that learn, by name: what a checkpoint has to keep."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


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
            tensor.copy_(weights[name])
