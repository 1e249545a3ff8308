"""The linear layers of a language model -> 4-bit ones (NF4, double quantised), by bitsandbytes, which is optional."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sightline.errors import MissingExtra, UserError

BLOCK = 64
"""Weights that share a scale."""

DEVICES = ("cuda", "cpu", "xpu")
"""Where bitsandbytes has what 4-bit weights and 8-bit optimisers need; paged ones need CUDA."""


@contextmanager
def calm_bitsandbytes() -> Iterator[None]:
    """For imports of bitsandbytes, which peft imports too: no warning, and no kernel is fetched from the hub."""
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, absent = log.level, "kernels" not in sys.modules
    kernels: Any = sys.modules.get("kernels")
    log.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # how Python notes a module that cannot be imported
    try:
        yield
    finally:
        log.setLevel(level)
        del sys.modules["kernels"]
        if not absent:
            sys.modules["kernels"] = kernels


def bitsandbytes(purpose: str, device: torch.device) -> Any:
    """The package; raises MissingExtra where it is not installed, UserError where it cannot serve the device."""
    try:
        with calm_bitsandbytes():
            import bitsandbytes
    except ImportError as error:
        raise MissingExtra("bitsandbytes", "quantize", purpose) from error
    if device.type not in DEVICES:
        raise UserError(f"{purpose}: bitsandbytes computes on {', '.join(DEVICES)}, not on {device.type}")
    return bitsandbytes


def quantize_linear(root: nn.Module, names: Collection[str], *, device: torch.device, dtype: torch.dtype) -> None:
    """Put 4-bit layers in place of the linear layers of these names, one after the other, on `device`.

    `dtype` is the number format in which they compute, and to which the weights are rounded first.
    """
    bnb = bitsandbytes("a language model of 4 bits", device)
    check_widths([root.get_submodule(name) for name in names], device)
    for name in names:
        old = root.get_submodule(name)
        assert isinstance(old, nn.Linear)
        options = {"compress_statistics": True, "quant_type": "nf4"}
        with torch.device("meta"):
            new = bnb.nn.Linear4bit(old.in_features, old.out_features, False, compute_dtype=dtype, **options)
        weight = old.weight.detach().to(device, dtype)
        new.weight = bnb.nn.Params4bit(weight, requires_grad=False, module=new, **options).to(device)
        new.bias = old.bias
        # On some CPUs it would re-pack the weights between two steps, round their scales, and never learn again.
        new.support_avx512bf16_for_cpu = False
        root.set_submodule(name, new.train(old.training))
    root.is_loaded_in_4bit = True  # type: ignore[assignment]  # what peft asks for


def check_widths(layers: Collection[Any], device: torch.device) -> None:
    """Raise UserError for widths with which bitsandbytes computes on the CPU, but wrongly.

    Its kernel counts blocks from the start of each row, its quantiser through the whole matrix (0.50.2).
    """
    odd = sorted({layer.in_features for layer in layers if layer.in_features % BLOCK})
    if device.type == "cpu" and odd:
        shown = ", ".join(map(str, odd))
        raise UserError(
            f"4 bits on the CPU: bitsandbytes reads weights wrongly whose width is no multiple of {BLOCK}, and this "
            f"language model has layers of width {shown}; use a GPU, or the model without 4 bits"
        )
