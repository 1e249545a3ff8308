"""A row -> a conversation, for the form in which LLaVA's data files are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightline.data.sources import Row
from sightline.errors import DataError
from sightline.types import IMAGE, Conversation, ImageRef, Message, Role, interleave

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def to_conversation(row: Row, origin: str, images_folder: str | Path | None) -> Conversation:
    """Understand a LLaVA row: `conversations` of `{"from", "value"}`, `image` a path, a list of paths or absent.

    Images take the places of the `<image>`s in order. Raises DataError, beginning with `origin`, that names the key.
    """
    try:
        turns = _turns(row)
        paths = _image_paths(row)
        folder = str(images_folder) if images_folder is not None else None
        if paths and folder is None:
            raise DataError("the row has an image, but no folder of images is given (data.N.images, or --image-folder)")
        images = [ImageRef(path, folder) for path in paths]
        places = sum(value.count(IMAGE) for _, value in turns)
        if places != len(images):
            raise DataError(
                f"{_count(len(images), 'image')} but {_count(places, IMAGE)} in the conversations; they must agree"
            )
        messages, used = [], 0
        for role, value in turns:
            here = value.count(IMAGE)
            messages.append(Message(role, interleave(value, images[used : used + here])))
            used += here
        _check_order(messages)
    except DataError as error:
        raise DataError(f"{origin}: {error}") from None
    return Conversation(tuple(messages), id=str(row.get("id", "")), origin=origin)


def _turns(row: Row) -> list[tuple[Role, str]]:
    turns: Any = row.get("conversations", row.get("conversation"))
    if turns is None:
        raise DataError(f"no 'conversations' in the row (it has: {', '.join(map(repr, row)) or 'nothing'})")
    if not isinstance(turns, list) or not turns:
        raise DataError("'conversations' is not a list of turns, or is empty")
    result: list[tuple[Role, str]] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
            raise DataError(f"turn {number} is not an object with 'from' and 'value'")
        role = ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            raise DataError(f"turn {number}: unknown 'from' {turn['from']!r}; known: {', '.join(ROLES)}")
        if not isinstance(turn["value"], str):
            raise DataError(f"turn {number}: 'value' is {type(turn['value']).__name__}, not text")
        result.append((role, turn["value"]))
    return result


def _image_paths(row: Row) -> list[str]:
    image = row.get("image")
    if image is None:
        return []
    paths = image if isinstance(image, list) else [image]
    if not all(isinstance(path, str) and path for path in paths):
        raise DataError("'image' is neither a path nor a list of paths")
    return paths


def _check_order(messages: list[Message]) -> None:
    first = 2 if messages[0].role == "system" else 1
    turns = list(enumerate(messages, 1))[first - 1 :]
    for number, message in turns:
        expected = "assistant" if (number - first) % 2 else "user"
        if message.role != expected:
            raise DataError(f"turn {number} is the {message.role}'s, expected the {expected}'s: turns must alternate")
    if messages[-1].role != "assistant":
        raise DataError("the conversation does not end with an answer")
    for number, message in turns:
        if message.role == "assistant" and not message.text.strip():
            raise DataError(f"turn {number}: the answer is empty")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if what == IMAGE or number == 1 else f"{number} {what}s"
