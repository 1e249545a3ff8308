"""The language model of a source -> the keys and tensors of a GGUF file, as llama.cpp reads them."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from sightline.convert.gguf_file import Contents, gguf_package
from sightline.convert.gguf_tokenizer import tokenizer_keys
from sightline.convert.source import Source
from sightline.convert.tensors import Stored, stored
from sightline.errors import ModelError
from sightline.model.load import positions

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma": "gemma",
}
"""transformers' names of language models, and llama.cpp's."""

PREFIX = "language_model."

SIZES = {
    "vocab_size": "vocab_size",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""llama.cpp's keys (behind the name of the architecture), and transformers' attributes."""


def text_contents(source: Source, name: str, quantize: str) -> Contents:
    """What the file of the language model says; raises ModelError where llama.cpp would compute something else."""
    config = source.config.text_config
    arch = architecture(config, bool(source.config.tie_word_embeddings))
    keys = {"general.type": "model", "general.name": name, **_hyper_parameters(config, arch)}
    rope_keys, rope_tensors = _rope(config, arch)
    rows = source.tensors[f"{PREFIX}model.embed_tokens.weight"].shape[0]
    tensors = {
        text_name(full, config, arch): _as_llama_cpp_has_it(full, tensor, config, arch)
        for full, tensor in source.tensors.items()
        if full.startswith(PREFIX)
    }
    return Contents(
        arch,
        {**keys, **rope_keys, **tokenizer_keys(source.prompter, rows)},
        {**tensors, **rope_tensors},
        quantize,
    )


def architecture(config: Any, tied: bool) -> str:
    """llama.cpp's name for a language model; raises ModelError where it has none, or one that leaves something out."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise ModelError(f"a {kind!r} language model cannot be written as GGUF here (only {', '.join(ARCHITECTURES)})")
    arch = ARCHITECTURES[kind]
    wanted = ("gelu_pytorch_tanh", "gelu_new", "gelu") if arch == "gemma" else ("silu",)
    act = getattr(config, "hidden_activation", None) or config.hidden_act
    if act not in wanted:
        raise ModelError(f"llama.cpp computes {kind} with {wanted[0]}, but this one has {act}")
    if arch in ("qwen3", "gemma") and config.attention_bias:
        raise ModelError(f"this {kind} has biases in its attention, which llama.cpp does not know of")
    if arch == "gemma" and not tied:
        raise ModelError("this gemma has a head of its own, but llama.cpp ties gemma's to the embeddings")
    return arch


def text_remarks(config: Any) -> list[str]:
    """Where llama.cpp computes long conversations in another way, for the user."""
    rope, window = config.rope_parameters, getattr(config, "sliding_window", None)
    said = []
    if window and window < (positions(config) or config.max_position_embeddings):
        said.append(f"this {config.model_type} looks back {window} tokens, but in llama.cpp to the beginning")
    if rope.get("rope_type") == "longrope":
        length = _original(rope, config)
        said.append(f"run llama.cpp with -c {length} or less, or it uses the factors for long conversations in all")
    if rope.get("rope_type") == "dynamic":
        said.append(f"llama.cpp does not stretch positions beyond the {config.max_position_embeddings} of this model")
    return said


def _hyper_parameters(config: Any, arch: str) -> dict[str, Any]:
    missing = {"head_dim": _head(config), "num_key_value_heads": int(config.num_attention_heads)}
    values = {key: getattr(config, name, None) or missing[name] for key, name in SIZES.items()}
    values["context_length"] = positions(config) or int(config.max_position_embeddings)
    if arch == "phi3":
        values["attention.sliding_window"] = int(config.sliding_window or 0)
    return {f"{arch}.{name}": value for name, value in values.items()}


def _head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: Any, arch: str) -> tuple[dict[str, Any], dict[str, Stored]]:
    """How positions are turned into angles: keys, and tensors of factors for each of the frequencies."""
    rope = config.rope_parameters
    kind, base = rope.get("rope_type", "default"), float(rope["rope_theta"])
    turned = int(_head(config) * float(rope.get("partial_rotary_factor") or 1))
    if turned != _head(config) and arch != "phi3":
        raise ModelError(f"this {config.model_type} turns a part of each head only, which llama.cpp does in phi3 alone")
    keys: dict[str, Any] = {"rope.freq_base": base, "rope.dimension_count": turned}
    tensors = {}
    if kind == "llama3":
        tensors["rope_freqs.weight"] = stored(_llama3_factors(rope, turned))
    elif kind in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
        if kind == "yarn":
            keys |= _yarn(rope, config)
    elif kind == "longrope" and arch == "phi3":
        keys["rope.scaling.original_context_length"] = _original(rope, config)
        keys["rope.scaling.attn_factor"] = _attention(rope, config)
        for length in ("long", "short"):
            factors = torch.tensor(rope[f"{length}_factor"], dtype=torch.float32)
            tensors[f"rope_factors_{length}.weight"] = stored(factors)
    elif kind not in ("default", "dynamic"):  # a dynamic rope is the default one, up to the length that is written
        raise ModelError(f"llama.cpp does not stretch the positions of a {config.model_type} by {kind!r}")
    if arch == "phi3" and kind != "longrope":
        keys["rope.scaling.original_context_length"] = int(config.max_position_embeddings)
    return {f"{arch}.{name}": value for name, value in keys.items()}, tensors


def _llama3_factors(rope: dict[str, Any], width: int) -> torch.Tensor:
    """By what Llama 3.1 divides each frequency: long waves by `factor`, short ones by 1, between them smoothly."""
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    waves = 2 * math.pi * float(rope["rope_theta"]) ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    smooth = (float(rope["original_max_position_embeddings"]) / waves - low) / (high - low)
    smooth = smooth.clamp(0, 1)
    return (1 / ((1 - smooth) / float(rope["factor"]) + smooth)).float()


def _yarn(rope: dict[str, Any], config: Any) -> dict[str, Any]:
    if odd := [name for name in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(name)]:
        raise ModelError(f"this {config.model_type} sets {odd[0]} for its positions, which cannot be written as GGUF")
    return {
        "rope.scaling.original_context_length": _original(rope, config),
        "rope.scaling.yarn_beta_fast": float(rope.get("beta_fast") or 32),
        "rope.scaling.yarn_beta_slow": float(rope.get("beta_slow") or 1),
    }


def _original(rope: dict[str, Any], config: Any) -> int:
    """The length that positions were made for before they were stretched."""
    length = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(length or config.max_position_embeddings)


def _attention(rope: dict[str, Any], config: Any) -> float:
    """By what longrope multiplies queries and keys (https://arxiv.org/abs/2402.13753, section 3)."""
    if rope.get("attention_factor"):
        return float(rope["attention_factor"])
    original = _original(rope, config)
    stretch = float(rope.get("factor") or config.max_position_embeddings / original)
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0


def text_name(full: str, config: Any, arch: str) -> str:
    """llama.cpp's name for a tensor of the language model, by gguf's own table; ModelError where it has none."""
    name, table = full.removeprefix(PREFIX), _table(arch, int(config.num_hidden_layers))
    new: str | None = table.get_name(name, try_suffixes=(".weight", ".bias"))
    if new is None:
        raise ModelError(f"llama.cpp's {arch} has no place for {name}")
    return new


@cache
def _table(arch: str, layers: int) -> Any:
    gguf = gguf_package()
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(known[arch], layers)


def _as_llama_cpp_has_it(name: str, tensor: Stored, config: Any, arch: str) -> Stored:
    """The numbers of a tensor, changed where llama.cpp computes in another way than transformers."""
    if heads := _turned_heads(name, config, arch):
        return _interleaved(tensor, heads)
    if _counts_from_one(name, arch):
        return tensor.to(torch.float32).then(lambda weight: weight + 1)
    return tensor


def as_transformers_has_it(name: str, tensor: Stored, config: Any, arch: str) -> Stored:
    """The way back; `tensor` is what a GGUF file has for the tensor of that name."""
    if heads := _turned_heads(name, config, arch):
        return _interleaved(tensor, heads, back=True)
    if _counts_from_one(name, arch):
        return tensor.then(lambda weight: weight - 1)
    return tensor


def _turned_heads(name: str, config: Any, arch: str) -> int:
    """How many heads a tensor has that are turned by their positions in pairs of neighbours; 0: none."""
    if arch != "llama" or not (".q_proj." in name or ".k_proj." in name):
        return 0
    return int(config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads)


def _counts_from_one(name: str, arch: str) -> bool:
    """Whether llama.cpp has the weights of a norm themselves, and transformers what they are more than 1."""
    return arch == "gemma" and name.endswith("norm.weight")


def _interleaved(tensor: Stored, heads: int, *, back: bool = False) -> Stored:
    """Rows of each head in pairs (0, half), (1, half + 1), ...: so llama.cpp's `llama` turns them."""

    def change(rows: torch.Tensor) -> torch.Tensor:
        half = rows.shape[0] // heads // 2
        split = rows.reshape(heads, *((half, 2) if back else (2, half)), *rows.shape[1:])
        return split.swapaxes(1, 2).reshape(rows.shape)

    return tensor.then(change)
