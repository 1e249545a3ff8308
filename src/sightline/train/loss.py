"""A batch -> the sum of its cross-entropies, over target positions only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration

from sightline.data.collate import Batch

CHUNK = 4096
"""Targets that go through the head at once: logits exist for so many positions, and not twice for the backward pass."""


class PackedLoss(nn.Module):
    """The model as the loop sees it: `forward(batch, pixel_values)` is a scalar, the sum (not mean) over the targets.

    A module, because engines wrap modules.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = self.model.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            pixel_values=pixel_values.to(self._vision_dtype),
            # Not a tensor: LLaVA-NeXT would fetch each number from the device.
            **({"image_sizes": batch.image_sizes} if batch.image_sizes else {}),
            # With a cache transformers takes the packed samples for one: they would see each other.
            use_cache=False,
            sample_lengths=batch.sample_lengths,
        ).last_hidden_state[0, batch.predict_at]
        pieces = zip(hidden.split(CHUNK), batch.target_ids.split(CHUNK), strict=True)
        one = len(hidden) <= CHUNK
        sums = [self._piece(h, t) if one else checkpoint(self._piece, h, t, use_reentrant=False) for h, t in pieces]
        total: torch.Tensor = torch.stack(sums).sum()
        return total

    def _piece(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits: Any = self.model.lm_head(hidden)
        return cross_entropy(logits.float(), targets, reduction="sum")

    @property
    def _vision_dtype(self) -> torch.dtype:
        return next(self.model.model.vision_tower.parameters()).dtype
