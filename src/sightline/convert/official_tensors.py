"""A folder of an official LLaVA -> its tensors: all in it, or a projector or adapters beside their language model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.convert.lora import adapter_config, is_adapter, merged
from sightline.convert.tensors import Stored, in_file, in_folder
from sightline.errors import ModelError
from sightline.model.llm import fetched
from sightline.model.reading import reading

PROJECTOR, BESIDE = "mm_projector.bin", "non_lora_trainables.bin"

WRAPPED = re.compile(r"^(?:base_model\.)?(?:model\.)?(?=model\.|lm_head\.)")
"""What peft puts before the names of parameters that were trained beside its adapters."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds, together with the language model that it was made for."""

    kind: str
    tensors: Mapping[str, Stored]
    """By their official names."""
    tokenizer: Path
    """The folder in which the tokenizer is."""
    base: str | None = None
    """The language model, where it is not in the folder."""


def find(folder: Path, config: Mapping[str, Any], base: str | None) -> Found:
    """Raises ModelError where weights are missing, cut or damaged, or an adapter was made for another base."""
    if is_adapter(folder):
        named = base or adapter_config(folder).get("base_model_name_or_path")
        whole, place = _base(folder, named)
        tensors = merged(whole, folder)
        if (folder / BESIDE).is_file():
            tensors |= {WRAPPED.sub("", name): tensor for name, tensor in in_file(folder / BESIDE).items()}
        elif not any("mm_projector" in name for name in whole):
            raise ModelError(f"{folder} is half a LoRA folder: it has no {BESIDE}, in which the projector is")
        return Found(f"adapters of an official LLaVA on {named}", tensors, place, named)
    if any(any(folder.glob(pattern)) for pattern in ("model*.safetensors*", "pytorch_model*.bin*")):
        if base is not None:
            raise ModelError(f"{folder} has a language model of its own: leave {base} out")
        return Found("an official LLaVA", in_folder(folder), folder)
    if (folder / PROJECTOR).is_file():
        named = base or config.get("_name_or_path")
        whole, place = _base(folder, named)
        # The prefix depends on how it was saved; the loader of LLaVA looks for the last part alone.
        own = {f"model.{name[name.index('mm_projector.') :]}": t for name, t in in_file(folder / PROJECTOR).items()}
        return Found(f"an official projector on {named}", {**whole, **own}, place, named)
    raise ModelError(f"{folder} has no weights: no safetensors, no pytorch_model*.bin, no {PROJECTOR}; copy it again")


def _base(folder: Path, name: str | None) -> tuple[dict[str, Stored], Path]:
    if not name:
        raise ModelError(f"{folder} does not say which language model it was made for: name it with --llm")
    try:
        with reading(name):
            place = fetched(name, weights=True)
        return in_folder(place, of="the language model"), place
    except ModelError as error:
        raise ModelError(f"{folder} was made for {name}: {error}; name another folder with --llm") from error
