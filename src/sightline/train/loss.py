"""A batch -> the sum of its cross-entropies, over target positions only."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from sightline.data.collate import Batch
from sightline.model.attention import Lengths
from sightline.train.head import PIECE, head_loss


class PackedLoss(nn.Module):
    """The model as the loop sees it: `forward(batch, pixel_values)` is a scalar, the sum (not mean) over the targets.

    A module, because engines wrap modules.
    """

    def __init__(self, model: LlavaForConditionalGeneration, *, piece: int = PIECE) -> None:
        """`piece`: how many logits exist at a time."""
        super().__init__()
        self.model = model
        self.piece = piece

    def forward(self, batch: Batch, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = self.model.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            pixel_values=pixel_values.to(self._vision_dtype),
            # Not a tensor: LLaVA-NeXT would fetch each number from the device.
            **({"image_sizes": batch.image_sizes} if batch.image_sizes else {}),
            # With a cache transformers takes the packed samples for one: they would see each other.
            use_cache=False,
            sample_lengths=Lengths(batch.sample_lengths),
        ).last_hidden_state[0, batch.predict_at]
        head = self.model.lm_head
        return head_loss(hidden, head.weight, head.bias, batch.target_ids, self.piece)

    @property
    def _vision_dtype(self) -> torch.dtype:
        return next(self.model.model.vision_tower.parameters()).dtype
