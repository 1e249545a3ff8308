"""What is too fine for the whole picture at the tower's size is learned from its tiles, and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from sightline.evaluate.answers import evaluate_answers
from sightline.model.assemble import make_prompter
from sightline.model.load import load
from sightline.recipe import load_recipe
from sightline.train.loop import train
from sightline.types import ImageRef

PATTERNS = ("rows", "columns", "checks")
"""Lines of one pixel, light and dark in turn: at half the size they are one grey."""

SIDE = 112
"""Of the pictures: two tiles of the tower's 56 px."""


def picture(pattern: int, place: int, rng: np.random.Generator) -> Image.Image:
    """Grey with a patch of lines in one corner, that fade towards its edges: an edge would show at any size."""
    ground = rng.integers(90, 160)
    pixels = np.full((SIDE, SIDE), ground, dtype=np.int16)
    down, across = np.indices((48, 48))
    lines = (down, across, down + across)[pattern] % 2 * 2 - 1
    fading = np.outer(*[np.sin(np.pi * (np.arange(48) + 0.5) / 48) ** 2] * 2)
    top, left = (place // 2 * 56 + rng.integers(0, 5) * 2, place % 2 * 56 + rng.integers(0, 5) * 2)
    pixels[top : top + 48, left : left + 48] += np.rint(lines * fading * rng.integers(50, 90)).astype(np.int16)
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


def write(folder: Path, name: str, rows: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    (folder / name).mkdir()
    table = []
    for number in range(rows):
        pattern = int(rng.integers(len(PATTERNS)))
        picture(pattern, int(rng.integers(4)), rng).save(folder / name / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": PATTERNS[pattern]}]
        table.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    path = folder / f"{name}.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def share(folder: Path, *changes: str) -> float:
    """Right answers to fresh questions, after training with these changes to the recipe."""
    run = folder / f"run-{len(list(folder.glob('run-*')))}"
    train(load_recipe(str(folder / "recipe.yaml"), changes), run)
    asked, images = folder / "fresh.json", folder / "fresh"
    result = evaluate_answers(load(run / "hf", device="cpu"), asked, images, batch_size=50, max_new_tokens=8)
    return result.score.value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    changes: dict[str, Any] = {
        "model": {"system": "", "vision_feature_layer": -1},
        "tune": {"vision_tower": "full"},
        "data": [{"path": str(write(folder, "rows", 3200, 1)), "images": str(folder / "rows")}],
        "batch": {"global_batch": 16, "pack_tokens": 2048},
        "optim": {"lr": 2e-3, "epochs": 1, "schedule": "wsd", "optimizer": "muon", "betas": [0.9, 0.98]},
        "run": {"save_every": 0},
    }
    tiny.write_recipe(folder, **changes)
    write(folder, "fresh", 200, 2)
    return folder


def test_the_whole_picture_shows_next_to_nothing(world: Path) -> None:
    """At the tower's size, lines that are 90 levels apart and more are one grey, up to rounding."""
    recipe = load_recipe(str(world / "recipe.yaml"))
    prompter = make_prompter(recipe.model)
    for path in list((world / "fresh").glob("*.png"))[:20]:
        small = prompter.pixels([ImageRef(str(path))]).int()
        assert small.amax() - small.amin() <= 2
        assert np.ptp(np.asarray(Image.open(path)).astype(int)) >= 90


@pytest.mark.slow
def test_tiles_are_learned_from(world: Path) -> None:
    with_tiles, without = share(world, "model.next=true"), share(world)
    print(f"right: {with_tiles:.0%} with tiles, {without:.0%} with the whole picture alone")
    assert with_tiles > 0.9 and without < 0.5, (with_tiles, without)
