"""Forms whose turns are objects: LLaVA's `from`/`value`, OpenAI's `role`/`content`, PaddleMIX's numbered images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sightline.data.forms.keys import IMAGES, KEYS
from sightline.data.forms.places import pictures, written_out
from sightline.data.forms.reading import (
    Picture,
    Reading,
    Turn,
    images_of,
    own_images,
    picture,
    role_of,
    system_of,
    turns_of,
    used_of,
    without,
)
from sightline.data.sources import Row
from sightline.errors import DataError, listed, shown
from sightline.types import IMAGE

_CONTEXT = "<IMG_CONTEXT>"
"""How the rows of XTuner 1 write the place of an image that stands among the parts of a turn."""
_NUMBERED = re.compile(r"<image>(\d+)</image>")


def llava(row: Row) -> Reading:
    """`conversations` of `{"from", "value"}`, the images under `image` or `images`: LLaVA, ShareGPT4V, InternVL."""
    key, turns = turns_of(row, *KEYS["llava"].turns)
    images, asides = images_of(row)
    found = list(asides)
    read = tuple(_from_value(turn, number, found) for number, turn in enumerate(turns, 1))
    return Reading((*system_of(row, read), *read), used_of(key), images=images, asides=tuple(dict.fromkeys(found)))


def to_llava(turns: Sequence[Turn], images: Sequence[str]) -> Row:
    """The row in LLaVA's form; `images` are the sources of the turns' pictures, in order."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    written = [{"from": names[turn.role], "value": written_out(turn), **turn.extra} for turn in turns]
    if not images:
        return {"conversations": written}
    return {"image": images[0] if len(images) == 1 else list(images), "conversations": written}


def mix(row: Row) -> Reading:
    """PaddleMIX's DataCopilot: `images` of `{"id", "url"}`, which `<image>ID</image>` names in the texts."""
    key, turns = turns_of(row, *KEYS["mix"].turns)
    entries = row.get("images") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
        raise DataError("'images' is not a list of objects with 'id' and 'url'", "form")
    asides: list[str] = []
    known: dict[str, Picture] = {}
    for entry in entries:
        if (name := str(entry["id"])) in known:
            raise DataError(f"two of 'images' have the id {shown(name)}", "form")
        known[name] = picture(without(entry, "id"), "images", asides)
    wanted: list[str] = []

    def numbered(match: re.Match[str]) -> str:
        wanted.append(match[1])
        return IMAGE

    read = []
    for number, turn in enumerate(turns, 1):
        one = _from_value(turn, number, asides)
        parts = (_NUMBERED.sub(numbered, part) if isinstance(part, str) else part for part in one.content)
        read.append(Turn(one.role, tuple(parts), one.extra, one.images))
    if wanted and set(wanted) != known.keys():
        raise DataError(
            f"the texts name the images {listed(sorted(set(wanted)))}, the row has {listed(known) or 'none'}",
            "image_count",
        )
    images = tuple(known[name] for name in wanted) if wanted else tuple(known.values())
    return Reading(
        (*system_of(row, read), *read),
        used_of(key) - {"image"},
        images=images,
        asides=tuple(dict.fromkeys(asides)),
    )


def openai(row: Row) -> Reading:
    """`messages` of `{"role", "content"}`: texts with `<image>` and `images` beside them, or lists of parts."""
    key, turns = turns_of(row, *KEYS["openai"].turns)
    beside, asides = images_of(row)
    found = list(asides)
    chosen: list[Picture] = []
    read = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise DataError(f"turn {number} is not an object with 'role' and 'content'", "form")
        content = turn["content"]
        if isinstance(content, str):
            parts: tuple[str | Picture, ...] = (content,)
        elif isinstance(content, list):
            parts = tuple(_part(part, number, beside, chosen, found) for part in content)
        else:
            raise DataError(
                f"turn {number}: 'content' is {type(content).__name__}, not text or a list of parts", "form"
            )
        own = own_images(turn, f"turn {number}", found)
        extra = without(turn, "role", "content", *IMAGES)
        read.append(Turn(role_of(turn["role"], "role", number), parts, extra, own))
    if any(_CONTEXT in part for turn in read for part in turn.content if isinstance(part, str)):
        beside, read = (*beside, *pictures(read)), [_at_context(turn) for turn in read]
        chosen = []
    if chosen and not set(beside) <= set(chosen):
        raise DataError(f"the turns show only some of the row's {len(beside)} images", "image_count")
    return Reading(
        (*system_of(row, read), *read),
        used_of(key),
        images=() if chosen else beside,
        asides=tuple(dict.fromkeys(found)),
    )


def to_openai(turns: Sequence[Turn], images: Sequence[str]) -> Row:
    """The row as OpenAI's messages; a turn with pictures becomes a list of parts."""
    waiting = iter(images)
    messages: list[Row] = []
    for turn in turns:
        parts: list[Any] = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": next(waiting)}}
            for part in turn.content
        ]
        has_picture = any(isinstance(part, Picture) for part in turn.content)
        messages.append({"role": turn.role, "content": parts if has_picture else written_out(turn), **turn.extra})
    return {"messages": messages}


def _from_value(turn: Any, number: int, asides: list[str]) -> Turn:
    if not isinstance(turn, dict) or "from" not in turn or ("value" not in turn and "text" not in turn):
        raise DataError(f"turn {number} is not an object with 'from' and 'value'", "form")
    role = role_of(turn["from"], "from", number)
    key = "value" if "value" in turn else "text"  # the documentation of InternVL writes `text` for answers
    if not isinstance(turn[key], str):
        raise DataError(f"turn {number}: {shown(key)} is {type(turn[key]).__name__}, not text", "form")
    has_own = "image" in turn or "images" in turn  # asked here: few turns have, and all rows pass by
    own = own_images(turn, f"turn {number}", asides) if has_own else ()
    return Turn(role, (turn[key],), without(turn, "from", key, *IMAGES), own)


def _at_context(turn: Turn) -> Turn:
    texts = tuple(part.replace(_CONTEXT, IMAGE) for part in turn.content if isinstance(part, str))
    return Turn(turn.role, texts, turn.extra, turn.images)


def _part(part: Any, number: int, beside: Sequence[Picture], chosen: list[Picture], asides: list[str]) -> str | Picture:
    """One part of a turn; `chosen` and `asides` collect what it takes of the row's images, and what it leaves over."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise DataError(f"turn {number}: a part is {type(part).__name__}, neither text nor an object", "form")
    given = without(part, "type")
    kind = part.get("type") or next((key for key in ("text", "image_url", "image") if key in given), None)
    if kind in ("text", "input_text"):
        # Version 1 of LLaMA-Factory has all that a part holds under `value`.
        text = given.pop("value" if "text" not in given else "text", None)
        if not isinstance(text, str):
            has = f" (it has: {listed(given)})" if given else ""
            raise DataError(f"turn {number}: a part of type {shown(kind)} has no 'text'{has}", "form")
        asides += given
        return text
    if kind not in ("image", "image_url", "input_image"):
        raise DataError(f"turn {number}: a part is of type {shown(kind)}; known: text, image_url, image", "form")
    key = next((key for key in ("image_url", "image", "url", "path", "bytes", "value", "source") if key in given), None)
    index = given.pop("index", None)
    if key is not None:
        found = picture(given.pop(key), key, asides)
    elif index is None:
        found = None
    elif isinstance(index, int) and 0 <= index < len(beside):
        found = beside[index]
        chosen.append(found)
    else:
        raise DataError(f"turn {number}: a part shows image {shown(index)} of {len(beside)}", "image_count")
    asides += given
    return IMAGE if found is None else found
