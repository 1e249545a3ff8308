"""Gradient checkpointing in as many layers as it takes: which ones, and how many a device asks for."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from sightline.model.estimate import layers_of
from sightline.model.estimate_memory import Memory


def recompute(language_model: Any, layers: int) -> None:
    """Let the first `layers` layers compute their activations twice instead of keeping them.

    The first, because theirs would have to be kept the longest.
    """
    if not layers:
        return
    language_model.activation_checkpointing_enable({"use_reentrant": False})
    kept: Any = layers_of(language_model, language_model.config)[layers:]
    for layer in kept:
        layer.gradient_checkpointing = False


def fewest(kept: float, recomputed: float, room: float, layers: int) -> int:
    """In how many of the layers activations must be computed twice for a step to fit into `room`; all if none do.

    `kept` and `recomputed`: bytes that the step takes with none and with all of them.
    """
    if kept <= room:
        return 0
    if recomputed >= room:
        return layers
    return math.ceil((kept - room) / (kept - recomputed) * most_that_pay(layers))


def most_that_pay(layers: int) -> int:
    """All but one: the activations of one are there in any case, while it computes them for the second time."""
    return max(1, layers - 1)


def between(kept: Memory, recomputed: Memory, number: int, layers: int) -> Memory:
    """Memory with `number` of the layers computed twice."""
    share = min(1.0, number / most_that_pay(layers))
    names = (field.name for field in fields(Memory))
    return Memory(**{n: (1 - share) * getattr(kept, n) + share * getattr(recomputed, n) for n in names})
