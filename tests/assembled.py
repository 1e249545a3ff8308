"""Models put together from the parts of a `world` (tests/model/conftest.py), or refused; and their projectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.errors import ModelError
from sightline.model.assemble import assemble, make_prompter
from sightline.model.load import VLM
from sightline.recipe import ModelRecipe

PROJECTOR = {f"linear_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")}


def spec(world: Path, **changes: Any) -> ModelRecipe:
    parts = {"llm": str(world / "llm"), "vision_tower": str(world / "tower")}
    return ModelRecipe(
        **(parts | {name: str(value) if isinstance(value, Path) else value for name, value in changes.items()})
    )


def put_together(recipe: ModelRecipe, seed: int = 0) -> VLM:
    prompter = make_prompter(recipe)
    torch.manual_seed(seed)
    return assemble(recipe, prompter)


def refusal(recipe: ModelRecipe) -> str:
    """What assembling ends in: one line."""
    with pytest.raises(ModelError) as error:
        put_together(recipe)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


def projector(vlm: VLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in vlm.model.model.multi_modal_projector.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
