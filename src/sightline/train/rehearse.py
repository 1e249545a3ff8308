"""A recipe and the shape of a pack -> the memory of a training step, watched on tensors without contents.

The model, its tuning, the loss and the backward pass are those of training; nothing is loaded and nothing computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sightline.data.collate import Batch
from sightline.model.attention import packed_attention
from sightline.model.estimate_fit import changed
from sightline.model.estimate_memory import (
    Memory,
    Peak,
    Watch,
    gradient_bytes,
    optimizer_bytes,
    quantized_weights,
    step_bytes,
    weight_bytes,
    without_contents,
)
from sightline.model.estimate_models import Blank, blank_model
from sightline.model.tune import Group, apply_tuning
from sightline.recipe import Recipe
from sightline.train.loss import PackedLoss
from sightline.train.recompute import recompute

SHALLOW = (2, 3)
"""Layers of the two models that stand for deeper ones."""

UNBOUNDED = 2**40
"""A window of attention that is no window."""


@dataclass(frozen=True)
class PackShape:
    """What a micro-batch consists of."""

    lengths: tuple[int, ...]
    """Tokens of each sample, image tokens included."""
    targets: int
    tiles: int
    """Runs of the vision tower: one per image, or per tile; at least one, for the stand-in image."""


def tuned(recipe: Recipe, *, layers: int | None = None) -> tuple[Blank, list[Group]]:
    """The recipe's model on the meta device with its adapters, and what learns of it; or `layers` of its LLM alone."""
    blank = blank_model(recipe.model, layers=layers)
    with torch.device("meta"):
        return blank, apply_tuning(blank.model, recipe.tune, recipe.optim)


def rehearse(recipe: Recipe, pack: PackShape, dtype: torch.dtype) -> Memory:
    """Memory of a micro-batch on one device, at a moment when gradients of an earlier one are there."""
    blank, groups = tuned(recipe)
    model = blank.model
    quantized = quantized_weights(model.model.language_model) if recipe.tune.quantized else frozenset()
    pure = recipe.engine.pure_bf16
    weights = weight_bytes(model, dtype, quantized, pure=pure)
    # What is in four bits is unpacked for its product, one matrix at a time.
    unpacked = max((p.numel() for p in model.parameters() if id(p) in quantized), default=0) * dtype.itemsize
    optimizer = optimizer_bytes(groups, recipe.optim)
    # The optimiser does nothing to activations: recipes that differ in it share a rehearsal.
    alike = changed(recipe, {"optim.optimizer": "adamw"}).model_dump_json()
    peak = _seen_peak(alike, pack, dtype, model.config.text_config.num_hidden_layers)
    return Memory(
        weights=weights,
        gradients=gradient_bytes(groups, dtype, pure=pure),
        optimizer=optimizer,
        activations=max(peak.others + unpacked, step_bytes(groups, pure=pure) - peak.logits),
        logits=peak.logits,
    )


@lru_cache(maxsize=64)
def _seen_peak(recipe: str, pack: PackShape, dtype: torch.dtype, layers: int) -> Peak:
    return _peak(Recipe.model_validate_json(recipe), pack, dtype, layers)


def _peak(recipe: Recipe, pack: PackShape, dtype: torch.dtype, layers: int) -> Peak:
    """The fullest moment of a step.

    Layers are all alike, so that of a deep model follows from two shallow ones, forward and backward each for itself.
    """
    low, high = SHALLOW
    if layers <= high or recipe.tune.freeze_layers is not None:
        return max(_watched(recipe, pack, dtype, layers), key=lambda peak: peak.total)
    pairs = zip(_watched(recipe, pack, dtype, low), _watched(recipe, pack, dtype, high), strict=True)
    deep = [Peak(*(a + (b - a) * (layers - low) / (high - low) for a, b in zip(*pair, strict=True))) for pair in pairs]
    return max(deep, key=lambda peak: peak.total)


def _watched(recipe: Recipe, pack: PackShape, dtype: torch.dtype, layers: int) -> tuple[Peak, Peak]:
    """The fullest moments of forward and of backward, with so many layers of the language model."""
    blank, _ = tuned(recipe, layers=layers)
    for module in blank.model.model.language_model.modules():
        for thing in (module, getattr(module, "config", module)):
            if getattr(thing, "sliding_window", None):
                # Flash attention needs no mask for a window, unlike the CPU's attention, which is watched here.
                setattr(thing, "sliding_window", UNBOUNDED)  # noqa: B010
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_contents(blank.model, dtype, pure=recipe.engine.pure_bf16)
        watch = Watch(blank.model, blank.model.config.text_config.vocab_size)
        return _step(blank, recipe, pack, dtype, watch)


def _step(blank: Blank, recipe: Recipe, pack: PackShape, dtype: torch.dtype, watch: Watch) -> tuple[Peak, Peak]:
    model = blank.model
    if recipe.engine.gradient_checkpointing is True:
        recompute(model.model.language_model, model.config.text_config.num_hidden_layers)
    module = PackedLoss(model)
    module.train()
    side = model.config.vision_config.image_size
    tokens = sum(pack.lengths)
    ids, places = _numbers(1, tokens), _numbers(1, tokens)
    batch = Batch(
        input_ids=ids,
        position_ids=places,
        sample_lengths=pack.lengths,
        predict_at=_numbers(pack.targets),
        target_ids=_numbers(pack.targets),
        pixels=torch.empty(pack.tiles, 3, side, side, dtype=torch.uint8),
    )
    with watch, packed_attention(model):
        pixels = torch.empty(pack.tiles, 3, side, side)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = module(batch, pixels)
        forward = watch.take()
        loss.backward()
        return forward, watch.take()


def _numbers(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64)


def fill(tokens: int, longest: int) -> tuple[int, ...]:
    """Lengths of the fewest samples that fill a pack; more of them would need the same memory, and more time here."""
    whole, rest = divmod(tokens, longest)
    return (longest,) * whole + ((rest,) if rest else ())
