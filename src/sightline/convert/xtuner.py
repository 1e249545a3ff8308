"""XTuner's folders (see model/parts.py for their layout) -> a source, and back.

XTuner knows a projector by its `model_type` alone (it registers the class itself), so no code is written beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from sightline.convert.hf import write_generation_config
from sightline.convert.joined import finished, joined, llm_names, tower_name
from sightline.convert.learned import Adapter, write_adapter
from sightline.convert.lora import adapter_config, adapter_tensors, combined, merged
from sightline.convert.names import XTUNER_PROJECTOR, rename, reverse
from sightline.convert.shards import write_shards
from sightline.convert.source import Source
from sightline.convert.tensors import Stored, in_folder
from sightline.convert.tower import plain_processor
from sightline.errors import ModelError, shown
from sightline.files import appearing
from sightline.model.llamafy import RENAME
from sightline.model.llm import made_of
from sightline.model.parts import (
    ASPECT_KEY,
    LAYER_KEY,
    LLM_ADAPTER,
    PROJECTOR,
    TOWER,
    TOWER_ADAPTER,
    describe,
    find_parts,
)
from sightline.model.projector import depth_of
from sightline.model.save import hub_config, write_json, write_tokenizer
from sightline.runtime import say


def read(
    path: str | Path, *, llm: str | None = None, vision_tower: str | None = None, template: str | None = None
) -> Source:
    """A folder that XTuner (or `write`) has made, on the parts that it was trained with where it lacks them.

    Raises ModelError where a part is missing, damaged or does not belong to the others.
    """
    parts = find_parts(path, llm=llm, vision_tower=vision_tower)
    spec, prompter = describe(parts, template)
    source = joined(spec, prompter)
    tensors: Mapping[str, Stored] = source.tensors
    text = source.config.text_config
    if parts.llm_adapter is not None:
        tensors = with_llm_adapter(tensors, parts.llm_adapter, text, made_of(parts.llm))
    if parts.tower_adapter is not None:
        tensors = merged(tensors, parts.tower_adapter, lambda name: tower_name(name, source.config))
    found = in_folder(parts.projector, of="the projector")
    projector = {rename(name, XTUNER_PROJECTOR): tensor for name, tensor in found.items()}
    return finished(replace(source, tensors=tensors), projector, path=Path(path), kind="a LLaVA of XTuner's")


def with_llm_adapter(tensors: Mapping[str, Stored], folder: Path, text: Any, family: str | None) -> dict[str, Stored]:
    """A language model's tensors with an adapter in them; `family` is what the Llama of `text` was made of."""
    hub = llm_names(text).hub
    if family is None:
        return merged(tensors, folder, hub)
    config = adapter_config(folder)
    if config.get("alpha_pattern"):
        raise ModelError(
            f"{folder}: alpha_pattern names layers of an {family}, which is read as a Llama; merge it first"
        )
    return combined(tensors, as_llama(adapter_tensors(folder), text, family), config, folder, hub)


def as_llama(tensors: Mapping[str, Stored], text: Any, family: str) -> dict[str, Stored]:
    """Tensors of another family, also those of an adapter, cut and renamed as a Llama's when they are read."""
    result = {}
    for name, tensor in tensors.items():
        pieces = RENAME[family](name, torch.empty(tensor.shape, device="meta"), text)
        for number, (new, piece) in enumerate(pieces):
            result[new] = tensor.then(_piece(name, number, text, family), piece.shape)
    return result


def write(
    source: Source,
    out: Path,
    *,
    max_shard_size: str,
    learned: bool = False,
    finish: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write the folder; it appears when it is complete, and `finish` is through with it.

    With `learned`, only what a run has learned, adapters apart, as XTuner does: whoever loads it names the rest.
    Raises ModelError for a LLaVA-NeXT, of which XTuner knows nothing.
    """
    adapters = _learned(source) if learned else dict.fromkeys(("llm", "vision_tower"))
    llm, vision_tower = (part in adapters and adapters[part] is None for part in ("llm", "vision_tower"))
    if source.prompter.tiles is not None:
        raise ModelError(f"{source.path} is a LLaVA-NeXT, which XTuner cannot load; choose huggingface or official")
    _remark(source)
    names = llm_names(source.config.text_config)
    places: list[tuple[str, str, Callable[[str], str]]] = [
        (PROJECTOR, "multi_modal_projector.", lambda name: rename(name, reverse(XTUNER_PROJECTOR)))
    ]
    places += [("", "language_model.", names.own)] if llm else []
    places += [(TOWER, "vision_tower.", lambda name: name.removeprefix("vision_tower."))] if vision_tower else []
    chosen = [(place, _part(source, prefix, own)) for place, prefix, own in places]
    with appearing(out, needs=sum(t.nbytes for _, tensors in chosen for t in tensors.values())) as partial:
        for place, tensors in chosen:
            (partial / place).mkdir(exist_ok=True)
            write_shards(tensors, partial / place, max_shard_size=max_shard_size)
            dtype = replace(source, tensors=tensors).dtype
            write_json(partial / place / "config.json", _config(source, place, dtype))
        if llm:
            write_tokenizer(source.prompter, partial, begins=True)
            write_generation_config(source, partial)
        if vision_tower:
            write_json(partial / TOWER / "preprocessor_config.json", plain_processor(source))
        if adapter := adapters.get("llm"):
            write_adapter(adapter, partial / LLM_ADAPTER, names.own, "CAUSAL_LM")
        if adapter := adapters.get("vision_tower"):
            write_adapter(adapter, partial / TOWER_ADAPTER, lambda name: name.removeprefix("vision_tower."), None)
        finish(partial)


def _learned(source: Source) -> Mapping[str, Adapter | None]:
    if source.adapters is None:
        raise ModelError(
            f"--learned: {source.path} is {source.kind}; name the learned/ folder of a run that began with a language "
            f"model and a vision tower, or a checkpoint of one"
        )
    adapter = source.adapters.get("llm")
    if adapter is not None and (family := made_of(adapter.base)):
        raise ModelError(
            f"--learned: {adapter.base} is an {family}, and learned as a Llama: its adapter fits no other program's; "
            f"leave out --learned, so that it is merged"
        )
    return source.adapters


def _part(source: Source, prefix: str, own: Callable[[str], str]) -> dict[str, Stored]:
    """The tensors of one folder, by their names there."""
    linear = depth_of(source.config) == 1
    return {
        own(name): tensor
        for name, tensor in source.tensors.items()
        if name.startswith(prefix) and not (linear and ".linear_2." in name)
    }


def _config(source: Source, place: str, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json of a folder."""
    config = source.config
    if place != PROJECTOR:
        section: dict[str, Any] = hub_config(config.to_dict(), dtype)["vision_config" if place else "text_config"]
        if place:
            return {**section, "architectures": [MODEL_MAPPING_NAMES[section["model_type"]]]}
        kind = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[section["model_type"]]
        return {**section, "architectures": [kind], "tie_word_embeddings": config.tie_word_embeddings}
    return {
        "architectures": ["ProjectorModel"],
        "model_type": "projector",
        "visual_hidden_size": config.vision_config.hidden_size,
        "llm_hidden_size": config.text_config.hidden_size,
        "depth": depth_of(config),
        "hidden_act": "gelu",
        "bias": config.multimodal_projector_bias,
        "torch_dtype": str(dtype).removeprefix("torch."),
        LAYER_KEY: config.vision_feature_layer,
        ASPECT_KEY: _aspect(source),
    }


def _aspect(source: Source) -> str:
    return "pad" if getattr(source.prompter.image_processor, "do_pad", False) else "crop"


def _remark(source: Source) -> None:
    """Say what XTuner's own commands will do otherwise, for they know one way only."""
    kind, layer = source.config.vision_config.model_type, source.config.vision_feature_layer
    if depth_of(source.config) == 2 and source.config.projector_hidden_act != "gelu":
        act = source.config.projector_hidden_act
        raise ModelError(f"{source.path} has {shown(act)} in its projector, and XTuner's have gelu; choose huggingface")
    otherwise = {
        f"load CLIP, and this vision tower is a {kind}": kind != "clip_vision_model",
        f"take layer -2 of the vision tower, and this model takes {layer}": layer != -2,
        "pad pictures to squares, and this model sees their middle": _aspect(source) != "pad",
    }
    for what, is_so in otherwise.items():
        if is_so:
            say(f"XTuner's own commands {what}; Sightline's know it from {PROJECTOR}/config.json")


def _piece(name: str, number: int, text: Any, family: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: list(RENAME[family](name, tensor, text))[number][1]
