"""A row -> a conversation, whichever of the known forms it is written in."""

from __future__ import annotations

import os.path
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sightline.connections import shown_url
from sightline.data.forms.keys import KEYS, PLAIN, WEIGHTS, chooses, is_picture, nearest, told, unread
from sightline.data.forms.pairs import paddlemix, query, texts
from sightline.data.forms.places import place
from sightline.data.forms.reading import Picture, Reading, Turn
from sightline.data.forms.turns import llava, mix, openai
from sightline.data.sources import Row
from sightline.data.verdict import Finding
from sightline.errors import DataError, shown
from sightline.types import IMAGE, Conversation, ImageRef, Message, Text

FORMS: dict[str, Callable[[Row], Reading]] = {
    "llava": llava,
    "sharegpt4v": llava,
    "internvl": llava,
    "sharegpt": llava,
    "paddlemix": paddlemix,
    "mix": mix,
    "openai": openai,
    "messages": openai,
    "texts": texts,
    "query": query,
}
"""Name of a form -> the function that reads it; where the same keys mean the same, forms share it."""

_TURNS = ("conversations", "conversation", "messages", "texts")
_OTHER_MEDIA = ("video", "videos", "audio", "audios")


def to_conversation(row: Row, origin: str, images_folder: str | Path | None, form: str | None = None) -> Conversation:
    """Understand a row; see `understand`."""
    return understand(row, origin, images_folder, form)[0]


def understand(
    row: Row, origin: str, images_folder: str | Path | None, form: str | None = None
) -> tuple[Conversation, tuple[Finding, ...]]:
    """A row as a conversation, and what is worth knowing about it although it can be used.

    `form` is a key of FORMS; None: chosen by looking at the row. Raises DataError, beginning with `origin`.
    """
    try:
        reading = read_row(row, form)
        for key in _OTHER_MEDIA:
            if row.get(key):
                raise DataError(f"the row has {shown(key)}; only images are understood", "form")
        placed, findings = place(reading)
        turns, dropped = _from_the_user(placed)
        findings += dropped
        folder = str(images_folder) if images_folder is not None else None
        messages = tuple(
            Message(
                turn.role, tuple(Text(part) if isinstance(part, str) else _ref(part, folder) for part in turn.content)
            )
            for turn in turns
        )
        _check_order(messages)
        extras = [(number, turn) for number, turn in enumerate(turns, 1) if turn.extra]
        _check_choice(row, extras)
        rest = row.keys() - reading.used
        if rest and (not reading.images or rest - PLAIN):
            findings += tuple(_not_read(row, reading.used, messages))
        if extras or reading.asides:
            findings += tuple(_not_read_inside(extras, reading.asides))
    except DataError as error:
        raise DataError(f"{origin}: {error}", error.kind) from None
    identity = row.get("id")
    return Conversation(messages, id="" if identity is None else str(identity), origin=origin), findings


def read_row(row: Row, form: str | None = None) -> Reading:
    """What the form that is named, or the one that the row looks like, makes of a row."""
    return FORMS[form or form_of(row)](row)


def form_of(row: Row) -> str:
    """The name of the form that a row is written in, judged by its keys and its first turn."""
    has = [key for key in _TURNS if row.get(key) is not None]
    if "query" in row and "response" in row:
        has.append("query")
    if len(has) > 1:
        raise DataError(f"the row has {' and '.join(map(repr, has))}; name its form ({', '.join(FORMS)})", "form")
    if not has or has[0] == "query":
        return "query" if has else "llava"
    turns: Any = row[has[0]]
    first = turns[0] if isinstance(turns, list) and turns else None
    if isinstance(first, list):
        return "paddlemix"
    keys = first.keys() if isinstance(first, dict) else ()
    if "from" in keys:
        images = row.get("images")
        numbered = isinstance(images, list) and images and isinstance(images[0], dict) and "id" in images[0]
        return "mix" if numbered else "llava"
    if "role" in keys or "content" in keys:
        return "openai"
    if has[0] == "texts" or "assistant" in keys:
        return "texts"
    return "openai" if has[0] == "messages" else "llava"


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _ref(picture: Picture, folder: str | None) -> ImageRef:
    if picture.data is not None:
        return ImageRef(picture.data)
    source = picture.source
    assert source is not None
    if source.startswith("data:"):
        return ImageRef(source)
    if is_url(source):
        raise DataError(
            f"image {shown_url(source)}: images of rows are not fetched while they are used; "
            "`sightline data convert IN OUT --to llava --download FOLDER` fetches them once",
            "image_missing",
        )
    if folder is None:
        raise DataError(
            "the row has an image, but no folder of images is given (--images, --image-folder, or data.N.images)",
            "image_missing",
        )
    return ImageRef(within(source, folder), folder)


def within(source: str, folder: str) -> str:
    """The path relative to the folder, where it is an absolute path (or file: URL) into it; otherwise as it is."""
    path = urllib.parse.unquote(source.removeprefix("file://")) if source.startswith("file:///") else source
    if not os.path.isabs(path):
        return path
    relative = os.path.relpath(path, os.path.abspath(folder))
    return path if relative.split(os.sep)[0] == os.pardir else relative


def _from_the_user(turns: Sequence[Turn]) -> tuple[Sequence[Turn], tuple[Finding, ...]]:
    """Begin where the user does, as official LLaVA and XTuner: cut conversations of ShareGPT begin in the middle."""
    head = [turn for turn in turns[:1] if turn.role == "system"]
    rest = turns[len(head) :]
    number = next((at for at, turn in enumerate(rest) if turn.role != "assistant"), 0)
    if not number or any(not isinstance(part, str) for turn in rest[:number] for part in turn.content):
        return turns, ()
    reason = (
        f"the conversation begins with the assistant: its first {'turn is' if number == 1 else 'turns are'} left out"
    )
    return [*head, *rest[number:]], (Finding("assistant_first", reason),)


def _check_order(messages: Sequence[Message]) -> None:
    first = 2 if messages[0].role == "system" else 1
    turns = list(enumerate(messages, 1))[first - 1 :]
    for number, message in turns:
        expected = "assistant" if (number - first) % 2 else "user"
        if message.role != expected:
            raise DataError(
                f"turn {number} is the {message.role}'s, expected the {expected}'s: turns must alternate", "order"
            )
    if messages[-1].role != "assistant":
        raise DataError("the conversation does not end with an answer", "order")
    for number, message in enumerate(messages, 1):
        if message.role == "user":
            continue
        text = message.text
        if IMAGE in text:
            whose = "an answer" if message.role == "assistant" else "a system prompt"
            raise DataError(f"turn {number}: an image in {whose}; only questions may have some", "image_in_answer")
        if message.role == "assistant" and not text.strip():
            raise DataError(f"turn {number}: the answer is empty", "empty_answer")


def _check_choice(row: Row, extras: Sequence[tuple[int, Turn]]) -> None:
    """Refuse rows that choose what is learned of them: all answers are, and to pass over the choice would hide it."""
    if not row.keys().isdisjoint(WEIGHTS) and (key := chooses(row, of_row=True)):
        raise DataError(f"the row has {shown(key)}: {shown(row[key])}, but all rows are learned alike", "form")
    for number, turn in extras:
        if turn.role == "assistant" and (key := chooses(turn.extra)):
            raise DataError(
                f"turn {number} has {shown(key)}: {shown(turn.extra[key])}, but all answers are learned", "form"
            )


def _not_read(row: Row, used: frozenset[str], messages: Sequence[Message]) -> Iterator[Finding]:
    """What is said of the keys of a row that no form reads. Raises DataError where the row's only image is there."""
    if not any(message.images for message in messages):
        for key in row.keys() - used:
            if is_picture(key, row[key]):
                near = nearest(key, ()) or "image"
                raise DataError(
                    f"{shown(key)} holds an image and is not read; did you mean {shown(near)}?", "image_key"
                )
    keys = [key for key in unread(row, used) if key not in WEIGHTS]
    yield from (Finding("key", line) for line in told(keys, used))


def _not_read_inside(extras: Sequence[tuple[int, Turn]], asides: Sequence[str]) -> Iterator[Finding]:
    keys = [key for _, turn in extras for key in unread(turn.extra, frozenset()) if key not in WEIGHTS]
    known = frozenset().union(*(keys.turn for keys in KEYS.values()))
    yield from (Finding("key", line) for line in told(keys, known, " of a turn"))
    inside = [key for key in asides if key not in PLAIN]
    yield from (
        Finding("key", line) for line in told(inside, ("url", "path", "bytes", "text"), " of an image or a text")
    )
