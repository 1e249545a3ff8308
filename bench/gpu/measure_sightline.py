"""Steps of Sightline on a case, timed: measure_sightline.py JOB RESULT

As `train` makes them, from the plan to the optimiser; only that batches lie ready and nothing is logged or saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from built import World, build
from job import Job, clock, forget_peak, memory, rates, run
from older import adapt
from rows import Row, steps_of
from spent import table_of

from sightline.data.collate import Batch, collate
from sightline.data.plan import Plan
from sightline.model import attention
from sightline.model.attention import packed_attention
from sightline.model.estimate_fit import GIB, USABLE
from sightline.prompt.prompter import Prompter
from sightline.train.engine import Engine
from sightline.train.forecast import layers_recomputed, room_on
from sightline.train.optim import set_rates
from sightline.train.plan_rows import rows_of


def measure(job: Job) -> dict[str, Any]:
    adapt()
    if "varlen" in job.without:
        attention.look = lambda: ()  # nothing here has the kernel
    world = build(job)
    twice = recomputed(world, job)
    engine = Engine(world.vlm, world.groups, world.recipe, recomputed=twice)
    set_rates(engine.optimizer, 1.0)
    made = steps(world, job, pin=engine.choice.pin_memory)
    device = engine.device
    forget_peak(device)
    ends, losses = [], []
    for number, batches in enumerate(made):
        if number == job.warm and job.profile is not None:
            found = table_of(lambda taken=batches: one_step(world, engine, taken), device)
            Path(job.profile).write_text(found, encoding="utf-8")
            return {"profile": job.profile}
        losses.append(one_step(world, engine, batches))
        ends.append(clock(device))
    timed = list(steps_of(world.rows, job.global_batch))[job.warm :]
    return {
        **rates(
            ends[job.warm - 1 :],
            [sum(len(row.encoded.ids) for row in rows) for rows in timed],
            [world.operations_of(rows) for rows in timed],
            rows=job.global_batch,
            flops=job.flops,
        ),
        **memory(device),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "targets": sum(batch.num_targets for batch in made[0]),
        "layers_recomputed": twice,
        "packs": [len(batches) for batches in made],
    }


def recomputed(world: World, job: Job) -> int:
    """In how many layers activations are computed twice: as the recipe says, or as `train` chooses for the card."""
    wish, layers = world.recipe.engine.gradient_checkpointing, world.vlm.model.config.text_config.num_hidden_layers
    if wish != "auto":
        return layers if wish else 0
    room = room_on(world.device)
    if room is None:
        return 0
    if job.limit_gib is not None:
        room = min(room, job.limit_gib * GIB * USABLE)
    data: Any = Listed(world.rows)
    try:
        return layers_recomputed(world.recipe, rows_of(data), layers, room=room, count=1)
    except RuntimeError as error:  # as `train` does; `layers_recomputed` in the results says so
        print(f"how much memory a step takes cannot be told: {error}")
        return layers


@dataclass(frozen=True)
class Listed:
    """What the forecast asks of a data set."""

    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> np.ndarray:
        return np.array([len(row.encoded.ids) for row in self.rows])

    @property
    def targets(self) -> np.ndarray:
        return np.array([row.encoded.num_targets for row in self.rows])

    @property
    def images(self) -> np.ndarray:
        return np.array([len(row.encoded.images) for row in self.rows])


def one_step(world: World, engine: Engine, batches: Sequence[Batch]) -> float:
    """The middle of `sightline.train.loop.train`; returns the mean loss of the targets."""
    num_targets = sum(batch.num_targets for batch in batches)
    total = 0.0
    with packed_attention(world.vlm.model):
        for number, batch in enumerate(batches):
            with engine.accumulating(last=number == len(batches) - 1):
                loss = engine.loss_sum(batch)
                engine.backward(loss / num_targets)
            total += float(loss.detach())
    engine.step()
    return total / num_targets


def steps(world: World, job: Job, *, pin: bool) -> list[list[Batch]]:
    """The batches of all steps, as the plan cuts them; `without` packing each row is one."""
    batch = world.recipe.batch
    budget = 1 if "packing" in job.without else batch.pack_tokens or batch.max_length
    plan = Plan(Listed(world.rows).tokens, batch.global_batch, epochs=1, seed=0, shuffle=False)
    made = []
    for step in range(plan.num_steps):
        packs = plan.packs(step, rank=0, world=1, budget=budget)
        batches = [collated([world.rows[row] for row in pack], world.vlm.prompter) for pack in packs]
        made.append([one.pin_memory() for one in batches] if pin else batches)
    return made


def collated(rows: Sequence[Row], prompter: Prompter) -> Batch:
    pixels = [row.pixels for row in rows if row.pixels is not None]
    encoded = [row.encoded for row in rows]
    return collate(encoded, torch.cat(pixels) if pixels else None, prompter.grey_prompt(), prompter.grey_pixels())


if __name__ == "__main__":
    run(measure)
