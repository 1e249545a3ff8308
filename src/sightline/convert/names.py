"""How each format names the tensors of a model -> the hub's names, and back: two-way tables of prefixes."""

from __future__ import annotations

Table = tuple[tuple[str, str], ...]
"""Pairs of a format's prefix and the hub's; of several that fit, the first one holds."""

LLM: Table = (
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
"""A language model by itself."""

TOWER: Table = (("vision_model.", "vision_tower.vision_model."),)
"""A CLIP or SigLIP by itself, as all versions of transformers read it."""

OFFICIAL: Table = (
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.image_newline", "image_newline"),
    *LLM,
)
"""LLaVA's own (https://github.com/haotian-liu/LLaVA): a language model that has the other parts inside."""

OFFICIAL_LINEAR: Table = (("model.mm_projector.", "multi_modal_projector.linear_1."), *OFFICIAL)
"""The same, of a projector of one layer (`mm_projector_type: linear`)."""

XTUNER_PROJECTOR: Table = (
    ("model.0.", "multi_modal_projector.linear_1."),
    ("model.2.", "multi_modal_projector.linear_2."),
)
"""The folder `projector/` of XTuner."""


def rename(name: str, table: Table) -> str:
    """The name with its prefix replaced; without one that the table knows, as it is."""
    for old, new in table:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def reverse(table: Table) -> Table:
    """The table in the other direction."""
    return tuple((new, old) for old, new in table)
