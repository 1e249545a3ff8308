"""Small random language models and vision towers with the features of the real ones' configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BitImageProcessorPil,
    SiglipImageProcessorPil,
)

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {"num_key_value_heads": 2}
WINDOW = {"sliding_window": 9}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 256}
LONG |= {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 2.0, 4.0, 8.0]}

LLMS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **GROUPED},
    "llama_biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama3": {"model_type": "llama", **GROUPED, "rope_parameters": LLAMA3, "max_position_embeddings": 512},
    "mistral": {"model_type": "mistral", **GROUPED, **WINDOW, "head_dim": 16},
    "qwen2": {
        **{"model_type": "qwen2", **GROUPED, **WINDOW, "tie_word_embeddings": True, "vocab_size": 704},
        **{"use_sliding_window": True, "max_window_layers": 1, "layer_types": ["full_attention", "sliding_attention"]},
    },
    "qwen3": {"model_type": "qwen3", **GROUPED, "head_dim": 16},
    "gemma": {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True},
    "gemma3": {
        **{"model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 16, **WINDOW},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {"model_type": "phi3", **GROUPED, **WINDOW, "pad_token_id": 0},
    "phi3_long": {
        **{"model_type": "phi3", "pad_token_id": 0, "rope_parameters": LONG, "max_position_embeddings": 1024},
        "original_max_position_embeddings": 256,
    },
    "olmo2": {"model_type": "olmo2", **GROUPED},
    "mixtral": {"model_type": "mixtral", **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_neox": {"model_type": "gpt_neox", "max_position_embeddings": 512},
}
"""What `AutoConfig.for_model` takes; vocabularies without room for `<image>`, but for qwen2's."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gemma2": ({"model_type": "gemma2", **GROUPED, "head_dim": 16}, "softly"),
    "cohere": ({"model_type": "cohere", **GROUPED, "logit_scale": 0.25}, "more behind its last layer"),
    "granite": ({"model_type": "granite", **GROUPED, "logits_scaling": 8.0}, "more behind its last layer"),
    "phi": ({"model_type": "phi"}, "more behind its last layer"),
    "gpt2": ({"model_type": "gpt2"}, "not called embed_tokens"),
    "bloom": ({"model_type": "bloom"}, "a way of its own"),
    "mamba": ({"model_type": "mamba"}, "a way of its own"),
    "qwen3_next": ({"model_type": "qwen3_next", **GROUPED}, "a way of its own"),
    "lfm2": ({"model_type": "lfm2", **GROUPED, "layer_types": ["conv", "full_attention"]}, "one packed sample"),
    "gpt_oss": ({"model_type": "gpt_oss", "head_dim": 8, "num_local_experts": 2}, "attention sinks, as in gpt-oss"),
    "nemotron": ({"model_type": "nemotron", **GROUPED}, "does not tell its attention where the samples of a pack end"),
    "doge": ({"model_type": "doge"}, "makes masks by itself"),
    "gemma3_whole": ({"model_type": "gemma3"}, "sees or hears by itself"),
    "musicgen": ({"model_type": "musicgen"}, "sees or hears by itself"),
}

VISION = {**SIZES, "num_hidden_layers": 3, "image_size": 56, "patch_size": 14}
TOWERS: dict[str, tuple[dict[str, Any], int, str, int]] = {
    "clip": ({"model_type": "clip_vision_model", "projection_dim": 16}, 16, "default", 1),
    "siglip": ({"model_type": "siglip_vision_model"}, 16, "full", 0),
    "siglip_odd": ({"model_type": "siglip_vision_model", "image_size": 60}, 16, "full", 0),
    "dinov2": ({"model_type": "dinov2", "mlp_ratio": 2}, 16, "default", 1),
    "registers": ({"model_type": "dinov2_with_registers", "num_register_tokens": 3}, 19, "default", 4),
}
"""Configuration, and what follows: tokens of a picture, which of them stay, how many come before the patches."""


def make_family(folder: Path, settings: dict[str, Any]) -> Path:
    """A random language model of that configuration with a tokenizer."""
    tokenizer = tiny.make_tokenizer()
    facts = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = AutoConfig.for_model(**({**SIZES, "vocab_size": len(tokenizer), **facts} | settings))
    torch.manual_seed(0)
    llm: Any = AutoModelForCausalLM.from_config(config)
    for parameter in llm.parameters():  # as far from zero as trained weights, so that attention matters
        parameter.data += 0.08 * torch.randn_like(parameter)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_config(folder: Path, settings: dict[str, Any]) -> Path:
    """A folder without weights: what is looked at before they are read."""
    small = {} if settings["model_type"] in ("gemma3", "musicgen") else {**SIZES, "vocab_size": 64}
    AutoConfig.for_model(**(small | settings)).save_pretrained(folder)
    return folder


def make_tower(folder: Path, kind: str) -> Path:
    """A random vision tower with the image processor that its kind comes with."""
    if kind == "clip":
        return tiny.make_tower(folder)
    config = AutoConfig.for_model(**(VISION | TOWERS[kind][0]))
    torch.manual_seed(0)
    tower: Any = AutoModel.from_config(config)
    for parameter in tower.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    tower.save_pretrained(folder)
    if kind.startswith("siglip"):
        processor: Any = SiglipImageProcessorPil(size={"height": config.image_size, "width": config.image_size})
    else:
        processor = BitImageProcessorPil(
            size={"shortest_edge": 64},
            crop_size={"height": 56, "width": 56},
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        )
    processor.save_pretrained(folder)
    return folder
