"""Sightline's `train` with one lever taken away, or one more pulled: racer_lever.py FOLDER MODE WORK_DIR LEVER"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import racer_sightline
import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from world import recipe

from sightline.model import attention
from sightline.prompt.prompter import Prompter
from sightline.train import engine, loss, optim
from sightline.train.loop import train
from sightline.types import IGNORE

SETTINGS = {
    "without packing": ["batch.pack_tokens=2"],
    "packs of 768 tokens": ["batch.pack_tokens=768"],
    "packs of 1,024 tokens": ["batch.pack_tokens=1024"],
    "packs of 2,048 tokens": ["batch.pack_tokens=2048"],
    "pictures decoded between steps": ["batch.workers=0"],
    "all activations computed twice": ["engine.gradient_checkpointing=true"],
    "layers compiled": ["engine.compile=true"],
    "bfloat16": ["engine.dtype=bfloat16"],
    "weights in bfloat16 alone": ["engine.dtype=bfloat16", "engine.pure_bf16=true"],
    "8-bit AdamW": ["optim.optimizer=adamw_8bit"],
}
"""What a recipe can switch."""


def one_mask_for_the_pack() -> None:
    """As packing without kernels for it: all scores of the pack are computed, those of other samples then masked."""

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **named: Any) -> tuple[torch.Tensor, None]:
        lengths = torch.tensor(list(named["sample_lengths"]))
        sample = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        allowed = (sample[:, None] == sample[None]).tril()
        scale = named.get("scaling")
        states = scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale, enable_gqa=True)
        return states.transpose(1, 2).contiguous(), None

    attention._attend = attend  # type: ignore[assignment]


def logits_of_all_targets_at_once() -> None:
    def head_loss(hidden: Any, weight: Any, bias: Any, targets: Any, piece: int) -> torch.Tensor:
        return cross_entropy(torch.nn.functional.linear(hidden, weight, bias).float(), targets, reduction="sum")

    loss.head_loss = head_loss


def logits_everywhere() -> None:
    """As the models of transformers compute their loss."""

    def forward(self: Any, batch: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        labels = torch.full((batch.num_tokens,), IGNORE)
        labels[batch.predict_at] = batch.target_ids
        hidden = self.model.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            pixel_values=pixel_values,
            use_cache=False,
            sample_lengths=batch.sample_lengths,
        ).last_hidden_state[0]
        logits = self.model.lm_head(hidden).float()
        return cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")

    loss.PackedLoss.forward = forward  # type: ignore[method-assign]


def a_graph_through_the_frozen_tower() -> None:
    plain = Prompter.pixel_values
    Prompter.pixel_values = lambda self, pixels: plain(self, pixels).requires_grad_()  # type: ignore[method-assign]


def an_optimiser_in_many_kernels() -> None:
    plain = optim.make_optimizer
    engine.make_optimizer = lambda *given, **named: plain(*given, **{**named, "fused": False})  # type: ignore[assignment]


CHANGES: dict[str, Callable[[], None]] = {
    "one mask for the whole pack": one_mask_for_the_pack,
    "logits of all targets at once": logits_of_all_targets_at_once,
    "logits everywhere": logits_everywhere,
    "a graph through the frozen tower": a_graph_through_the_frozen_tower,
    "AdamW in many kernels": an_optimiser_in_many_kernels,
}
"""What no recipe can: code that is put in place of Sightline's."""

if __name__ == "__main__":
    folder, mode, work_dir, lever = sys.argv[1:]
    racer_sightline.Log.step = racer_sightline.step  # type: ignore[method-assign]
    CHANGES.get(lever, lambda: None)()
    start = f"model.projector_from={folder}/hf"
    train(recipe(Path(folder), mode, start, *SETTINGS.get(lever, [])), work_dir)
