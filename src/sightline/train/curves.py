"""The log of a run -> its figures in words and its curves, as HTML."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.page.charts import Line, curve_chart, figure, legend, smoothed
from sightline.page.numbers import duration, short
from sightline.page.page import facts_list


def summary(log: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A run in a few figures, for people."""
    if not log:
        return {}
    tail = [step["loss"] for step in log[-max(len(log) // 20, 1) :] if step["loss"] is not None]
    steady = log[1:] or log
    seconds = max(sum(step["seconds"] for step in steady), 1e-9)
    found = {
        "steps": f"{log[-1]['step']:,}",
        "samples": f"{sum(step['samples'] for step in log):,}",
        "tokens": short(sum(step["tokens"] for step in log)),
        "loss at the end": f"{statistics.fmean(tail):.4f}" if tail else "no number",
        "time of the steps": duration(sum(step["seconds"] for step in log)),
        "tokens/s": short(sum(step["tokens"] for step in steady) / seconds),
        "waiting for data": f"{sum(step['data_share'] * step['seconds'] for step in steady) / seconds:.1%}",
    }
    fills = [step["fill"] for step in log if step["fill"] is not None]
    memory = [step["memory_gb"] for step in log if step["memory_gb"] is not None]
    if fills:
        found["packs filled"] = f"{statistics.fmean(fills):.1%}"
    if memory:
        found["memory, at most"] = f"{max(memory):.2f} GB"
    return found


def curves(log: Sequence[Mapping[str, Any]]) -> str:
    """HTML: the figures of a run and its curves."""
    rates = list(dict.fromkeys(group for step in log for group in step["lr"]))
    rate_lines = [
        Line(group, [(step["step"], step["lr"][group]) for step in log if group in step["lr"]]) for group in rates
    ]
    charts = [
        figure("Loss", curve_chart([_raw_and_smooth(log, "loss")], name="loss"), _missing(log)),
        figure("Learning rate", curve_chart(rate_lines, name="learning rate", from_zero=True), legend(rates)),
        figure(
            "Tokens per second",
            curve_chart([_raw_and_smooth(log, "tokens_per_second")], name="tokens per second", from_zero=True),
        ),
        figure(
            "Gradient norm",
            curve_chart([_raw_and_smooth(log, "grad_norm")], name="gradient norm", from_zero=True),
        ),
    ]
    body = f'<div class="charts">{"".join(charts)}</div>' if any(charts) else '<p class="note">No step was logged.</p>'
    return facts_list(summary(log)) + body


def _raw_and_smooth(log: Sequence[Mapping[str, Any]], key: str) -> Line:
    points = [(step["step"], step[key]) for step in log if step[key] is not None]
    return Line(key, smoothed(points), dots=points)


def _missing(log: Sequence[Mapping[str, Any]]) -> str:
    count = sum(step["loss"] is None for step in log)
    return f"Steps whose loss is no number: {count}" if count else ""
