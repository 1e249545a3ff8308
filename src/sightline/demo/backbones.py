"""A world -> the demo's language model and vision tower, in folders like any user's; trained once, then kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path

from sightline.demo.world import World
from sightline.errors import UserError
from sightline.files import appearing, sweep
from sightline.runtime import say, seed_everything, versions

SOURCES = (
    *(f"demo/{name}.py" for name in ("backbones", "language", "learning", "questions", "scenes", "tower", "world")),
    "train/optim.py",
)
"""The code that decides what the backbones become."""

SUMS = "sums.json"
"""In a finished folder: its files and their SHA-256, so that a damaged one is made again instead of used."""


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
    """Train both backbones as the schedules say, or find what an earlier call with the same ones has trained.

    Each learns in one thread, so that two cores do both at once. No two calls may share a cache at the same time.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    key = fingerprint(seed, schedules)
    llm, tower = cache_dir / f"llm-{key}", cache_dir / f"vision-tower-{key}"
    if _is_whole(llm) and _is_whole(tower):
        say(f"found {llm} and {tower}")
        return Backbones(llm, tower)
    sweep(cache_dir, "*")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as beside:
        language = beside.submit(_make, llm, seed, make_llm, (seed, schedules.llm))
        _make(tower, seed, make_tower, (seed, schedules.tower, schedules.pictures))
        try:
            language.result()
        except BrokenProcessPool as error:
            raise UserError(
                "the process that trained the language model was killed; call again, with more memory free if there "
                "was little"
            ) from error
    return Backbones(llm, tower)


def make_llm(folder: Path, seed: int, schedule: Schedule) -> None:
    """Train the language model."""
    from sightline.demo.language import train_llm, train_tokenizer

    train_llm(folder, train_tokenizer(seed), schedule, seed=seed)


def make_tower(folder: Path, seed: int, schedule: Schedule, pictures: int) -> None:
    """Train the vision tower, with the language model's tokenizer for its captions."""
    from sightline.demo.language import train_tokenizer
    from sightline.demo.tower import train_tower

    train_tower(folder, train_tokenizer(seed), schedule, pictures=pictures, seed=seed)


def fingerprint(seed: int, schedules: Schedules) -> str:
    """Changes with everything that the backbones depend on: seed, schedules, code, versions."""
    code = {name: files("sightline").joinpath(name).read_text(encoding="utf-8") for name in SOURCES}
    found = versions()
    packages = {name: found.get(name) for name in ("torch", "transformers", "tokenizers", "numpy", "pillow")}
    facts = {"seed": seed, "schedules": asdict(schedules), "code": code, "versions": packages}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _make(folder: Path, seed: int, make: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """Make `folder`, where it is not there or damaged."""
    if _is_whole(folder):
        return
    import torch

    from sightline.model.reading import quiet

    torch.set_num_threads(1)
    seed_everything(seed)
    with appearing(folder, needs=0, replace=True) as draft:
        with quiet():
            make(draft, *arguments)
        (draft / SUMS).write_text(json.dumps(_sums(draft), indent=2), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    try:
        wanted = json.loads((folder / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(wanted == _sums(folder))


def _sums(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != SUMS)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
