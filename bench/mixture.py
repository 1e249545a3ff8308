"""Rows in the proportions of LLaVA's mix665k, in words that are made up.

6 % text-only and long, 29 % long answers about one picture, the rest short questions and answers of many turns.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

TEXT_ONLY, LONG = 0.061, 0.29
"""Shares of rows; in mix665k 40,688 of 665,298 are text-only, and about 190,000 have long answers."""

Turn = tuple[str, str]


def made_up_words(rng: random.Random, rare: int) -> list[str]:
    """A text of 400,000 words, the frequent ones short, as in a language; `rare`: words of three syllables."""
    syllables = ["".join(pair) for pair in itertools.product("bcdfghklmnprstvw", "aeiou", ["", "n", "r", "s"])]
    sizes = [1] * 150 + [2] * 3_000 + [3] * rare
    vocabulary = ["".join(rng.choices(syllables, k=size)) for size in sizes]
    weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(vocabulary))))
    return rng.choices(vocabulary, cum_weights=weights, k=400_000)


def speaker(rng: random.Random, words: list[str]) -> Callable[[int, int], str]:
    """`say(low, high)`: a sentence of so many words."""

    def say(low: int, high: int) -> str:
        start, count = rng.randrange(len(words) - high), rng.randint(low, high)
        return " ".join(words[start : start + count]).capitalize() + "."

    return say


def draw_turns(rng: random.Random, say: Callable[[int, int], str], text_turns: int) -> tuple[bool, list[Turn]]:
    """Whether a row has a picture, and its questions and answers; one without has at most `text_turns`."""
    draw = rng.random()
    if draw < TEXT_ONLY:
        return False, [(say(5, 60), say(60, 270)) for _ in range(rng.randint(1, text_turns))]
    if draw < TEXT_ONLY + LONG:
        return True, [(say(5, 20), say(60, 210)) for _ in range(rng.choice([1, 1, 2, 3]))]
    ask = "\nAnswer the question using a single word or phrase."
    return True, [(say(4, 11) + ask * (turn == 0), say(1, 4)) for turn in range(rng.randint(1, 15))]


def conversations(turns: list[Turn], picture: bool) -> list[dict[str, str]]:
    """As LLaVA's files have them."""
    first, *others = turns
    begun = [(f"<image>\n{first[0]}", first[1]) if picture else first, *others]
    return [{"from": role, "value": said} for turn in begun for role, said in zip(("human", "gpt"), turn, strict=True)]
