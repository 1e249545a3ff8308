"""What can be asked about scenes, with the one right answer: open questions, two pictures, multiple choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from sightline.demo.scenes import COLOURS, PLACES, SHAPES, Scene, Thing, box_of, caption

T = TypeVar("T")

DESCRIBE = ("Describe the picture.", "What is in the picture?", "What do you see?")
ONE = ("describe", "what", "colour", "shape", "count", "where", "box")
TWO = ("two_colour", "two_count")
NUMBERS = ("1", "2", "3")
ORDER = ("first", "second")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its answer."""

    kind: str
    question: str
    answer: str
    others: tuple[str, ...] = ()
    """Wrong answers of the same sort, for multiple choice."""
    thing: Thing | None = None
    """What it is about; None: the whole picture."""


def ask_one(kind: str, scene: Scene, rng: np.random.Generator, about: Sequence[Thing] | None = None) -> Asked | None:
    """A question of this kind about one picture, or None where it has no clear answer; `about` some things only."""
    things = scene.things if about is None else about
    # A thing is named by its shape where no other has this shape; by its colour likewise.
    by_shape = [thing for thing in things if len(scene.shaped(thing.shape)) == 1]
    match kind:
        case "describe":
            return Asked(kind, _one(rng, DESCRIBE), caption(scene))
        case "what":
            return _what(_one(rng, things)) if things else None
        case "colour":
            return _about(kind, "What colour is the {0.shape}?", "colour", by_shape, tuple(COLOURS), rng)
        case "shape":
            by_colour = [thing for thing in things if len(scene.coloured(thing.colour)) == 1]
            return _about(kind, "Which shape is {0.colour}?", "shape", by_colour, SHAPES, rng)
        case "count":
            return _count(kind, "How many shapes are there?", scene)
        case "where" if by_shape:
            thing = _one(rng, by_shape)
            others = tuple(place for place in PLACES if place != PLACES[thing.place])
            return Asked(kind, f"Where is the {thing.shape}?", PLACES[thing.place], others, thing)
        case "box" if by_shape:
            thing = _one(rng, by_shape)
            answer = f"{PLACES[thing.place]} {box_of(thing)}"
            return Asked(kind, f"Where is the {thing.shape}? Give its box too.", answer, thing=thing)
        case "where" | "box":
            return None
    raise ValueError(kind)


def ask_two(kind: str, scenes: Sequence[Scene], rng: np.random.Generator) -> Asked | None:
    """The same for two pictures."""
    at = int(rng.integers(2))
    scene = scenes[at]
    match kind:
        case "two_colour":
            clear = [thing for thing in scene.things if len(scene.shaped(thing.shape)) == 1]
            text = "What colour is the {0.shape} in the " + ORDER[at] + " picture?"
            return _about(kind, text, "colour", clear, tuple(COLOURS), rng)
        case "two_count":
            return _count(kind, f"How many shapes are in the {ORDER[at]} picture?", scene)
    raise ValueError(kind)


def with_options(asked: Asked, rng: np.random.Generator, *, number: int) -> tuple[list[str], int]:
    """At most `number` options in random order, and which of them is right."""
    wrong = _shuffled(rng, asked.others)[: number - 1]
    right = int(rng.integers(len(wrong) + 1))
    return [*wrong[:right], asked.answer, *wrong[right:]], right


def choice_prompt(question: str, options: Sequence[str], hint: str = "") -> str:
    """A multiple-choice question as MMBench's is put to LLaVA-1.5."""
    lettered = [f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=False)]
    lines = [*([hint] if hint else []), question, *lettered]
    return "\n".join([*lines, "Answer with the option's letter from the given choices directly."])


def in_words(scene: Scene, rng: np.random.Generator) -> str:
    """The scene told in words, for those who cannot see."""
    if rng.random() < 0.3:
        told = caption(scene)
    else:
        told = "; ".join(f"{thing.name}, {PLACES[thing.place]}" for thing in scene.things)
    return f"{scene.form} picture: {told}"


def _about(
    kind: str, text: str, field: str, clear: list[Thing], values: tuple[str, ...], rng: np.random.Generator
) -> Asked | None:
    if not clear:
        return None
    thing = _one(rng, clear)
    answer = getattr(thing, field)
    return Asked(kind, text.format(thing), answer, tuple(value for value in values if value != answer), thing)


def _what(thing: Thing) -> Asked:
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    others = tuple(name for name in names if name != thing.name)
    return Asked("what", f"What is in the {PLACES[thing.place]}?", thing.name, others, thing)


def _count(kind: str, question: str, scene: Scene) -> Asked:
    number = str(len(scene.things))
    return Asked(kind, question, number, tuple(other for other in NUMBERS if other != number))


def changed(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """Scenes that differ from this in one thing: two in its shape, one in its place.

    Colours fill many pixels and are told apart without being asked for; shapes would otherwise leave a faint trace.
    """
    at = int(rng.integers(len(scene.things)))
    thing, rest = scene.things[at], [other for number, other in enumerate(scene.things) if number != at]
    free = [place for place in range(len(PLACES)) if place not in {other.place for other in scene.things}]
    shapes = _shuffled(rng, [shape for shape in SHAPES if shape != thing.shape])
    changes = (
        replace(thing, shape=shapes[0]),
        replace(thing, shape=shapes[1]),
        replace(thing, place=_one(rng, free)),
    )
    return [Scene(tuple(sorted([*rest, change])), scene.form) for change in changes]


def _one(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


def _shuffled(rng: np.random.Generator, values: Sequence[T]) -> list[T]:
    return [values[at] for at in rng.permutation(len(values))]
