"""What Sightline asks of newer versions, for those that a machine without a network may have (torch 2.11,
transformers 5.17); it changes nothing where they have it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch.nn.attention import varlen
from transformers import PreTrainedModel


def adapt() -> None:
    model: Any = PreTrainedModel
    if not hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable = model.gradient_checkpointing_enable
    varlen.varlen_attn = with_groups(varlen.varlen_attn)


def with_groups(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Takes `enable_gqa`: before torch 2.12 the kernel shared key heads among query heads without being asked."""
    if "enable_gqa" in inspect.signature(attend).parameters:
        return attend
    return lambda *args, enable_gqa=False, **named: attend(*args, **named)
