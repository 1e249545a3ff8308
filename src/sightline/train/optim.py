"""Parameter groups, the optimiser and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from sightline.errors import UserError
from sightline.model.quantize import bitsandbytes
from sightline.model.tune import Group
from sightline.recipe import OptimRecipe
from sightline.train.muon import Muon
from sightline.train.rounded import Rounded
from sightline.train.several import Several

WSD_DECAY = 0.3
"""The share of all steps in which the rate falls after it has stayed (warm-up, stable, decay)."""


def make_optimizer(groups: Sequence[Group], optim: OptimRecipe, *, fused: bool = True) -> torch.optim.Optimizer:
    """AdamW, or another one for the matrices and AdamW for the rest; a rate for each part, and vectors do not decay.

    Embeddings and heads are the rest's: to Muon they are no maps, and in 8 bits they are known to become unstable.
    Tensors of bfloat16 are stepped in float32 and rounded at random. `fused`: AdamW in one kernel, which not every
    device has.
    """
    rows: dict[tuple[bool, bool], list[dict[str, Any]]] = {}
    for group in groups:
        sorts: dict[tuple[bool, bool, bool], list[torch.nn.Parameter]] = {}
        for parameter in group.parameters:
            other = optim.optimizer != "adamw" and parameter.ndim == 2 and id(parameter) not in group.tables
            low = parameter.dtype == torch.bfloat16
            sorts.setdefault((low, other, parameter.ndim > 1), []).append(parameter)
        for (low, other, decays), members in sorts.items():
            decay = optim.weight_decay if decays else 0.0
            row = {"params": members, "lr": group.lr, "highest": group.lr, "name": group.name, "weight_decay": decay}
            rows.setdefault((low, other), []).append(row)
    parts: list[torch.optim.Optimizer] = []
    for (low, other), kind in sorted(rows.items(), key=lambda item: (item[0][0], not item[0][1])):
        make = partial(_optimizer, optim=optim, other=other, fused=fused)
        parts += [_rounded(row, make) for row in kind] if low else [make(kind)]
    return parts[0] if len(parts) == 1 else Several(parts)


def _rounded(row: dict[str, Any], make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]) -> Rounded:
    return Rounded(row["params"], lambda whole: make([row | {"params": whole}]))


def _optimizer(rows: list[dict[str, Any]], optim: OptimRecipe, other: bool, fused: bool) -> torch.optim.Optimizer:
    if not other:
        return torch.optim.AdamW(rows, betas=optim.betas, eps=optim.eps, fused=fused)
    if optim.optimizer == "muon":
        return Muon(rows, adjust_lr_fn="match_rms_adamw")
    bnb = check_optimizer(optim, rows[0]["params"][0].device)
    kind = bnb.optim.PagedAdamW8bit if optim.optimizer == "paged_adamw_8bit" else bnb.optim.AdamW8bit
    optimizer: torch.optim.Optimizer = kind(rows, betas=optim.betas, eps=optim.eps)
    return optimizer


def check_optimizer(optim: OptimRecipe, device: torch.device) -> Any:
    """bitsandbytes where the optimiser is one of its; raises MissingExtra or UserError where it cannot be used here."""
    if not optim.optimizer.endswith("8bit"):
        return None
    purpose = f"optim.optimizer: {optim.optimizer}"
    if optim.optimizer == "paged_adamw_8bit" and device.type != "cuda":
        instead = "adamw_8bit" if device.type in ("cpu", "xpu") else "adamw"
        raise UserError(f"{purpose}: only GPUs of CUDA have pages, {device.type} has none; use {instead}")
    return bitsandbytes(purpose, device)


def lr_scale(step: int, num_steps: int, optim: OptimRecipe) -> float:
    """What the highest rates are multiplied by at a step, counted from 0.

    Rises in a line over the first `warmup_ratio` of the steps, the first of which already moves; then falls to 0 behind
    the last step along a cosine or a line, or stays; wsd stays, and falls along a line at the end.
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
        case "wsd":
            return min(1.0, (num_steps - step) / max(1, num_steps * WSD_DECAY))


def set_rates(optimizer: torch.optim.Optimizer, scale: float) -> dict[str, float]:
    """Set all rates for a step; returns them by part."""
    for group in optimizer.param_groups:
        group["lr"] = group["highest"] * scale
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
