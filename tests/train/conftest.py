"""A tiny recipe with its models and data, and runs of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from sightline.recipe import load_recipe
from sightline.train.loop import train


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_recipe(tmp_path_factory.mktemp("world"))


@pytest.fixture
def trained(path: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run the recipe with changes (`a.b=c`); returns the run's folder."""

    def run(*changes: str, name: str = "run", **keywords: Any) -> Path:
        train(load_recipe(str(path), changes), tmp_path / name, **keywords)
        return tmp_path / name

    return run
