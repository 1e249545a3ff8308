"""torch's Muon, with matrices of one shape orthogonalised together: for many small ones that takes half of the time."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

_TOGETHER = 2**22
"""Numbers of the matrices that are stacked at a time: large ones fill a device alone, and a stack is a copy."""


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` (Keller Jordan's, with the rates of AdamW); its state is torch's too."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            stacks: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stacks[parameter.shape].append(parameter)
            for shape, members in stacks.items():
                at_a_time = max(1, _TOGETHER // shape.numel())
                for start in range(0, len(members), at_a_time):
                    self._move(members[start : start + at_a_time], group)

    def _move(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        kept = [self._momentum(parameter) for parameter in parameters]
        torch._foreach_lerp_(kept, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, kept, group["momentum"]) if group["nesterov"] else kept
        stack = orthogonal(torch.stack(list(directions)), group["ns_coefficients"], group["ns_steps"], group["eps"])
        # The root mean square of AdamW's steps, so that its rates hold here too (https://arxiv.org/abs/2502.16982).
        rate = group["lr"] * 0.2 * max(stack.shape[1:]) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(stack.to(parameters[0].dtype)), alpha=-rate)

    def _momentum(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: torch.Tensor = state["momentum_buffer"]
        return momentum


def orthogonal(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> torch.Tensor:
    """Newton-Schulz: matrices [N, A, B] with singular values near 1 and the same vectors, bfloat16 [N, A, B]."""
    first, second, third = coefficients
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=epsilon)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.mT if tall else x
