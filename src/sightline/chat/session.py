"""A conversation as a value: what was said, which images wait for the next question; and the model's answer to that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sightline.errors import DataError, UserError
from sightline.types import IMAGE, ImageRef, Message, Text, ask, interleave

if TYPE_CHECKING:
    from sightline.model.generate import Memory, Sampling
    from sightline.model.load import VLM


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation up to now; every change is a new value, so what fails half-way changes nothing."""

    system: str | None
    """Instead of the template's own system message."""

    images: tuple[ImageRef, ...]
    """Shown with the first question, and again after a reset."""

    messages: tuple[Message, ...]

    waiting: tuple[ImageRef, ...]
    """To be shown with the next question."""


def start(system: str | None = None, images: tuple[ImageRef, ...] = ()) -> Session:
    """A conversation in which nothing was said yet."""
    messages = () if system is None else (Message("system", (Text(system),)),)
    return Session(system, images, messages, waiting=images)


def reset(session: Session) -> Session:
    """Forget what was said and which images were added since; the first images are shown again."""
    return start(session.system, session.images)


def show(session: Session, image: ImageRef) -> Session:
    """Show one more image with the next question."""
    return replace(session, waiting=(*session.waiting, image))


def next_question(session: Session, text: str) -> Message:
    """What is typed, with the waiting images in front or at the `<image>` places that the text has.

    Raises DataError when there are such places and their number is not that of the waiting images.
    """
    places = text.count(IMAGE)
    if not places:
        return ask(text, session.waiting)
    if places != len(session.waiting):
        raise DataError(
            f"not sent: {IMAGE} is written {places} times, but {len(session.waiting)} images wait for this question; "
            f"write it once per image, or not at all: images then come first"
        )
    return Message("user", interleave(text, session.waiting))


def after(session: Session, question: Message, answer: str) -> Session:
    """The conversation with one more turn; an answer that was stopped counts as far as it was seen."""
    messages = (*session.messages, question, Message("assistant", (Text(answer),)))
    return replace(session, messages=messages, waiting=())


def answer(
    vlm: VLM, session: Session, question: Message, sampling: Sampling, memory: Memory, stopped: Callable[[], bool]
) -> Iterator[str]:
    """The model's answer, piece by piece, no longer than its context has room for; it ends when `stopped()` is true.

    Raises UserError when not even one token has room, or when the device has no memory left.
    """
    import torch

    from sightline.model.generate import reply

    messages = (*session.messages, question)
    sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, _room(vlm, messages)))
    try:
        yield from reply(vlm, messages, sampling, memory, stopped)
    except torch.OutOfMemoryError as error:
        raise UserError(f"no memory left on {vlm.device} for this question: /reset, or start with --bits 4") from error


def _room(vlm: VLM, messages: tuple[Message, ...]) -> int:
    """How many tokens the model's context has left after these messages."""
    from sightline.model.load import positions

    limit = positions(vlm.model.config.text_config)
    if limit is None:
        return sys.maxsize
    length = len(vlm.prompter.encode(messages).ids)
    if length >= limit:
        raise UserError(
            f"not sent: with this question the conversation has {length} tokens, and the model sees {limit}; "
            f"/reset begins anew, or ask with less text or fewer images"
        )
    return limit - length
