"""The state of a run <-> a folder: written at one stroke, checked before it is read, pruned to the newest ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sightline.errors import CheckpointError
from sightline.model.save import appearing, size_of
from sightline.model.tune import trainable_state
from sightline.recipe import Recipe, differences, dump_recipe
from sightline.runtime import versions

PREFIX = "checkpoint-"
WEIGHTS, OPTIMIZER, STATE, RECIPE = "weights.safetensors", "optimizer.pt", "state.json", "recipe.yaml"


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


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [folder for folder in run.glob(f"{PREFIX}*") if folder.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix(PREFIX)))


def find_checkpoint(run: Path, wanted: str) -> Path | None:
    """The checkpoint at a path, or for `auto` the newest one of the run, if there is one."""
    if wanted == "auto":
        return max(checkpoints(run), key=lambda folder: int(folder.name.removeprefix(PREFIX)), default=None)
    path = Path(wanted)
    newest = checkpoints(path)
    if newest:
        return newest[-1]
    if not (path / STATE).is_file():
        raise CheckpointError(f"{path} is neither a checkpoint nor a run with checkpoints")
    return path


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
        raise CheckpointError(f"checkpoint {folder} is damaged: {STATE} cannot be read; resume from an older one") from error


def check_resumable(state: State, recipe: Recipe, data: str) -> None:
    """Raise CheckpointError when going on would not be the same run."""
    differing = differences(state.identity, recipe.identity())
    if differing:
        raise CheckpointError(f"{state.folder} was made with another recipe: {'; '.join(differing)}")
    if state.data != data:
        raise CheckpointError(f"{state.folder} was made with other data: its files have changed since")


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Put the tensors that learn back into a model that was tuned in the same way."""
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged ({error}); take an older one") from error
    own = trainable_state(model)
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())
        raise CheckpointError(f"{folder} holds other tensors than this recipe tunes ({len(odd)} differ, such as {odd[0]})")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != weights[name].shape:
                raise CheckpointError(f"{folder}: {name} is {list(weights[name].shape)}, expected {list(tensor.shape)}")
            tensor.copy_(weights[name])


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimiser's state back; reads tensors and plain values only."""
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
