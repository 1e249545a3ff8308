"""A case -> its rows: token ids, labels and pictures drawn by a seed, with lengths as real data have them."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sightline.prompt.prompter import Prompter
from sightline.types import IGNORE, Encoded, ImageRef

sys.path.insert(0, str(Path(__file__).parents[1]))
from mixture import draw_turns

SIZES = ((640, 480), (640, 480), (640, 427), (480, 640))
"""Width and height of pictures, as COCO's."""
TOKENS_PER_WORD = 1.35
SYSTEM, ROLES = 35, 5
"""Tokens of Vicuna's system prompt, and of the names around a question."""

Piece = tuple[int, bool]
"""So many tokens, and whether they are targets."""


@dataclass(frozen=True)
class Row:
    """A conversation as the model sees it."""

    encoded: Encoded
    pixels: torch.Tensor | None
    """uint8 [tiles, 3, side, side]; None: text alone."""

    @property
    def tiles(self) -> int:
        return 0 if self.pixels is None else len(self.pixels)


def draw_rows(kind: str, count: int, prompter: Prompter, vocabulary: int, side: int, max_length: int) -> list[Row]:
    """The same rows each time: `captions` of a picture each, or the `mixture`. Ids are below `vocabulary`."""
    rng, numbers = random.Random(0), np.random.default_rng(0)
    rows = []
    for number in range(count):
        picture, before, pieces = caption(rng) if kind == "captions" else conversation(rng)
        size = rng.choice(SIZES)
        ids = [numbers.integers(3, vocabulary, before)]
        if picture:
            ids.append(np.full(prompter.image_tokens(*size), prompter.image_token_id))
        labels = [np.full(sum(map(len, ids)), IGNORE)]
        for length, target in pieces:
            ids.append(numbers.integers(3, vocabulary, length))
            labels.append(ids[-1] if target else np.full(length, IGNORE))
        images = (ImageRef(f"{number}.jpg"),) if picture else ()
        sizes = (size,) if picture and prompter.tiles is not None else ()
        encoded = Encoded(np.concatenate(ids), np.concatenate(labels), images, sizes)
        pixels = draw_pixels(number, tiles_of(size, prompter), side) if picture else None
        rows.append(Row(prompter.cut(encoded, max_length), pixels))
    return rows


def caption(rng: random.Random) -> tuple[bool, int, list[Piece]]:
    """Picture, tokens before it, what follows: as in LLaVA's 558k captions, which have no question."""
    return True, 1, [(round(rng.randint(6, 24) * TOKENS_PER_WORD) + 1, True)]


def conversation(rng: random.Random) -> tuple[bool, int, list[Piece]]:
    picture, turns = draw_turns(rng, lambda low, high: "word " * rng.randint(low, high), text_turns=5)
    pieces = []
    for question, answer in turns:
        pieces += [(tokens(question) + ROLES, False), (tokens(answer) + 1, True)]
    return picture, SYSTEM, pieces


def tokens(text: str) -> int:
    return round(len(text.split()) * TOKENS_PER_WORD)


def tiles_of(size: tuple[int, int], prompter: Prompter) -> int:
    if prompter.tiles is None:
        return 1
    high, wide = prompter.tiles.grid(*size)
    return 1 + high * wide // prompter.tiles.side**2


def draw_pixels(number: int, tiles: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (tiles, 3, side, side), dtype=torch.uint8, generator=generator)


def steps_of(rows: list[Row], global_batch: int) -> Iterator[list[Row]]:
    for start in range(0, len(rows), global_batch):
        yield rows[start : start + global_batch]
