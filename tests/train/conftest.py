"""A tiny recipe with its models and data, and runs of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from runs import SHORT, Interrupted, until

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


@pytest.fixture(scope="module")
def original(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("original") / "run"
    with pytest.raises(Interrupted):
        train(load_recipe(str(path), SHORT), run, after_step=until(3))
    return run


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A run of four steps (SHORT) that stopped after the third, with a checkpoint of the second."""
    return shutil.copytree(original, tmp_path / "run")
