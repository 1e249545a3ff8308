"""A model and a loss per step -> a trained model: the short loop that both of the demo's backbones learn in."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import parent_process
from typing import TYPE_CHECKING

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sightline.model.tune import Group
from sightline.recipe import OptimRecipe
from sightline.runtime import console, say
from sightline.train.optim import lr_scale, make_optimizer, set_rates

if TYPE_CHECKING:
    from sightline.demo.backbones import Schedule

TABLES = ("embed", "projection", "head")
"""Parts of the names of parameters that Muon is not for."""


def learn(name: str, model: torch.nn.Module, schedule: Schedule, loss_of: Callable[[int], torch.Tensor]) -> float:
    """Minimise `loss_of(step)` by Muon, in about half of AdamW's steps; returns the mean loss of the last steps."""
    parameters = dict(model.named_parameters())
    tables = frozenset(id(p) for key, p in parameters.items() if any(part in key for part in TABLES))
    optim = OptimRecipe(
        optimizer="muon", lr=schedule.lr, betas=(0.9, 0.98), weight_decay=0.01, warmup_ratio=0.15, schedule="cosine"
    )
    optimizer = make_optimizer([Group(name, tuple(parameters.values()), schedule.lr, tables)], optim)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    last: list[float] = []
    model.train()
    main = parent_process()  # None: this is the main process
    # Two backbones learn at once, and a terminal has one place for a bar.
    hidden = not console.is_terminal or main is not None
    with Progress(*columns, *times, console=console, disable=hidden) as progress:
        bar = progress.add_task(name, total=schedule.steps)
        for step in range(schedule.steps):
            if main is not None and not main.is_alive():
                raise SystemExit("the demo was killed")
            set_rates(optimizer, lr_scale(step, schedule.steps, optim))
            loss = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_grad)
            optimizer.step()
            last = [*last[-19:], float(loss.detach())]
            progress.update(bar, advance=1, description=f"{name} (loss {last[-1]:.3f})")
    model.eval()
    mean = sum(last) / len(last)
    size = sum(parameter.numel() for parameter in parameters.values())
    say(f"{name}: {size:,} parameters, {schedule.steps} steps, loss {mean:.3f}")
    return mean
