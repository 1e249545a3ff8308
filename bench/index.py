"""How fast a data set of LLaVA's size is indexed: writes one, looks at it, is killed, goes on, starts again.

    python bench/index.py --rows 665000        # about 1 GB of JSON, 20 minutes on 2 cores; result in bench/results

The rows are made up in the proportions of LLaVA's mix665k: 6 % text-only and long, a quarter long answers about one
picture, the rest short questions and answers of many turns. The pictures are a few thousand JPEG files under many
names, so they are read from the page cache: on a slow disk the disk decides.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from mixture import conversations, draw_turns, made_up_words, speaker

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "index.json"
MAX_LENGTH, FEATURES = 2048, 576


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=665_000)
    parser.add_argument("--pictures", type=int, default=3_000, help="different JPEG files")
    parser.add_argument("--tokenizer", choices=("llama2", "llama3"), default="llama2", help="the kind of BPE")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/sightline-bench-index"))
    parser.add_argument("--rate-only", action="store_true", help="measure the rate again, and keep the rest")
    parser.add_argument("--stage", choices=("open", "rate", "pass"), help="used by the bench itself")
    args = parser.parse_args()
    if args.stage is not None:
        print(json.dumps(STAGES[args.stage](args)), flush=True)
        return
    write_data(args.folder, args.rows, args.pictures)
    write_tokenizer(args.folder, args.tokenizer)
    RESULT.parent.mkdir(exist_ok=True)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    facts: dict[str, Any] = results.setdefault(f"{args.tokenizer}, {args.rows} rows", {})
    if not args.rate_only:
        shutil.rmtree(args.folder / "cache", ignore_errors=True)
        facts |= {"rows": args.rows, "file_mb": round((args.folder / "data.json").stat().st_size / 1e6)}
        facts["open_cold"] = stage(args, "open")
        facts["open_again"] = stage(args, "open")
    facts["rate"] = stage(args, "rate")
    if not args.rate_only:
        facts["killed"] = stage(args, "pass", kill_at=0.25)
        facts["went_on"] = stage(args, "pass")
        facts["second_start"] = stage(args, "pass")
    facts["machine"] = machine()
    RESULT.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


def stage(args: argparse.Namespace, name: str, kill_at: float | None = None) -> dict[str, Any]:
    """Run a stage in a process of its own and watch its memory and its children's; or kill it at a share of rows."""
    command = [sys.executable, __file__, "--stage", name, "--folder", args.folder, "--rows", args.rows]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "SIGHTLINE_CACHE": str(args.folder / "cache")}
    environment["OMP_NUM_THREADS"] = "1"
    begun = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, env=environment)
    peak = {"resident_mb": 0, "private_mb": 0}
    done = threading.Event()
    thread = threading.Thread(target=watch, args=(process.pid, peak, done))
    thread.start()
    if kill_at is not None:
        while process.poll() is None and blocks(args.folder) * 1024 < kill_at * args.rows:
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    seconds = time.monotonic() - begun
    done.set()
    thread.join()
    load = round(os.getloadavg()[0], 1)  # of everything on the machine; more than its cores means that it is shared
    result = {"process_seconds": round(seconds, 2), "peak_of_any_process": peak, "load_average": load}
    if kill_at is not None:
        time.sleep(3)
        return result | {"rows_stored": blocks(args.folder) * 1024, "left_running": len(family(process.pid))}
    if process.returncode:
        raise SystemExit(f"stage {name} ended with {process.returncode}")
    return json.loads(output) | result


def blocks(folder: Path) -> int:
    return sum(1 for _ in (folder / "cache").rglob("*.npz"))


def family(pid: int) -> list[int]:
    """Processes of a process group's bench: the process, its children and theirs, also after its death."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"bench/index.py" in command and b"--stage" in command:
                found.append(int(entry.name))
    return found


def watch(pid: int, peak: dict[str, int], done: threading.Event) -> None:
    while not done.wait(0.2):
        for one in family(pid):
            try:
                lines = Path(f"/proc/{one}/status").read_text().splitlines()
            except OSError:
                continue
            kb = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "RssAnon"))}
            peak["resident_mb"] = max(peak["resident_mb"], kb.get("VmRSS", 0) // 1000)
            peak["private_mb"] = max(peak["private_mb"], kb.get("RssAnon", 0) // 1000)


def open_stage(args: argparse.Namespace) -> dict[str, Any]:
    from sightline.data.sources import open_rows
    from sightline.runtime import cache_folder

    begun = time.perf_counter()
    rows = open_rows(args.folder / "data.json", cache_folder() / "index")
    return {"seconds": round(time.perf_counter() - begun, 2), "rows": len(rows)}


def rate_stage(args: argparse.Namespace) -> dict[str, Any]:
    """Some rows, few enough to find the machine quiet; nothing is kept."""
    from sightline.data.sources import open_rows

    rows = min(args.rows, 100_000)
    before = loop_ms()
    with tempfile.TemporaryDirectory() as cache:
        open_rows(args.folder / "data.json", Path(cache))
        _, measured = index(args, rows, rows, Path(cache))
    return {**measured, "empty_loop_ms": [before, loop_ms()]}


def pass_stage(args: argparse.Namespace) -> dict[str, Any]:
    from sightline.runtime import cache_folder

    dataset, measured = index(args, args.rows, max(0, args.rows - blocks(args.folder) * 1024), cache_folder() / "index")
    check(dataset, args.folder)
    return {**dataset.facts(), **measured}


def index(args: argparse.Namespace, head: int, new: int, cache: Path | None) -> tuple[Any, dict[str, Any]]:
    """Index the first rows, of which `new` are looked at, as a run does it before it begins."""
    from transformers import PreTrainedTokenizerFast

    from sightline.data.dataset import open_dataset
    from sightline.prompt.prompter import Prompter, template_named
    from sightline.recipe import DataRecipe
    from sightline.runtime import console

    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.folder / "tokenizer")
    prompter = Prompter(tokenizer, template_named("vicuna"), None, FEATURES)
    data = {"path": str(args.folder / "data.json"), "images": str(args.folder / "images"), "head": head}
    cpu_before, begun = cpu_seconds(), time.perf_counter()
    dataset = open_dataset((DataRecipe.model_validate(data),), prompter, MAX_LENGTH, console, cache=cache)
    dataset.fingerprint  # noqa: B018  a run computes it too
    seconds = time.perf_counter() - begun
    cpu = cpu_seconds() - cpu_before
    measured = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 1), "rows_looked_at": new}
    rates = {"rows_per_second": round(new / seconds), "rows_per_cpu_second": round(new / cpu)}
    return dataset, measured | (rates if new else {})


def cpu_seconds() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def loop_ms() -> float:
    """200,000 empty rounds of a loop, the best of 30 times: tells how much of a core a process really gets."""
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        for _ in range(200_000):
            pass
        times.append(time.perf_counter() - begun)
    return round(min(times) * 1e3, 1)


def check(dataset: Any, folder: Path) -> None:
    """What the index says is what was written, and what the prompter says of a few rows."""
    written = json.loads((folder / "written.json").read_text())
    assert dataset.facts()["images"] == written["images"], (dataset.facts(), written)
    assert dataset.facts()["text_only_rows"] == written["text_only"]
    assert not dataset.bad_rows, dataset.bad_rows[:3]
    for sample in random.Random(0).sample(range(len(dataset)), 50):
        encoded = dataset.encode(sample)
        assert (len(encoded.ids), encoded.num_targets) == (dataset.tokens[sample], dataset.targets[sample])


STAGES = {"open": open_stage, "rate": rate_stage, "pass": pass_stage}


def write_data(folder: Path, rows: int, pictures: int) -> None:
    """Rows and pictures; what is there already stays."""
    if (folder / "written.json").exists() and json.loads((folder / "written.json").read_text())["rows"] == rows:
        return
    print(f"writing {rows:,} rows to {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    originals = write_pictures(folder / "originals", pictures)
    rng = random.Random(0)
    text = made_up_words(rng, rare=8_000)
    say = speaker(rng, text)
    written = {"rows": rows, "images": 0, "text_only": 0}
    with (folder / "data.json").open("w", encoding="utf-8") as file:
        for number in range(rows):
            row: dict[str, Any] = {"id": f"{number:012}"}
            picture, turns = draw_turns(rng, say, text_turns=5)
            if picture:
                place = f"set{number % 7}/{number:012}.jpg"
                target = folder / "images" / place
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(originals[number % len(originals)], target)
                row["image"] = place
            written["images" if picture else "text_only"] += 1
            row["conversations"] = conversations(turns, picture)
            file.write(("[" if number == 0 else ", ") + json.dumps(row))
        file.write("]")
    (folder / "corpus.txt").write_text(" ".join(text))
    (folder / "written.json").write_text(json.dumps(written))


def write_pictures(folder: Path, count: int) -> list[Path]:
    """JPEG files of 320 x 240 px and about 20 KB; the file system allows only so many names for one."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.jpg")
        small.resize((320, 240), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def write_tokenizer(folder: Path, kind: str) -> None:
    """A BPE of 8,000 tokens that works as Llama-2's does (a whole text at once) or as Llama-3's (word by word)."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    settings: dict[str, Any] = {"vocab_size": 8_000, "special_tokens": special, "show_progress": False}
    corpus = (folder / "corpus.txt").read_text()
    if kind == "llama3":
        tokenizer = Tokenizer(models.BPE())
        pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        settings["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(
        [corpus, corpus.title(), "USER: ASSISTANT: A chat between a"], trainers.BpeTrainer(**settings)
    )
    if kind == "llama2":
        tokenizer.pre_tokenizer = None
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "tokenizer")


def machine() -> dict[str, Any]:
    from importlib import metadata

    names = ("numpy", "pillow", "tokenizers", "transformers")
    with Path("/proc/meminfo").open() as file:
        memory = int(file.readline().split()[1]) // 1_000_000
    versions = {name: metadata.version(name) for name in names}
    return {"cpus": os.cpu_count(), "memory_gb": memory, "python": sys.version.split()[0], **versions}


if __name__ == "__main__":
    main()
