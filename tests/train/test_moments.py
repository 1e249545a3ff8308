"""What a checkpoint says of itself, and the moments in it, are looked at before a run goes on with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import SHORT, contents

from sightline.errors import CheckpointError, ModelError
from sightline.recipe import load_recipe
from sightline.train import checkpoint
from sightline.train.loop import train


def refused(path: Path, run: Path) -> str:
    """The one line, when nothing has been touched."""
    before = contents(run)
    with pytest.raises(CheckpointError) as error:
        train(load_recipe(str(path), SHORT), run, resume="auto")
    assert "\n" not in str(error.value) and contents(run) == before
    return str(error.value)


NO_STATES: dict[str, Callable[[Any], object]] = {
    "a negative step": lambda state: state.update(step=-5),
    "no step": lambda state: state.update(step=0),
    "a step in words": lambda state: state.update(step="two"),
    "half a step": lambda state: state.update(step=2.5),
    "a truth for a step": lambda state: state.update(step=True),
    "a list for a recipe": lambda state: state.update(identity=[]),
    "a number for data": lambda state: state.update(data=5),
    "a list of files": lambda state: state.update(files=["weights.safetensors"]),
}


@pytest.mark.parametrize("change", NO_STATES.values(), ids=NO_STATES)
def test_a_state_that_is_none(path: Path, run: Path, change: Callable[[Any], object]) -> None:
    file = run / "checkpoint-2" / "state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    change(state)
    file.write_text(json.dumps(state), encoding="utf-8")
    assert (
        refused(path, run)
        == f"checkpoint {file.parent} is damaged: state.json cannot be read; resume from an older one"
    )


def test_a_state_nested_without_end(path: Path, run: Path) -> None:
    (run / "checkpoint-2" / "state.json").write_text("[" * 10**5, encoding="utf-8")
    assert "state.json cannot be read" in refused(path, run)


@pytest.mark.parametrize("step", [3, 5, 10**30])
def test_a_step_that_is_not_the_runs(path: Path, run: Path, step: int) -> None:
    file = run / "checkpoint-2" / "state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**state, "step": step}), encoding="utf-8")
    shown = step if step < 10 else "so large a number"
    assert f"damaged: state.json says step {shown}, of 4 steps of the run; resume" in refused(path, run)


def all_moments(state: Any) -> list[dict[str, Any]]:
    return [moments for part in state.get("parts", [state]) for moments in part["state"].values()]


def each(change: Callable[[dict[str, Any]], object]) -> Callable[[Any], object]:
    return lambda state: [change(moments) for moments in all_moments(state)]


NO_MOMENTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "cut to one": (each(lambda m: m.update(exp_avg=m["exp_avg"].reshape(-1)[:1])), "of another shape"),
    "another shape": (each(lambda m: m.update(exp_avg_sq=m["exp_avg_sq"].reshape(-1))), "of another shape"),
    "one that repeats": (
        each(lambda m: m.update(exp_avg=m["exp_avg"].reshape(-1)[:1].clone().expand(m["exp_avg"].shape))),
        "cannot be read",
    ),
    "not finite": (each(lambda m: m["exp_avg_sq"].fill_(float("nan"))), "that are no numbers"),
    "a number": (each(lambda m: m.update(exp_avg=1.0)), "of another shape"),
    "one is missing": (each(lambda m: m.pop("exp_avg_sq")), "of another optimiser"),
    "one too many": (each(lambda m: m.update(more=torch.zeros(1))), "of another optimiser"),
    "later": (each(lambda m: m.update(step=torch.tensor(3.0))), "that is not the run's"),
    "before": (each(lambda m: m.update(step=torch.tensor(-1.0))), "that is not the run's"),
    "a step in words": (each(lambda m: m.update(step="two")), "cannot be read"),
    "another rate": (lambda state: state["param_groups"][0].update(highest=1.0), "another highest than the recipe's"),
    "other betas": (lambda state: state["param_groups"][0].update(betas=(0.5, 0.5)), "another betas"),
}


@pytest.mark.parametrize(("change", "words"), NO_MOMENTS.values(), ids=NO_MOMENTS)
def test_moments_that_are_not_these(path: Path, run: Path, change: Callable[[Any], object], words: str) -> None:
    with pytest.raises(CheckpointError) as error:
        with_moments(path, run, change)
    message = str(error.value)
    assert message.startswith(f"checkpoint {run / 'checkpoint-2'} is damaged: ") and "\n" not in message
    assert words in message and "optimizer.pt" in message and message.endswith("; resume from an older one")


@pytest.mark.parametrize("state", [[], 5, {}, {"state": [], "param_groups": 1}, {"state": {}, "param_groups": []}])
def test_what_is_no_state_of_an_optimiser(path: Path, run: Path, state: Any) -> None:
    with pytest.raises(CheckpointError, match=r"optimizer\.pt cannot be read; resume from an older one"):
        with_moments(path, run, lambda _: None, state)


def with_moments(path: Path, run: Path, change: Callable[[Any], object], other: Any = None) -> None:
    """Go on with other moments, of whose number of bytes the checkpoint knows."""
    file = run / "checkpoint-2" / "optimizer.pt"
    state = torch.load(file, weights_only=True) if other is None else other
    change(state)
    torch.save(state, file)
    said = json.loads((file.parent / "state.json").read_text(encoding="utf-8"))
    said["files"][file.name] = file.stat().st_size
    (file.parent / "state.json").write_text(json.dumps(said), encoding="utf-8")
    train(load_recipe(str(path), SHORT), run, resume="auto")


def test_moments_are_read_within_bounds(path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By our own reader first: a key in torch's may be such that it is hashed for ever."""
    read: list[Path] = []

    def stop(path: Path) -> None:
        read.append(path)
        raise ModelError("no")

    monkeypatch.setattr(checkpoint, "read_pickle", stop)
    assert "optimizer.pt cannot be read" in refused(path, run)
    assert read == [run / "checkpoint-2" / "optimizer.pt"]
