"""What each lever brings by itself: Sightline beside Sightline with one of them taken away, or one more pulled.

    python bench/race/ablation.py                      # half an hour on two slow cores; bench/results/ablation.json
    python bench/race/ablation.py --levers "without packing" --rounds 3

Each pair runs as in the race: both are started and held, then one after the other runs on alone for a step.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import race
from racer_lever import CHANGES, SETTINGS

RESULTS = race.ROOT / "bench" / "results" / "ablation.json"
LEVERS = [*CHANGES, *SETTINGS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levers", nargs="+", choices=LEVERS, default=LEVERS, metavar="LEVER")
    parser.add_argument("--mode", choices=race.MODES, default="full")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="of each turn")
    parser.add_argument("--folder", type=Path, help="where the world is, or will be (default: made anew)")
    args = parser.parse_args()
    if args.rounds < 1 or args.steps < 1:
        parser.error("--rounds and --steps: at least 1")
    work = Path(tempfile.mkdtemp(prefix="sightline-ablation-"))
    folder = args.folder or work / "world"
    if not folder.exists():
        subprocess.run([sys.executable, race.HERE / "world.py", folder], check=True, stdout=subprocess.DEVNULL)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for lever in args.levers:
        race.RACERS[lever] = (None, ["racer_lever.py", lever])
        (own := work / lever).mkdir()
        results = race.race(["sightline", lever], args.mode, folder, own, args.rounds, args.steps, keep_going=False)
        print(race.table(args.mode, results), flush=True)
        found.setdefault(args.mode, {})[lever] = results | {"machine": race.machine()}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
