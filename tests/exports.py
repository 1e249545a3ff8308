"""Models of all kinds that are exported, and conversations with them as transformers' users write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import torch
from tokenizers import processors

from sightline.model.assemble import assemble, make_prompter
from sightline.model.load import VLM
from sightline.model.tune import apply_tuning
from sightline.prompt.templates import TEMPLATES
from sightline.recipe import ModelRecipe, OptimRecipe, TuneRecipe
from sightline.types import ImageRef, Message, interleave


def add_bos(llm: Path) -> Path:
    """As Llama's tokenizers do, whose prompt would begin twice if the template's own begin were not seen."""
    tokenizer = tiny.make_tokenizer("legacy")
    start = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [start])
    tokenizer.save_pretrained(llm)
    return llm


def as_vicuna(llm: Path) -> Path:
    """Its generation_config.json is one that transformers refuses to write."""
    config = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.9, "top_p": 0.6}
    (llm / "generation_config.json").write_text(json.dumps(config | {"max_length": 4096}), encoding="utf-8")
    return llm


def built(folder: Path, template: str = "vicuna", pad: str = "pad", dtype: torch.dtype | None = None) -> VLM:
    spec = ModelRecipe.model_validate(
        {
            "llm": str(folder / "llm"),
            "vision_tower": str(tiny.make_tower(folder / "tower")),
            "template": template,
            "image_aspect_ratio": pad,
        }
    )
    prompter = make_prompter(spec)
    torch.manual_seed(0)
    vlm = assemble(spec, prompter)
    torch.manual_seed(1)
    for parameter in vlm.model.parameters():  # as far from zero as trained weights, so that pictures matter
        parameter.data += 0.05 * torch.randn_like(parameter)
    for layer in (vlm.model.get_input_embeddings(), vlm.model.get_output_embeddings()):
        old = layer.weight.data[: vlm.prompter.image_token_id]
        layer.weight.data[len(old) :] = old.mean(0)  # never the likeliest, as after assembling
    return vlm


def with_adapters(vlm: VLM) -> VLM:
    lora = {"r": 4, "alpha": 8, "dropout": 0.0}
    tune = TuneRecipe.model_validate(
        {"llm": "lora", "llm_lora": lora, "vision_tower": "lora", "vision_lora": lora, "projector": "full"}
    )
    apply_tuning(vlm.model, tune, OptimRecipe(lr=1.0))
    torch.manual_seed(3)
    for name, parameter in vlm.model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    return vlm


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 64}
"""Rotary positions as Llama-3.1 stretches them."""

CASES = [
    "byte",
    "rope",
    "legacy",
    "first",
    "llama",
    "vicuna",
    "tied",
    "lora",
    "sharded",
    "crop",
    "llama3_chat",
    "chatml",
    "plain",
]


def make_case(folder: Path, case: str) -> VLM:
    """A model of that kind; what it says before it is written is the truth."""
    kind = case if case in ("legacy", "first") else "byte"
    changes: dict[str, Any] = {"rope_parameters": {**ROPE, "rope_theta": 5e5}} if case == "rope" else {}
    template = case if case in TEMPLATES else "vicuna"
    changes |= {"tie_word_embeddings": case == "tied", "num_hidden_layers": 1}
    tiny.make_llm(folder / "llm", kind=kind, extra=TEMPLATES[template].tokens, **changes)
    if case == "llama":
        add_bos(folder / "llm")
    if case == "vicuna":
        as_vicuna(folder / "llm")
    vlm = built(folder, template, pad="crop" if case == "crop" else "pad")
    return with_adapters(vlm) if case == "lora" else vlm


def conversations(folder: Path) -> list[list[dict[str, Any]]]:
    """One picture, two pictures inside the text, none, and a second turn; as transformers' users write them."""
    tall, wide = str(folder / "tall.png"), str(folder / "wide.png")

    def picture(path: str) -> dict[str, str]:
        return {"type": "image", "path": path}

    def text(words: str) -> dict[str, str]:
        return {"type": "text", "text": words}

    def user(*parts: dict[str, str]) -> dict[str, Any]:
        return {"role": "user", "content": list(parts)}

    return [
        [user(picture(tall), text("What colour is this square?"))],
        [user(text("Compare "), picture(wide), text(" and "), picture(tall), text("."))],
        [user(text("What is red?"))],
        [
            user(picture(wide), text("What colour?")),
            {"role": "assistant", "content": [text("It is red.")]},
            user(text("Answer with it's letter directly.")),
        ],
    ]


def ours(messages: list[dict[str, Any]]) -> list[Message]:
    """The same conversation in our types: an image in front stands on a line of its own."""
    result = []
    for message in messages:
        words, images = "", []
        for number, part in enumerate(message["content"]):
            if part["type"] == "image":
                words += "<image>" + ("\n" if number == 0 else "")
                images.append(ImageRef(part["path"]))
            else:
                words += part["text"]
        result.append(Message(message["role"], interleave(words, images)))
    return result
