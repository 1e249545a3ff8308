"""What the demo's pictures show: up to three coloured shapes, one in each quarter; drawn, boxed, described."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 70),
    "blue": (45, 75, 215),
    "yellow": (238, 205, 40),
}
SHAPES = ("circle", "square", "triangle")
PLACES = ("northwest", "northeast", "southwest", "southeast")
"""As on a map, and a single token each: `top left` has to be told from both `top` and `left`."""

GRID, CENTRES = 2, (0.3, 0.7)
"""Rows and columns of places, and where they are, as shares of the picture padded to a square."""

SIZES = {
    "square": ((56, 56), (72, 72), (96, 96), (112, 112)),
    "wide": ((64, 48), (80, 60), (96, 72), (112, 84)),
    "tall": ((48, 64), (60, 80), (72, 96), (84, 112)),
}
"""Width and height in pixels, by the form of the picture; the longer side of the last two is 4/3 of the shorter one."""

EXTENT = 0.3
"""Width and height of a shape as a share of the picture's longer side."""

NUMBER_SHARES = (0.1, 0.35, 0.55)
"""How often a scene has one thing, two and three. With a single one nothing need be looked up to answer."""

HELD_OUT_SHARE = 8
"""One combination in so many is kept for the questions that training never sees."""


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """A coloured shape at a place."""

    place: int
    """Index into PLACES: rows from the top, each from the left."""
    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows; the things in reading order, at most one at a place."""

    things: tuple[Thing, ...]
    form: str
    """square, wide or tall."""

    @property
    def held_out(self) -> bool:
        """Whether this combination of things is kept for evaluation, whatever the form and the seed."""
        return zlib.crc32(repr(self.things).encode()) % HELD_OUT_SHARE == 0

    def coloured(self, colour: str) -> list[Thing]:
        return [thing for thing in self.things if thing.colour == colour]

    def shaped(self, shape: str) -> list[Thing]:
        return [thing for thing in self.things if thing.shape == shape]


def draw_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """A random scene of training or of evaluation; equal colours and equal shapes are common."""
    number = int(rng.choice(len(NUMBER_SHARES), p=NUMBER_SHARES)) + 1
    while True:
        places = sorted(rng.choice(len(PLACES), number, replace=False).tolist())
        colours = _some(rng, tuple(COLOURS), number)
        shapes = _some(rng, SHAPES, number)
        things = tuple(Thing(*thing) for thing in zip(places, colours, shapes, strict=True))
        scene = Scene(things, str(rng.choice(list(SIZES))))
        if scene.held_out == held_out:
            return scene


def _some(rng: np.random.Generator, values: Sequence[str], number: int) -> list[str]:
    # Counting questions need scenes in which a colour or a shape comes twice or three times.
    if rng.random() < 0.2:
        return [str(rng.choice(values))] * number
    return [str(value) for value in rng.choice(values, number)]


def paint(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """A picture of the scene: a light ground, colours and brightness a little different each time, noise over all."""
    width, height = SIZES[scene.form][rng.integers(len(SIZES[scene.form]))]
    ground = rng.integers(205, 250) + rng.integers(-8, 9, 3)
    picture = Image.new("RGB", (width, height), tuple(ground.tolist()))
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        colour = np.clip(np.array(COLOURS[thing.colour]) + rng.integers(-18, 19, 3), 0, 255)
        _paint_thing(pen, thing, _pixels(thing, width, height), tuple(colour.tolist()))
    noise = rng.integers(-7, 8, (height, width, 3), dtype=np.int16)
    noisy = np.clip(np.asarray(picture, dtype=np.int16) + noise, 0, 255)
    return Image.fromarray(noisy.astype(np.uint8))


def _pixels(thing: Thing, width: int, height: int) -> tuple[int, int, int, int]:
    side = max(width, height)
    half = EXTENT * side / 2
    x, y = (share * side for share in _centre(thing))
    x, y = x - (side - width) / 2, y - (side - height) / 2
    # Pillow paints the last pixel too.
    return round(x - half), round(y - half), round(x + half) - 1, round(y + half) - 1


def _paint_thing(
    pen: ImageDraw.ImageDraw, thing: Thing, box: tuple[int, int, int, int], colour: tuple[int, ...]
) -> None:
    left, top, right, bottom = box
    match thing.shape:
        case "circle":
            pen.ellipse(box, fill=colour)
        case "square":
            pen.rectangle(box, fill=colour)
        case "triangle":
            pen.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=colour)


def box_of(thing: Thing) -> str:
    """Where a thing is in the picture padded to a square, as LLaVA-1.5 writes boxes: [x1, y1, x2, y2] as shares."""
    x, y = _centre(thing)
    half = EXTENT / 2
    return "[" + ", ".join(f"{value:.2f}" for value in (x - half, y - half, x + half, y + half)) + "]"


def _centre(thing: Thing) -> tuple[float, float]:
    """As shares of the padded square: the same in pictures of every form."""
    row, column = divmod(thing.place, GRID)
    return CENTRES[column], CENTRES[row]


def caption(scene: Scene) -> str:
    """The scene in a sentence; things in reading order, so that there is one right answer."""
    return listing([f"a {thing.name} in the {PLACES[thing.place]}" for thing in scene.things]).capitalize() + "."


def listing(phrases: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else list(phrases))
