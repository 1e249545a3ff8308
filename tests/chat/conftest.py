"""A model folder as `sightline train` leaves it, and pictures of one colour."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import COLOURS, make_llm, make_tower

from sightline.model.assemble import assemble, make_prompter
from sightline.model.load import VLM, load
from sightline.model.save import save
from sightline.recipe import ModelRecipe


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a random model in its `hf`: vicuna's template, a context of 512 tokens, 16 tokens per image."""
    folder = tmp_path_factory.mktemp("chat")
    spec = ModelRecipe(
        llm=str(make_llm(folder / "llm")), vision_tower=str(make_tower(folder / "tower")), template="vicuna"
    )
    torch.manual_seed(1)
    save(assemble(spec, make_prompter(spec)), folder / "run" / "hf")
    return folder / "run"


@pytest.fixture(scope="session")
def vlm(run_folder: Path) -> VLM:
    return load(run_folder / "hf", device="cpu")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        Image.new("RGB", (60, 56), colour).save(folder / f"{name}.png")
    return folder
