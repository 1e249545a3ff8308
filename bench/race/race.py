"""Sightline beside the programs that people train LLaVA with: the same rows, ids, targets and model, turn by turn.

    make bench                  # builds an environment for each racer, races, writes bench/results/race.json
    python bench/race/race.py --modes full --racers "transformers Trainer" --rounds 5 --steps 2

All racers of a mode are started and held (SIGSTOP); then each in turn runs on alone for a few steps, round after round,
so that what else the machine does meets all of them. Before a racer counts, its first loss and its number of targets
must be Sightline's: to 1e-4, and exactly. With --keep-going one that cannot be built, does not start or ends is left
out, and the results say why. More than --together race in heats, each with Sightline among them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import turns

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "bench" / "results" / "race.json"
GLOBAL_BATCH, WARM = 8, 2
MODES = ["full", "frozen", "lora"]

sys.path.insert(0, str(ROOT / "tests" / "clients"))
import environments  # noqa: E402

RACERS: dict[str, tuple[str | None, list[str]]] = {
    "sightline": (None, ["racer_sightline.py"]),
    "transformers Trainer, batches of 8": ("race-transformers", ["racer_trainer.py", "trainer", "8"]),
    "transformers Trainer, row by row": ("race-transformers", ["racer_trainer.py", "trainer", "1"]),
    "TRL SFTTrainer, batches of 8": ("race-trl", ["racer_trainer.py", "trl", "8"]),
    "TRL SFTTrainer, row by row": ("race-trl", ["racer_trainer.py", "trl", "1"]),
    "ms-swift, batches of 8": ("race-swift", ["racer_swift.py", "8"]),
    "ms-swift, row by row": ("race-swift", ["racer_swift.py", "1"]),
    "LLaMA-Factory, batches of 8": ("race-factory", ["racer_factory.py", "8"]),
    "LLaMA-Factory, row by row": ("race-factory", ["racer_factory.py", "1"]),
    "XTuner 0.2, batches of 8": ("xtuner", ["racer_xtuner.py", "8"]),
    "XTuner 0.2, row by row": ("xtuner", ["racer_xtuner.py", "1"]),
}
"""Name -> environment (none: the one that runs this), script and what it is told besides folder, mode and work dir."""

ALIKE = "weighs rows alike, not targets, so that its later losses are others"
REMARKS = {"LLaMA-Factory, row by row": ALIKE, "XTuner 0.2, row by row": ALIKE}


class Ended(Exception):
    """A racer is no more; the message is the end of what it said."""


@dataclass
class Racer:
    """A running program."""

    name: str
    process: subprocess.Popen[bytes]
    reports: IO[str]
    log: Path
    steps: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each turn that counts."""

    def run(self, steps: int) -> float:
        """Let it go on for so many steps; returns the seconds that it took."""
        begun = time.perf_counter()
        os.killpg(self.process.pid, signal.SIGCONT)
        for _ in range(steps):
            line = self.reports.readline()
            if not line:
                raise Ended(self.log.read_text(errors="replace").strip()[-2000:])
            self.steps.append(json.loads(line))
        seconds = time.perf_counter() - begun
        os.killpg(self.process.pid, signal.SIGSTOP)
        return seconds

    def peak_mb(self) -> int:
        """What its main process held at most; worker processes share most of theirs with it."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reports.close()


def start(name: str, folder: Path, mode: str, work: Path) -> Racer:
    environment, (script, *told) = RACERS[name]
    try:
        python = sys.executable if environment is None else environments.python_of(environment)
    except subprocess.CalledProcessError as error:
        raise Ended(f"its environment cannot be built: {error}") from error
    receive, send = os.pipe()
    log = work / f"{name}-{mode}.log"
    settings = {turns.PIPE: str(send), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(os.cpu_count())}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, HERE / script, folder, mode, work / f"{name}-{mode}", *told],
            env=os.environ | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[send],
        )
    os.close(send)
    return Racer(name, process, os.fdopen(receive), log)


def reason(said: str) -> str:
    """The line that names the error, or else the last one."""
    lines = said.splitlines() or ["it said nothing"]
    return next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)), lines[-1])


def race(
    names: Sequence[str], mode: str, folder: Path, work: Path, rounds: int, steps: int, keep_going: bool
) -> dict[str, Any]:
    """Name -> what `result` says, or `failed`: why it is left out (never the first, whom all are compared with)."""
    # Else those who are held would stay for ever when the race is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    tokens = [len(row["ids"]) for row in json.loads((folder / "tokens.json").read_text())]
    racers: dict[str, Racer] = {}
    failed: dict[str, str] = {}

    def leave_out(name: str, why: Ended) -> None:
        print(f"{mode}: {name} ended: {why}", flush=True)
        if name == names[0] or not keep_going:
            raise SystemExit(f"{name} ended; what it said is in {work}")
        failed[name] = reason(str(why))
        if name in racers:
            racers.pop(name).end()

    try:
        for name in names:
            print(f"{mode}: {name} gets ready", flush=True)
            try:
                racers[name] = start(name, folder, mode, work)
                racers[name].run(WARM)
            except Ended as why:
                leave_out(name, why)
        for number in range(rounds):
            for name, racer in list(racers.items()):
                try:
                    racer.seconds.append(racer.run(steps))
                except Ended as why:
                    leave_out(name, why)
                    continue
                print(f"{mode}, round {number + 1}: {name} {steps / racer.seconds[-1]:.3f} steps/s", flush=True)
        found = {name: result(racer, racers[names[0]], tokens, steps) for name, racer in racers.items()}
        return {name: found.get(name) or {"failed": failed[name]} for name in names}
    finally:
        for racer in racers.values():
            racer.end()


def heats(names: Sequence[str], mode: str, together: int, work: Path, **named: Any) -> dict[str, Any]:
    """As many races as it takes for at most `together` to be held at once, each with the first among them."""
    first, others = names[0], names[1:]
    size = together - 1
    found: dict[str, Any] = {}
    for number, begin in enumerate(range(0, max(len(others), 1), size), 1):
        place = work / f"{mode}-{number}"
        place.mkdir()
        results = race([first, *others[begin : begin + size]], mode, work=place, **named)
        # A ratio is that of its own heat; the first's other figures are told heat by heat.
        found |= {name if name != first or number == 1 else f"{name}, heat {number}": results[name] for name in results}
    return found


def result(racer: Racer, first: Racer, tokens: list[int], steps: int) -> dict[str, Any]:
    rounds = len(racer.seconds)
    counted = tokens[WARM * GLOBAL_BATCH :][: rounds * steps * GLOBAL_BATCH]
    total = sum(racer.seconds)
    ratios = [theirs / ours for theirs, ours in zip(racer.seconds, first.seconds, strict=True)]
    same = (
        abs(racer.steps[0]["loss"] - first.steps[0]["loss"]) <= 1e-4
        and racer.steps[0]["targets"] == first.steps[0]["targets"]
    )
    remark = {"remark": REMARKS[racer.name]} if racer.name in REMARKS else {}
    return {
        "same_work": same,
        **remark,
        "steps_per_second": round(rounds * steps / total, 4),
        "samples_per_second": round(rounds * steps * GLOBAL_BATCH / total, 3),
        "tokens_per_second": round(sum(counted) / total, 1),
        "peak_mb": racer.peak_mb(),
        "times_its_seconds": [round(f(ratios), 2) for f in (statistics.median, min, max)],
        "first_loss": round(racer.steps[0]["loss"], 6),
        "last_loss": round(racer.steps[-1]["loss"], 6),
        "targets": [step["targets"] for step in racer.steps],
        "seconds": [round(value, 2) for value in racer.seconds],
    }


def table(mode: str, results: dict[str, Any]) -> str:
    title = f"| {mode} | steps/s | samples/s | tokens/s | peak MB | first loss | last loss | Sightline is faster by |"
    lines = [title, "|---|---|---|---|---|---|---|---|"]
    for name, found in results.items():
        if "failed" in found:
            lines.append(f"| {name} | left out: {found['failed']} |||||||")
            continue
        middle, least, most = found["times_its_seconds"]
        faster = f"{middle} ({least} - {most})" if found["same_work"] else f"({middle}, but not the same work)"
        faster += f"; {found['remark']}" if "remark" in found else ""
        rates = f"{found['steps_per_second']} | {found['samples_per_second']} | {found['tokens_per_second']}"
        losses = f"{found['first_loss']:.5f} | {found['last_loss']:.5f}"
        lines.append(f"| {name} | {rates} | {found['peak_mb']} | {losses} | {faster} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    with Path("/proc/meminfo").open() as file:
        memory = int(file.readline().split()[1]) // 1_000_000
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = model[0].split(":")[1].strip() if model else platform.machine()
    return {"processor": name, "cpus": os.cpu_count(), "memory_gb": memory, "load": round(os.getloadavg()[0], 1)}


def chosen(told: Sequence[str]) -> list[str]:
    """The racers whose names begin so, and Sightline, whom all are compared with; raises ValueError for no racer's."""
    for begin in told:
        if not any(name.startswith(begin) for name in RACERS):
            raise ValueError(f"{begin!r} begins no racer's name; there are: {'; '.join(RACERS)}")
    return [name for name in RACERS if name == "sightline" or name.startswith(tuple(told))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--racers", nargs="+", default=list(RACERS), help="names, or how they begin; Sightline always")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of each turn")
    parser.add_argument("--folder", type=Path, help="where the world is, or will be (default: made anew)")
    parser.add_argument(
        "--together", type=int, default=6, help="racers held at once: more need more memory, 4 GB each in batches of 8"
    )
    parser.add_argument("--keep-going", action="store_true", help="leave a racer out that fails, and race the others")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that gets them (default: %(default)s)")
    args = parser.parse_args()
    if args.together < 2:
        parser.error("--together: a race needs two at least")
    if args.rounds < 1 or args.steps < 1:
        parser.error("--rounds and --steps: at least 1")
    try:
        names = chosen(args.racers)
    except ValueError as error:
        parser.error(f"--racers: {error}")
    environments.TABLE.update(tomllib.loads((HERE / "environments.toml").read_text()))
    work = Path(tempfile.mkdtemp(prefix="sightline-race-"))
    folder = args.folder or work / "world"
    if not folder.exists():
        print("making the world", flush=True)
        subprocess.run([sys.executable, HERE / "world.py", folder], check=True, stdout=subprocess.DEVNULL)
    found = json.loads(args.results.read_text()) if args.results.exists() else {}
    for mode in args.modes:
        results = heats(
            names,
            mode,
            args.together,
            work,
            folder=folder,
            rounds=args.rounds,
            steps=args.steps,
            keep_going=args.keep_going,
        )
        print(table(mode, results), flush=True)
        versions = environments.TABLE | {"sightline": {"requirements": ["this version"]}}
        required = {name: versions[RACERS[name][0] or "sightline"]["requirements"] for name in names}
        found[mode] = {"results": results, "versions": required, "machine": machine()}
        args.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
