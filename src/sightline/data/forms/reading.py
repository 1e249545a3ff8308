"""A row as its form reads it: turns, pictures, and the keys that it used."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.data.forms.keys import BESIDE, IMAGES, SYSTEM, base64_type
from sightline.data.sources import Row
from sightline.errors import DataError, listed, shown
from sightline.types import Role

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

_OF_IMAGES = ("bytes", "path", "url", "data", "media_type")
_NUMBERED_NAME = re.compile(r"<[^<>\d]*(\d{1,4})>")


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
    images: tuple[Picture, ...] = ()
    """Those of a key of the turn itself, until `place` has set them."""


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
    for key in keys:
        if key in row:
            raise DataError(f"{shown(key)} is null", "form")
    near = difflib.get_close_matches(keys[0], [key[:64] for key in row], n=1, cutoff=0.8)
    hint = f"; {shown(near[0])} is not read, did you mean {shown(keys[0])}?" if near else ""
    raise DataError(f"no {shown(keys[0])} in the row (it has: {listed(without(row)) or 'nothing'}){hint}", "form")


def system_of(row: Row, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turn that stands under the row's own key `system`, or another name of it, in front of the others."""
    given = [key for key in SYSTEM if row.get(key)]
    if not given:
        return ()
    if len(given) > 1:
        raise DataError(f"the row has {' and '.join(map(shown, given))}; keep one of them", "form")
    told = row[given[0]]
    if not isinstance(told, str):
        raise DataError(f"{shown(given[0])} is {type(told).__name__}, not text", "form")
    if any(turn.role == "system" for turn in turns):
        raise DataError(f"{shown(given[0])} stands beside a system turn; keep one of them", "form")
    return (Turn("system", (told,)),)


def used_of(*keys: str) -> frozenset[str]:
    """The keys of a row that a form has read: these, and what every form reads beside its turns."""
    return BESIDE.union(keys)


def images_of(row: Row) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """The images under `image` or `images`, and the keys inside of them that have no meaning here."""
    asides: list[str] = []
    return own_images(row, "the row", asides), tuple(dict.fromkeys(asides))


def own_images(given: Mapping[str, Any], where: str, asides: list[str]) -> tuple[Picture, ...]:
    """The images under `image` or `images` of a row or a turn; what has no meaning inside of them goes to `asides`."""
    keys = [key for key in IMAGES if given.get(key)]
    if len(keys) > 1:
        raise DataError(f"{where} has 'image' and 'images'; keep one of them", "form")
    if not keys:
        return ()
    value = given[keys[0]]
    if isinstance(value, dict) and all(_NUMBERED_NAME.fullmatch(name) for name in value):
        # MiniCPM-V: {"<image_00>": path, ...}, which the texts name.
        value = [value[name] for name in sorted(value, key=lambda name: int(_NUMBERED_NAME.sub(r"\1", name)))]
    return tuple(picture(one, keys[0], asides) for one in (value if isinstance(value, list) else [value]))


def picture(value: Any, key: str, asides: list[str]) -> Picture:
    """Understand one image: a path, URL, data URI or base64, bytes, or an object of `bytes` and `path` or of `url`."""
    if isinstance(value, str) and value:
        return Picture(_source(value))
    if isinstance(value, bytes) and value:
        return Picture(None, value)
    if isinstance(value, dict):
        source = value.get("path") or value.get("url")
        data = value.get("bytes")
        if not source and isinstance(value.get("data"), str):  # Anthropic's parts
            source = f"data:{value.get('media_type') or 'image/png'};base64,{value['data']}"
        if (source is None or isinstance(source, str)) and (data is None or isinstance(data, bytes)):
            asides += [name for name in value if name not in _OF_IMAGES and value[name] is not None]
            if source or data:
                return Picture(_source(source) if source else None, data or None)
    raise DataError(f"{shown(key)} is neither a path nor a list of paths", "form")


def _source(text: str) -> str:
    """A path, URL or data URI; base64 by itself becomes one."""
    kind = base64_type(text)
    return text if kind is None else f"data:image/{kind};base64,{''.join(text.split())}"


def without(given: Mapping[str, Any], *known: str) -> dict[str, Any]:
    """The other keys; null stands for absent, as it must in tables."""
    return {key: value for key, value in given.items() if key not in known and value is not None}
