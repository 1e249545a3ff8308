"""The state of a run <-> a folder: written at one stroke, checked before it is read, pruned to the newest ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sightline.errors import CheckpointError
from sightline.model.save import appearing, size_of
from sightline.model.weights import PREFIX, STATE, WEIGHTS, checkpoints, trainable_state
from sightline.recipe import Recipe, differences, dump_recipe
from sightline.runtime import versions

OPTIMIZER, RECIPE = "optimizer.pt", "recipe.yaml"


@dataclass(frozen=True)
class State:
    """What a checkpoint says about itself."""

    folder: Path
    step: int
    identity: dict[str, Any]
    data: str
    """The fingerprint of the data."""


def save_checkpoint(
    run: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, data: str
) -> Path:
    """Write `checkpoint-<step>`: the tensors that learn, the optimiser, the recipe, and sizes to check them by."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in trainable_state(model).items()}
    folder = run / f"{PREFIX}{step}"
    with appearing(folder, needs=3 * size_of(weights)) as partial:
        save_file(weights, partial / WEIGHTS)
        torch.save(optimizer.state_dict(), partial / OPTIMIZER)
        (partial / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
        files = {name: (partial / name).stat().st_size for name in (WEIGHTS, OPTIMIZER, RECIPE)}
        state = {"step": step, "data": data, "identity": recipe.identity(), "versions": versions(), "files": files}
        (partial / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
    return folder


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest checkpoints of a run."""
    for folder in checkpoints(run)[:-keep]:
        shutil.rmtree(folder)


def read_state(folder: Path) -> State:
    """What a checkpoint is of; raises CheckpointError when a file is missing or shorter than it was written."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        for name, size in state["files"].items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else 0
            if found != size:
                raise CheckpointError(
                    f"checkpoint {folder} is damaged: {name} has {found} of {size} bytes; resume from an older one"
                )
        return State(folder, state["step"], state["identity"], state["data"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {STATE} cannot be read; resume from an older one"
        ) from error


def check_resumable(state: State, recipe: Recipe, data: str) -> None:
    """Raise CheckpointError when going on would not be the same run."""
    differing = differences(state.identity, recipe.identity())
    if differing:
        raise CheckpointError(f"{state.folder} was made with another recipe: {'; '.join(differing)}")
    if state.data != data:
        raise CheckpointError(f"{state.folder} was made with other data: its files have changed since")


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimiser's state back; reads tensors and plain values only."""
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
