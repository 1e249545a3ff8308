"""uint8 pictures -> smaller ones, bit for bit as Pillow's bicubic `resize` makes them, in less than its time.

Pillow weighs with integers of 22 bits, row by row and column by column, and rounds to uint8 after each of the two.
Products of such weights with bytes, and their sums, are exact in float64: so a matrix product of float64 - the fastest
loop that Python can reach - gives Pillow's integers, whatever the order of adding up.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
from PIL import Image

_BITS = 22
"""Of Pillow's weights, behind the point."""

_BLOCK = 8
"""Results per matrix product: their windows overlap, so that few of its numbers are zeros."""

_CHUNK = 100_000
"""Pixels that are float64 at a time, so that they stay in the processor's cache."""

_ALONE = 200_000
"""Multiplications of one product: for so few OpenBLAS wakes no threads, which worker processes have no cores for."""

_SMALL = 10_000
"""Pixels before and after; for fewer Pillow is done sooner."""

_KEPT = threading.local()


@dataclass(frozen=True)
class Axis:
    """How one side of a picture changes: pixels are put on a longer canvas, resized, and cut out of the result."""

    size: int
    """Pixels of the picture."""
    canvas: int
    """Pixels of the canvas that is resized."""
    before: int
    """Pixels of the canvas in front of the picture."""
    resized: int
    """Pixels of the resized canvas."""
    start: int
    """The first of them that is kept."""
    length: int
    """How many are kept."""


def resample(picture: Image.Image, across: Axis, down: Axis, colour: tuple[int, int, int]) -> np.ndarray:
    """Put an RGB picture on a canvas of one colour, resize it (bicubic) and cut out: uint8 [3, H, W]."""
    columns, rows = _touching(across), _touching(down)
    small = _resample(picture, _part(across, columns), _part(down, rows), colour)
    if small.shape[1:] == (down.length, across.length):
        return small
    whole = np.empty((3, down.length, across.length), dtype=np.uint8)
    whole[:] = np.array(colour, dtype=np.uint8)[:, None, None]
    whole[:, rows, columns] = small
    return whole


def _resample(picture: Image.Image, across: Axis, down: Axis, colour: tuple[int, int, int]) -> np.ndarray:
    # Where a picture loses much more height than width, Pillow 13 takes the columns before the rows; 12 does not.
    rows_first = down.canvas - down.resized <= max(0, 2 * (across.canvas - across.resized))
    large = across.size * down.size + across.length * down.length > _SMALL
    return (_by_products if large and rows_first and _as_pillow() else by_pillow)(picture, across, down, colour)


def by_pillow(picture: Image.Image, across: Axis, down: Axis, colour: tuple[int, int, int]) -> np.ndarray:
    """What `resample` does, by Pillow itself."""
    canvas = picture
    if picture.size != (across.canvas, down.canvas):
        canvas = Image.new("RGB", (across.canvas, down.canvas), colour)
        canvas.paste(picture, (across.before, down.before))
    resized = np.asarray(canvas.resize((across.resized, down.resized), Image.Resampling.BICUBIC))
    kept = resized[down.start : down.start + down.length, across.start : across.start + across.length]
    return np.ascontiguousarray(kept.transpose(2, 0, 1))


@cache
def _as_pillow() -> bool:
    """Whether the Pillow that is installed still calculates like this; it does not promise to. Looked at once."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    task = Image.fromarray(noise), Axis(60, 60, 0, 33, 3, 28), Axis(40, 60, 10, 29, 0, 29), (122, 116, 104)
    return np.array_equal(_by_products(*task), by_pillow(*task))


def _by_products(picture: Image.Image, across: Axis, down: Axis, colour: tuple[int, int, int]) -> np.ndarray:
    width, height = picture.size
    narrow = np.empty((height, 3, across.length), dtype=np.uint8)
    blocks, beyond = _weights(across)
    rest = np.multiply.outer(colour, beyond) + 0.5
    step = max(1, _CHUNK // max(width, across.length))
    for top in range(0, height, step):
        # Strip by strip, because all of a large picture would be there three times.
        strip = picture if step >= height else picture.crop((0, top, width, min(top + step, height)))
        # One plane after the other within each row: what a product needs side by side is side by side.
        part = np.frombuffer(strip.tobytes("raw", "RGB;L"), dtype=np.uint8).reshape(-1, width)
        given, made = _room("given", *part.shape), _room("made", len(part), across.length)
        np.copyto(given, part)
        for kept, window, weights in blocks:
            np.matmul(given[:, window], weights, out=made[:, kept])
        narrow[top : top + step] = _rounded(made.reshape(-1, 3, across.length), rest)
    blocks, beyond = _weights(down)
    made = _room("made", down.length, 3 * across.length)
    for kept, window, weights in blocks:
        part = narrow[window].reshape(len(weights), -1)
        given = _room("given", *part.shape)
        np.copyto(given, part)
        step = max(1, _ALONE // weights.size)
        for left in range(0, part.shape[1], step):
            np.matmul(weights.T, given[:, left : left + step], out=made[kept, left : left + step])
    rest = np.multiply.outer(beyond, colour)[:, :, None] + 0.5
    small = _rounded(made.reshape(-1, 3, across.length), rest).astype(np.uint8)
    return np.ascontiguousarray(small.transpose(1, 0, 2))


def _room(name: str, rows: int, columns: int) -> np.ndarray:
    """A float64 array, kept for the next call of this thread: to get fresh memory takes longer than to fill it."""
    room = getattr(_KEPT, name, None)
    if room is None or len(room) < rows * columns:
        room = np.empty(rows * columns)
        setattr(_KEPT, name, room)
    return room[: rows * columns].reshape(rows, columns)


def _rounded(sums: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """`rest` holds the half that turns cutting off into rounding."""
    sums += rest
    whole = sums.astype(np.int16)
    return np.clip(whole, 0, 255, out=whole)


@lru_cache(maxsize=256)
def _touching(axis: Axis) -> slice:
    """The kept results that see a pixel of the picture; all others have the colour of the canvas."""
    first, weights = _bicubic(axis)
    at = first[:, None] + np.arange(weights.shape[1]) - axis.before
    seen, _ = np.nonzero((weights != 0) & (at >= 0) & (at < axis.size))
    return slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 1)


def _part(axis: Axis, results: slice) -> Axis:
    return replace(axis, start=axis.start + results.start, length=results.stop - results.start)


@lru_cache(maxsize=256)
def _weights(axis: Axis) -> tuple[list[tuple[slice, slice, np.ndarray]], np.ndarray]:
    """For each block of results: which, from which pixels, float64 weights [pixels, results]; and of each result the
    weight of the canvas beyond the picture."""
    first, weights = _bicubic(axis)
    at = first[:, None] + np.arange(weights.shape[1]) - axis.before
    inside = (at >= 0) & (at < axis.size)
    beyond = np.where(inside, 0, weights).sum(axis=1)
    blocks = []
    for begin in range(0, axis.length, _BLOCK):
        results = slice(begin, min(begin + _BLOCK, axis.length))
        number, _ = np.nonzero(inside[results])
        pixels = at[results][inside[results]]
        window = slice(int(pixels.min()), int(pixels.max()) + 1) if len(pixels) else slice(0, 1)
        dense = np.zeros((window.stop - window.start, results.stop - results.start))
        dense[pixels - window.start, number] = weights[results][inside[results]]
        blocks.append((results, window, dense))
    return blocks, beyond


def _bicubic(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's weights: of each result the canvas's first pixel, int64 [N], and the weights from there, float64
    [N, taps].

    Whole multiples of 2**-22. Operations and their order are those of Pillow's Resample.c, so that they round alike.
    """
    scale = axis.canvas / axis.resized
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centre = (np.arange(axis.start, axis.start + axis.length) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), axis.canvas)
    taps = np.arange(math.ceil(support) * 2 + 1)
    x = np.abs((taps + first[:, None] - centre[:, None] + 0.5) * (1.0 / stretch))
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights[taps >= (end - first)[:, None]] = 0
    weights /= weights.cumsum(axis=1)[:, -1:]  # cumsum adds from left to right; sum() would not
    return first, np.trunc(weights * 2**_BITS + np.copysign(0.5, weights)) / 2**_BITS
