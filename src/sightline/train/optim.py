"""Parameter groups, the optimiser and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sightline.model.tune import Group
from sightline.recipe import OptimRecipe


def make_optimizer(groups: Sequence[Group], optim: OptimRecipe) -> torch.optim.AdamW:
    """AdamW with a rate for each part; norms, biases and other vectors do not decay."""
    rows = []
    for group in groups:
        for decays in (True, False):
            members = [p for p in group.parameters if (p.ndim > 1) == decays]
            if members:
                decay = optim.weight_decay if decays else 0.0
                rows.append(
                    {"params": members, "lr": group.lr, "highest": group.lr, "name": group.name, "weight_decay": decay}
                )
    return torch.optim.AdamW(rows, betas=optim.betas, eps=optim.eps, fused=True)


def lr_scale(step: int, num_steps: int, optim: OptimRecipe) -> float:
    """What the highest rates are multiplied by at a step, counted from 0.

    Rises in a line over the first `warmup_ratio` of the steps, the first of which already moves; then falls to 0 behind
    the last step along a cosine or a line, or stays.
    """
    warmup = math.ceil(num_steps * optim.warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    match optim.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return 1 - done
        case "constant":
            return 1.0


def set_rates(optimizer: torch.optim.Optimizer, scale: float) -> dict[str, float]:
    """Set all rates for a step; returns them by part."""
    for group in optimizer.param_groups:
        group["lr"] = group["highest"] * scale
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
