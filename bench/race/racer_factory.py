"""LLaMA-Factory's `llamafactory-cli train`: racer_factory.py FOLDER MODE WORK_DIR ROWS_AT_ONCE

Its arguments, model, adapters, image plugin, collation and trainer are its own; the rows come as a data set that is
tokenised already (`tokenized_path`), written from tokens.json. It accumulates means of passes: row by row it weighs
rows alike, not targets, so that its gradients are others; the loss that is reported is the mean over targets.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from llamafactory.train.tuner import run_exp
from turns import report_steps_of_trainer

GLOBAL_BATCH = 8
MODES: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full", "freeze_language_model": False, "freeze_multi_modal_projector": False},
    "frozen": {"finetuning_type": "full", "freeze_language_model": True, "freeze_multi_modal_projector": False},
    "lora": {
        "finetuning_type": "lora",
        "lora_target": "all",
        "additional_target": "multi_modal_projector",
        "lora_rank": 128,
        "lora_alpha": 256,
        "lora_dropout": 0.0,
    },
}


def write_tokenised(folder: Path, tokenised: Path) -> None:
    """The rows as LLaMA-Factory keeps them once they are tokenised; pictures by their paths."""
    rows = [
        {
            "input_ids": row["ids"],
            "attention_mask": [1] * len(row["ids"]),
            "labels": row["labels"],
            "images": [str(folder / "images" / row["image"])] if row["image"] else None,
        }
        for row in json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    ]
    Dataset.from_list(rows).save_to_disk(tokenised)


def main(folder: Path, mode: str, work: Path, at_once: int) -> None:
    write_tokenised(folder, work / "tokenised")
    passes = GLOBAL_BATCH // at_once
    settings = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(folder / "hf"),
        "template": "llava",
        "dataset": "rows",  # asked for, never read
        "tokenized_path": str(work / "tokenised"),
        "output_dir": str(work / "output"),
        "flash_attn": "sdpa",
        "use_cpu": True,
        "freeze_vision_tower": True,
        "disable_gradient_checkpointing": True,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": passes,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "disable_shuffling": True,
        "dataloader_num_workers": 1,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        **MODES[mode],
    }
    report_steps_of_trainer(alike=passes)
    run_exp(settings)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
