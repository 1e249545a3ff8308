"""Trained models of each kind; and at the end of the report, what was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trained
from comparing import FIGURES

KINDS: dict[str, dict[str, Any]] = {
    "pad": {},
    "crop": {"model": {"image_aspect_ratio": "crop"}},
    "next": {"model": trained.NEXT},
}
"""LLaVA-1.5 with pictures padded to squares, with their middle, and LLaVA-NeXT with tiles."""

PICTURES = ("red_56x56.png", "blue_80x60.png", "yellow_60x100.png")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind of model, which is trained when it is first asked for (see `trained.train`)."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            trained.train(made[kind], **KINDS[kind])
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def exported(world: Callable[[str], Path]) -> Callable[[str, str], Path]:
    """The same model in a format, as the real command writes it."""

    def export(kind: str, to: str) -> Path:
        out = world(kind) / f"llava-{to}"
        if not out.exists():
            trained.sightline("convert", world(kind) / "run", out, "--to", to)
        return out

    return export


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in FIGURES:
        terminalreporter.write_line(line)
