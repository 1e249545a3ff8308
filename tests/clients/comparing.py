"""A script that runs in another program's environment -> what it said; and the same of our own model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from environments import python_of
from trained import QUESTION

from sightline.model.load import VLM
from sightline.prompt.tiles import heights_and_widths
from sightline.types import ImageRef, ask

OWN = "transformers-5_23"
"""Not in the table: the environment that the tests themselves run in."""

FIGURES: list[str] = []
"""What was measured, for the end of the report."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Of vicuna v1, written down from the published template."""


def environment(name: str) -> dict[str, str]:
    """Variables for programs of an environment: nothing of ours can be imported, nothing is fetched."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "PATH": f"{python_of(name).parent}:{kept['PATH']}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run_in(name: str, *command: str | Path, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command in an environment; `python` is its interpreter."""
    python = sys.executable if name == OWN else str(python_of(name))
    words = [python if word == "python" else str(word) for word in command]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"} if name == OWN else environment(name)
    return subprocess.run(words, cwd=cwd, input=stdin, capture_output=True, text=True, env=env, timeout=600)


def said_by(name: str, script: str, asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a script of this folder answers, in an environment."""
    asking, saying = folder / "asked.json", folder / "said.json"
    asking.write_text(json.dumps(asked), encoding="utf-8")
    done = run_in(name, "python", Path(__file__).with_name(script), asking, saying, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(saying.read_text(encoding="utf-8"))
    return said


@torch.inference_mode()
def ours(vlm: VLM, picture: str) -> tuple[list[int], torch.Tensor]:
    """The ids of the question about a picture, and its logits, float32 [T, V]."""
    encoded = vlm.prompter.encode([ask(QUESTION, [ImageRef(picture)])])
    pixels = vlm.prompter.pixel_values(vlm.prompter.pixels(encoded.images))
    sizes = heights_and_widths([encoded])
    more = {"image_sizes": torch.tensor(sizes)} if sizes else {}
    ids = torch.from_numpy(encoded.ids)[None]
    return encoded.ids.tolist(), vlm.model(input_ids=ids, pixel_values=pixels, **more).logits[0]


def difference(theirs: list[list[float]], truth: torch.Tensor) -> float:
    """Between logits of the same positions; of the tokens that both know, for some formats have none for a picture."""
    found = torch.tensor(theirs)
    assert len(found) == len(truth)
    known = min(found.shape[1], truth.shape[1])
    return float((found[:, :known] - truth[:, :known]).abs().max())


def figure(what: str, largest: float, vlm_logits: torch.Tensor) -> None:
    FIGURES.append(f"{what}: logits differ by at most {largest:.2g} (standard deviation {float(vlm_logits.std()):.2g})")
