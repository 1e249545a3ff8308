"""A tuned model and a recipe -> the bytes that it keeps all the time, and those that come and go in a step.

What comes and goes is not modelled but watched: a step runs on tensors that have shapes and no contents.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sightline.model.tune import Group, kept_in
from sightline.recipe import OptimRecipe

NF4 = 0.5 + (1 + 4 / 256) / 64
"""Bytes of a weight of QLoRA: four bits, a byte for the scale of 64 weights, four bytes for that of 256 scales."""

BLOCKWISE = 2 + 2 * 4 / 256
"""Bytes of state for a parameter of 8-bit AdamW: two moments, and four bytes per 256 of each for their scale."""

BLOCKWISE_FROM = 4096
"""Smaller tensors keep both moments in full (bitsandbytes' min_8bit_size)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the fullest moment of a step."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """What forward keeps for backward, and what both need on the way."""
    logits: float
    """The head's output, its copy in float32 and their gradients."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def weight_bytes(
    model: nn.Module, dtype: torch.dtype, quantized: frozenset[int] = frozenset(), *, pure: bool = False
) -> float:
    """Every tensor in the format that it has in training (`kept_in`), frozen ones of `quantized` (ids) as NF4."""
    total = 0.0
    for tensor in model.parameters():
        four_bits = id(tensor) in quantized and not tensor.requires_grad
        total += (NF4 if four_bits else kept_in(tensor, dtype, pure=pure).itemsize) * tensor.numel()
    return total


def gradient_bytes(groups: Sequence[Group], dtype: torch.dtype, *, pure: bool) -> float:
    """Gradients have the format of their tensors."""
    return float(sum(kept_in(p, dtype, pure=pure).itemsize * p.numel() for group in groups for p in group.parameters))


def step_bytes(groups: Sequence[Group], *, pure: bool) -> float:
    """What AdamW needs on the way: a matrix in full, its noise, and what they are rounded to, one matrix at a time."""
    matrices = (p.numel() for group in groups for p in group.parameters if p.ndim > 1)
    return 11.0 * max(matrices, default=0) if pure else 0.0


def quantized_weights(language_model: nn.Module) -> frozenset[int]:
    """`id` of the weights that QLoRA keeps in four bits: the linear layers of the language model, but for adapters."""
    return frozenset(
        id(module.weight)
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    )


def optimizer_bytes(groups: Sequence[Group], optim: OptimRecipe) -> float:
    """State of the optimiser for all that learns."""
    return float(sum(_state(p, id(p) in group.tables, optim) for group in groups for p in group.parameters))


def _state(parameter: nn.Parameter, table: bool, optim: OptimRecipe) -> float:
    is_matrix = parameter.ndim == 2 and not table
    if is_matrix and optim.optimizer == "muon":
        return 4.0 * parameter.numel()
    if is_matrix and optim.optimizer.endswith("8bit") and parameter.numel() >= BLOCKWISE_FROM:
        return BLOCKWISE * parameter.numel()
    return 8.0 * parameter.numel()


class Peak(NamedTuple):
    """Bytes at the fullest moment of something, beside the model and its gradients."""

    others: float
    logits: float

    @property
    def total(self) -> float:
        return self.others + self.logits


class Watch(TorchDispatchMode):
    """Counts the bytes that are alive while it is entered, beside the model and the gradients that it has already."""

    def __init__(self, model: nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.now = {True: 0, False: 0}
        """Bytes of logits (tensors with a column for each word), and of all else."""
        self._peak = Peak(0, 0)
        kept = [tensor for p in model.parameters() for tensor in (p, p.grad) if tensor is not None]
        self._known = {t.untyped_storage()._cdata: (0, False) for t in (*kept, *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return (
                True  # a check of values ("as many features as image tokens?") that tensors without any cannot answer
            )
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size, is_logits = storage.nbytes(), tensor.ndim == 2 and tensor.shape[-1] == self.vocabulary
        self._known[key] = size, is_logits
        self.now[is_logits] += size
        weakref.finalize(storage, self._gone, key)
        self._higher()

    def _higher(self) -> None:
        if sum(self.now.values()) > self._peak.total:
            self._peak = Peak(self.now[False], self.now[True])

    def take(self) -> Peak:
        """The fullest moment since the last call."""
        peak, self._peak = self._peak, Peak(0, 0)
        self._higher()
        return peak

    def _gone(self, key: int) -> None:
        size, is_logits = self._known.pop(key, (0, False))
        self.now[is_logits] -= size


def without_contents(model: nn.Module, dtype: torch.dtype, *, pure: bool = False) -> None:
    """Give a model from the meta device fake tensors on the CPU, as an engine would hold them; inside FakeTensorMode.

    Autocast knows no meta device, and backward adds to gradients that are there from the micro-batch before.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and id(old) not in made:
                new = torch.empty(old.shape, dtype=kept_in(old, dtype, pure=pure))
                made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
                if old.requires_grad:
                    made[id(old)].grad = torch.empty_like(new)
            module._parameters[name] = None if old is None else made[id(old)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
