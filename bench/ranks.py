"""Two processes beside one, each with one thread: the same losses, and how many more steps a second.

    python bench/ranks.py                 # five minutes on two slow cores; result in bench/results/ranks.json

What the machine itself can give is measured in the same run: matrix products of one process, and of two at a time. Two
hyperthreads of one core are far from two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULT = HERE / "results" / "ranks.json"
PRODUCTS = """
import torch
a = torch.randn(1536, 1536)
for wait in (input, str):
    [a @ a for _ in range(60)]
    print(flush=True)
    wait()
"""
ALONE = os.environ | {"OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="the world of bench/race, or where to make it")
    args = parser.parse_args()
    if args.rounds < 1 or args.steps < 2:
        parser.error("--rounds: at least 1, --steps: at least 2, because the first does not count")
    work = Path(tempfile.mkdtemp(prefix="sightline-ranks-"))
    folder = args.folder or work / "world"
    if not folder.exists():
        subprocess.run([sys.executable, HERE / "race" / "world.py", folder], check=True, stdout=subprocess.DEVNULL)
    write_recipe(folder, work / "recipe.yaml")
    rounds = []
    for number in range(args.rounds):
        found = {ranks: trained(work, number, ranks, args.steps) for ranks in (1, 2)}
        ceiling = 2 * products(1) / products(2)
        apart = max(abs(a - b) for a, b in zip(found[1][0], found[2][0], strict=True))
        rounds.append({"times_as_fast": found[1][1] / found[2][1], "machine_can": ceiling, "losses_differ_by": apart})
        print({name: float(f"{value:.3g}") for name, value in rounds[-1].items()}, flush=True)
    result = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    made = {"median": result, "rounds": rounds, "cpus": os.cpu_count()}
    RESULT.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(work)


def write_recipe(folder: Path, path: Path) -> None:
    """The race's stage 2, on the files of `folder`."""
    sys.path.insert(0, str(HERE / "race"))
    from world import recipe

    from sightline.recipe import dump_recipe

    path.write_text(dump_recipe(recipe(folder, "full", f"model.projector_from={folder}/hf")), encoding="utf-8")


def trained(work: Path, number: int, ranks: int, steps: int) -> tuple[list[float], float]:
    """The losses of a run, and the seconds of its steps but for the first, which waits for data."""
    run = work / f"{ranks}-{number}"
    command = [sys.executable, "-m", "sightline", "train", work / "recipe.yaml", f"optim.max_steps={steps}"]
    environment = ALONE | {"NPROC_PER_NODE": str(ranks)}
    output = subprocess.run([*command, "--work-dir", run], env=environment, capture_output=True, text=True)
    if output.returncode:
        raise SystemExit(output.stderr[-2000:])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    shutil.rmtree(run)  # or six checkpoints would lie there
    return [line["loss"] for line in lines], sum(line["seconds"] for line in lines[1:])


def products(processes: int) -> float:
    """Seconds in which so many processes each make their matrix products."""
    started = [
        subprocess.Popen([sys.executable, "-c", PRODUCTS], env=ALONE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(processes)
    ]
    for process in started:
        process.stdout.readline()  # type: ignore[union-attr]  # torch is there and warm
    begun = time.perf_counter()
    for process in started:
        process.stdin.write(b"\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    for process in started:
        process.stdout.readline()  # type: ignore[union-attr]
    seconds = time.perf_counter() - begun
    if any(process.wait() for process in started):
        raise SystemExit("a process that makes matrix products failed; what it said is above")
    return seconds


if __name__ == "__main__":
    main()
