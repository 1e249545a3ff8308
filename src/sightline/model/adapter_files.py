"""A folder that peft wrote -> its adapter added to the weights of a model in memory; plain LoRAs, without peft."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sightline.errors import ModelError
from sightline.model.llamafy import RENAME
from sightline.model.pickles import read_pickle, tensors_in
from sightline.model.projector import unsound
from sightline.pointers import refuse_pointer


def merge_folder(model: nn.Module, folder: Path, rename: Callable[[str], str], family: str | None = None) -> None:
    """Add an adapter that peft wrote to the weights of a model in memory, in float32.

    `rename` makes, of a module's name in the model that it was trained on, the one in `model`; `family` is that of the
    original, where that model is a Llama made of it. Raises ModelError where the adapter is of another base or kind.
    """
    tensors, scale_of = _read(folder)
    if family is not None:
        config: Any = model.config.text_config  # type: ignore[union-attr]
        tensors = dict(piece for name, tensor in tensors.items() for piece in RENAME[family](name, tensor, config))
    own = dict(model.named_parameters())
    for name, outer in tensors.items():
        if name.endswith(".lora_A.weight"):
            continue
        layer, is_factor, _ = name.partition(".lora_B.")
        weight = own.get(rename(f"{layer}.weight" if is_factor else name.replace(".modules_to_save.", ".")))
        if weight is None:
            raise _other_base(folder, f"{layer} is not in it")
        change = outer.float()
        if is_factor:
            inner = tensors.get(f"{layer}.lora_A.weight")
            if inner is None or inner.shape[0] != outer.shape[1]:
                raise ModelError(f"{folder} is cut: of {layer} it has one half only; copy it again")
            if len(outer) < len(weight) and layer == "lm_head":
                # Rows that were added for new tokens: the mean of the others, so what is added to them, too.
                change = torch.cat([change, change.mean(0).expand(len(weight) - len(outer), -1)])
            change = scale_of(inner) * (change @ inner.float())
        if change.shape != weight.shape:
            raise _other_base(folder, f"{layer} is {list(weight.shape)}, the adapter's is {list(change.shape)}")
        weight.data = (change + weight.data.float() if is_factor else change).to(weight.dtype)


def _read(folder: Path) -> tuple[dict[str, torch.Tensor], Callable[[torch.Tensor], float]]:
    """An adapter's tensors by the names of the model that it was trained on, and what each pair is multiplied by."""
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        alpha, root = float(config["lora_alpha"]), bool(config.get("use_rslora"))
        if not math.isfinite(alpha):
            raise ValueError(f"lora_alpha is {alpha}")
    except FileNotFoundError:
        raise ModelError(f"{folder} is no adapter: it has no adapter_config.json") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{folder / 'adapter_config.json'} is damaged ({error}); copy it again") from error
    file = folder / "adapter_model.safetensors"
    refuse_pointer(file)
    try:
        found = load_file(file) if file.is_file() else tensors_in(read_pickle(file.with_suffix(".bin")))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged ({error}); copy it again") from error
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in found.items()}
    if wrong := next((f"{name} {what}" for name, tensor in tensors.items() if (what := unsound(tensor))), None):
        raise ModelError(f"{file} is damaged: {wrong}; copy it again")
    odd = [name for name in tensors if "lora_" in name and not re.search(r"\.lora_[AB]\.weight$", name)]
    if odd or config.get("alpha_pattern") or config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} is no plain LoRA: merge it first (sightline convert merge LLM ADAPTER OUT)")
    return tensors, lambda inner: alpha / (len(inner) ** 0.5 if root else len(inner))


def _other_base(folder: Path, what: str) -> ModelError:
    return ModelError(f"the adapter {folder} does not belong to this base model ({what})")
