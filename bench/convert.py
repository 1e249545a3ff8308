"""How fast, and in how much memory, a model of real size is converted: against a plain copy of its files.

    python bench/convert.py --size 7b         # writes 14 GB, needs 45 GB of disk; result in bench/results/convert.json

The weights are made up: a block of noise, repeated in the shapes of LLaVA-1.5. Converted with --no-verify, because
computing logits of such a model takes more memory than most machines without a GPU have.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "convert.json"
SIZES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "3b": {"hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 32, "num_attention_heads": 20},
    "small": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "num_attention_heads": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--to", nargs="+", default=["huggingface", "official", "xtuner", "gguf"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/sightline-bench-convert"))
    args = parser.parse_args()
    source = args.folder / f"llava-{args.size}"
    if not (source / "config.json").is_file():
        make(source, SIZES[args.size])
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    shard = max(file.stat().st_size for file in source.glob("*.safetensors"))
    results: dict[str, Any] = {"gigabytes": round(size / 1e9, 2), "largest_shard": round(shard / 1e9, 2)}
    print(results, flush=True)
    for to in args.to:
        rounds = []
        for _ in range(args.rounds):
            copied = copy_seconds(source, args.folder / "copy")
            measured = convert(source, args.folder / "out", to)
            rounds.append(measured | {"copy_seconds": copied, "times_a_copy": round(measured["seconds"] / copied, 2)})
            print(to, rounds[-1], flush=True)
        # What the disk does changes from minute to minute: the middle round tells most.
        rounds.sort(key=lambda one: one["times_a_copy"])
        spread = [rounds[0]["times_a_copy"], rounds[-1]["times_a_copy"]]
        results[to] = rounds[len(rounds) // 2] | {"rounds": len(rounds), "least_and_most": spread}
    results["load_average"] = round(os.getloadavg()[0], 1)
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps(known | {args.size: results}, indent=2) + "\n")


def make(folder: Path, llm: dict[str, int]) -> None:
    """Write a LLaVA-1.5 of noise in float16, file by file."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from sightline.convert.source import hub_shapes
    from sightline.demo.language import train_tokenizer
    from sightline.model.save import hub_config, write_json, write_processor
    from sightline.prompt.prompter import Prompter, template_named

    tokenizer = train_tokenizer(0)
    tokenizer.add_tokens(["<image>", "<pad>"], special_tokens=True)
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=LlamaConfig(vocab_size=32064, **llm).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    noise = (torch.randn(1 << 26, generator=torch.Generator().manual_seed(0)) * 0.02).half()
    table, shard, number, held = {}, {}, 0, 0
    shapes = list(hub_shapes(config).items())
    for at, (name, shape) in enumerate(shapes):
        count = int(torch.Size(shape).numel())
        shard[name] = noise.repeat(-(-count // len(noise)))[:count].view(shape).clone()
        table[name], held = f"model-{number:05d}.safetensors", held + 2 * count
        if held > 4.5e9 or at == len(shapes) - 1:
            save_file(shard, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
            shard, number, held = {}, number + 1, 0
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": table})
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    prompter = Prompter(tokenizer, template_named("vicuna"), processor, tokens_per_image=576)
    write_processor(prompter, config, folder)
    write_json(folder / "config.json", hub_config(config.to_dict(), torch.float16))


def forget(folder: Path) -> None:
    """Let the files be read from the disk again, not from memory."""
    os.sync()
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def copy_seconds(source: Path, out: Path) -> float:
    """What it takes to copy the files, from disk to disk."""
    shutil.rmtree(out, ignore_errors=True)
    forget(source)
    began = time.perf_counter()
    shutil.copytree(source, out)
    os.sync()
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return round(seconds, 1)


def convert(source: Path, out: Path, to: str) -> dict[str, Any]:
    """Run the command; seconds from disk to disk, and the most memory it held of its own."""
    shutil.rmtree(out, ignore_errors=True)
    forget(source)
    command = [sys.executable, "-m", "sightline", "convert", str(source), str(out), "--to", to, "--no-verify"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = {"RssAnon": 0, "VmRSS": 0}
    watcher = threading.Thread(target=watch, args=(process.pid, peak))
    watcher.start()
    code = process.wait()
    os.sync()
    seconds = time.perf_counter() - began
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    shutil.rmtree(out)
    return {
        "seconds": round(seconds, 1),
        "own_gb": round(peak["RssAnon"] / 1e6, 2),
        "resident_gb": round(peak["VmRSS"] / 1e6, 2),
    }


def watch(pid: int, peak: dict[str, int]) -> None:
    """Note the largest figures of /proc (kB) until the process ends; resident pages of mapped files are the disk's."""
    while True:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        found = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(tuple(peak))}
        if not found:
            return
        for name, kilobytes in found.items():
            peak[name] = max(peak[name], kilobytes)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
