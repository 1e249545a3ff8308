"""What share of a training step waits for data: JPEGs of COCO's size, a small model, the log of real runs.

    OMP_NUM_THREADS=1 python bench/waiting.py      -> a table, and bench/results/waiting.json; a minute or two

Runs `sightline train` without a worker process, so that the log tells what loading costs, and with one, so that it
tells what is left of it. The model is far smaller than any that people train, and pictures come as fast: on a larger
one, a worker has more time for each.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from pixels import photograph
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

PICTURES, BATCH, STEPS, WARM = 24, 6, 10, 4
"""The first steps are left out: a worker is ahead only when it has begun."""
ANSWER = "A photograph of a cloud in many colours, which has nothing to do with the sea, the hills or a town. " * 2
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "waiting.json"


def write_model(folder: Path) -> dict[str, str]:
    """A CLIP of 336 px, 576 features a picture, and a Llama, both of a few layers."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([ANSWER], trainer)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}
    llama = LlamaConfig(vocab_size=len(fast), num_hidden_layers=4, max_position_embeddings=2048, **sizes)
    clip = CLIPVisionConfig(image_size=336, patch_size=14, num_hidden_layers=3, **sizes)
    crop = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    for part in (LlamaForCausalLM(llama), fast):
        part.save_pretrained(folder / "llm")
    for part in (CLIPVisionModel(clip), CLIPImageProcessorPil(**crop)):
        part.save_pretrained(folder / "tower")
    return {"llm": str(folder / "llm"), "vision_tower": str(folder / "tower"), "template": "vicuna"}


def write_data(folder: Path) -> dict[str, str]:
    """A picture and an answer a row; as in COCO, two in three pictures are wide, the others tall."""
    (folder / "images").mkdir()
    rows = []
    for number in range(PICTURES):
        size = (480, 640) if number % 3 == 2 else (640, 480)
        (folder / "images" / f"{number}.jpg").write_bytes(photograph(*size, seed=number))
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": ANSWER}]
        rows.append({"image": f"{number}.jpg", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(rows))
    return {"path": str(folder / "data.json"), "images": str(folder / "images")}


def measure(folder: Path, recipe: dict[str, Any], workers: int) -> dict[str, Any]:
    """Train for a few steps; what the run's own log says of them."""
    path, run = folder / f"recipe-{workers}.yaml", folder / f"run-{workers}"
    path.write_text(yaml.safe_dump(recipe | {"batch": {**recipe["batch"], "workers": workers}}))
    command = [sys.executable, "-m", "sightline", "train", str(path), "--work-dir", str(run)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "SIGHTLINE_CACHE": str(folder / "cache")}
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()][WARM:]
    seconds = sum(step["seconds"] for step in steps)
    waited = sum(step["seconds"] * step["data_share"] for step in steps)
    pictures = sum(step["samples"] for step in steps)
    return {
        "share_waiting": round(waited / seconds, 4),
        "of_the_worst_step": max(step["data_share"] for step in steps),
        "ms_a_picture": round(seconds / pictures * 1e3, 1),
        "ms_waited_a_picture": round(waited / pictures * 1e3, 2),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="sightline-waiting-") as name:
        folder = Path(name)
        recipe = {
            "model": write_model(folder),
            "tune": {"llm": "full", "vision_tower": "frozen", "projector": "full"},
            "data": [write_data(folder)],
            "batch": {"global_batch": BATCH, "max_length": 2048},
            "optim": {"lr": 1.0e-4, "epochs": STEPS * BATCH / PICTURES, "max_steps": STEPS},
            "engine": {"device": "cpu"},
        }
        found = {f"workers={workers}": measure(folder, recipe, workers) for workers in (0, 1)}
    print(f"{'':10} {'waiting':>8} {'a picture':>10} {'of it waited':>13}")
    for title, case in found.items():
        print(
            f"{title:10} {case['share_waiting']:8.1%} {case['ms_a_picture']:7.1f} ms "
            f"{case['ms_waited_a_picture']:10.2f} ms"
        )
    document = {
        "notes": "share of the time of a step that waits for its batch, as log.jsonl has it (data_share), over "
        f"{STEPS - WARM} steps of {BATCH} rows with a picture each; a load_average above the number of "
        "cores: the machine was shared with other work, so trainer and worker did not have a core each",
        "pictures": "JPEG, 640 x 480 and 480 x 640, about 170 KB",
        "cases": found,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("pillow", "numpy", "torch", "transformers")},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
