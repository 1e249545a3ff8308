"""A step -> where its time goes on the device, as text: by kind of kernel, and the longest kernels one by one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from job import clock
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "attention": r"flash|fmha|attention|sdpa",
    "optimiser and clipping": r"adam|multi_tensor|foreach",
    "4 bits": r"dequant|quantize|gemm_4bit|gemv_4bit|kgemm",
    "matrix products": r"gemm|cutlass|nvjet|cublas|\bmm\b|addmm|bmm|convolution",
    "loss and softmax": r"softmax|nll_loss|cross_entropy",
    "copies and conversions": r"memcpy|memset|copy|cat|index|gather|scatter|embedding",
    "norms and reductions": r"norm|reduce|sum|mean|rsqrt",
    "compiled by Triton": r"triton",
    "element by element": r"elementwise|vectorized|mul|add|silu|gelu|dropout",
}
"""Kind -> what its kernels are called; the first that fits counts."""


def kind_of(kernel: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)), "others")


def seconds_of(events: Iterable[Any], *, on_card: bool) -> dict[str, float]:
    """Kind -> seconds of its kernels, or of its operators on a CPU."""
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        if not on_card:
            seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
        # Spans that a program marks, as torch does each step of an optimiser, are no kernels, but hold some.
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            seconds[kind_of(event.key)] += event.self_device_time_total / 1e6
    return seconds


def table_of(step: Callable[[], object], device: torch.device, rows: int = 40) -> str:
    """Of one step, which should not be the first. On a CPU, operators take the place of kernels."""
    on_card = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_card
    begun = clock(device)
    with profile(activities=activities) as taken:
        step()
        wall = clock(device) - begun
    averages = taken.key_averages()
    seconds = seconds_of(averages, on_card=on_card)
    busy = sum(seconds.values())
    lines = [f"{wall:.3f} s, watched; {busy:.3f} s of kernels"]
    for kind, value in sorted(seconds.items(), key=lambda pair: -pair[1]):
        lines.append(f"{value:8.3f} s {value / wall:6.1%}  {kind}")
    lines.append(f"{max(0.0, wall - busy):8.3f} s {max(0.0, 1 - busy / wall):6.1%}  nothing runs")
    order = "self_device_time_total" if on_card else "self_cpu_time_total"
    return "\n".join([*lines, "", averages.table(sort_by=order, row_limit=rows, max_name_column_width=90)])
