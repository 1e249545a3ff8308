"""Small random models of the families that become Llamas, in the layout and with the names of their published files.

The forward passes of InternLM and InternLM2 are written down here from their published architecture
(https://huggingface.co/internlm/internlm2-7b, https://arxiv.org/abs/2403.17297), with loops and no use of transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

VOCABULARY, WIDTH, INNER, LAYERS, HEADS, GROUPS = 560, 32, 48, 2, 4, 2
HEAD = WIDTH // HEADS

Tensors = dict[str, torch.Tensor]


def config(kind: str, **changes: Any) -> dict[str, Any]:
    name = {"internlm": "InternLM", "internlm2": "InternLM2"}[kind]
    return {
        **{"model_type": kind, "architectures": [f"{name}ForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": WIDTH},
        **{"intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "bias": False},
        **{"num_key_value_heads": GROUPS if kind == "internlm2" else HEADS, "max_position_embeddings": 64},
        **{"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.02},
        "auto_map": {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"},
        **changes,
    }


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    torch.manual_seed(0)
    return {name: 0.3 * torch.randn(shape) + ("norm" in name) for name, shape in shapes.items()}


def internlm2(settings: dict[str, Any]) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (VOCABULARY, WIDTH)}
    for number in range(LAYERS):
        at = f"model.layers.{number}"
        groups = settings["num_key_value_heads"]
        shapes |= {
            f"{at}.attention.wqkv.weight": ((HEADS + 2 * groups) * HEAD, WIDTH),
            f"{at}.attention.wo.weight": (WIDTH, WIDTH),
            f"{at}.feed_forward.w1.weight": (INNER, WIDTH),
            f"{at}.feed_forward.w3.weight": (INNER, WIDTH),
            f"{at}.feed_forward.w2.weight": (WIDTH, INNER),
            f"{at}.attention_norm.weight": (WIDTH,),
            f"{at}.ffn_norm.weight": (WIDTH,),
        }
        if settings["bias"]:
            shapes[f"{at}.attention.wqkv.bias"] = ((HEADS + 2 * groups) * HEAD,)
            shapes[f"{at}.attention.wo.bias"] = (WIDTH,)
    return random_tensors({**shapes, "model.norm.weight": (WIDTH,), "output.weight": (VOCABULARY, WIDTH)})


def internlm(settings: dict[str, Any]) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for number in range(LAYERS):
        at = f"model.layers.{number}"
        for short in "qkvo":
            shapes[f"{at}.self_attn.{short}_proj.weight"] = (WIDTH, WIDTH)
            if settings["bias"]:
                shapes[f"{at}.self_attn.{short}_proj.bias"] = (WIDTH,)
        shapes |= {
            f"{at}.self_attn.rotary_emb.inv_freq": (HEAD // 2,),
            f"{at}.mlp.gate_proj.weight": (INNER, WIDTH),
            f"{at}.mlp.up_proj.weight": (INNER, WIDTH),
            f"{at}.mlp.down_proj.weight": (WIDTH, INNER),
            f"{at}.input_layernorm.weight": (WIDTH,),
            f"{at}.post_attention_layernorm.weight": (WIDTH,),
        }
    return random_tensors({**shapes, "model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)})


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def turned(x: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions: the pair (i, i + half) of each head turned by position / base^(2i / width)."""
    result = torch.empty_like(x)
    half = HEAD // 2
    for position in range(x.shape[0]):
        for i in range(half):
            angle = torch.tensor(position / base ** (2 * i / HEAD), dtype=x.dtype)
            a, b = x[position, i], x[position, i + half]
            result[position, i] = a * angle.cos() - b * angle.sin()
            result[position, i + half] = b * angle.cos() + a * angle.sin()
    return result


def attended(queries: list[torch.Tensor], keys: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    """Heads of [T, HEAD] each: causal attention, side by side [T, WIDTH]."""
    length = len(queries[0])
    outputs = []
    for q, k, v in zip(queries, keys, values, strict=True):
        scores = (q @ k.T) / HEAD**0.5
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
        outputs.append(scores.softmax(-1) @ v)
    return torch.cat(outputs, -1)


def silu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def internlm2_logits(w: Tensors, ids: torch.Tensor, settings: dict[str, Any], base: float) -> torch.Tensor:
    """The head takes group after group; in wqkv each group holds its queries, its key and its value."""
    groups = settings["num_key_value_heads"]
    each = HEADS // groups
    x = w["model.tok_embeddings.weight"][ids]
    for number in range(LAYERS):
        at = f"model.layers.{number}"
        seen = norm(x, w[f"{at}.attention_norm.weight"])
        fused = seen @ w[f"{at}.attention.wqkv.weight"].T + w.get(f"{at}.attention.wqkv.bias", 0.0)
        heads = list(fused.split(HEAD, -1))
        queries, keys, values = [], [], []
        for group in range(groups):
            mine = heads[group * (each + 2) : (group + 1) * (each + 2)]
            for query in mine[:each]:
                queries.append(turned(query, base))
                keys.append(turned(mine[each], base))
                values.append(mine[each + 1])
        out = attended(queries, keys, values)
        x = x + out @ w[f"{at}.attention.wo.weight"].T + w.get(f"{at}.attention.wo.bias", 0.0)
        seen = norm(x, w[f"{at}.ffn_norm.weight"])
        gate = silu(seen @ w[f"{at}.feed_forward.w1.weight"].T)
        x = x + (gate * (seen @ w[f"{at}.feed_forward.w3.weight"].T)) @ w[f"{at}.feed_forward.w2.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["output.weight"].T


def internlm_logits(w: Tensors, ids: torch.Tensor, base: float) -> torch.Tensor:
    x = w["model.embed_tokens.weight"][ids]
    for number in range(LAYERS):
        at = f"model.layers.{number}"
        seen = norm(x, w[f"{at}.input_layernorm.weight"])
        made = {
            short: seen @ w[f"{at}.self_attn.{short}_proj.weight"].T + w.get(f"{at}.self_attn.{short}_proj.bias", 0.0)
            for short in "qkv"
        }
        split = {short: list(tensor.split(HEAD, -1)) for short, tensor in made.items()}
        out = attended([turned(q, base) for q in split["q"]], [turned(k, base) for k in split["k"]], split["v"])
        x = x + out @ w[f"{at}.self_attn.o_proj.weight"].T + w.get(f"{at}.self_attn.o_proj.bias", 0.0)
        seen = norm(x, w[f"{at}.post_attention_layernorm.weight"])
        gate = silu(seen @ w[f"{at}.mlp.gate_proj.weight"].T)
        x = x + (gate * (seen @ w[f"{at}.mlp.up_proj.weight"].T)) @ w[f"{at}.mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def write(
    folder: Path, settings: dict[str, Any], tensors: Tensors, *, files: int = 1, form: str = "safetensors"
) -> Path:
    """A model folder of so many files, as published ones are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    stem, suffix = ("model", ".safetensors") if form == "safetensors" else ("pytorch_model", ".bin")
    names, table = list(tensors), {}
    for number in range(files):
        file = f"{stem}-{number + 1:05d}-of-{files:05d}{suffix}" if files > 1 else f"{stem}{suffix}"
        part = {name: tensors[name] for name in names[number::files]}
        if form == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
        table |= dict.fromkeys(part, file)
    if files > 1:
        index = {"metadata": {}, "weight_map": table}
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
