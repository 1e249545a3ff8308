"""A world -> the demo's language model and vision tower, in folders like any user's; trained once, then kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from sightline.demo.world import World
from sightline.runtime import console, seed_everything, versions

SOURCES = (
    *(f"demo/{name}.py" for name in ("backbones", "language", "learning", "questions", "scenes", "tower", "world")),
    "train/optim.py",
)
"""The code that decides what the backbones become."""


@dataclass(frozen=True, slots=True)
class Backbones:
    """Two folders that transformers' Auto classes load."""

    llm: Path
    vision_tower: Path


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast a backbone learns."""

    steps: int
    batch: int
    """Texts, or pictures with their captions, per step."""
    lr: float
    """The highest learning rate."""


@dataclass(frozen=True, slots=True)
class Schedules:
    """Both backbones' learning."""

    llm: Schedule
    tower: Schedule
    pictures: int
    """How many pictures the vision tower sees, again and again."""


FULL = Schedules(
    llm=Schedule(steps=150, batch=16, lr=4e-3),
    tower=Schedule(steps=200, batch=128, lr=3e-3),
    pictures=8000,
)
QUICK = Schedules(
    llm=Schedule(steps=70, batch=16, lr=4e-3),
    tower=Schedule(steps=60, batch=128, lr=3e-3),
    pictures=2000,
)


def backbones(world: World, cache_dir: Path, *, quick: bool) -> Backbones:
    """The two backbones for this world, from the cache where they are there already."""
    return make_backbones(world.seed, cache_dir, QUICK if quick else FULL)


def make_backbones(seed: int, cache_dir: Path, schedules: Schedules) -> Backbones:
    """Train both backbones as the schedules say, or find what an earlier call with the same ones has trained."""
    from sightline.demo.language import train_llm, train_tokenizer
    from sightline.demo.tower import train_tower

    cache_dir = Path(cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    key = fingerprint(seed, schedules)

    def make_llm(folder: Path) -> None:
        train_llm(folder, train_tokenizer(seed), schedules.llm, seed=seed)

    def make_tower(folder: Path) -> None:
        train_tower(folder, train_tokenizer(seed), schedules.tower, pictures=schedules.pictures, seed=seed)

    return Backbones(
        llm=_cached(cache_dir / f"llm-{key}", make_llm, seed),
        vision_tower=_cached(cache_dir / f"vision-tower-{key}", make_tower, seed),
    )


def fingerprint(seed: int, schedules: Schedules) -> str:
    """Changes with everything that the backbones depend on: seed, schedules, code, versions."""
    code = {name: files("sightline").joinpath(name).read_text(encoding="utf-8") for name in SOURCES}
    found = versions()
    packages = {name: found.get(name) for name in ("torch", "transformers", "tokenizers", "numpy", "pillow")}
    facts = {"seed": seed, "schedules": asdict(schedules), "code": code, "versions": packages}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _cached(folder: Path, make: Callable[[Path], None], seed: int) -> Path:
    """`folder`, made under another name and renamed when it is complete."""
    if folder.is_dir():
        console.print(f"found {folder}", markup=False, soft_wrap=True)
        return folder
    from sightline.model.reading import quiet

    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        seed_everything(seed)
        with quiet():
            make(draft)
        draft.chmod(0o755)  # mkdtemp's folders are for their owner alone
        try:
            os.replace(draft, folder)
        except OSError:
            # Another demo was faster; what it made is the same.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
