"""The values that everything passes: frozen, without torch.

A row of a data file becomes a `Conversation`, the renderer turns it into `Segment`s, the prompter into an `Encoded`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sightline.errors import DataError

if TYPE_CHECKING:
    import numpy as np

Role = Literal["system", "user", "assistant"]

IMAGE = "<image>"
"""The place of an image in a text, as LLaVA's data files write it; also the token of that name."""

IGNORE = -100
"""The label of a position that is no target (torch's cross-entropy convention)."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a message that is text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A piece of a message that is an image, opened late."""

    source: str | bytes
    """A path, an http(s) URL, a data: URI, or the bytes of an image file."""

    folder: str | None = None
    """The folder that a path is relative to and must not leave; None: any path, as typed by the user."""


Part = Text | ImageRef


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; texts and images in the order in which the model sees them."""

    role: Role
    content: tuple[Part, ...]

    @property
    def images(self) -> tuple[ImageRef, ...]:
        return tuple(part for part in self.content if isinstance(part, ImageRef))

    @property
    def text(self) -> str:
        """The message as one string, with `<image>` where the images are."""
        return "".join(part.text if isinstance(part, Text) else IMAGE for part in self.content)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row understood."""

    messages: tuple[Message, ...]
    id: str
    origin: str
    """Where it comes from, for error messages: "file.json: row 1342"."""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        return tuple(image for message in self.messages for image in message.images)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a rendered prompt."""

    content: Part
    target: bool
    """Whether the model learns to say it."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A rendered prompt as the model sees it."""

    ids: np.ndarray
    """int64 [T]; an image takes as many image tokens as it has features."""

    labels: np.ndarray
    """int64 [T]: the token itself where it is a target, IGNORE elsewhere. Not shifted."""

    images: tuple[ImageRef, ...]

    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height of each image, where the number of its tokens depends on them; otherwise empty."""

    @property
    def num_targets(self) -> int:
        """Targets that a causal model can learn: the first token has nothing before it."""
        return int((self.labels[1:] != IGNORE).sum())


def interleave(text: str, images: Sequence[ImageRef]) -> tuple[Part, ...]:
    """Put the images at the `<image>` places of a text, in order.

    Raises DataError when the numbers of places and images differ.
    """
    pieces = text.split(IMAGE)
    if len(pieces) - 1 != len(images):
        raise DataError(f"{len(images)} images but {len(pieces) - 1} times {IMAGE} in the text")
    parts: list[Part] = [Text(pieces[0])]
    for image, piece in zip(images, pieces[1:], strict=True):
        parts += [image, Text(piece)]
    return tuple(part for part in parts if part != Text(""))


def ask(question: str, images: Sequence[ImageRef] = ()) -> Message:
    """A user's message with its images in front, one a line, as LLaVA's training data has them."""
    return Message("user", interleave(f"{IMAGE}\n" * len(images) + question, images))
