"""tokens.json -> batches for trainers of transformers: ids and labels as written, pictures by the processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, LlavaForConditionalGeneration

IGNORE = -100


class Samples(torch.utils.data.Dataset[dict[str, Any]]):
    """The rows in their order; a row's picture is opened when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.rows = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
        self.images = folder / "images"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = self.rows[number]
        image = row["image"] and Image.open(self.images / row["image"]).convert("RGB")
        return {"ids": row["ids"], "labels": row["labels"], "image": image}


class Collate:
    """Samples padded to the longest of them."""

    def __init__(self, folder: Path) -> None:
        self.processor = AutoImageProcessor.from_pretrained(folder / "hf", backend="pil")

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(sample["ids"]) for sample in samples)

        def padded(name: str, filler: int) -> torch.Tensor:
            return torch.tensor([sample[name] + [filler] * (longest - len(sample[name])) for sample in samples])

        lengths = torch.tensor([[len(sample["ids"])] for sample in samples])
        batch = {
            "input_ids": padded("ids", 0),
            "labels": padded("labels", IGNORE),
            "attention_mask": (torch.arange(longest) < lengths).long(),
        }
        images = [sample["image"] for sample in samples if sample["image"] is not None]
        if images:
            batch["pixel_values"] = self.processor(images, return_tensors="pt")["pixel_values"]
        return batch


def model_of(folder: Path, mode: str) -> Any:
    """The LLaVA of `hf/`, with what `mode` does not train frozen, or with LLaVA's adapters."""
    model = LlavaForConditionalGeneration.from_pretrained(folder / "hf", dtype=torch.float32)
    model.requires_grad_(False)
    if mode == "lora":
        from peft import LoraConfig, get_peft_model

        linear = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
        return get_peft_model(
            model,
            LoraConfig(r=128, lora_alpha=256, target_modules=linear, modules_to_save=["multi_modal_projector"]),
        )
    model.model.multi_modal_projector.requires_grad_(True)
    if mode == "frozen":
        # Without it a batch of rows without pictures has nothing to go back to, and its backward raises.
        model.enable_input_require_grads()
    if mode == "full":
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    return model
