"""What the card does in a matrix product, long enough to be warm: measure_card.py JOB RESULT"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from job import Job, clock, run

from sightline.runtime import versions


def measure(job: Job) -> dict[str, Any]:
    device = torch.device(job.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        return {"error": "torch sees no CUDA card; a CPU takes --device cpu --tiny"}
    side, seconds = (256, 0.05) if job.tiny else (8192, 1.5)
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, job.dtype)) for _ in range(2))
    for _ in range(3):
        a @ b
    begun, taken = clock(device), []
    while not taken or clock(device) - begun < seconds:
        start = clock(device)
        for _ in range(10):
            a @ b
        taken.append((clock(device) - start) / 10)
    name, total = "cpu", None
    if device.type == "cuda":
        name, total = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / 2**30
    # The later half: a card that has become warm is slower, and that is how it trains.
    return {
        "device": name,
        "gib": total and round(total, 1),
        "flops": 2 * side**3 / statistics.median(taken[len(taken) // 2 :]),
        "versions": versions() | {"cuda": torch.version.cuda},
    }


if __name__ == "__main__":
    run(measure)
