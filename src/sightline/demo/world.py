"""A seed -> the demo's data: pictures, LLaVA JSON for both stages, held-out questions, a TSV like MMBench's."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline.demo.questions import ONE, TWO, Asked, ask_one, ask_two, choice_prompt, in_words, with_options
from sightline.demo.scenes import Scene, Thing, caption, draw_scene, paint
from sightline.errors import UserError

Row = dict[str, Any]

CIRCLE = 1_000_000
"""MMBench adds this to the index each time it asks a question again with its options in another order."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the questions of a file are like."""

    choices: float = 0.0
    """How often a question that can be put as multiple choice is."""
    told: float = 0.0
    """How often such a question is asked openly just before, so that its answer stands there already."""


LESSONS = {
    "finetune_open": Lesson(),
    "finetune_letters": Lesson(choices=0.9, told=0.75),
    "finetune_choice": Lesson(choices=0.8, told=0.15),
}
"""The files of stage 2, in the order of learning: to find answers, what letters are for, both at once."""

TEXT_ONLY, TWO_PICTURES = 0.04, 0.16
"""How many rows have no picture, and how many have two."""

WEIGHTS = {"describe": 0.3, "what": 2, "colour": 2.5, "shape": 1, "count": 0.4, "where": 4, "box": 0.8}
"""How often each kind of question is asked: those that take long to learn more often than the others."""

OPTIONS = (2, 3, 4, 4)
"""Numbers of options of a multiple-choice question. With four alone letters are learned sooner, but only of four."""

HINT = "Hint: every picture shows one to three shapes."

CATEGORIES = {
    "what": ("object_localization", "finegrained_perception (instance-level)"),
    "colour": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "shape": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "where": ("object_localization", "finegrained_perception (instance-level)"),
    "count": ("image_topic", "coarse_perception"),
}
"""Question kind -> `category` and `l2-category` in MMBench's words."""


@dataclass(frozen=True, slots=True)
class World:
    """Where the data are, and how much there is of it."""

    folder: Path
    seed: int
    images: Path
    """The folder that image paths are relative to."""
    pretrain: Path
    finetune: tuple[Path, ...]
    """A file for each of the LESSONS."""
    heldout: Path
    mmbench: Path
    counts: dict[str, int]
    """Rows of each file, by its name."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is drawn."""

    pretrain: int
    finetune: tuple[tuple[int, int], ...]
    """Of each lesson: scenes, and conversations about each."""
    heldout: int
    """Questions of each kind."""
    circles: int


FULL = Amounts(pretrain=2400, finetune=((6000, 1), (3000, 3), (4000, 3)), heldout=48, circles=100)
QUICK = Amounts(pretrain=1024, finetune=((1600, 1), (400, 1), (400, 1)), heldout=20, circles=20)


def draw_world(folder: Path, *, seed: int, quick: bool) -> World:
    """Write the data into `folder`, which must be new or empty; the same seed gives the same bytes."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose another folder for the demo's world, or remove this one")
    amounts = QUICK if quick else FULL
    world = World(
        folder=folder,
        seed=seed,
        images=folder / "images",
        pretrain=folder / "pretrain.json",
        finetune=tuple(folder / f"{name}.json" for name in LESSONS),
        heldout=folder / "heldout.json",
        mmbench=folder / "mmbench.tsv",
        counts={},
    )
    rng = np.random.default_rng(seed)
    tables = {world.pretrain: list(_pretrain_rows(Album(world.images, "pretrain"), rng, amounts.pretrain))}
    for path, lesson, (number, times) in zip(world.finetune, LESSONS.values(), amounts.finetune, strict=True):
        tables[path] = list(_finetune_rows(Album(world.images, path.stem), rng, number, times, lesson))
    tables[world.heldout] = list(_heldout_rows(Album(world.images, "heldout"), rng, amounts.heldout))
    for path, rows in tables.items():
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        world.counts[path.name] = len(rows)
    album = Album(world.images, "mmbench")
    world.counts[world.mmbench.name] = _write_mmbench(world.mmbench, album, rng, amounts.circles)
    return world


class Album:
    """Paints scenes into numbered files of one folder."""

    def __init__(self, images: Path, name: str) -> None:
        self.images, self.name, self.number = images, name, 0
        (images / name).mkdir(parents=True)

    def add(self, scene: Scene, rng: np.random.Generator) -> str:
        """The path of the new picture, relative to the folder of images; one in five is a PNG."""
        jpeg = rng.random() < 0.8
        path = f"{self.name}/{self.number:06d}.{'jpg' if jpeg else 'png'}"
        self.number += 1
        picture = paint(scene, rng)
        # What a format does not know of these is ignored.
        picture.save(self.images / path, quality=92, compress_level=1)
        return path


def _turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _pretrain_rows(album: Album, rng: np.random.Generator, number: int) -> Iterator[Row]:
    for at in range(number):
        scene = draw_scene(rng)
        turn = _turn("<image>\nDescribe the picture.", caption(scene))
        yield {"id": f"pretrain-{at}", "image": album.add(scene, rng), "conversations": turn}


def _finetune_rows(album: Album, rng: np.random.Generator, number: int, times: int, lesson: Lesson) -> Iterator[Row]:
    """Conversations about `number` drawn scenes, then others about the same, and so on: so many times in all."""
    drawn: list[tuple[list[Scene], list[str]]] = []
    for _ in range(number):
        sort = rng.random()
        scenes = [draw_scene(rng) for _ in range(2 if TEXT_ONLY <= sort < TEXT_ONLY + TWO_PICTURES else 1)]
        drawn.append((scenes, [album.add(scene, rng) for scene in scenes] if sort >= TEXT_ONLY else []))
    for at in range(number * times):
        scenes, paths = drawn[at % number]
        turns = conversation(scenes, rng, turns=4 if len(paths) == 1 else 3, lesson=lesson)
        before = "<image>\n" * len(paths) if paths else f"{in_words(scenes[0], rng)}\n"
        turns[0]["value"] = before + turns[0]["value"]
        image = {"image": paths if len(paths) > 1 else paths[0]} if paths else {}
        yield {"id": f"{album.name}-{at}"} | image | {"conversations": turns}


def conversation(
    scenes: Sequence[Scene], rng: np.random.Generator, *, turns: int, lesson: Lesson
) -> list[dict[str, str]]:
    """Up to so many questions about one or two pictures; a share of them multiple choice.

    No two are about the same thing, and after a description nothing is asked: an answer that an earlier one gives away
    is copied from the text, and what is copied does not teach to look. Letters are the exception: see `Lesson.told`.
    """
    result: dict[str, list[dict[str, str]]] = {}
    left = list(scenes[0].things)
    tries = 0
    while len(result) < turns and (tries < 4 * turns or not result):
        tries += 1
        asked = _ask(scenes, rng, left)
        if asked is None or asked.question in result or (asked.kind == "describe" and result):
            continue
        left = [thing for thing in left if thing != asked.thing]
        if asked.others and rng.random() < lesson.choices:
            options, right = with_options(asked, rng, number=int(rng.choice(OPTIONS)))
            hint = HINT if rng.random() < 0.15 else ""
            before = _turn(asked.question, asked.answer) if rng.random() < lesson.told else []
            result[asked.question] = before + _turn(choice_prompt(asked.question, options, hint), "ABCD"[right])
        else:
            result[asked.question] = _turn(asked.question, asked.answer)
        if asked.kind == "describe":
            break
    return [message for turn in result.values() for message in turn]


def _ask(scenes: Sequence[Scene], rng: np.random.Generator, about: Sequence[Thing]) -> Asked | None:
    if len(scenes) == 2:
        return ask_two(str(rng.choice(TWO)), scenes, rng)
    weights = np.array([WEIGHTS[kind] for kind in ONE])
    return ask_one(str(rng.choice(ONE, p=weights / weights.sum())), scenes[0], rng, about)


def _heldout_rows(album: Album, rng: np.random.Generator, number: int) -> Iterator[Row]:
    for kind in (*ONE, *TWO):
        for at in range(number):
            scenes, asked = _held_out(kind, rng)
            paths = [album.add(scene, rng) for scene in scenes]
            turn = _turn("<image>\n" * len(paths) + asked.question, asked.answer)
            image = paths if len(paths) > 1 else paths[0]
            yield {"id": f"{kind}-{at}", "image": image, "category": kind, "conversations": turn}


def _held_out(kind: str, rng: np.random.Generator) -> tuple[list[Scene], Asked]:
    while True:
        scenes = [draw_scene(rng, held_out=True) for _ in range(2 if kind in TWO else 1)]
        asked = ask_two(kind, scenes, rng) if kind in TWO else ask_one(kind, scenes[0], rng)
        if asked is not None:
            return scenes, asked


def _write_mmbench(path: Path, album: Album, rng: np.random.Generator, circles: int) -> int:
    """Each question once for every rotation of its options; the first row holds the picture, the others its index."""
    names = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image", "split"]
    rows: list[tuple[int, tuple[str, ...]]] = []
    for index in range(circles):
        kind = list(CATEGORIES)[index % len(CATEGORIES)]
        scenes, asked = _held_out(kind, rng)
        options, right = with_options(asked, rng, number=int(rng.choice(OPTIONS)))
        picture = base64.b64encode((album.images / album.add(scenes[0], rng)).read_bytes()).decode()
        hint = HINT if rng.random() < 0.15 else ""
        for shift in range(len(options)):
            rotated = options[shift:] + options[:shift]
            cells = [*rotated, "", ""][:4]
            answer = "ABCD"[(right - shift) % len(options)]
            image = picture if shift == 0 else str(index)
            number = index + shift * CIRCLE
            rows.append((number, (asked.question, hint, *cells, answer, *CATEGORIES[kind], image, "dev")))
    # MMBench's files have all first rows before all second ones.
    rows.sort()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(names)
        writer.writerows((number, *cells) for number, cells in rows)
    return len(rows)
