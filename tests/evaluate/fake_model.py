"""A model that says what a test wants, and pictures to show it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from sightline.errors import DataError
from sightline.types import Message


@dataclass
class FakeModel:
    """Takes the places of `replies`, `load` and `positions`, and remembers how they were called."""

    says: Callable[[Sequence[Message]], str] = lambda messages: "A"
    calls: list[dict[str, Any]] = field(default_factory=list)
    loaded: list[dict[str, Any]] = field(default_factory=list)
    limit: int | None = None
    """How many tokens it has positions for; each word is one."""
    vlm: Any = field(init=False)

    def __post_init__(self) -> None:
        model = torch.nn.Linear(2, 2)
        model.config = SimpleNamespace(text_config=None)  # type: ignore[assignment]
        self.vlm = SimpleNamespace(
            model=model, device="cpu", prompter=SimpleNamespace(template="t", image_processor="pad", encode=self.encode)
        )

    @property
    def asked(self) -> list[Sequence[Message]]:
        return [conversation for call in self.calls for conversation in call["conversations"]]

    def replies(
        self,
        vlm: Any,
        conversations: Sequence[Sequence[Message]],
        *,
        on_done: Callable[[int], None] | None = None,
        **settings: Any,
    ) -> list[str]:
        self.calls.append({"conversations": conversations, **settings})
        answers = [self.says(messages) for messages in conversations]
        if on_done is not None:
            on_done(len(answers))
        return answers

    def encode(self, messages: Sequence[Message]) -> SimpleNamespace:
        if any("\ud800" in message.text for message in messages):
            raise DataError("a text holds half a surrogate pair")
        return SimpleNamespace(ids=[word for message in messages for word in message.text.split()])

    def positions(self, config: Any) -> int | None:
        return self.limit

    def load(self, path: str, **settings: Any) -> Any:
        self.loaded.append({"path": path, **settings})
        return self.vlm


def png(colour: str = "red", size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def base64_png(colour: str = "red") -> str:
    return base64.b64encode(png(colour)).decode()
