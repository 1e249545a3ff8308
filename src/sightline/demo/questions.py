"""What can be asked about scenes, with the one right answer: open questions, two pictures, multiple choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sightline.demo.scenes import COLOURS, PLACES, SHAPES, Scene, Thing, box_of, caption

T = TypeVar("T")

DESCRIBE = ("Describe the picture.", "What is in the picture?", "What do you see?")
ONE = ("describe", "what", "colour", "shape", "count", "where", "box", "exists")
TWO = ("two_which", "two_more", "two_colour", "two_describe")
NUMBERS = ("0", "1", "2", "3")
ORDER = ("first", "second")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its answer."""

    kind: str
    question: str
    answer: str
    others: tuple[str, ...] = ()
    """Wrong answers of the same sort, for multiple choice."""


def ask_one(kind: str, scene: Scene, rng: np.random.Generator) -> Asked | None:
    """A question of this kind about one picture, or None where the scene has no clear answer to it."""
    match kind:
        case "describe":
            return Asked(kind, _one(rng, DESCRIBE), caption(scene), tuple(map(caption, _changed(scene, rng))))
        case "what":
            return _what(scene, rng)
        case "colour":
            clear = [thing for thing in scene.things if len(scene.shaped(thing.shape)) == 1]
            return _about(kind, "What colour is the {0.shape}?", "colour", clear, tuple(COLOURS), rng)
        case "shape":
            clear = [thing for thing in scene.things if len(scene.coloured(thing.colour)) == 1]
            return _about(kind, "Which shape is {0.colour}?", "shape", clear, SHAPES, rng)
        case "count":
            return _count(scene, rng)
        case "where":
            clear = [thing for thing in scene.things if len(scene.named(thing.name)) == 1]
            if not clear:
                return None
            thing = _one(rng, clear)
            others = tuple(place for place in PLACES if place != PLACES[thing.place])
            return Asked(kind, f"Where is the {thing.name}?", PLACES[thing.place], others)
        case "box":
            clear = [thing for thing in scene.things if len(scene.named(thing.name)) == 1]
            if not clear:
                return None
            thing = _one(rng, clear)
            return Asked(kind, f"Give the box of the {thing.name}.", box_of(thing, scene.form))
        case "exists":
            there = rng.random() < 0.5
            name = _one(rng, scene.things).name if there else _absent(scene, rng)
            return Asked(kind, f"Is there a {name}?", "yes" if there else "no", ("no",) if there else ("yes",))
    raise ValueError(kind)


def ask_two(kind: str, scenes: Sequence[Scene], rng: np.random.Generator) -> Asked | None:
    """The same for two pictures."""
    at = int(rng.integers(2))
    scene, other = scenes[at], scenes[1 - at]
    match kind:
        case "two_which":
            only = sorted({thing.name for thing in scene.things} - {thing.name for thing in other.things})
            return Asked(kind, f"Which picture shows a {_one(rng, only)}?", ORDER[at], (ORDER[1 - at],)) if only else None
        case "two_more":
            if len(scene.things) == len(other.things):
                return None
            more = max((0, 1), key=lambda number: len(scenes[number].things))
            return Asked(kind, "Which picture shows more shapes?", ORDER[more], (ORDER[1 - more],))
        case "two_colour":
            clear = [thing for thing in scene.things if len(scene.shaped(thing.shape)) == 1]
            text = "What colour is the {0.shape} in the " + ORDER[at] + " picture?"
            return _about(kind, text, "colour", clear, tuple(COLOURS), rng)
        case "two_describe":
            return Asked(kind, f"Describe the {ORDER[at]} picture.", caption(scene))
    raise ValueError(kind)


def with_options(asked: Asked, rng: np.random.Generator, *, number: int) -> tuple[list[str], int]:
    """At most `number` options in random order, and which of them is right."""
    wrong = _shuffled(rng, asked.others)[: number - 1]
    right = int(rng.integers(len(wrong) + 1))
    return [*wrong[:right], asked.answer, *wrong[right:]], right


def choice_prompt(question: str, options: Sequence[str], hint: str = "") -> str:
    """A multiple-choice question as MMBench's is put to LLaVA-1.5."""
    lines = [*([hint] if hint else []), question, *(f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=False))]
    return "\n".join([*lines, "Answer with the option's letter from the given choices directly."])


def in_words(scene: Scene, rng: np.random.Generator) -> str:
    """The scene told in words, things in any order: for those who cannot see."""
    if rng.random() < 0.3:
        told = caption(scene)
    else:
        told = "; ".join(f"{thing.name}, {PLACES[thing.place]}" for thing in _shuffled(rng, scene.things))
    return f"{scene.form} picture: {told}"


def _about(kind: str, text: str, field: str, clear: list[Thing], values: tuple[str, ...], rng: np.random.Generator) -> Asked | None:
    if not clear:
        return None
    thing = _one(rng, clear)
    answer = getattr(thing, field)
    return Asked(kind, text.format(thing), answer, tuple(value for value in values if value != answer))


def _what(scene: Scene, rng: np.random.Generator) -> Asked:
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    taken = {thing.place: thing.name for thing in scene.things}
    free = [place for place in range(len(PLACES)) if place not in taken]
    place = _one(rng, free) if rng.random() < 0.15 else _one(rng, list(taken))
    answer = taken.get(place, "nothing")
    return Asked("what", f"What is at the {PLACES[place]}?", answer, tuple(name for name in [*names, "nothing"] if name != answer))


def _count(scene: Scene, rng: np.random.Generator) -> Asked:
    sorts: dict[str, int] = {"shapes": len(scene.things)}
    sorts |= {f"{colour} shapes": len(scene.coloured(colour)) for colour in COLOURS}
    sorts |= {plural(shape): len(scene.shaped(shape)) for shape in SHAPES}
    # The number first and then something that there are so many of, or "0" would nearly always be right.
    number = _one(rng, sorted(set(sorts.values())))
    sort = _one(rng, [name for name, count in sorts.items() if count == number])
    return Asked("count", f"How many {sort} are there?", str(number), tuple(other for other in NUMBERS if other != str(number)))


def plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    """Something that is not there but has a colour or a shape that is."""
    thing = _one(rng, scene.things)
    near = [f"{thing.colour} {shape}" for shape in SHAPES] + [f"{colour} {thing.shape}" for colour in COLOURS]
    return _one(rng, [name for name in near if not scene.named(name)])


def _changed(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """Scenes that differ in the colour, the shape or the place of one thing."""
    at = int(rng.integers(len(scene.things)))
    thing, rest = scene.things[at], [other for number, other in enumerate(scene.things) if number != at]
    free = [place for place in range(len(PLACES)) if place not in {other.place for other in scene.things}]
    colour, shape = (_one(rng, [v for v in values if v != own]) for values, own in ((COLOURS, thing.colour), (SHAPES, thing.shape)))
    changes = (
        Thing(thing.place, colour, thing.shape), Thing(thing.place, thing.colour, shape), Thing(_one(rng, free), thing.colour, thing.shape)
    )
    return [Scene(tuple(sorted([*rest, change])), scene.form) for change in changes]


def _one(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


def _shuffled(rng: np.random.Generator, values: Sequence[T]) -> list[T]:
    return [values[at] for at in rng.permutation(len(values))]
