"""The config.json of an official LLaVA -> what transformers says of the same model; and back.

Fields and their values are those of liuhaotian/llava-v1.5-7b, llava-v1.5-13b and llava-v1.6-vicuna-7b.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlavaConfig, LlavaNextConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sightline.convert.source import Source
from sightline.errors import ModelError, shown
from sightline.model.next import NEXT
from sightline.model.projector import DEPTH_KEY, depth_of
from sightline.model.reading import reading
from sightline.model.settings import check_config
from sightline.model.vision import features, select_strategy

KINDS = {
    "llama": ("LlavaLlamaForCausalLM", "llava"),
    "mistral": ("LlavaMistralForCausalLM", "llava_mistral"),
    "mixtral": ("LlavaMixtralForCausalLM", "llava_mixtral"),
    "qwen2": ("LlavaQwenForCausalLM", "llava_qwen"),
    "gemma": ("LlavaGemmaForCausalLM", "llava_gemma"),
}
"""Language models that LLaVA and LLaVA-NeXT have a class for: its name, and the model_type of its configuration."""

TEMPLATES = (
    ("llama-2", "llava_llama_2"),
    ("llama3-llava-next", "llava_llama_3"),
    ("llava-llama-3", "llama3_chat"),
    ("mistral", "mistral_instruct"),
    ("v1.6-34b", "chatml_direct"),
    ("qwen", "qwen_1_5"),
    ("v1", "vicuna"),
    ("mpt", "mpt"),
    ("v0", "llava_v0"),
)
"""Parts of a model's name by which the official programs choose a template; the first that fits holds."""

NEVER = {"model_type", "architectures", "dtype", "torch_dtype", "_name_or_path", "transformers_version"}
"""What is not the language model's own among the fields that its configuration knows."""

LINEAR, MLP = "linear", re.compile(r"mlp([1-9])x_gelu")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json; raises ModelError where there is none, or it is not that of a LLaVA that transformers could hold."""
    file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        config.get("model_type")
    except FileNotFoundError:
        raise ModelError(
            f"{folder} has no config.json: official training writes it at its end, so copy all of it"
        ) from None
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{file} is damaged ({error}); copy it again") from error
    if not isinstance(config.get("mm_vision_tower"), str):
        raise ModelError(f"{file} names no vision tower (mm_vision_tower): this is a language model, not a LLaVA")
    odd = {
        "puts tokens around a picture (mm_use_im_start_end)": config.get("mm_use_im_start_end"),
        "has a resampler (mm_resampler_type)": config.get("mm_resampler_type"),
        "looks at several scales (S2)": config.get("s2") or config.get("use_s2"),
    }
    if found := next((what for what, there in odd.items() if there), None):
        raise ModelError(f"{file}: this LLaVA {found}, which no other program knows")
    return config


def text_config(config: dict[str, Any], folder: Path) -> Any:
    """The language model's own configuration."""
    named = {name: kind for kind, names in KINDS.items() for name in names} | {"llava_llama": "llama"}
    own = config.get("architectures")
    classes = [*(own if isinstance(own, list) else ()), config.get("model_type")]
    kind = next((named[name] for name in classes if isinstance(name, str) and name in named), None)
    # Bits are those that a LoRA was trained on (--bits 4), and nothing is read in them here.
    check_config({key: value for key, value in config.items() if key != "quantization_config"}, folder)
    if kind is None:
        raise ModelError(f"{folder} is a LLaVA of a {shown(config.get('model_type'))}, which is not known here")
    default = AutoConfig.for_model(kind).to_dict()
    own = {key: value for key, value in config.items() if key in default.keys() - NEVER}
    try:
        rope = dict(config.get("rope_scaling") or {})
        theta = config.get("rope_theta", default["rope_parameters"]["rope_theta"])
        own.setdefault("rope_parameters", {"rope_theta": theta, "rope_type": rope.pop("type", "default"), **rope})
        if own.get("pad_token_id") is not None and not 0 <= own["pad_token_id"] < own["vocab_size"]:
            own["pad_token_id"] = None
        with reading(folder):
            # vLLM chooses the class of the language model by `architectures`.
            return AutoConfig.for_model(kind, architectures=[MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]], **own)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder / 'config.json'} is damaged ({error}); copy it again") from error


def feature_layer(config: dict[str, Any], folder: Path) -> int:
    """Which of the vision tower's layers is looked at."""
    layer = config.get("mm_vision_select_layer", -2)
    if not isinstance(layer, int):
        raise ModelError(
            f"{folder / 'config.json'}: mm_vision_select_layer is {shown(layer)}, not the number of a layer"
        )
    return layer


def depth(config: dict[str, Any], folder: Path) -> int:
    """How many layers the projector has."""
    kind = config.get("mm_projector_type", LINEAR)
    if kind == LINEAR:
        return 1
    if match := MLP.fullmatch(str(kind)):
        return int(match[1])
    raise ModelError(f"{folder / 'config.json'}: a projector of the kind {shown(kind)} is known to no other program")


def grids(config: dict[str, Any], folder: Path) -> list[list[int]] | None:
    """The grids of LLaVA-1.6 (height, width; in the official files it is width, height); None: a LLaVA-1.5."""
    rule, merge = config.get("image_aspect_ratio"), config.get("mm_patch_merge_type", "flat")
    if rule in (None, "square", "pad"):
        return None
    if rule != "anyres" or merge != "spatial_unpad":
        raise ModelError(
            f"{folder / 'config.json'}: pictures are cut by the rule {shown(rule)} and put together by {shown(merge)}; "
            f"transformers' LLaVA-NeXT knows 'anyres' with 'spatial_unpad' alone"
        )
    written = config.get("image_grid_pinpoints")
    try:
        pairs: Any = ast.literal_eval(written) if isinstance(written, str) else written
        return [[int(high), int(wide)] for wide, high in pairs]
    except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError):
        raise ModelError(
            f"{folder / 'config.json'}: image_grid_pinpoints is {shown(written)}, not a list of width and height"
        ) from None


def hub_config(config: dict[str, Any], folder: Path, text: Any, vision: Any) -> LlavaConfig | LlavaNextConfig:
    """The configuration of the whole, but for what the tokenizer decides."""
    if (width := config.get("mm_hidden_size", vision.hidden_size)) != vision.hidden_size:
        raise ModelError(
            f"{folder} was made for a vision tower of {width} features (mm_hidden_size), not of {vision.hidden_size}; "
            f"name the right one with --vision-tower"
        )
    strategy = select_strategy(vision)
    if config.get("mm_vision_select_feature", "patch") == "cls_patch":
        strategy = "full"
    shared = {
        "text_config": text.to_dict(),
        "vision_config": vision.to_dict(),
        "vision_feature_layer": feature_layer(config, folder),
        "vision_feature_select_strategy": strategy,
        "image_seq_length": features(vision, strategy),
        "tie_word_embeddings": text.tie_word_embeddings,
    }
    pinpoints = grids(config, folder)
    made = LlavaConfig(**shared) if pinpoints is None else LlavaNextConfig(**shared, image_grid_pinpoints=pinpoints)
    if (layers := depth(config, folder)) != 2:
        setattr(made, DEPTH_KEY, layers)
    return made


def template_by_name(*names: object) -> str | None:
    """The template that the official programs use for a model of one of these names."""
    for name in names:
        # As they do: the name of the folder, and with it that of the run where the folder is a checkpoint.
        parts = str(name).rstrip("/").lower().split("/")
        short = "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]
        for part, template in TEMPLATES:
            if part in short:
                return template
    return None


def official_config(source: Source, rows: int, tower: str, pad: int | None) -> dict[str, Any]:
    """config.json of a source whose language model has so many rows, and whose vision tower is at that place."""
    config, tokenizer = source.config, source.prompter.tokenizer
    text, next_ = config.text_config, config.model_type == NEXT
    common = PreTrainedConfig().to_dict().keys() | {"model_type"}
    own = {key: value for key, value in text.to_dict().items() if key not in common and value is not None}
    rope = own.pop("rope_parameters", None) or {}
    architecture, model_type = KINDS[text.model_type]
    dtype = str(source.dtype).removeprefix("torch.")
    # Weights of LLaVA-1.6 hold the tower, which was trained; those of 1.5 leave it to mm_vision_tower.
    result = {
        **own,
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": rows,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": pad,
        "rope_theta": rope.pop("rope_theta", 10000.0),
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else None,
        "torch_dtype": dtype,
        "use_cache": True,
        "freeze_mm_mlp_adapter": False,
        "freeze_mm_vision_resampler": False,
        "image_aspect_ratio": _aspect_ratio(source),
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": LINEAR if depth_of(config) == 1 else "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch" if config.vision_feature_select_strategy == "default" else "cls_patch",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": tower,
        "tune_mm_mlp_adapter": False,
        "tune_mm_vision_resampler": False,
        "unfreeze_mm_vision_tower": next_,
        "use_mm_proj": True,
    }
    if next_:
        result |= {
            "image_crop_resolution": 224,
            "image_grid_pinpoints": [[wide, high] for high, wide in config.image_grid_pinpoints],
            "image_split_resolution": 224,
            "mm_patch_merge_type": "spatial_unpad",
            "mm_projector_lr": None,
            "mm_vision_tower_lr": None,
            "tokenizer_model_max_length": text.max_position_embeddings,
            "tokenizer_padding_side": "right",
        }
    return dict(sorted(result.items()))


def check_known(source: Source) -> None:
    """Raise ModelError where the official programs have nothing for a model."""
    if obstacle := _obstacle(source.config):
        raise ModelError(f"{source.path} {obstacle}: the official LLaVA knows no such model; choose huggingface")


def _obstacle(config: Any) -> str | None:
    if config.text_config.model_type not in KINDS:
        return f"has a {config.text_config.model_type} as language model"
    if config.vision_config.model_type != "clip_vision_model":
        return f"has a {config.vision_config.model_type} as vision tower, not a CLIP"
    if not isinstance(config.vision_feature_layer, int):
        return f"looks at several layers of the vision tower ({config.vision_feature_layer})"
    if depth_of(config) > 2 or (depth_of(config) == 2 and config.projector_hidden_act != "gelu"):
        return f"has a projector of {depth_of(config)} layers with {config.projector_hidden_act}"
    if not config.multimodal_projector_bias:
        return "has a projector without biases"
    return None


def _aspect_ratio(source: Source) -> str:
    if source.config.model_type == NEXT:
        return "anyres"
    return "pad" if getattr(source.prompter.image_processor, "do_pad", False) else "square"
