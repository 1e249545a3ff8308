"""Small random models and small data in real formats, made on the spot: what tests run on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
WORDS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: ASSISTANT: What colour is this square? Describe the picture. "
    "It is a red green blue yellow square. Answer with the option's letter from the given choices directly. A. B. C. D."
)


def make_tokenizer(kind: str = "byte", *, extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A BPE tokenizer: `byte` as Llama-3 and Qwen have it, `legacy` and `first` as Llama-2 in its two forms."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind != "byte"))
    special = ["<unk>", "<s>", "</s>"]
    if kind == "byte":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        if kind == "legacy":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=560, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": list(extra)})
    return fast


def make_llm(folder: Path, *, seed: int = 0, kind: str = "byte", extra: tuple[str, ...] = (), **changes: Any) -> Path:
    """A random Llama of 2 layers with its tokenizer, which has `extra` control tokens."""
    tokenizer = make_tokenizer(kind, extra=extra)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**(settings | changes))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tower(folder: Path, *, seed: int = 0) -> Path:
    """A random CLIP vision model of 3 layers: 56 px, patches of 14, 16 features."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=16,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


def make_data(folder: Path, *, rows: int = 24, seed: int = 0) -> tuple[Path, Path]:
    """A LLaVA JSON file with pictures of one colour (single, text-only, two-picture, two-turn rows), and its images."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    table = []
    for number in range(rows):
        colours = [rng.choice(list(COLOURS)) for _ in range(2)]
        paths = []
        for place, colour in enumerate(colours):
            paths.append(f"{number}_{place}.{'png' if number % 2 else 'jpg'}")
            size = (rng.choice((56, 80)), rng.choice((56, 72)))
            Image.new("RGB", size, COLOURS[colour]).save(images / paths[-1])
        question = "<image>\nWhat colour is this square?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"It is a {colours[0]} square."}]
        row: dict[str, Any] = {"id": str(number), "image": paths[0], "conversations": turns}
        match number % 6:
            case 3:
                del row["image"]
                row["conversations"] = [
                    {"from": "human", "value": "What is red?"},
                    {"from": "gpt", "value": "A colour." * (1 + number % 4)},
                ]
            case 4:
                row["image"] = paths
                turns[0]["value"] = "Compare <image> and <image>."
                turns[1]["value"] = f"{colours[0]} and {colours[1]}"
            case 5:
                turns += [{"from": "human", "value": "Describe the picture."}, {"from": "gpt", "value": colours[0] * 3}]
        table.append(row)
    path = folder / "data.json"
    path.write_text(json.dumps(table, indent=1), encoding="utf-8")
    return path, images


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Models, data and a recipe for them in one folder; `changes` replace whole sections' keys."""
    import yaml

    data, images = make_data(folder / "world")
    recipe: dict[str, dict[str, Any] | list[Any]] = {
        "model": {
            "llm": str(make_llm(folder / "llm")),
            "vision_tower": str(make_tower(folder / "tower")),
            "template": "vicuna",
        },
        "tune": {"llm": "full", "vision_tower": "frozen", "projector": "full"},
        "data": [{"path": str(data), "images": str(images)}],
        "batch": {"global_batch": 6, "max_length": 256, "workers": 0},
        "optim": {"lr": 1.0e-3, "epochs": 2},
        "engine": {"device": "cpu"},
        "run": {"save_every": 3},
    }
    for section, values in changes.items():
        recipe[section] = values if isinstance(values, list) else {**recipe[section], **values}  # type: ignore[dict-item]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
