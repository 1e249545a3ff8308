"""XTuner 0.2's model, data and loop: racer_xtuner.py FOLDER MODE WORK_DIR ROWS_AT_ONCE

The runner of mmengine is started as `xtuner train` does it, with a hook that reports each step; the rows come as texts
that are processed already (`offline_processed_text_folder`), written from tokens.json. It accumulates means of passes:
row by row it weighs rows alike, not targets, so that its gradients are others; the loss that is reported is the mean
over targets.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from safetensors.torch import load_file
from turns import over_targets, report
from xtuner.utils import IMAGE_TOKEN_INDEX

GLOBAL_BATCH = 8


class Reports(Hook):
    """Says after each step what its loss was."""

    def __init__(self, passes: int) -> None:
        self.passes = passes
        self.losses: list[float] = []
        self.targets: list[int] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append(float(outputs["loss"]))
        self.targets.append(int((data_batch["data"]["labels"][:, 1:] != -100).sum()))
        if len(self.losses) == self.passes:
            report(loss=over_targets(self.losses, self.targets), targets=sum(self.targets))
            self.losses, self.targets = [], []


def write_projector(folder: Path, work: Path) -> Path:
    """The projector that all begin with, under XTuner's names."""
    tensors: dict[str, torch.Tensor] = {}
    for file in (folder / "hf").glob("*.safetensors"):
        tensors |= load_file(file)
    path = work / "projector.pth"
    numbers = {"linear_1": 0, "linear_2": 2}
    torch.save(
        {
            f"projector.model.{number}.{kind}": tensors[f"multi_modal_projector.{name}.{kind}"]
            for name, number in numbers.items()
            for kind in ("weight", "bias")
        },
        path,
    )
    return path


def write_texts(folder: Path, texts: Path) -> None:
    """The rows as XTuner keeps them once they are processed: one id for a whole picture."""
    feature = json.loads((folder / "hf" / "config.json").read_text(encoding="utf-8"))["image_token_index"]
    rows = []
    for row in json.loads((folder / "tokens.json").read_text(encoding="utf-8")):
        pairs = zip(row["ids"], row["labels"], strict=True)
        kept: list[tuple[int, int]] = []
        for is_feature, run in itertools.groupby(pairs, lambda pair: pair[0] == feature):
            kept += [(IMAGE_TOKEN_INDEX, -100)] if is_feature else run
        ids, labels = zip(*kept, strict=True)
        rows.append({"image": row["image"], "input_ids": ids, "labels": labels})
    Dataset.from_list(rows).save_to_disk(texts)


def main(folder: Path, mode: str, work: Path, at_once: int) -> None:
    work.mkdir(parents=True)
    write_projector(folder, work)
    write_texts(folder, work / "texts")
    words = {
        "FOLDER": str(folder),
        "WORK": str(work),
        '"FREEZE_LLM"': str(mode != "full"),
        '"LORA"': "lora" if mode == "lora" else "None",
        '"AT_ONCE"': str(at_once),
        '"PASSES"': str(GLOBAL_BATCH // at_once),
    }
    text = Path(__file__).with_name("xtuner_config.py").read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(word, value)
    (work / "config.py").write_text(text, encoding="utf-8")
    config = Config.fromfile(work / "config.py")
    config.work_dir = str(work)
    runner = Runner.from_cfg(config)
    runner.register_hook(Reports(GLOBAL_BATCH // at_once))
    runner.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
