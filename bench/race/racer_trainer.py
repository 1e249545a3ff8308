"""transformers' Trainer, or TRL's on the same batches.

racer_trainer.py FOLDER MODE WORK_DIR trainer|trl ROWS_AT_ONCE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from samples import Collate, Samples, model_of
from turns import report_steps_of_trainer

GLOBAL_BATCH = 8


def in_order(self: Any, *_: Any) -> torch.utils.data.Sampler[int]:
    return torch.utils.data.SequentialSampler(self.train_dataset)


def main(folder: Path, mode: str, work_dir: str, which: str, at_once: int) -> None:
    if which == "trl":
        from trl import SFTConfig as Arguments
        from trl import SFTTrainer as Trainer

        own: dict[str, Any] = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    else:
        from transformers import Trainer
        from transformers import TrainingArguments as Arguments

        own = {}
    arguments = Arguments(
        output_dir=work_dir,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=GLOBAL_BATCH // at_once,
        num_train_epochs=1,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_num_workers=1,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        **own,
    )
    Trainer._get_train_sampler = in_order
    model = model_of(folder, mode)
    samples: Any = Samples(folder)
    named = {}
    if which == "trl":
        samples, named = as_dataset(samples), {"processing_class": processor(folder)}
    trainer = Trainer(model=model, args=arguments, data_collator=Collate(folder), train_dataset=samples, **named)
    report_steps_of_trainer()
    trainer.train()


def as_dataset(samples: Samples) -> Any:
    """The only kind that TRL takes; pictures are opened when a row is asked for, here too."""
    from datasets import Dataset

    names = [{"number": number} for number in range(len(samples))]

    def read(batch: dict[str, Any]) -> dict[str, Any]:
        rows = [samples[number] for number in batch["number"]]
        return {key: [row[key] for row in rows] for key in rows[0]}

    return Dataset.from_list(names).with_transform(read)


def processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder / "hf")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
