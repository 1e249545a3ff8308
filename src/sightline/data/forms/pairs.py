"""Forms that come in questions with their answers: PaddleMIX's pair lists, `texts` columns, query and response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sightline.data.forms.keys import IMAGES, KEYS
from sightline.data.forms.places import written_out
from sightline.data.forms.reading import Reading, Turn, images_of, own_images, system_of, turns_of, used_of, without
from sightline.data.sources import Row
from sightline.errors import DataError, shown

_ASKS, _ANSWERS = ("user", "human"), ("assistant", "gpt")


def paddlemix(row: Row) -> Reading:
    """`conversations` of `[user, assistant]`."""
    key, pairs = turns_of(row, *KEYS["paddlemix"].turns)
    read: list[Turn] = []
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(f"pair {number} is not a list of two texts, [user, assistant]", "form")
        read += [Turn("user", (pair[0],)), Turn("assistant", (pair[1],))]
    return _beside_images(row, read, key)


def to_paddlemix(turns: Sequence[Turn], images: Sequence[str]) -> Row:
    """The row as PaddleMIX's pair lists, which hold no system turn and nothing else beside the texts."""
    for number, turn in enumerate(turns, 1):
        if turn.role == "system":
            raise DataError(f"turn {number} is the system's, which pairs of [user, assistant] cannot hold")
        if turn.role != ("assistant" if number % 2 == 0 else "user"):
            raise DataError(f"turn {number} is the {turn.role}'s: pairs hold user and assistant in turn", "order")
        if turn.extra:
            raise DataError(
                f"turn {number}: {shown(next(iter(turn.extra)))} has no place in pairs of [user, assistant]"
            )
    if len(turns) % 2:
        raise DataError("the last question has no answer, which pairs of [user, assistant] cannot hold", "order")
    texts = [written_out(turn) for turn in turns]
    row: Row = {"conversations": [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]}
    return {"image": images[0] if len(images) == 1 else list(images), **row} if images else row


def texts(row: Row) -> Reading:
    """`texts` of `{"user", "assistant"}`, as in tables of The Cauldron; also `conversation` of such objects."""
    key, pairs = turns_of(row, *KEYS["texts"].turns)
    asides: list[str] = []
    read: list[Turn] = []
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, dict):
            raise DataError(f"pair {number} is not an object with 'user' and 'assistant'", "form")
        asks = next((name for name in _ASKS if name in pair), "user")
        answers = next((name for name in _ANSWERS if name in pair), "assistant")
        if not isinstance(pair.get(asks), str) or not isinstance(pair.get(answers), str):
            raise DataError(f"pair {number} has no text under 'user' and 'assistant'", "form")
        own = own_images(pair, f"pair {number}", asides)
        extra = without(pair, asks, answers, *IMAGES)
        read += [Turn("user", (pair[asks],), images=own), Turn("assistant", (pair[answers],), extra)]
    return _beside_images(row, read, key, asides=asides)


def query(row: Row) -> Reading:
    """`query` and `response`, with earlier ones as pairs under `history`."""
    read: list[Turn] = []
    history: Any = row.get("history") or []
    if not isinstance(history, list):
        raise DataError("'history' is not a list of [query, response]", "form")
    for number, pair in enumerate([*history, [row.get("query"), row.get("response")]], 1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            where = f"pair {number} of 'history'" if number <= len(history) else "'query' and 'response'"
            raise DataError(f"{where}: expected two texts", "form")
        read += [Turn("user", (pair[0],)), Turn("assistant", (pair[1],))]
    return _beside_images(row, read, *KEYS["query"].turns)


def _beside_images(row: Row, read: Sequence[Turn], *keys: str, asides: Sequence[str] = ()) -> Reading:
    images, of_row = images_of(row)
    asides = tuple(dict.fromkeys((*of_row, *asides)))
    return Reading((*system_of(row, read), *read), used_of(*keys), images=images, asides=asides)
