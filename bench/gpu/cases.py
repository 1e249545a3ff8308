"""The cases of `make bench-gpu` as data: which recipe, which rows, how much at once. Needs nothing but Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

RECOMPUTE, KEEP = "engine.gradient_checkpointing=true", "engine.gradient_checkpointing=false"
"""What both sides can be told of activations; else Sightline recomputes as many as the card asks for (auto)."""

OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Case:
    """A recipe at full size, and how each side runs it on a card of 80 GB."""

    recipe: str
    """The name of a shipped one; its models are made up, its data too."""
    rows: Literal["captions", "mixture"]
    """captions: a picture and a sentence, as in stage 1; mixture: the proportions of mix665k."""
    global_batch: int
    ours: tuple[tuple[str, ...], ...]
    """Settings `a.b=c` of Sightline, the fastest first; the next ones are for cards that do not hold the first."""
    theirs: tuple[tuple[int, bool], ...]
    """The same for transformers' Trainer: rows in a padded batch, and whether activations are computed twice."""
    settings: tuple[str, ...] = ()
    """Settings of the recipe for both."""
    goals: dict[str, float] = field(default_factory=dict)
    """What Sightline shall reach: `mfu` at least, `peak_gib` at most."""


_LORA = "tune.llm_lora={r: 128, alpha: 256, dropout: 0.05}"
_LLAMA = "llava_llama3_8b_instruct_{}_clip_vit_large_p14_336_e1_gpu1_{}"

CASES = {
    "llava-7b-stage1": Case(
        "llava_v15_7b_pretrain",
        "captions",
        64,
        ours=(("batch.pack_tokens=8192",), (RECOMPUTE,)),
        theirs=((16, False), (8, False), (16, True), (4, True)),
        goals={"mfu": 0.55},
    ),
    "llava-7b-lora": Case(
        "llava_v15_7b_finetune_lora",
        "mixture",
        64,
        ours=(("batch.pack_tokens=4096",), (RECOMPUTE,)),
        theirs=((4, False), (2, False), (16, True), (8, True), (2, True)),
        goals={"mfu": 0.50},
    ),
    "llama3-8b-4bit-stage1": Case(
        _LLAMA.format("quant", "pretrain"),
        "captions",
        32,
        ours=((RECOMPUTE,),),
        theirs=((4, True), (2, True), (1, True)),
        goals={"peak_gib": 12},
    ),
    "llama3-8b-qlora": Case(
        _LLAMA.format("qlora", "finetune"),
        "mixture",
        32,
        ours=((RECOMPUTE,),),
        theirs=((4, True), (2, True), (1, True)),
        goals={"peak_gib": 12},
    ),
    "phi3-mini-full": Case(
        "llava_phi3_mini_4k_instruct_full_clip_vit_large_p14_336_e1_gpu8_finetune",
        "mixture",
        64,
        ours=(
            ("batch.pack_tokens=8192",),
            (RECOMPUTE, "batch.pack_tokens=8192"),
            (RECOMPUTE,),
            (RECOMPUTE, "optim.optimizer=adamw_8bit"),
        ),
        theirs=((4, True), (2, True), (1, True)),
    ),
    "next-7b-lora": Case(
        "llava_next_vicuna_7b_finetune",
        "mixture",
        16,
        ours=(("batch.pack_tokens=4096",), (RECOMPUTE,)),
        theirs=((2, False), (1, False), (4, True), (2, True), (1, True)),
        settings=("tune.llm=lora", _LORA, "tune.vision_tower=frozen", "optim.lr=2e-4"),
        goals={"mfu": 0.50},
    ),
}
