"""A row as its form reads it: turns, pictures, and the keys that it used; images set in their `<image>` places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sightline.data.sources import Row
from sightline.data.verdict import Finding
from sightline.errors import DataError, listed, shown
from sightline.types import IMAGE, Role

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as a row gives it."""

    source: str | None
    """A path, an http(s) URL or a data: URI; with `data`, the name that the row gives the bytes, if any."""
    data: bytes | None = None
    """The bytes of an image file, where the row holds them itself."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn; its texts may hold `<image>` until `place` has set the pictures."""

    role: Role
    content: tuple[str | Picture, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the turn that its form gives no meaning."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a form makes of a row."""

    turns: tuple[Turn, ...]
    used: frozenset[str]
    """The keys of the row that the turns and images come from."""
    images: tuple[Picture, ...] = ()
    """The images that stand beside the turns, in the order of the `<image>`s."""
    asides: tuple[str, ...] = ()
    """Keys inside of images (`detail`, `width`) that no turn can carry."""


def place(reading: Reading) -> tuple[tuple[Turn, ...], tuple[Finding, ...]]:
    """Set the images of a reading in their places; in front of the first user turn where there is no `<image>`.

    Texts side by side become one and empty ones go, so that equal conversations are equal turns.
    Raises DataError where the numbers of images and places differ.
    """
    turns, images = reading.turns, reading.images
    places = sum(part.count(IMAGE) for turn in turns for part in turn.content if isinstance(part, str))
    if (places or images) and any(isinstance(part, Picture) for turn in turns for part in turn.content):
        what = f"{IMAGE} in a text" if places else "a list of images"
        raise DataError(f"{what} beside images that are parts of a turn; write all images in one way", "image_count")
    findings: tuple[Finding, ...] = ()
    if images and not places:
        turns = _in_front(turns, images)
        findings = (
            Finding("image_in_front", f"{_count(len(images))} without {IMAGE}, put in front of the first user turn"),
        )
    elif places != len(images):
        raise DataError(
            f"{_count(len(images))} but {places} {IMAGE} in the conversations; they must agree", "image_count"
        )
    elif places:
        waiting = iter(images)
        turns = tuple(Turn(turn.role, tuple(_filled(turn.content, waiting)), turn.extra) for turn in turns)
    return tuple(Turn(turn.role, _merged(turn.content), turn.extra) for turn in turns), findings


def written_out(turn: Turn) -> str:
    """A turn as one string, with `<image>` where its pictures are."""
    return "".join(part if isinstance(part, str) else IMAGE for part in turn.content)


def pictures(turns: Sequence[Turn]) -> list[Picture]:
    """All pictures of placed turns, in order."""
    return [part for turn in turns for part in turn.content if isinstance(part, Picture)]


def role_of(name: Any, key: str, number: int) -> Role:
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise DataError(f"turn {number}: unknown {shown(key)} {shown(name)}; known: {', '.join(ROLES)}", "role")
    return role


def turns_of(row: Row, *keys: str) -> tuple[str, list[Any]]:
    """The first of the keys that the row has, and its list of turns."""
    for key in keys:
        if row.get(key) is not None:
            turns = row[key]
            if not isinstance(turns, list) or not turns:
                raise DataError(f"{shown(key)} is not a list of turns, or is empty", "form")
            return key, turns
    raise DataError(f"no {shown(keys[0])} in the row (it has: {listed(row) or 'nothing'})", "form")


def system_of(row: Row, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turn that stands under the row's own key `system`, in front of the others."""
    told = row.get("system")
    if not told:
        return ()
    if not isinstance(told, str):
        raise DataError(f"'system' is {type(told).__name__}, not text", "form")
    if any(turn.role == "system" for turn in turns):
        raise DataError("'system' stands beside a system turn; keep one of them", "form")
    return (Turn("system", (told,)),)


def images_of(row: Row) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """The images under `image` or `images`, and the keys inside of them that have no meaning here."""
    given = [key for key in ("image", "images") if row.get(key)]
    if len(given) > 1:
        raise DataError("the row has 'image' and 'images'; keep one of them", "form")
    if not given:
        return (), ()
    value = row[given[0]]
    asides: list[str] = []
    pictures = tuple(picture(one, given[0], asides) for one in (value if isinstance(value, list) else [value]))
    return pictures, tuple(dict.fromkeys(asides))


def picture(value: Any, key: str, asides: list[str]) -> Picture:
    """Understand one image: a path, URL or data URI, bytes, or an object of `bytes` and `path` or of `url`."""
    if isinstance(value, str) and value:
        return Picture(value)
    if isinstance(value, bytes) and value:
        return Picture(None, value)
    if isinstance(value, dict):
        source = value.get("path") or value.get("url")
        data = value.get("bytes")
        if (source is None or isinstance(source, str)) and (data is None or isinstance(data, bytes)):
            asides += [name for name in value if name not in ("bytes", "path", "url") and value[name] is not None]
            if source or data:
                return Picture(source or None, data or None)
    raise DataError(f"{shown(key)} is neither a path nor a list of paths", "form")


def without(given: Mapping[str, Any], *known: str) -> dict[str, Any]:
    """The other keys; null stands for absent, as it must in tables."""
    return {key: value for key, value in given.items() if key not in known and value is not None}


def _in_front(turns: tuple[Turn, ...], images: Sequence[Picture]) -> tuple[Turn, ...]:
    for number, turn in enumerate(turns):
        if turn.role == "user":
            lines = tuple(part for image in images for part in (image, "\n"))
            return (*turns[:number], replace(turn, content=lines + turn.content), *turns[number + 1 :])
    raise DataError("no turn of the user, whose images these could be", "order")


def _filled(content: Iterable[str | Picture], waiting: Iterable[Picture]) -> Iterable[str | Picture]:
    images = iter(waiting)
    for part in content:
        if isinstance(part, Picture):
            yield part
            continue
        first, *pieces = part.split(IMAGE)
        yield first
        for piece in pieces:
            yield next(images)
            yield piece


def _merged(content: tuple[str | Picture, ...]) -> tuple[str | Picture, ...]:
    merged: list[str | Picture] = []
    for part in content:
        last = merged[-1] if merged else None
        if isinstance(part, str) and isinstance(last, str):
            merged[-1] = last + part
        elif part != "":
            merged.append(part)
    return tuple(merged)


def _count(number: int) -> str:
    return f"{number} image" if number == 1 else f"{number} images"
