"""Results -> a table in Markdown: table.py FILE ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SIDES = {"sightline": "Sightline", "trainer": "transformers' Trainer"}

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3, "float16": 5e-3}
"""By how much the first losses of the two may differ, as a share; kernels round half precision in other places."""


def table(results: dict[str, Any]) -> str:
    lines = [
        "| case | | samples/s | real tokens/s | MFU | peak GiB (reserved) | first loss | faster by | goal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for side in SIDES:
            if side in result:
                lines.append(line(name, side, result))
    devices = {(result["device"], round(result["matrix_product_tflops"], 1)) for result in results.values()}
    lines += [""] + [f"{device}: {tflops} TFLOP/s in a matrix product" for device, tflops in sorted(devices)]
    return "\n".join(lines)


def line(name: str, side: str, result: dict[str, Any]) -> str:
    facts = result[side]
    if "error" in facts:
        return f"| {name} | {SIDES[side]} | {facts['error']} | | | | | | |"
    rates = f"{facts['samples_per_second']:.2f} | {facts['tokens_per_second']:,.0f}"
    mfu = "" if facts["mfu"] is None else f"{facts['mfu']:.1%}"
    peak = f"{facts['peak_gib']:.1f}" + (f" ({facts['reserved_gib']:.1f})" if "reserved_gib" in facts else "")
    own = side == "sightline"
    tail = f"{faster(result)} | {goals(result)}" if own else " | "
    who = f"{SIDES[side]}, {facts['how']}"
    return f"| {name} | {who} | {rates} | {mfu} | {peak} | {facts['first_loss']:.5f} | {tail} |"


def faster(result: dict[str, Any]) -> str:
    ours, theirs = result["sightline"], result.get("trainer", {})
    if "samples_per_second" not in theirs:
        return ""
    ratio = f"{ours['samples_per_second'] / theirs['samples_per_second']:.2f}"
    return ratio if same_work(result) else f"({ratio}, but not the same work)"


def same_work(result: dict[str, Any]) -> bool:
    """Whether both had the same targets and, before anything was learned, the same loss."""
    ours, theirs = result["sightline"], result["trainer"]
    apart = abs(ours["first_loss"] - theirs["first_loss"])
    return bool(ours["targets"] == theirs["targets"] and apart <= TOLERANCE[result["dtype"]] * ours["first_loss"])


def goals(result: dict[str, Any]) -> str:
    found, said = result["sightline"], []
    for name, goal in result["goals"].items():
        if found[name] is None:
            continue
        reached = found[name] >= goal if name == "mfu" else found[name] <= goal
        wanted = f"MFU >= {goal:.0%}" if name == "mfu" else f"<= {goal:g} GiB"
        said.append(f"{wanted}: {'reached' if reached else 'missed'}")
    return ", ".join(said)


if __name__ == "__main__":
    joined: dict[str, Any] = {}
    for file in sys.argv[1:]:
        joined |= json.loads(Path(file).read_text(encoding="utf-8"))
    print(table(joined))
