"""A file that a program takes -> one that it may not: a few changes of its bytes, or of the JSON in it, by a seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

Mutation = Callable[[bytes], bytes]

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**9), 0.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "x",
        "\x00",
        "\x1b]0;title\x07",
        "\x1b[2J",
        "\u2028",
        "\u202e",
        "\ud800",
        "é\u0301",
        "<image>",
        "<image>" * 50,
    ),
    *("../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/x.png", "data:,", "%s%n", "{{ 1 }}"),
    *("a" * 10_000, "1" * 5_000, "(a+)+$", "NaN", "None", "null", "-0", "1e999", "\n".join("ab"), "{}", "[]", "yes"),
    *([], {}, [[]], [{}], [None], {"": ""}, {"a": {"b": {"c": None}}}, [0] * 300, ["x"] * 50, {"$ref": "#"}),
)
"""Values that somebody has once found where another was meant."""

_KEYS = (
    *("image", "images", "conversations", "value", "x", "", "\x1b[1m", "_config", "img", "system", "system_prompt"),
    *("text", "texts", "history", "source", "human", "loss_weight", "role", "content"),
)

WORDS = (
    b"\x00",
    b"\xff\xfe",
    b"\x1b]0;x\x07",
    b"NaN",
    b"Infinity",
    b"-1",
    b"99999999999999999999",
    b"{",
    b"]",
    b'"',
    b"\n\n",
)


def changes_of_bytes(content: bytes, rng: random.Random) -> Iterator[Mutation]:
    """Some changes that any file may suffer."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, length = rng.random(), rng.choice((1, 1, 4, 32, 1000))
        byte, word, kind = rng.randrange(256), rng.choice(WORDS), rng.randrange(8)

        def change(
            now: bytes, at: float = at, length: int = length, byte: int = byte, word: bytes = word, kind: int = kind
        ) -> bytes:
            place = int(at * len(now))
            match kind:
                case 0:
                    return now[:place] + bytes([byte]) + now[place + 1 :]
                case 1:
                    return now[:place]
                case 2:
                    return now[:place] + now[place + length :]
                case 3:
                    return now[:place] + now[place : place + length] * 3 + now[place + length :]
                case 4:
                    return now[:place] + word + now[place:]
                case 5:
                    return now[:place] + word + now[place + len(word) :]
                case 6:  # numbers in headers stand in front
                    early = min(place, int(at * 64))
                    return now[:early] + bytes([byte]) * min(length, 8) + now[early + min(length, 8) :]
            return now + now[:place]

        yield change


def changes_of_json(content: bytes, rng: random.Random) -> Iterator[Mutation]:
    """Some changes of a value, a key or the depth somewhere in a JSON document, or in a line of JSON Lines."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        yield partial(_changed, seed=rng.random())


def _changed(content: bytes, seed: float) -> bytes:
    rng = random.Random(seed)
    try:
        return _text(_in_document(json.loads(content), rng))
    except (ValueError, RecursionError):
        pass
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    try:
        lines[at] = _text(_in_document(json.loads(lines[at]), rng))
    except (ValueError, RecursionError):
        lines[at] = b""
    return b"\n".join(lines)


def _text(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _in_document(document: Any, rng: random.Random) -> Any:
    places = list(_places(document))
    if not places:
        return rng.choice(STRANGE)
    holder, key = rng.choice(places)
    match rng.randrange(9):
        case 0 | 1 | 2:
            holder[key] = copy.deepcopy(rng.choice(STRANGE))
        case 3:
            del holder[key]
        case 4 if isinstance(holder, dict):
            holder[rng.choice(_KEYS)] = holder.pop(key)
        case 5:
            for _ in range(rng.choice((1, 50, 900))):
                holder[key] = [holder[key]]
        case 6:
            holder[key] = [holder[key]] * rng.choice((2, 100))
        case 7 if isinstance(holder[key], str):
            text, at = holder[key], rng.randrange(len(holder[key]) + 1)
            holder[key] = text[:at] + str(rng.choice(STRANGE)) + text[at:]
        case 8 if isinstance(holder[key], int | float):
            holder[key] = holder[key] * rng.choice((-1, 0, 1000, 1e9, 0.5))
        case _:
            other, where = rng.choice(places)
            holder[key] = copy.deepcopy(other[where]) if where in _keys(other) else None
    return document


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a document, as what holds it and its key there."""
    todo = [document]
    while todo:
        holder = todo.pop()
        if isinstance(holder, dict | list):
            for key in _keys(holder):
                yield holder, key
            todo.extend(holder.values() if isinstance(holder, dict) else holder)
