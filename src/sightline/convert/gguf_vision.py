"""The vision tower and projector of a source -> the keys and tensors of llama.cpp's `mmproj` file.

Only what llama.cpp's graph for LLaVA computes is written: the layers up to the one whose features are taken, no norm
behind them, and a projector of two layers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from sightline.convert.gguf_file import Contents, gguf_package
from sightline.convert.source import Source
from sightline.convert.tensors import Stored, stored
from sightline.errors import ModelError
from sightline.model.next import NEXT
from sightline.model.projector import depth_of

TOWERS = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""Towers that the graph computes, and which of their features it takes: CLIP's without the class token."""

ACTS = {
    "quick_gelu": {},
    "gelu": {"clip.use_gelu": True},
    "gelu_pytorch_tanh": {"clip.use_gelu": True},
    "gelu_new": {"clip.use_gelu": True},
    "silu": {"clip.use_silu": True},
}
"""Keys for the activation of a tower; llama.cpp has one gelu, the one by tanh."""

POSITIONS = "v.position_embd.weight"

DEFECT = "llama.cpp sees each patch of CLIP at its neighbour's place, and the first one not at all (its issue 25814)"
MENDED = "these files reckon with llama.cpp's issue 25814: write them anew once it is solved, or pictures look wrong"

PREFIX = "vision_tower.vision_model."

PROJECTOR = {
    f"multi_modal_projector.linear_{number}.{kind}": f"mm.{place}.{kind}"
    for number, place in ((1, 0), (2, 2))
    for kind in ("weight", "bias")
} | {"image_newline": "model.image_newline"}

SIZES = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_epsilon": "layer_norm_eps",
}
"""llama.cpp's keys (behind `clip.vision.`), and transformers' attributes."""


def vision_contents(source: Source, name: str, quantize: str, *, mend_clip: bool = False) -> Contents:
    """What the mmproj file says; raises ModelError where llama.cpp would compute something else.

    `mend_clip`: with CLIP's positions moved by one, which llama.cpp's defect moves back.
    """
    layers = check_vision(source.config)
    keys = {"general.type": "mmproj", "general.name": name, **_keys(source, layers)}
    tensors = {new: tensor for full, tensor in source.tensors.items() if (new := vision_name(full, layers)) is not None}
    if mend_clip and "v.class_embd" in tensors:
        tensors[POSITIONS] = tensors[POSITIONS].then(lambda rows: rows.roll(-1, 0))
    return Contents("clip", keys, {**tensors, **_biases(tensors)}, quantize)


def check_vision(config: Any) -> int:
    """How many of the tower's layers are computed; raises ModelError where llama.cpp cannot do what this model does."""
    vision, act = config.vision_config, config.vision_config.hidden_act
    if vision.model_type not in TOWERS:
        raise ModelError(f"llama.cpp computes CLIP and SigLIP towers for LLaVA, but no {vision.model_type!r}")
    if act not in ACTS:
        raise ModelError(f"llama.cpp has no vision towers with {act!r}")
    if vision.hidden_size == vision.intermediate_size:
        raise ModelError(
            f"this vision tower is {vision.hidden_size} wide inside and outside its layers: llama.cpp then takes one "
            f"matrix for the other"
        )
    if config.vision_feature_select_strategy != TOWERS[vision.model_type]:
        raise ModelError(
            f"llama.cpp takes {vision.model_type}'s features by the strategy {TOWERS[vision.model_type]!r}, but this "
            f"model by {config.vision_feature_select_strategy!r}"
        )
    if depth_of(config) != 2 or config.projector_hidden_act != "gelu":
        raise ModelError(
            f"llama.cpp computes projectors of two layers with gelu between them, but this model's has "
            f"{depth_of(config)} with {config.projector_hidden_act}"
        )
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        raise ModelError(f"this model takes features from the layers {layer}; GGUF is written for one layer")
    return layer if layer >= 0 else int(vision.num_hidden_layers) + 1 + layer


def vision_remarks(source: Source, *, mend_clip: bool = False) -> list[str]:
    """Where llama.cpp sees pictures in another way, for the user."""
    said = []
    if source.config.vision_config.model_type.startswith("clip"):
        said.append(MENDED if mend_clip else DEFECT)
    if source.config.model_type == NEXT:
        said.append("llama.cpp cuts tiles in a way of its own, so pictures take another number of tokens")
    elif not getattr(source.prompter.image_processor, "do_pad", False):
        said.append("this model sees the middle of a picture; llama.cpp pads pictures to squares instead")
    return said


def _keys(source: Source, layers: int) -> dict[str, Any]:
    vision, image = source.config.vision_config, source.prompter.image_processor
    keys: dict[str, Any] = {
        "clip.has_text_encoder": False,
        "clip.has_vision_encoder": True,
        "clip.has_llava_projector": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": False,
        **ACTS[vision.hidden_act],
        **{f"clip.vision.{key}": getattr(vision, name) for key, name in SIZES.items()},
        "clip.vision.projection_dim": int(source.config.text_config.hidden_size),
        "clip.vision.block_count": layers,
        # Without it llama.cpp takes the features of one layer before the last that is in the file.
        "clip.vision.feature_layer": [layers],
        "clip.vision.image_mean": [float(value) for value in image.image_mean],
        "clip.vision.image_std": [float(value) for value in image.image_std],
    }
    if source.config.model_type == NEXT:
        # transformers writes height, width; llama.cpp reads width, height.
        grids = [int(side) for height, breadth in source.config.image_grid_pinpoints for side in (breadth, height)]
        keys |= {
            "clip.vision.image_grid_pinpoints": grids,
            "clip.vision.image_crop_resolution": int(vision.image_size),
            "clip.vision.image_aspect_ratio": "anyres",
            "clip.vision.mm_patch_merge_type": "spatial_unpad",
        }
    return keys


def vision_name(full: str, layers: int) -> str | None:
    """llama.cpp's name for a tensor of the vision tower or projector, by gguf's own table; None: it is left out.

    The layers and norms behind the features are left out. Raises ModelError for what llama.cpp has no place for.
    """
    if full in PROJECTOR:
        return PROJECTOR[full]
    name = full.removeprefix(PREFIX)
    if name == full or name.startswith(("post_layernorm.", "head.")):
        return None
    if name.startswith("encoder.layers.") and int(name.split(".")[2]) >= layers:
        return None
    new: str | None = _table(layers).get_name(full, try_suffixes=(".weight", ".bias"))
    if new is None:
        raise ModelError(f"llama.cpp's vision towers have no place for {full}")
    return new


@cache
def _table(layers: int) -> Any:
    gguf = gguf_package()
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layers)


def _biases(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Of zeros, where a projector has none: llama.cpp adds a bias in any case."""
    return {
        f"{place}.bias": stored(torch.zeros(tensors[f"{place}.weight"].shape[0]))
        for place in ("mm.0", "mm.2")
        if f"{place}.bias" not in tensors
    }
