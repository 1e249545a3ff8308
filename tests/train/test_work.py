"""The share of a device's peak in the log: where the peak is known, and of the right operations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sightline.train import loop
from sightline.train.work import peak_of


def steps(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_no_peak_no_mfu(trained: Callable[..., Path]) -> None:
    assert peak_of(torch.device("cpu"), torch.bfloat16) is None
    assert all("mfu" not in step for step in steps(trained("optim.max_steps=2")))


def test_mfu_of_a_known_peak(trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """6 operations per weight and token, beside attention, head, projector and tower."""
    monkeypatch.setattr(loop, "peak_of", lambda device, dtype: 1e9)
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    for step in steps(trained("optim.max_steps=3")):
        operations = step["mfu"] * step["seconds"] * 1e9
        least = 6 * weights * step["tokens"]
        assert least < operations < 2.5 * least


def test_a_name_alone_does_not_make_a_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    cuda = torch.device("cuda")
    assert peak_of(cuda, torch.bfloat16) == 312e12
    assert peak_of(cuda, torch.float32) is None  # the figure is that of half precision
