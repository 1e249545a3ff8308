"""Images set in their `<image>` places, and in those that other programs write in other words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from sightline.data.forms.reading import Picture, Reading, Turn
from sightline.data.verdict import Finding
from sightline.errors import DataError, listed, shown
from sightline.types import IMAGE

_WORDS = re.compile(
    r"""
    <img>(?P<source>[^<>\n]+)</img>
  | (?P<place><(?!image>)(?:
        \|?(?:image|img|picture|pic|photo)[\ _-]?(?P<number>\d{1,4})\|?
      | /?(?:image|img)\s?/?
      | \|(?:image|img)(?:_pad)?\|
      | (?:image|img)_?(?:here|content|context|token|soft_token|pad|patch|placeholder|start|end)
      | im_(?:start|end|patch)
      | \|?(?:start|end)_of_image\|?
      | \|vision_start\|><\|image_pad\|><\|vision_end\|
      | \|vision_(?:start|end)\|
      | __media__
    )>)
  | (?P<box><(?:ref-object|bbox)>)
  | (?P<media>\A\s*<\|?(?:video|audio)(?:_pad)?\|?>)
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""What looks like an image in a text, and is not `<image>`: Qwen-VL and ms-swift 1 name the file itself, sets of
several images number them, and many models have a word of their own, which found its way into data."""


def place(reading: Reading) -> tuple[tuple[Turn, ...], tuple[Finding, ...]]:
    """Set the images of a reading in their places; in front of the first user turn where there is no `<image>`.

    Texts side by side become one and empty ones go, so that equal conversations are equal turns.
    Raises DataError where the numbers of images and places differ, or where a text holds another word for a place.
    """
    turns, images, findings = reading.turns, reading.images, tuple[Finding, ...]()
    places, marks, has_pictures = _counted(turns)
    if has_pictures and any(turn.images for turn in turns):
        turns = tuple(_with_own(turn, number) for number, turn in enumerate(turns, 1))
        places, marks, has_pictures = _counted(turns)
    if marks > places:
        turns, images, findings = _understood(turns, images)
        places, _, has_pictures = _counted(turns)
    if (places or images) and has_pictures:
        what = f"{IMAGE} in a text" if places else "a list of images"
        raise DataError(f"{what} beside images that are parts of a turn; write all images in one way", "image_count")
    if images and not places:
        turns = _in_front(turns, images)
        reason = f"{_count(len(images))} without {IMAGE}, put in front of the first user turn"
        findings += (Finding("image_in_front", reason),)
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


def _with_own(turn: Turn, number: int) -> Turn:
    """A turn with the images of its own key in their places, or in front."""
    if not turn.images:
        return turn
    (plain,), images, _ = _understood((replace(turn, images=()),), turn.images)
    places, _, _ = _counted([plain])
    if not places:
        return replace(plain, content=(*(part for image in images for part in (image, "\n")), *plain.content))
    if places != len(images):
        raise DataError(
            f"turn {number} has {_count(len(images))} under a key of its own, but {places} {IMAGE}", "image_count"
        )
    return replace(plain, content=tuple(_filled(plain.content, iter(images))))


def _counted(turns: Sequence[Turn]) -> tuple[int, int, bool]:
    """How often `<image>` and `<` stand in the texts, and whether turns have pictures."""
    places = marks = 0
    has_pictures = False
    for turn in turns:
        if turn.images:
            has_pictures = True
        for part in turn.content:
            if not isinstance(part, str):
                has_pictures = True
            elif "<" in part:  # which few texts do
                places += part.count(IMAGE)
                marks += part.count("<")
    return places, marks, has_pictures


def _understood(
    turns: tuple[Turn, ...], images: tuple[Picture, ...]
) -> tuple[tuple[Turn, ...], tuple[Picture, ...], tuple[Finding, ...]]:
    """The turns with all words for images understood, and the images that are left to be placed."""
    turns = tuple(replace(turn, content=tuple(_split(turn.content))) for turn in turns)
    asked, said = _words_of(turns, asked=True), _words_of(turns, asked=False)
    for word in [*asked, *said]:
        if word["media"]:
            raise DataError(f"a text begins with {shown(word['media'].strip())}; only images are understood", "form")
        if word["box"]:
            raise DataError(
                f"{shown(word['box'])} stands for an entry of 'objects', which is not put in; write it into the text",
                "form",
            )
    findings = tuple(Finding("image_word_read", line) for line in _named(said, ", in an answer"))
    if not asked:
        return turns, images, findings
    has_places = any(IMAGE in part for turn in turns for part in turn.content if isinstance(part, str))
    if has_places or any(isinstance(part, Picture) for turn in turns for part in turn.content):
        beside = _named(asked, ", beside images that have their places")
        return turns, images, (*findings, *(Finding("image_word_read", line) for line in beside))
    numbers = [int(word["number"]) for word in asked if word["number"]]
    if len(numbers) == len(asked) and images and set(numbers) in (_upto(0, images), _upto(1, images)):
        first = min(numbers)
        chosen = iter([images[number - first] for number in numbers])
        return tuple(replace(turn, content=tuple(_filled(_renamed(turn), chosen))) for turn in turns), (), findings
    if not numbers and len(asked) == len(images):
        return tuple(replace(turn, content=_renamed(turn)) for turn in turns), images, findings
    (found,) = _named(asked, "")
    raise DataError(
        f"{found} in a question, which looks like the place of an image, and the row has {_count(len(images))}; "
        f"write {IMAGE} for each image",
        "image_word",
    )


def _words_of(turns: Sequence[Turn], asked: bool) -> list[re.Match[str]]:
    texts = (part for turn in turns if (turn.role == "user") is asked for part in turn.content if isinstance(part, str))
    return [word for text in texts for word in _words(text)]


def _named(words: Sequence[re.Match[str]], where: str) -> list[str]:
    return [listed(dict.fromkeys(word["place"] for word in words), 4) + where] if words else []


def _words(text: str) -> Iterator[re.Match[str]]:
    return _WORDS.finditer(text) if "<" in text else iter(())


def _upto(first: int, images: Sequence[Picture]) -> set[int]:
    return set(range(first, first + len(images)))


def _split(content: Iterable[str | Picture]) -> Iterator[str | Picture]:
    """The content with a picture for each `<img>file</img>`."""
    for part in content:
        if isinstance(part, Picture):
            yield part
            continue
        at = 0
        for word in _words(part):
            if word["source"]:
                yield part[at : word.start()]
                yield Picture(word["source"].strip())
                at = word.end()
        yield part[at:]


def _renamed(turn: Turn) -> tuple[str | Picture, ...]:
    if turn.role != "user":
        return turn.content
    return tuple(_WORDS.sub(IMAGE, part) if isinstance(part, str) else part for part in turn.content)


def _in_front(turns: tuple[Turn, ...], images: Sequence[Picture]) -> tuple[Turn, ...]:
    for number, turn in enumerate(turns):
        if turn.role == "user":
            lines = tuple(part for image in images for part in (image, "\n"))
            return (*turns[:number], replace(turn, content=lines + turn.content), *turns[number + 1 :])
    raise DataError("no turn of the user, whose images these could be", "order")


def _filled(content: Iterable[str | Picture], waiting: Iterator[Picture]) -> Iterator[str | Picture]:
    """The content with the next of the waiting images for each `<image>`."""
    for part in content:
        if isinstance(part, Picture):
            yield part
            continue
        first, *pieces = part.split(IMAGE)
        yield first
        for piece in pieces:
            yield next(waiting)
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
