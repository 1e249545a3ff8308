"""Questions per second of `mmbench`: one by one, and as Sightline does it, alternating in one run, with equal answers.

    OMP_NUM_THREADS=1 python bench/answers.py [--demo work_dirs/demo]     -> a table, and bench/results/answers.json

Made up: a model of 60 M parameters with random weights and a file in MMBench's form (each question in every rotation of
its four options, JPEGs of 640 x 480); an answer is a letter and the end, so two tokens. With --demo also the demo's
model and file, which are small and real.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import os
import random
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mixture import made_up_words
from pixels import photograph

ROUNDS, CIRCLES, BATCH = 5, 12, 16
RESULTS = Path(__file__).parent / "results" / "answers.json"


def write_file(path: Path) -> None:
    """A TSV as MMBench's: picture in base64 in the first row of a circle, its index in the others."""
    rng = random.Random(0)
    words = ["cat", "left", "of", "the", "table", "red", "two", "behind", "window", "man", "holding", "a", "cup"]

    def say(count: int) -> str:
        return " ".join(rng.choices(words, k=count))

    rows = []
    for index in range(CIRCLES):
        picture = base64.b64encode(photograph(640, 480, index)).decode()
        question, options = f"{say(9)}?", [say(rng.randint(1, 6)) for _ in range(4)]
        for shift in range(4):
            image = picture if shift == 0 else str(index)
            turned = [*options[shift:], *options[:shift]]
            rows.append((index + shift * 1_000_000, question, *turned, "ABCD"[-shift % 4], "kind", "kinds", image))
    rows.sort()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["index", "question", *"ABCD", "answer", "category", "l2-category", "image"])
        writer.writerows(rows)


def made_up(folder: Path) -> Path:
    """The model of the race."""
    sys.path.insert(0, str(Path(__file__).parent / "race"))
    import world

    words = made_up_words(random.Random(0), rare=40_000)
    world.write_parts(folder, words)
    (folder / "rows.json").write_text("[]")
    world.write_llava(folder)
    return folder / "hf"


def answers(vlm: Any, tsv: Path, batch_size: int, tokens: int) -> tuple[list[str], float]:
    """The answers, and questions per second."""
    from sightline.evaluate.choice import read_choices, to_question
    from sightline.evaluate.run import answer

    rows, _ = read_choices(tsv)
    questions = [to_question(row) for row in rows]
    begun = time.perf_counter()
    given = answer(vlm, questions, batch_size=batch_size, max_new_tokens=tokens)
    return given, len(questions) / (time.perf_counter() - begun)


def compare(model: Path, tsv: Path, tokens: int) -> dict[str, Any]:
    from sightline.model.load import load

    vlm = load(model, device="cpu")
    rates: dict[int, list[float]] = {1: [], BATCH: []}
    texts: dict[int, list[str]] = {}
    for _ in range(ROUNDS):
        for batch_size, found in rates.items():
            texts[batch_size], rate = answers(vlm, tsv, batch_size, tokens)
            found.append(rate)
    ratios = [many / one for one, many in zip(rates[1], rates[BATCH], strict=True)]
    return {
        "questions": len(texts[1]),
        "equal_answers": sum(a == b for a, b in zip(texts[1], texts[BATCH], strict=True)),
        "one_by_one_per_second": round(statistics.median(rates[1]), 2),
        "sightline_per_second": round(statistics.median(rates[BATCH]), 2),
        "times_as_fast": [round(f(ratios), 2) for f in (statistics.median, min, max)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="the folder of a finished `sightline demo`")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_file(Path(folder) / "choices.tsv")
        model = made_up(Path(folder))
        found["60 M parameters, random"] = compare(model, Path(folder) / "choices.tsv", tokens=2)
    if args.demo is not None:
        found["the demo's"] = compare(args.demo / "finetune" / "hf", args.demo / "world" / "mmbench.tsv", tokens=40)
    for name, case in found.items():
        middle, least, most = case["times_as_fast"]
        print(f"{name}: {case['questions']} questions, {case['equal_answers']} answers equal;", end=" ")
        print(
            f"{case['one_by_one_per_second']} a second one by one, {case['sightline_per_second']} in batches:", end=" "
        )
        print(f"{middle} times as fast ({least} - {most})")
    facts = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "rounds": ROUNDS, "batch_size": BATCH}
    versions = {name: version(name) for name in ("torch", "transformers")}
    RESULTS.write_text(json.dumps(found | {"machine": facts | versions}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
