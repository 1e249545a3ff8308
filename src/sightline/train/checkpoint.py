"""The state of a run <-> a folder: written at one stroke, checked before it is read, pruned to the newest ones."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils._pytree import tree_leaves

from sightline.errors import CheckpointError
from sightline.files import appearing, sweep
from sightline.model.pickles import read_pickle
from sightline.model.save import size_of
from sightline.model.weights import (
    FINISHED,
    LEARNED,
    PREFIX,
    RECIPE,
    STATE,
    WEIGHTS,
    checkpoints,
    find_checkpoint,
    trainable_state,
)
from sightline.recipe import Recipe, differences, dump_recipe
from sightline.runtime import say, versions
from sightline.train.moments import odd_moments

OPTIMIZER = "optimizer.pt"


@dataclass(frozen=True)
class State:
    """What a checkpoint says about itself."""

    folder: Path
    step: int
    identity: dict[str, Any]
    data: str
    """The fingerprint of the data."""


def save_checkpoint(
    run: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    *,
    data: str,
    base: dict[str, str],
) -> Path:
    """Write `checkpoint-<step>`: the tensors that learn, the optimiser, the recipe, and sizes to check them by.

    `data` and `base` are the fingerprints of the data and of the model before it learned.
    """
    weights = {name: tensor.cpu().contiguous() for name, tensor in trainable_state(model).items()}
    moments = optimizer.state_dict()
    kept = {str(at): leaf for at, leaf in enumerate(tree_leaves(moments)) if isinstance(leaf, torch.Tensor)}
    folder = run / f"{PREFIX}{step}"
    needs = size_of(weights) + size_of(kept)
    with appearing(folder, needs=needs, replace=(folder / STATE).is_file()) as partial:
        save_file(weights, partial / WEIGHTS)
        # To an open file: given a path, torch keeps to itself that the disk is full.
        with (partial / OPTIMIZER).open("wb") as file:
            torch.save(moments, file)
        (partial / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
        files = {name: (partial / name).stat().st_size for name in (WEIGHTS, OPTIMIZER, RECIPE)}
        state = {"step": step, "data": data, "base": base, "identity": recipe.identity(), "versions": versions()}
        (partial / STATE).write_text(json.dumps({**state, "files": files}, indent=2), encoding="utf-8")
    return folder


def save_learned(run: Path, checkpoint: Path) -> Path:
    """Write `learned`: a checkpoint without the optimiser, which is all that is needed besides the base to answer.

    The tensors take no space a second time, as long as the checkpoint is there, where the disk has hard links.
    """
    folder = run / LEARNED
    with appearing(folder, needs=0, replace=(folder / STATE).is_file()) as partial:
        try:
            os.link(checkpoint / WEIGHTS, partial / WEIGHTS)
        except OSError:
            shutil.copyfile(checkpoint / WEIGHTS, partial / WEIGHTS)
        shutil.copyfile(checkpoint / RECIPE, partial / RECIPE)
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        del state["files"][OPTIMIZER]
        (partial / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
    return folder


def sweep_run(run: Path) -> None:
    """Remove the folders that a killed run was still writing."""
    for pattern in (f"{PREFIX}*", FINISHED, LEARNED):
        sweep(run, pattern)


def prune(run: Path, step: int, keep: int) -> None:
    """Delete all but the newest checkpoints of a run up to a step.

    Later ones can only be there when the run has gone back to an older one; they are replaced as the run gets there.
    """
    reached = [folder for folder in checkpoints(run) if int(folder.name.removeprefix(PREFIX)) <= step]
    for folder in reached[:-keep]:
        if (folder / STATE).is_file() and not folder.is_symlink():  # else it was not the run that put it there
            shutil.rmtree(folder)


def read_state(folder: Path) -> State:
    """What a checkpoint is of; raises CheckpointError when a file is missing or shorter than it was written."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        step, identity, data = state["step"], state["identity"], state["data"]
        if type(step) is not int or step < 1 or not isinstance(identity, dict) or not isinstance(data, str):
            raise ValueError(step)
        for name, size in state["files"].items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else 0
            if found != size:
                raise CheckpointError(
                    f"checkpoint {folder} is damaged: {name} has {found} of {size} bytes; resume from an older one"
                )
        if OPTIMIZER not in state["files"]:
            raise CheckpointError(f"{folder} holds no state of the optimiser; go on from a checkpoint of the run")
        return State(folder, step, identity, data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {STATE} cannot be read; resume from an older one"
        ) from error


def find_state(run: Path, resume: str | None, recipe: Recipe) -> State | None:
    """What to go on from, if anything; another run's work is never overwritten."""
    state = None
    if resume == "auto" and not checkpoints(run):
        say(f"no checkpoint in {run} yet: starting from the beginning")
    elif resume is not None:
        state = read_state(find_checkpoint(run if resume == "auto" else Path(resume)))
        check_recipe(state, recipe)
    if (state is None or not is_of(state, run)) and (
        checkpoints(run) or any(os.path.lexists(run / name) for name in (FINISHED, LEARNED))
    ):
        how = "go on with --resume" if state is None else f"{state.folder} is not of it: leave that path out"
        raise CheckpointError(f"{run} already holds a run; {how}, or choose another --work-dir")
    return state


def is_of(state: State, run: Path) -> bool:
    """Whether a checkpoint is one of a run; it may have been moved to another disk, and linked."""
    return run.resolve() in (state.folder.parent.resolve(), state.folder.resolve().parent)


def check_recipe(state: State, recipe: Recipe) -> None:
    """Raise CheckpointError when another recipe made the checkpoint."""
    differing = differences(state.identity, recipe.identity())
    if differing:
        raise CheckpointError(f"{state.folder} was made with another recipe: {'; '.join(differing)}")


def check_data(state: State, fingerprint: str) -> None:
    """Raise CheckpointError when the checkpoint was made with other data."""
    if state.data != fingerprint:
        raise CheckpointError(
            f"{state.folder} was made with other data: its files have changed since, and all of them decide which "
            f"samples make a step. Put them back as they were (an image that cannot be read: replace it under its own "
            f"name), or begin anew with another --work-dir"
        )


def check_step(state: State, num_steps: int) -> None:
    """Raise CheckpointError where a checkpoint says that it was written at a step that the run does not have."""
    named = state.folder.name.removeprefix(PREFIX)
    if state.step > num_steps or (named.isdecimal() and int(named) != state.step):
        shown = state.step if state.step < 10**12 else "so large a number"
        raise CheckpointError(
            f"checkpoint {state.folder} is damaged: {STATE} says step {shown}, of {num_steps} steps of the run; resume "
            f"from an older one"
        )


def load_optimizer(state: State, optimizer: Any) -> None:
    """Put the optimiser's state back; reads tensors and plain values only.

    Raises CheckpointError where it is not a state of this optimiser, of these parameters, at this step.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper
    rates = [dict(group) for group in optimizer.param_groups]
    try:
        read_pickle(state.folder / OPTIMIZER)  # within our bounds, which torch's own reader has not
        optimizer.load_state_dict(torch.load(state.folder / OPTIMIZER, map_location="cpu", weights_only=True))
    except Exception as error:  # what is no state of an optimiser makes it fall over in every way there is
        raise CheckpointError(
            f"checkpoint {state.folder} is damaged: {OPTIMIZER} cannot be read; resume from an older one"
        ) from error
    if odd := odd_moments(optimizer, rates, state.step):
        raise CheckpointError(f"checkpoint {state.folder} is damaged: {odd} in {OPTIMIZER}; resume from an older one")
