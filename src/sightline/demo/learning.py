"""A model and a loss per step -> a trained model: the short loop that both of the demo's backbones learn in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sightline.runtime import console

if TYPE_CHECKING:
    from sightline.demo.backbones import Schedule

WARMUP = 30


def learn(name: str, model: torch.nn.Module, schedule: Schedule, loss_of: Callable[[int], torch.Tensor]) -> float:
    """Minimise `loss_of(step)`; returns the mean loss of the last steps.

    Matrices are updated by Muon, which takes about half of AdamW's steps for models of this size, all else by AdamW.
    """
    parameters = list(model.named_parameters())
    ends = ("embed", "projection", "head")
    matrices = [p for key, p in parameters if p.ndim == 2 and not any(end in key for end in ends)]
    taken = {id(parameter) for parameter in matrices}
    others = [parameter for _, parameter in parameters if id(parameter) not in taken]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=schedule.muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=schedule.adam_lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    highest = [schedule.muon_lr, schedule.adam_lr]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    last: list[float] = []
    model.train()
    with Progress(*columns, *times, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=schedule.steps)
        for step in range(schedule.steps):
            scale = min(1.0, (step + 1) / WARMUP) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / schedule.steps)))
            for optimiser, lr in zip(optimisers, highest, strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = lr * scale
            loss = loss_of(step)
            model.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
            last = [*last[-19:], float(loss.detach())]
            progress.update(bar, advance=1, description=f"{name} (loss {last[-1]:.3f})")
    model.eval()
    mean = sum(last) / len(last)
    size = sum(parameter.numel() for _, parameter in parameters)
    console.print(f"{name}: {size:,} parameters, {schedule.steps} steps, loss {mean:.3f}")
    return mean
