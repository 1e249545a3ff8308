"""What a racer says to the race: a line of JSON on a pipe, after each step. Needs nothing but Python."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

PIPE = "RACE_PIPE"
"""The environment variable with the number of the pipe's end."""


def report(**facts: Any) -> None:
    """Say that a step is done, and its facts: `loss`, `targets`, ..."""
    os.write(int(os.environ[PIPE]), (json.dumps(facts) + "\n").encode())


def over_targets(losses: Sequence[float], targets: Sequence[int]) -> float:
    """The mean over all targets, from the means of passes with so many each."""
    return sum(loss * count for loss, count in zip(losses, targets, strict=True)) / sum(targets)


def report_steps_of_trainer(alike: int | None = None) -> None:
    """Let every trainer of transformers, and what is built on it, report the loss and targets of each step.

    `alike`: how many passes a step has, told for a trainer that weighs passes alike, not by their targets; what is
    reported is the mean over targets nevertheless.
    """
    from transformers import Trainer
    from transformers.trainer_callback import CallbackHandler

    plain, plain_end = Trainer.training_step, CallbackHandler.on_step_end
    losses: list[float] = []
    targets: list[int] = []

    def training_step(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        targets.append(int((inputs["labels"][:, 1:] != -100).sum()))
        result = plain(self, model, inputs, *rest, **named)
        losses.append(float(result.detach()))
        return result

    def on_step_end(self: Any, *args: Any, **named: Any) -> Any:
        # A pass returns its share of the step's loss.
        loss = over_targets(losses, targets) * alike if alike else sum(losses)
        report(loss=loss, targets=sum(targets), passes=len(losses))
        losses.clear()
        targets.clear()
        return plain_end(self, *args, **named)

    Trainer.training_step = training_step
    CallbackHandler.on_step_end = on_step_end
