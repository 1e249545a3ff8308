"""The fake model in the place of the real one, and a TSV as MMBench publishes it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_model import FakeModel, base64_png


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    for place in ("batched.replies", "load.load", "load.positions"):
        monkeypatch.setattr(f"sightline.model.{place}", getattr(fake, place.split(".")[1]))
    return fake


@pytest.fixture
def tsv(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (cells by column) to a TSV; cells that are not given take a default."""

    def write(*rows: dict[str, Any], without: Sequence[str] = (), more: Sequence[str] = ()) -> Path:
        defaults: dict[str, Any] = {
            "question": "What is it?",
            "hint": "",
            "A": "cat",
            "B": "dog",
            "C": "",
            "D": "",
            "answer": "A",
            "category": "kind",
            "image": base64_png(),
        }
        columns = [column for column in ("index", *defaults, *more) if column not in without]
        path = tmp_path / "mmb.tsv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(columns)
            for number, row in enumerate(rows, 1):
                cells = {"index": number, **defaults, **row}
                writer.writerow([cells.get(column, "") for column in columns])
        return path

    return write
