"""What an optimiser has read from a checkpoint -> what in it cannot be of these parameters at this step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from sightline.train.rounded import Rounded
from sightline.train.several import Several

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer", "state1", "state2")
"""Of the shape of the parameter; the last two are bitsandbytes', whose tables are the rest."""

_SMALL = {"step", "state1", "state2"}
_BITS = _SMALL | {"qmap1", "qmap2", "absmax1", "absmax2"}
_BLOCK, _LEVELS = 256, 256
"""Of bitsandbytes: numbers that share a scale, and numbers that a byte can stand for."""

_SET = ("name", "highest", "weight_decay", "betas", "eps", "momentum", "nesterov", "ns_steps")
"""What the recipe says of a group of parameters."""


def odd_moments(optimizer: torch.optim.Optimizer, before: Sequence[Mapping[str, Any]], step: int) -> str:
    """The first thing that is wrong, in words; an empty string for nothing. `before`: the groups as the recipe has it.

    Also states that would let a run go on, with another loss.
    """
    for group, wanted in zip(optimizer.param_groups, before, strict=True):
        for key in _SET:
            if key in wanted and group.get(key) != wanted[key]:
                return f"another {key} than the recipe's"
    for part, shapes in _parts(optimizer):
        if isinstance(part, Rounded):
            if type(part.steps) is not int or not 0 <= part.steps <= step:
                return "a number of steps that is not the run's"
            continue
        if any(set(state) not in _names(part) for state in part.state.values()):
            return "a state of another optimiser"
        for parameter, shape in shapes.items():
            if odd := _odd(part.state.get(parameter, {}), shape, step):
                return odd
    return ""


def _parts(optimizer: Any) -> Iterator[tuple[Any, dict[torch.Tensor, torch.Size]]]:
    """All optimisers that it is made of, and the shapes of what they step."""
    if isinstance(optimizer, Several):
        yield optimizer, {}
        for number, part in enumerate(optimizer.parts):
            for inner, shapes in _parts(part):
                # Between two steps what is rounded afterwards has no numbers in float32.
                low = {whole: optimizer.low[number].shape for whole in shapes} if isinstance(optimizer, Rounded) else {}
                yield inner, shapes | low
    else:
        yield optimizer, {p: p.shape for group in optimizer.param_groups for p in group["params"]}


def _names(part: torch.optim.Optimizer) -> list[set[str]]:
    """What the state of a parameter may consist of."""
    if isinstance(part, torch.optim.AdamW):
        return [{"step", "exp_avg", "exp_avg_sq"}]
    return [{"momentum_buffer"}] if isinstance(part, torch.optim.Muon) else [_SMALL, _BITS]


def _odd(state: Mapping[str, Any], shape: torch.Size, step: int) -> str:
    for name, value in state.items():
        if name == "step":
            if not (value.numel() == 1 if isinstance(value, torch.Tensor) else type(value) is int):
                return "a number of steps that is none"
            if not 0 <= float(value) <= step:
                return "a number of steps that is not the run's"
            continue
        blocks = math.ceil(shape.numel() / _BLOCK)
        meant = shape if name in MOMENTS else torch.Size([_LEVELS if name.startswith("qmap") else blocks])
        if not isinstance(value, torch.Tensor) or value.shape != meant:
            return "moments of another shape than the parameters"
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            return "moments that repeat themselves"
        if value.is_complex() or (value.is_floating_point() and not value.isfinite().all()):
            return "moments that are no numbers"
    return ""
