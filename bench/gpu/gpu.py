"""Sightline beside transformers' Trainer on one GPU, at full size, on made-up weights: no network, nothing to build.

    make bench-gpu                                           # all cases; writes bench/results/gpu.json
    python bench/gpu/gpu.py --cases llava-7b-lora --out lora.json
    python bench/gpu/gpu.py --profile llava-7b-lora          # where the time of a step goes
    python bench/gpu/gpu.py --tiny --device cpu --dtype float32 --out /tmp/tiny.json

Every case runs in processes of its own, Sightline first, and is written when it is done. Where a setting needs more
memory than the card has, the next one is tried. Batches lie ready: this measures the card, not the reading of data.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import CASES, KEEP, OUT_OF_MEMORY, RECOMPUTE
from table import SIDES, table

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SIGNS = (OUT_OF_MEMORY, "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
"""How libraries say that they found no memory."""

Attempt = tuple[str, dict[str, Any]]
"""How a side is set, in words, and what the measurement is told besides."""


def attempts(side: str, name: str, args: argparse.Namespace) -> list[Attempt]:
    """The settings to try, one after the other."""
    case, more = CASES[name], list(args.set)
    if side == "sightline":
        without = {"without": args.without}
        how = [f"without {what}" for what in args.without]
        return [
            (", ".join([*map(in_words, settings), *more, *how]), {"settings": [*settings, *more], **without})
            for settings in case.ours
        ]
    found = []
    for at_once, recompute in case.theirs:
        settings = [RECOMPUTE if recompute else KEEP]
        how = f"batches of {at_once}, {in_words(settings[0])}"
        found.append((how, {"settings": settings, "at_once": min(at_once, 2) if args.tiny else at_once}))
    return found


def in_words(setting: str) -> str:
    known = {RECOMPUTE: "activations recomputed", KEEP: "activations kept"}
    return known.get(setting, setting.replace("batch.pack_tokens=", "packs of "))


def measured(script: str, told: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The facts that a measurement writes, or {"error": why there are none}."""
    with tempfile.TemporaryDirectory(prefix="sightline-gpu-") as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        # With several cards Trainer would spread a batch over all of them.
        card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        settings = {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": card, "HF_HUB_OFFLINE": "1"}
        with log.open("wb") as output:
            try:
                subprocess.run(
                    [sys.executable, HERE / script, json.dumps(told), result],
                    env=os.environ | settings,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=seconds,
                )
            except subprocess.TimeoutExpired:
                return {"error": f"not done after {seconds:.0f} s"}
        if result.exists():
            facts: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
            return facts
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"]
    last = last_words(said)
    if any(sign in line for line in last for sign in SIGNS):
        return {"error": OUT_OF_MEMORY}
    print("\n".join(said[-25:]), flush=True)
    return {"error": last[0].strip()}


def last_words(said: list[str]) -> list[str]:
    """The error of the last traceback, which CUDA's go on from for several lines; without one, the last line."""
    traces = [number for number, line in enumerate(said) if line.startswith("Traceback ")]
    after = said[traces[-1] + 1 :] if traces else []
    begin = next((number for number, line in enumerate(after) if line and not line[0].isspace()), None)
    return said[-1:] if begin is None else after[begin:]


def first_that_fits(side: str, name: str, told: dict[str, Any], args: argparse.Namespace, until: float) -> Any:
    """The facts of the first setting for which there is enough memory, with those for which there was not."""
    too_large: list[str] = []
    facts: dict[str, Any] = {}
    for how, more in attempts(side, name, args):
        if (left := until - time.monotonic()) < 1:
            facts = {"error": "no time was left"}
            break
        print(f"{name}: {SIDES[side]}, {how}", flush=True)
        facts = {"how": how} | measured(f"measure_{side}.py", told | more, left)
        if facts.get("error") != OUT_OF_MEMORY:
            break
        print(f"{name}: {OUT_OF_MEMORY}", flush=True)
        too_large.append(how)
    return facts | ({"too_large": too_large} if too_large else {})


def main() -> None:
    args = parsed()
    begun = time.monotonic()
    device, dtype = args.device, args.dtype
    told = {"device": device, "dtype": dtype, "warm": args.warm, "steps": args.steps, "tiny": args.tiny}
    told |= {"limit_gib": args.limit_gib}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.profile:
        return profiled(args, told)
    card = measured("measure_card.py", told | {"case": args.cases[0]}, 300)
    if "error" in card:
        raise SystemExit(card["error"])
    print(f"{card['device']}: {card['flops'] / 1e12:.1f} TFLOP/s in a matrix product of {dtype}", flush=True)
    found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    for name in args.cases:
        until = begun + args.seconds
        job = told | {"case": name, "flops": card["flops"]}
        result = {
            "device": card["device"],
            "gib": card["gib"],
            "dtype": dtype,
            "matrix_product_tflops": round(card["flops"] / 1e12, 3),
            "goals": CASES[name].goals,
            "versions": card["versions"],
            "command": command(name, args),
        }
        for side in args.sides:
            result[side] = first_that_fits(side, name, job, args, until)
            found[name] = result
            args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(table({name: result}), flush=True)
        begun = time.monotonic()
    print(table(found))


def command(name: str, args: argparse.Namespace) -> str:
    """What measures this case again."""
    told = ["--cases", name, "--steps", str(args.steps), "--warm", str(args.warm), "--sides", *args.sides]
    told += ["--device", args.device, "--dtype", args.dtype] + ["--tiny"] * args.tiny
    told += ["--set", *args.set] if args.set else []
    told += ["--without", *args.without] if args.without else []
    told += ["--limit-gib", f"{args.limit_gib:g}"] if args.limit_gib else []
    return shlex.join(["python", "bench/gpu/gpu.py", *told])


def profiled(args: argparse.Namespace, told: dict[str, Any]) -> None:
    """Write the table of kernels of one step beside the results."""
    file = args.out.parent / f"profile-{args.profile}.txt"
    job = told | {"case": args.profile, "profile": str(file.resolve())}
    facts = first_that_fits("sightline", args.profile, job, args, time.monotonic() + args.seconds)
    if "error" in facts:
        raise SystemExit(f"{args.profile}: {facts['error']}")
    print(file.read_text(encoding="utf-8"))


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "gpu.json")
    parser.add_argument("--steps", type=int, default=5, help="that are timed")
    parser.add_argument("--warm", type=int, default=2, help="steps before them")
    parser.add_argument("--seconds", type=float, default=590, help="the most for a case; the card's own is the first's")
    parser.add_argument("--set", nargs="+", default=[], metavar="a.b=c", help="of Sightline's recipe")
    parser.add_argument("--without", nargs="+", choices=["packing", "varlen"], default=[], help="what Sightline leaves")
    parser.add_argument("--limit-gib", type=float, help="hold the card to so much memory")
    parser.add_argument("--profile", choices=list(CASES), metavar="CASE", help="only write where a step's time goes")
    parser.add_argument("--tiny", action="store_true", help="models that a CPU trains in seconds")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    args = parser.parse_args(given)
    if args.warm < 1 or args.steps < 1:
        parser.error("--warm and --steps: at least 1, because a step is timed from the end of the one before")
    if args.limit_gib is not None and args.limit_gib <= 0:
        parser.error("--limit-gib: more than 0")
    return args


if __name__ == "__main__":
    main()
