"""What tests do with runs: interrupt them, and read what they left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sightline.model.load import VLM

SHORT = ["tune.llm=lora", "tune.llm_lora.r=4", "optim.max_steps=4", "run.save_every=2", "run.keep=3"]
"""A short run that saves in the middle: what is changed in the recipe for it."""


class Interrupted(Exception):
    """Ends a run from outside, as Ctrl-C does."""


def until(last: int) -> Callable[[int, VLM], None]:
    """An `after_step` that interrupts the run after so many steps."""

    def stop(step: int, vlm: VLM) -> None:
        if step == last:
            raise Interrupted

    return stop


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in log(run)]


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, but for the note of what a conversion was made of."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "conversion.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def half_written(folder: Path) -> Path:
    """What a process leaves that is killed while it writes a folder."""
    before = set(folder.parent.glob(".*"))
    code = (
        "import os, signal, sys, pathlib; from sightline.files import appearing\n"
        "with appearing(pathlib.Path(sys.argv[1]), needs=0, replace=True) as new:\n"
        "    (new / 'rubbish').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", code, str(folder)], check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    (left,) = set(folder.parent.glob(".*")) - before
    return left
