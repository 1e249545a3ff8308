"""Hidden states, the head's weights and target ids -> the sum of cross-entropies, with logits for a few rows at a time.

The gradients of a cross-entropy need nothing but the logits, so they are made in the forward pass, before the logits of
the piece are thrown away: none are kept for the backward pass, and none are computed twice (the idea of Cut
Cross-Entropy, arXiv 2411.09009, and of Liger Kernel, arXiv 2410.10989, in plain torch).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

PIECE = 2**26
"""Logits of a piece: enough for matrix products of full speed, 256 MB in float32."""

PIECE_ON_CPU = 2**24
"""The same where a quarter is as fast."""


def head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    piece: int = PIECE,
) -> torch.Tensor:
    """hidden [N, width], weight [vocabulary, width], targets int64 [N] -> scalar, summed over N.

    `piece`: how many logits exist at a time. Products are in the format of autocast, where it is on; softmax and sum in
    float32 at least.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if not torch.is_grad_enabled():
        # What could learn asks for its gradient even where none is wanted.
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    with torch.autocast(device, enabled=False):
        result: torch.Tensor = _HeadLoss.apply(hidden, weight, bias, targets, dtype, max(1, piece // len(weight)))
    return result


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        dtype: torch.dtype,
        rows: int,
    ) -> torch.Tensor:
        for_hidden, for_weight, for_bias, *_ = ctx.needs_input_grad
        w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
        d_hidden = torch.empty_like(hidden) if for_hidden else None
        d_weight = torch.zeros_like(weight) if for_weight else None
        d_bias = torch.zeros_like(bias) if for_bias and bias is not None else None
        full = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=full, device=hidden.device)
        for at in range(0, len(hidden), rows):
            h, t = hidden[at : at + rows].to(dtype), targets[at : at + rows, None]
            logits = linear(h, w, b).to(full)
            highest, wanted = logits.amax(1, keepdim=True), logits.gather(1, t)
            # Written over the logits, here and below: nothing else of their size is made in full precision.
            scores = logits.sub_(highest).exp_()
            sums = scores.sum(1, keepdim=True)
            total += (highest + sums.log() - wanted).sum()
            if not (for_hidden or for_weight or for_bias):
                continue
            slope = scores.div_(sums).scatter_add_(1, t, torch.full_like(t, -1, dtype=full))
            low = slope.to(dtype)
            if d_hidden is not None:
                d_hidden[at : at + rows] = low @ w
            # float16 cannot hold sums over all rows, and the scale that would make them small comes after.
            slope, h = (slope, h.to(full)) if dtype == torch.float16 else (low, h)
            if d_weight is not None and slope.dtype == weight.dtype:
                d_weight.addmm_(slope.T, h)
            elif d_weight is not None:
                d_weight += slope.T @ h
            if d_bias is not None:
                d_bias += slope.sum(0)
        ctx.gradients = d_hidden, d_weight, d_bias
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place: nobody else holds them, and those of a head are as large as the head.
        found = [None if gradient is None else gradient.mul_(slope) for gradient in ctx.gradients]
        del ctx.gradients
        return (*found, None, None, None)
