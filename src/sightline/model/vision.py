"""The name of a vision tower -> its configuration, its weights and its image processor; how many features it makes."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import MODEL_MAPPING, CLIPImageProcessorPil, PreTrainedModel
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from sightline.errors import ModelError, shown
from sightline.model.foreign import check_fits, open_config
from sightline.model.reading import REPORTED, WHOLE, check_keys, check_layers, quiet, reading

NAMES = {
    "clip_vision_model": "CLIP",
    "siglip_vision_model": "SigLIP",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
}
"""The towers that a model can be assembled with, by the model_type of their configuration."""


def vision_config(name: str, layer: int) -> Any:
    """The configuration of a vision tower, or of the one inside a CLIP or SigLIP.

    Raises ModelError where it is another kind of model, or has no such `layer`.
    """
    return checked_tower(open_config(name), name, layer)


def checked_tower(config: Any, name: str, layer: int) -> Any:
    """The same of a configuration that is at hand."""
    if config.model_type in WHOLE:
        raise ModelError(
            f"model.vision_tower: {name} is a whole model ({config.model_type}); name the vision tower that it was "
            f"made with, or go on with it as model.from_model"
        )
    vision = getattr(config, "vision_config", config)
    if vision.model_type == "siglip2_vision_model":
        raise ModelError(
            f"model.vision_tower: {name} is a SigLIP 2 of free resolution (naflex), whose number of features changes "
            f"with the picture; choose one of fixed resolution, such as google/siglip2-so400m-patch14-384"
        )
    if vision.model_type not in NAMES:
        raise ModelError(
            f"model.vision_tower: {name} is {shown(config.model_type)}, not a vision tower that Sightline knows "
            f"({', '.join(NAMES.values())})"
        )
    layers = vision.num_hidden_layers
    if layer not in (*range(-layers - 1, 0), *range(1, layers + 1)):
        raise ModelError(
            f"model.vision_feature_layer {layer}: {name} has {layers} layers, so choose 1 to {layers}, or -1 to "
            f"{-layers - 1}"
        )
    _check_patches(vision, f"model.vision_tower: {name}")
    return vision


def _check_patches(vision: Any, name: object) -> None:
    """Raise ModelError where a tower does not see squares of square patches."""
    if not isinstance(vision.image_size, int) or not isinstance(vision.patch_size, int):
        raise ModelError(f"{name} takes pictures that are not square; LLaVA needs squares")
    if not 0 < vision.patch_size <= vision.image_size:
        raise ModelError(
            f"{name}: its config.json is wrong: pictures of {vision.image_size} px in patches of {vision.patch_size} px"
        )


def check_feature_layer(config: Any, name: object) -> None:
    """Raise ModelError where a LLaVA looks at a layer that its vision tower does not have, or at no squares."""
    _check_patches(config.vision_config, name)
    layers, layer = config.vision_config.num_hidden_layers, config.vision_feature_layer
    if any(not -layers - 1 <= one <= layers for one in (layer if isinstance(layer, list) else [layer])):
        raise ModelError(f"{name}: the vision tower has {layers} layers, and vision_feature_layer is {layer}")


def load_tower(name: str, config: Any) -> PreTrainedModel:
    """The vision model, in the number format of its files."""
    check_fits(name, lambda: MODEL_MAPPING[type(config)](config))
    with reading(name), quiet():
        tower, report = MODEL_MAPPING[type(config)].from_pretrained(name, **REPORTED, trust_remote_code=False)
    check_keys(name, report, "missing", "mismatched")
    check_layers(name, report, tower)
    return tower


def square_processor(own: Any, size: int, *, pad: bool) -> Any:
    """One that pads a picture to a square or takes its middle, and has the colours of the tower's `own`."""
    kind = partial(LlavaImageProcessorPil, do_pad=True) if pad else CLIPImageProcessorPil
    return kind(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        resample=own.resample,
        image_mean=list(own.image_mean),
        image_std=list(own.image_std),
    )


def leading_tokens(vision: Any) -> int:
    """Features that a tower puts before those of the patches: a class token, and registers."""
    if vision.model_type.startswith("siglip"):
        return 0
    if vision.model_type == "dinov2_with_registers":
        return 1 + int(vision.num_register_tokens)
    if vision.model_type.startswith(("clip", "dinov2")):
        return 1
    raise ModelError(f"a {shown(vision.model_type)} as vision tower: how many features it makes is not known here")


def select_strategy(vision: Any) -> str:
    """`default` drops the first feature of a picture, the class token; `full` keeps all, where there is none."""
    return "default" if leading_tokens(vision) else "full"


def features(vision: Any, strategy: str) -> int:
    """Features of one picture that reach the language model.

    Of the leading ones, LLaVA drops the first alone: registers stay, as more tokens of each picture.
    """
    patches = (vision.image_size // vision.patch_size) ** 2
    return int(patches + leading_tokens(vision) - (strategy == "default"))


def tokens_per_image(config: Any) -> int:
    """The same of a LLaVA's configuration."""
    return features(config.vision_config, config.vision_feature_select_strategy)
