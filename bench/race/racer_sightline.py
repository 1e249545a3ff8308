"""Sightline's `train`, step after step: racer_sightline.py FOLDER MODE WORK_DIR [a.b=c ...]"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from turns import report
from world import recipe

from sightline.train.loop import train
from sightline.train.metrics import Log

plain = Log.step


def step(self: Log, **facts: Any) -> None:
    plain(self, **facts)
    report(loss=facts["loss"], targets=facts["targets"], tokens=facts["tokens"])


if __name__ == "__main__":
    Log.step = step  # type: ignore[method-assign]
    folder, mode, work_dir, *settings = sys.argv[1:]
    train(recipe(Path(folder), mode, f"model.projector_from={folder}/hf", *settings), work_dir)
