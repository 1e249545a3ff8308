"""Weights of InternLM, InternLM2 and Phi-3 -> the same model as a Llama, tensor by tensor, without foreign code.

InternLM is a Llama with biases; InternLM2 keeps query, key and value of each group of heads in one tensor and has names
of its own; Phi-3 keeps them in one tensor for all heads. Nothing is computed, only cut and renamed, so the results are
the same to the last bit but for the order of sums.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from sightline.errors import ModelError
from sightline.files import appearing
from sightline.model.llama_tokenizer import carry_tokenizer
from sightline.model.pickles import read_pickle, tensors_in
from sightline.model.reading import reading
from sightline.model.settings import check_config

Named = Iterator[tuple[str, torch.Tensor]]

CAUSAL = {"internlm": "InternLMForCausalLM", "internlm2": "InternLM2ForCausalLM", "phi3": "Phi3ForCausalLM"}
"""model_type -> the architecture that is a language model, of those that have the same layers as Llama."""

INTERNLM2_NAMES = {
    "tok_embeddings": "embed_tokens",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}

KEPT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "initializer_range", "hidden_act"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "attention_dropout", "torch_dtype"),
)
"""What these configurations say in the same words as Llama's."""


def family(config: Any, name: object) -> str | None:
    """Which of the families the config.json of `name` belongs to; None for any other."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in CAUSAL:
        return None
    named = config.get("architectures") or [CAUSAL[kind]]
    if CAUSAL[kind] not in named:
        raise ModelError(f"{name} is an {named[0]} ({kind}), not a language model ({CAUSAL[kind]})")
    return kind


def llamafy(source: Path, out: Path, *, max_shard_size: int = 5 * 10**9, weights: bool = True) -> Path:
    """Write a folder of InternLM, InternLM2 or Phi-3 as a Llama; `out` appears when it is complete.

    Of the weights no more is in memory at once than a file of `max_shard_size` bytes. Without them, configuration and
    tokenizer alone are written. Raises ModelError for a folder that is none of these, or not equal as a Llama.
    """
    with reading(source):
        old = json.loads((source / "config.json").read_text(encoding="utf-8"))
        kind = family(old, source)
        if kind is None:
            named = repr(old.get("model_type")) if isinstance(old, dict) else "something else (see its config.json)"
            raise ModelError(f"{source} is {named}; InternLM, InternLM2 and Phi-3 become Llamas")
        check_config(old, source)
        config = llama_config(old, kind)
    files = weight_files(source) if weights else []
    if weights and not files:
        raise ModelError(f"{source} has no weights (.safetensors or pytorch_model*.bin)")
    with appearing(out, needs=sum(file.stat().st_size for file in files)) as partial:
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        with reading(source):
            carry_tokenizer(source, partial, keep=kind == "phi3")
            if weights:
                _write(_renamed(files, kind, LlamaConfig(**config)), partial, max_shard_size, source)
    return out


def llama_config(old: dict[str, Any], kind: str) -> dict[str, Any]:
    """The config.json of a Llama that computes what this one computes; raises ModelError where there is none."""
    new = {key: old[key] for key in KEPT if old.get(key) is not None}
    new |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "mlp_bias": False}
    new["attention_bias"] = kind != "phi3" and bool(old.get("bias", True))
    new["tie_word_embeddings"] = bool(old.get("tie_word_embeddings", False))
    rope = dict(old.get("rope_parameters") or old.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or old.get("rope_theta") or 10000.0
    if kind == "internlm" and (rotary := old.get("rotary")):
        theta = rotary.get("base", theta)
        if rotary.get("type") == "dynamic":
            rope = {"rope_type": "dynamic", "factor": rotary.get("scaling_factor", 1.0)}
    rotated = rope.pop("partial_rotary_factor", None) or old.get("partial_rotary_factor") or 1.0
    if rotated != 1.0:
        raise ModelError(
            f"this model turns only {rotated:.0%} of each head by its position (partial_rotary_factor, as Phi-4-mini), "
            f"and a Llama all of it: there is no equal Llama; transformers knows the model itself, so use it as it is"
        )
    new["rope_theta"] = float(theta)
    named = rope.pop("type", None) or rope.pop("rope_type", "default")
    named = rope.pop("rope_type", named)
    if named != "default":
        # Phi-3 says "su" for what is called longrope now; Llama has it, too, in transformers.
        rope = {"rope_type": "longrope" if named == "su" else named, **rope}
        if rope["rope_type"] == "longrope":
            rope["original_max_position_embeddings"] = old["original_max_position_embeddings"]
        new["rope_scaling"] = rope
    return new


def window_note(old: dict[str, Any]) -> str:
    """What is to be said of a model whose attention looks back over a window; empty for others."""
    window = old.get("sliding_window")
    if window is None or window >= old.get("max_position_embeddings", 0):
        return ""
    return (
        f"equal up to {window} tokens; beyond, the original looks back no further than {window} tokens "
        f"(sliding_window), and a Llama to the beginning"
    )


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights, in order: those of its index, or else all there are.

    Raises ModelError where the index is damaged, or names a file that is missing.
    """
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        for index in folder.glob(f"{pattern}.index.json"):
            try:
                table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                files = [folder / Path(name).name for name in sorted(set(table.values()))]
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ModelError(f"{index} is damaged; copy it again") from error
            if gone := [file.name for file in files if not file.is_file()]:
                raise ModelError(f"{folder} is not complete: {len(gone)} files of its weights are missing ({gone[0]})")
            return files
        if found := sorted(folder.glob(pattern)):
            return found
    return []


def _renamed(files: list[Path], kind: str, config: LlamaConfig) -> Named:
    """Llama's tensors one by one; raises ModelError when one is missing, left over or of another shape."""
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    rename = RENAME[kind]
    for file in files:
        for name, tensor in _tensors(file):
            if name.endswith("rotary_emb.inv_freq"):  # computed from the configuration
                continue
            for new, piece in rename(name, tensor, config):
                if config.tie_word_embeddings and new == "lm_head.weight":
                    continue
                if wanted.pop(new, None) != piece.shape:
                    raise ModelError(f"{file}: {name} {list(tensor.shape)} has no place in a Llama of this config.json")
                yield new, piece
    if wanted:
        raise ModelError(f"{files[0].parent}: {len(wanted)} tensors are missing, such as {min(wanted)}")


def _internlm(name: str, tensor: torch.Tensor, config: LlamaConfig) -> Named:
    yield name, tensor


def _internlm2(name: str, tensor: torch.Tensor, config: LlamaConfig) -> Named:
    """wqkv holds, for each group of heads: its queries, then its one key, then its one value.

    Also of an adapter: the rows of its outer factor are those of the weight, the inner one serves all three.
    """
    if ".attention.wqkv." not in name:
        for old, new in INTERNLM2_NAMES.items():
            name = name.replace(f".{old}.", f".{new}.")
        yield re.sub(r"^output\.", "lm_head.", name), tensor
        return
    if ".lora_A." in name:
        for short in "qkv":
            yield name.replace("attention.wqkv", f"self_attn.{short}_proj"), tensor
        return
    width = config.hidden_size // config.num_attention_heads
    groups = config.num_key_value_heads
    parts = tensor.view(groups, -1, width, *tensor.shape[1:])
    for short, piece in (("q", parts[:, :-2]), ("k", parts[:, -2]), ("v", parts[:, -1])):
        yield name.replace("attention.wqkv", f"self_attn.{short}_proj"), piece.reshape(-1, *tensor.shape[1:])


def _phi3(name: str, tensor: torch.Tensor, config: LlamaConfig) -> Named:
    if ".qkv_proj." in name:
        keys = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
        for short, piece in zip("qkv", tensor.split([len(tensor) - 2 * keys, keys, keys]), strict=True):
            yield name.replace("qkv_proj", f"{short}_proj"), piece
    elif ".gate_up_proj." in name:
        for short, piece in zip(("gate", "up"), tensor.chunk(2), strict=True):
            yield name.replace("gate_up_proj", f"{short}_proj"), piece
    else:
        yield name, tensor


RENAME: dict[str, Callable[[str, torch.Tensor, LlamaConfig], Named]] = {
    "internlm": _internlm,
    "internlm2": _internlm2,
    "phi3": _phi3,
}


def _tensors(file: Path) -> Named:
    if file.suffix == ".bin":
        yield from tensors_in(read_pickle(file)).items()
        return
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            yield name, tensors.get_tensor(name)


def _write(tensors: Named, folder: Path, max_shard_size: int, source: Path) -> None:
    """Files of at most so many bytes (or of one tensor) with their index."""
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    size = total = 0

    def flush() -> None:
        save_file(held, folder / f"part-{len(shards):05d}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        length = tensor.numel() * tensor.element_size()
        if held and size + length > max_shard_size:
            flush()
            size = 0
        held[name] = tensor.clone(memory_format=torch.contiguous_format)
        size, total = size + length, total + length
    flush()
    if len(shards) == 1:
        (folder / "part-00000").rename(folder / "model.safetensors")
        return
    table: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{number:05d}").rename(folder / file)
        table |= dict.fromkeys(names, file)
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": table}, indent=2)
    (folder / "model.safetensors.index.json").write_text(index + "\n", encoding="utf-8")
