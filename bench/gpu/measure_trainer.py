"""Steps of transformers' Trainer on a case, timed: measure_trainer.py JOB RESULT

The same model with the same adapters, the same rows in the same steps. Batches are padded, as transformers does it, but
the rows of a step are sorted by length first, which is kinder to it than its own grouping, and they lie ready too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from built import World, build
from job import Job, clock, forget_peak, memory, rates, run
from rows import Row, steps_of
from transformers import Trainer, TrainerCallback, TrainingArguments

from sightline.model.tune import settle
from sightline.types import IGNORE


class Reporting(Trainer):
    """Takes the batches in their order, and adds up the losses of a step's batches."""

    total: torch.Tensor | float = 0.0

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *args: Any, **named: Any) -> torch.Tensor:
        loss = super().training_step(*args, **named)
        self.total = self.total + loss.detach()
        return loss


class Times(TrainerCallback):
    """When each step was done, and its loss."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.trainer: Reporting | None = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        forget_peak(self.device)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.trainer is not None
        self.losses.append(float(self.trainer.total))
        self.trainer.total = 0.0
        self.ends.append(clock(self.device))


def measure(job: Job) -> dict[str, Any]:
    world = build(job)
    settle(world.vlm.model, world.dtype)
    # Trainer says it of the whole model, but the language model goes by its own, and would copy all keys and values.
    world.vlm.model.config.text_config.use_cache = False
    made = list(steps_of(world.rows, job.global_batch))
    batches = [padded(rows, world) for step in made for rows in cut(step, job.at_once)]
    times = Times(world.device)
    recompute = world.recipe.engine.gradient_checkpointing
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,  # an entry of the data set is a whole batch
            gradient_accumulation_steps=len(batches) // len(made),
            max_steps=len(made),
            learning_rate=world.recipe.optim.lr,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            max_grad_norm=world.recipe.optim.clip_grad,
            bf16=world.dtype == torch.bfloat16,
            fp16=world.dtype == torch.float16,
            use_cpu=world.device.type == "cpu",
            gradient_checkpointing=recompute,
            gradient_checkpointing_kwargs={"use_reentrant": False} if recompute else None,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Reporting(
            model=world.vlm.model,
            args=arguments,
            train_dataset=batches,
            data_collator=lambda entries: entries[0],
            callbacks=[times],
        )
        times.trainer = trainer
        trainer.train()
    timed = made[job.warm :]
    return {
        **rates(
            times.ends[job.warm - 1 :],
            [sum(len(row.encoded.ids) for row in rows) for rows in timed],
            [world.operations_of(rows) for rows in timed],
            rows=job.global_batch,
            flops=job.flops,
        ),
        **memory(world.device),
        "first_loss": times.losses[0],
        "last_loss": times.losses[-1],
        "targets": sum(row.encoded.num_targets for row in made[0]),
        "padding": round(1 - sum(int(b["attention_mask"].sum()) for b in batches) / slots(batches), 4),
    }


def cut(rows: Sequence[Row], at_once: int) -> list[list[Row]]:
    """The batches of a step: the longest rows in the first, where it shows at once whether the card holds them."""
    by_length = sorted(rows, key=lambda row: -len(row.encoded.ids))
    return [by_length[start : start + at_once] for start in range(0, len(rows), at_once)]


def slots(batches: Sequence[dict[str, torch.Tensor]]) -> int:
    return sum(batch["input_ids"].numel() for batch in batches)


def padded(rows: Sequence[Row], world: World) -> dict[str, torch.Tensor]:
    """What transformers' models take."""
    longest = max(len(row.encoded.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        length = len(row.encoded.ids)
        ids[number, :length] = torch.from_numpy(row.encoded.ids)
        labels[number, :length] = torch.from_numpy(row.encoded.labels)
        mask[number, :length] = 1
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    pictures = [world.vlm.prompter.pixel_values(row.pixels) for row in rows if row.pixels is not None]
    if pictures and world.vlm.prompter.tiles is None:
        batch["pixel_values"] = torch.cat(pictures)
    elif pictures:
        batch["pixel_values"] = torch.nn.utils.rnn.pad_sequence(pictures, batch_first=True)
        sizes = [(height, width) for row in rows for width, height in row.encoded.sizes]
        batch["image_sizes"] = torch.tensor(sizes)
    return {name: tensor.pin_memory() for name, tensor in batch.items()} if world.device.type == "cuda" else batch


if __name__ == "__main__":
    run(measure)
