"""A model that says what a test wants, and a TSV as MMBench publishes it."""

from __future__ import annotations

import base64
import csv
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from sightline.types import Message


@dataclass
class FakeModel:
    """Takes the places of `replies` and `load`, and remembers how they were called."""

    says: Callable[[Sequence[Message]], str] = lambda messages: "A"
    calls: list[dict[str, Any]] = field(default_factory=list)
    loaded: list[dict[str, Any]] = field(default_factory=list)
    vlm: Any = field(default_factory=lambda: SimpleNamespace(model=torch.nn.Linear(2, 2), prompter=SimpleNamespace(template="t")))

    @property
    def asked(self) -> list[Sequence[Message]]:
        return [conversation for call in self.calls for conversation in call["conversations"]]

    def replies(self, vlm: Any, conversations: Sequence[Sequence[Message]], *, on_done: Callable[[int], None] | None = None,
                **settings: Any) -> list[str]:
        self.calls.append({"conversations": conversations, **settings})
        answers = [self.says(messages) for messages in conversations]
        if on_done is not None:
            on_done(len(answers))
        return answers

    def load(self, path: str, **settings: Any) -> Any:
        self.loaded.append({"path": path, **settings})
        return self.vlm


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    for name, attribute in (("generate", "replies"), ("load", "load")):
        module = ModuleType(f"sightline.model.{name}")
        setattr(module, attribute, getattr(fake, attribute))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return fake


def png(colour: str = "red", size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def base64_png(colour: str = "red") -> str:
    return base64.b64encode(png(colour)).decode()


@pytest.fixture
def tsv(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (cells by column) to a TSV; cells that are not given take a default."""

    def write(*rows: dict[str, Any], name: str = "mmb.tsv", without: Sequence[str] = (), more: Sequence[str] = ()) -> Path:
        defaults: dict[str, Any] = {"question": "What is it?", "hint": "", "A": "cat", "B": "dog", "C": "", "D": "",
                                    "answer": "A", "category": "kind", "image": base64_png()}
        columns = [column for column in ("index", *defaults, *more) if column not in without]
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(columns)
            for number, row in enumerate(rows, 1):
                cells = {"index": number, **defaults, **row}
                writer.writerow([cells.get(column, "") for column in columns])
        return path

    return write
