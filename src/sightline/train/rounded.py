"""Weights that learn in bfloat16 alone: each is stepped in float32 and rounded at random, so that small steps add up.

A step of a usual rate is smaller than half the distance between neighbouring numbers of bfloat16. Rounded to the
nearest it would be lost; rounded up or down with the chance that its place between the two asks for, it is kept in the
mean (stochastic rounding, as in arXiv 2010.06192).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from sightline.train.several import Several


class Rounded(Several):
    """An optimiser of float32 for each tensor of bfloat16, which is whole in float32 only while it is stepped."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    ) -> None:
        """`make` gives an optimiser of the tensors in float32."""
        self.low = list(parameters)
        self.whole = [nn.Parameter(p.new_empty((0,) * p.ndim, dtype=torch.float32)) for p in self.low]
        self.steps = 0
        super().__init__([make([whole]) for whole in self.whole])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps += 1
        # The same on all ranks, whose copies must stay equal, and in a run that goes on after a kill.
        generators: dict[torch.device, torch.Generator] = {}
        for low, whole, part in zip(self.low, self.whole, self.parts, strict=True):
            if low.grad is None:
                continue
            if low.device not in generators:
                generators[low.device] = torch.Generator(low.device).manual_seed(self.steps)
            whole.data, whole.grad = low.float(), low.grad.float()
            part.step()
            whole.grad = None
            low.copy_(rounded(whole.data, generators[low.device]))
            whole.data = whole.new_empty((0,) * low.ndim)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for low in self.low:
            low.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps} | super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]
        super().load_state_dict(state_dict)


def rounded(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 -> bfloat16, one of the two neighbours, whose mean over many draws is the value."""
    # bfloat16 is the upper half of the bits: what is added to the lower half carries as often as that half is large.
    noise = torch.randint(0, 2**16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    low = noise.add_(values.view(torch.int32)).bitwise_and_(-(2**16)).view(torch.float32).bfloat16()
    # There the carry runs into exponent and sign: a NaN of CUDA, all ones, would become -0.
    return low.masked_fill_(values.isnan(), float("nan"))
