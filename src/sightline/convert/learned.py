"""What a run has learned of one part -> a folder as XTuner's pth_to_hf leaves it, which peft puts on the bare part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.convert.lora import CONFIG, FACTORS, PREFIX
from sightline.convert.shards import write_shards
from sightline.convert.tensors import Stored
from sightline.errors import ModelError
from sightline.model.save import write_json
from sightline.recipe import LoraRecipe


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA by the hub's names (`....q_proj.lora_A.weight`), and the base that it was learned on."""

    tensors: Mapping[str, Stored]
    lora: LoraRecipe
    base: str


def write_adapter(adapter: Adapter, folder: Path, own: Callable[[str], str], task: str | None) -> None:
    """Write `adapter_config.json` and the weights; `own` makes of a hub's name the one in the part by itself.

    Raises ModelError where more than a LoRA was learned.
    """
    named = {own(name): tensor for name, tensor in adapter.tensors.items()}
    layers = {match[1] for name in named if (match := FACTORS.match(name))}
    if others := [name for name in named if not FACTORS.match(name)]:
        raise ModelError(f"{others[0]} was learned beside the adapters: leave out --learned, so that all is merged")
    folder.mkdir()
    whole = {PREFIX + name: tensor for name, tensor in named.items()}
    write_shards(whole, folder, max_shard_size="1TB", name="adapter_model")
    write_json(folder / CONFIG, _config(adapter, sorted(layers), task))


def _config(adapter: Adapter, layers: list[str], task: str | None) -> dict[str, Any]:
    lora = adapter.lora
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "target_modules": layers,
    }
