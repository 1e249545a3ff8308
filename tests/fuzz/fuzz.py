"""Tries files that were made to harm, for some minutes, and tells what they did: `make fuzz MINUTES=5 SEED=1`.

Each try changes a good file of one form, by a seed, and runs a command on it in a process of its own. What must not
happen: a traceback, a hang, memory without bound, a foreign program, control characters on the terminal, lost texts.
Inputs that fail are made smaller and kept, with the command to try them again. Exit code 1 where there was any.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import conftest  # noqa: E402, F401 - nothing is fetched, and the cache is a folder of its own
from forms import Form, changed, forms  # noqa: E402
from judge import Ended, run, verdict  # noqa: E402
from mutate import Mutation  # noqa: E402

MOST = 50_000_000
"""Bytes that changes may make of a file."""


def main() -> int:
    """Fuzz, print what happened, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--only", nargs="+", help="names of forms")
    parser.add_argument("--first", type=int, default=0, help="number of the first try, to repeat one")
    parser.add_argument("--tries", type=int, default=None, help="so many at most")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for inputs that fail")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="sightline-fuzz-") as place:
        known = [form for form in forms(Path(place, "world")) if not args.only or form.name in args.only]
        for form in known:
            check(form, Path(place))
        drawn = [form for form in known for _ in range(form.weight)]
        until = time.monotonic() + 60 * args.minutes
        tried: Counter[str] = Counter()
        codes: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        number = args.first
        while time.monotonic() < until and (args.tries is None or sum(tried.values()) < args.tries):
            form = random.Random(f"{seed}/{number}").choice(drawn)
            ended, found, kept = attempt(form, seed, number, Path(place), args.keep)
            tried[form.name] += 1
            codes[f"{form.name} {ended.code}"] += 1
            if found:
                failed[f"{form.name}: {found[:160]}"] += 1
                print(f"FAILED {form.name}, try {number}: {found}; kept in {kept}", flush=True)
            number += 1
    print(f"\n{'form':<12} {'inputs':>7} {'taken':>7} {'refused':>8} {'failed':>7}")
    for form in known:
        bad = sum(count for what, count in failed.items() if what.startswith(f"{form.name}: "))
        good, refused = codes[f"{form.name} 0"], codes[f"{form.name} 2"]
        print(f"{form.name:<12} {tried[form.name]:>7} {good:>7} {refused:>8} {bad:>7}")
    print(f"{sum(tried.values())} inputs, {sum(failed.values())} failures of {len(failed)} kinds, seed {seed}")
    return 1 if failed else 0


def check(form: Form, place: Path) -> None:
    """Raise AssertionError where a form's good files are not all taken: then nothing could be said of bad ones."""
    for draw, name in enumerate(form.files):
        ended, found, _ = tried(form, name, [], random.Random(draw), place)
        assert (ended.code, found) == (0, None), f"the good {name} of {form.name}: {found}\n{ended.output}"


def tried(
    form: Form, name: str, changes: Sequence[Mutation], rng: random.Random, place: Path
) -> tuple[Ended, str | None, bytes]:
    """Run a form's command on its folder, one file of it changed: how it ended, what is wrong, what the file was."""
    folder = place / "try"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(form.folder, folder)
    bad = (form.folder / name).read_bytes()
    for change in changes:
        bad = change(bad)[:MOST]
    (folder / name).write_bytes(bad)

    def work() -> tuple[int, str]:
        changed(name)
        return form.run(folder, rng)

    ended = run(work, place / "output")
    return ended, verdict(ended), bad


def attempt(form: Form, seed: int, number: int, place: Path, keep: Path) -> tuple[Ended, str | None, Path | None]:
    """One try of a form: how it ended, what is wrong with that, and where the smallest input that does it is kept."""
    rng = random.Random(f"{seed}/{number}/{form.name}")
    name = rng.choice(form.files)
    changes = list(rng.choice(form.changes)((form.folder / name).read_bytes(), rng))
    draw = rng.random()
    ended, found, bad = tried(form, name, changes, random.Random(draw), place)
    if not found:
        return ended, None, None
    for change in list(changes):  # the fewest changes that still fail
        fewer = [other for other in changes if other is not change]
        again = tried(form, name, fewer, random.Random(draw), place) if fewer else (ended, None, b"")
        if again[1]:
            changes, bad = fewer, again[2]
    kept = keep / f"{form.name}-{seed}-{number}"
    kept.mkdir(parents=True, exist_ok=True)
    (kept / Path(name).name).write_bytes(bad)
    command = f"make fuzz SEED={seed} FUZZ='--first {number} --tries 1{_only()}'"
    (kept / "README.txt").write_text(
        f"{found}\n\n{command}\n\n{ended.output[-4000:]}\n", encoding="utf-8", errors="replace"
    )
    return ended, found, kept


def _only() -> str:
    given = sys.argv[1:]
    return f" --only {given[given.index('--only') + 1]}" if "--only" in given else ""


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
