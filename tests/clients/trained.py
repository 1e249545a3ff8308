"""Small models that have learned to name colours, so that their greedy answers do not hang on a last digit."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import tiny
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from sightline import cli
from sightline.model.llama_tokenizer import rebuilt

GOLDEN = Path(__file__).parents[1] / "model" / "sentencepiece.json"

QUESTION = "What colour is this square?"
SIZES = ((56, 56), (80, 60), (60, 100))
"""Of the pictures, width and height."""
NEXT = {"next": True, "grid_pinpoints": [[56, 112], [112, 56], [112, 112]]}


def sightline(*words: str | Path, stdin: str = "") -> str:
    """What a command prints; it must succeed."""
    typed, sys.stdin = sys.stdin, io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert cli.main([str(word) for word in words]) == 0
    finally:
        sys.stdin = typed
    return printed.getvalue()


def make_pictures(folder: Path, answer: str) -> Path:
    """One of each colour and size; the JSON beside them asks for their colours."""
    folder.mkdir(parents=True)
    rows = []
    for colour, value in tiny.COLOURS.items():
        for width, height in SIZES:
            name = f"{colour}_{width}x{height}.png"
            Image.new("RGB", (width, height), value).save(folder / name)
            turns = [
                {"from": "human", "value": f"<image>\n{QUESTION}"},
                {"from": "gpt", "value": answer.format(colour)},
            ]
            rows.append({"id": name, "image": name, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def make_vicuna(folder: Path) -> Path:
    """A random Llama with a tokenizer of sentencepiece, which begins texts and pads with <unk>, as Vicuna's does."""
    folder.mkdir(parents=True)
    model = json.loads(GOLDEN.read_text(encoding="utf-8"))["internlm"]["model"]
    (folder / "tokenizer.model").write_bytes(base64.b64decode(model))
    tokenizer = rebuilt(folder)
    tokenizer.pad_token = "<unk>"
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=512, **sizes)
    ).save_pretrained(folder)
    return folder


def train(
    folder: Path,
    *,
    model: dict[str, Any] | None = None,
    tune: dict[str, Any] | None = None,
    answer: str = "It is a {} square.",
) -> Path:
    """A run in `folder/run`, its parts in `folder/vicuna` and `folder/tower`, its pictures in `folder/pictures`."""
    pictures = make_pictures(folder / "pictures", answer)
    make_vicuna(folder / "vicuna")
    parts = {"llm": str(folder / "vicuna"), "vision_tower": str(folder / "tower"), "template": "vicuna"}
    recipe = tiny.write_recipe(
        folder,
        model=parts | (model or {}),
        tune=tune or {"llm": "full", "vision_tower": "full", "projector": "full"},
        data=[{"path": str(pictures / "data.json"), "images": str(pictures)}],
        batch={"global_batch": 6, "max_length": 256, "workers": 0},
        optim={"lr": 3e-3, "epochs": 40},
        run={"save_every": 1000},
    )
    sightline("train", recipe, "--work-dir", folder / "run")
    return folder / "run"


def our_answers(model: Path, pictures: list[str]) -> dict[str, str]:
    """What our own chat says of each picture, greedily."""
    flags = ["--temperature", "0", "--max-new-tokens", "20", "--device", "cpu", "--torch-dtype", "fp32"]
    lines = "".join(f"/image {picture}\n{QUESTION}\n/reset\n" for picture in pictures)
    said = sightline("chat", model, *flags, stdin=lines)
    return dict(zip(pictures, said.splitlines(), strict=True))
