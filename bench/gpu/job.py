"""What a measurement is told and what it writes; each is a process, so that running out of memory costs no other."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from cases import CASES, OUT_OF_MEMORY, Case

from sightline.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Job:
    """One case with one side's settings."""

    case: str
    device: str
    dtype: str
    warm: int
    """Steps that are not timed."""
    steps: int
    """Steps that are."""
    settings: tuple[str, ...] = ()
    """Of the recipe, behind the case's own."""
    at_once: int = 0
    """Rows in a padded batch of Trainer."""
    flops: float | None = None
    """What the card does in a matrix product, operations per second."""
    tiny: bool = False
    without: tuple[str, ...] = ()
    limit_gib: float | None = None
    """What the card shall be held to."""
    profile: str | None = None
    """The file for the table of kernels; none: nothing is profiled."""

    @property
    def of(self) -> Case:
        return CASES[self.case]

    @property
    def global_batch(self) -> int:
        return 4 if self.tiny else self.of.global_batch

    @property
    def recipe(self) -> Recipe:
        size = ["batch.max_length=192", "batch.pack_tokens=256"] if self.tiny else []
        mine = [f"engine.device={self.device}", f"engine.dtype={self.dtype}", f"batch.global_batch={self.global_batch}"]
        return load_recipe(self.of.recipe, [*self.of.settings, *mine, *self.settings, *size])


def run(measure: Callable[[Job], dict[str, Any]]) -> None:
    """`script.py JOB RESULT`: measure, and write the facts, or that there was too little memory."""
    told, result = json.loads(sys.argv[1]), Path(sys.argv[2])
    job = Job(**{key: tuple(value) if isinstance(value, list) else value for key, value in told.items()})
    if job.device == "cuda" and job.limit_gib is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, job.limit_gib * 2**30 / total))
    try:
        facts = measure(job)
    except torch.OutOfMemoryError as error:
        facts = {"error": OUT_OF_MEMORY, "detail": str(error).splitlines()[0]}
    result.write_text(json.dumps(facts), encoding="utf-8")


def clock(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak(device: torch.device) -> None:
    """Count memory from here on: what making the model took is no part of training."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory(device: torch.device) -> dict[str, float]:
    """GiB at the fullest moment: of tensors, and of what the allocator took from the card for them."""
    if device.type != "cuda":
        import resource

        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"peak_gib": round(resident / 2**30, 2)}
    peaks = {"peak_gib": torch.cuda.max_memory_allocated(), "reserved_gib": torch.cuda.max_memory_reserved()}
    return {name: round(value / 2**30, 2) for name, value in peaks.items()}


def rates(
    ends: Sequence[float], tokens: Sequence[int], operations: Sequence[float], *, rows: int, flops: float | None
) -> dict[str, Any]:
    """Throughput of the steps between the times `ends`; `rows` a step, of so many real tokens and operations each.

    MFU is the share of `flops`: of what the card does in a matrix product.
    """
    seconds = [after - before for before, after in pairwise(ends)]
    total = sum(seconds)
    return {
        "samples_per_second": round(rows * len(seconds) / total, 3),
        "tokens_per_second": round(sum(tokens) / total, 1),
        "tflops": round(sum(operations) / total / 1e12, 4),
        "mfu": None if flops is None else round(sum(operations) / total / flops, 4),
        "seconds": [round(value, 4) for value in seconds],
    }
