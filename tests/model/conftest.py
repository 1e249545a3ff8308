"""A language model, a vision tower, and a run that has joined them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from sightline.recipe import load_recipe
from sightline.train.loop import train


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data and a recipe; a finished run and its checkpoints, whose projector has learned."""
    folder = tmp_path_factory.mktemp("world")
    changes: dict[str, Any] = {"tune": {"llm": "frozen"}, "optim": {"lr": 1e-2}, "run": {"keep": 9}}
    recipe = load_recipe(str(tiny.write_recipe(folder, **changes)))
    train(recipe, folder / "run")
    return folder
