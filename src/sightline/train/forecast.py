"""A recipe, its rows and a device -> what a run needs and how long it takes, before anything is fetched or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sightline.errors import RecipeError
from sightline.model.estimate import Part, operations, parameters, refuse_experts
from sightline.model.estimate_fit import (
    GIB,
    USABLE,
    Gpu,
    advise,
    budget_of,
    cards_needed,
    changed,
    gpus,
    largest_budget,
)
from sightline.model.estimate_fit import peak_flops as known_peak
from sightline.model.estimate_memory import Memory
from sightline.recipe import Recipe
from sightline.train.plan_rows import Rows
from sightline.train.recompute import between, fewest
from sightline.train.rehearse import PackShape, fill, rehearse, tuned

CARDS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 141, 192)
"""Sizes that cards have, in GB."""


MOST = 2**18
"""Tokens of the largest pack that is rehearsed."""


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before it begins."""

    gpu: Gpu
    gpus: int
    mfu: float
    parts: tuple[Part, ...]
    max_length: int
    pack_tokens: int
    memory: Memory
    """On each device, with the pack of so many tokens that needs most."""
    pure_bf16: bool
    """Whether matrices that learn have no copy in float32."""
    layers: int
    """Of the language model."""
    recomputed: int
    """Of these, the ones that compute their activations twice."""
    least: float
    """Bytes with all of them computed twice, where the recipe leaves that open; else those of `memory`."""
    card: int | None
    """The smallest size of card that holds it, in GB."""
    fits: bool
    largest_pack: int | None
    """The largest token budget of a micro-batch that fits; None where none does."""
    changes: tuple[tuple[str, str], ...]
    """Overrides that make it fit, and what each costs; empty where it fits or nothing helps."""
    spread_over: int | None
    """Devices that would hold it with weights, gradients and optimiser spread over them."""
    rows: Rows
    tflop_per_row: float
    tflop_per_row_executed: float
    """With the second forward pass of gradient checkpointing."""
    rows_per_second: float | None
    hours_per_epoch: float | None
    hours: float | None
    steps_per_epoch: int | None


def forecast(recipe: Recipe, rows: Rows, gpu: Gpu, *, count: int, mfu: float) -> Forecast:
    """For `count` devices of a kind, each with a whole copy, that reach the share `mfu` of their peak."""
    blank, _ = tuned(recipe)
    budget, ideal = budget_of(recipe), operations(blank.model)
    if recipe.engine.pure_bf16 and not gpu.bfloat16:
        raise RecipeError(f"engine.pure_bf16: {gpu.name} does not compute in bfloat16; leave it out")
    if budget > MOST:
        raise RecipeError(f"batch.pack_tokens {budget}: a forecast goes up to {MOST} tokens")
    rehearsal = _Rehearsal(
        rows, recipe.batch.max_length, (blank.tokens_per_image, blank.tiles_per_image), recipe, count
    )
    layers = blank.model.config.text_config.num_hidden_layers
    memory, recomputed = rehearsal.settled(recipe, budget, gpu.room, layers)
    if recipe.engine.gradient_checkpointing == "auto":
        recipe = changed(recipe, {"engine.gradient_checkpointing": True})
    least = rehearsal.fullest(recipe, budget).total
    kept = memory.weights + memory.gradients + memory.optimizer
    fits = memory.total <= gpu.room
    largest = rehearsal.largest(recipe, gpu.room) if kept < gpu.room else None
    changes = None if fits else advise(recipe, rehearsal.total, gpu.room, largest, bfloat16=gpu.bfloat16)
    cost = rows.operations(ideal, blank.tiles_per_image)
    twice = rows.operations(operations(blank.model, recompute=True), blank.tiles_per_image)
    executed = cost + (twice - cost) * recomputed / layers
    speed = None if gpu.tflops is None else gpu.tflops * 1e12 * mfu * count / executed
    hours = None if speed is None or rows.count is None else rows.count / speed / 3600
    return Forecast(
        gpu=gpu,
        gpus=count,
        mfu=mfu,
        parts=parameters(blank.model),
        max_length=recipe.batch.max_length,
        pack_tokens=budget,
        memory=memory,
        pure_bf16=recipe.engine.pure_bf16,
        layers=layers,
        recomputed=recomputed,
        least=least,
        card=next((size for size in CARDS if least <= size * GIB * USABLE), None),
        fits=fits,
        largest_pack=largest,
        changes=tuple((" ".join(change.overrides), change.price) for change in changes or ()),
        spread_over=None if fits else cards_needed(kept, least - kept, gpu.room),
        rows=rows,
        tflop_per_row=cost / 1e12,
        tflop_per_row_executed=executed / 1e12,
        rows_per_second=speed,
        hours_per_epoch=hours,
        hours=None if hours is None else hours * recipe.optim.epochs,
        steps_per_epoch=None if rows.count is None else -(-rows.count // recipe.batch.global_batch),
    )


def layers_recomputed(recipe: Recipe, rows: Rows, layers: int, *, room: float, count: int) -> int:
    """In how many layers of the language model a run on `count` devices with `room` bytes has to recompute.

    Raises ModelError for a mixture of experts, RuntimeError where torch cannot follow a model without its contents.
    """
    blank, _ = tuned(recipe)
    refuse_experts(blank.model)
    image = blank.tokens_per_image, blank.tiles_per_image
    rehearsal = _Rehearsal(rows, recipe.batch.max_length, image, recipe, count)
    return rehearsal.settled(recipe, budget_of(recipe), room, layers)[1]


class _Rehearsal:
    """The memory of a recipe and its variants, which see the same rows."""

    def __init__(self, rows: Rows, longest: int, image: tuple[int, int], recipe: Recipe, count: int) -> None:
        self.packs = lambda tokens: packs_of(tokens, rows, longest, image)
        self.longest, self.count = longest, count
        self.done: dict[tuple[str, PackShape], Memory] = {}
        self.dtype = torch.bfloat16 if recipe.engine.dtype == "auto" else getattr(torch, recipe.engine.dtype)

    def fullest(self, recipe: Recipe, tokens: int) -> Memory:
        """Memory of the pack of so many tokens that needs most."""
        return max(self._each(recipe, self.packs(tokens)), key=lambda memory: memory.total)

    def settled(self, recipe: Recipe, tokens: int, room: float, layers: int) -> tuple[Memory, int]:
        """The same with as many layers computed twice as the recipe says, or as the room asks for; and how many."""
        wish = recipe.engine.gradient_checkpointing
        if wish != "auto":
            return self.fullest(recipe, tokens), layers if wish else 0
        kept, twice = (
            self.fullest(changed(recipe, {"engine.gradient_checkpointing": each}), tokens) for each in (False, True)
        )
        number = fewest(kept.total, twice.total, room, layers)
        return between(kept, twice, number, layers), number

    def total(self, recipe: Recipe) -> float:
        return self.fullest(recipe, budget_of(recipe)).total

    def largest(self, recipe: Recipe, room: float) -> int | None:
        """The largest token budget that fits, sought with the kind of pack that needs most."""
        first = budget_of(recipe)
        needs = [memory.total for memory in self._each(recipe, self.packs(first))]
        worst = needs.index(max(needs))

        def need(tokens: int) -> float:
            return self._each(recipe, [self.packs(tokens)[worst]])[0].total

        return largest_budget(need, room, first, max(first, min(64 * self.longest, MOST)))

    def _each(self, recipe: Recipe, packs: Sequence[PackShape]) -> list[Memory]:
        plain = recipe.model_dump_json()
        for pack in packs:
            if (plain, pack) not in self.done:
                self.done[plain, pack] = rehearse(recipe, pack, self.dtype)
        made = [self.done[plain, pack] for pack in packs]
        # Data parallelism gathers gradients in buckets of their own before it adds them up.
        return [replace(memory, gradients=memory.gradients * 2) if self.count > 1 else memory for memory in made]


def packs_of(tokens: int, rows: Rows, longest: int, image: tuple[int, int]) -> list[PackShape]:
    """The two packs of so many tokens that may need most: rows with pictures; text alone, targets everywhere.

    `longest`: tokens of the longest row. `image`: the tokens of a picture, and its tiles.
    """
    lengths, packs = fill(tokens, longest), []
    seen = [kind for kind in rows.kinds if kind.images > 0]
    if seen:
        typical = max(seen, key=lambda kind: kind.share)
        images = max(1, min(round(tokens / typical.tokens * typical.images), tokens // image[0]))
        packs.append(PackShape(lengths, max(1, tokens - images * image[0]), images * image[1]))
    if len(seen) < len(rows.kinds) or not seen:
        packs.append(PackShape(lengths, tokens, image[1]))
    return packs


def gpu_here() -> Gpu:
    """The device of this machine; where there is none, an H100."""
    if not torch.cuda.is_available():
        return gpus()["h100"]
    properties = torch.cuda.get_device_properties(0)
    peak = known_peak(properties.name)
    able = torch.cuda.is_bf16_supported(including_emulation=False)
    tflops = None if peak is None else peak / 1e12
    return Gpu("here", properties.name, properties.total_memory / GIB, tflops, bfloat16=able)


def room_on(device: torch.device) -> float | None:
    """Bytes that a run can fill there; None for the host's memory, which others use as well."""
    if device.type in ("cpu", "mps"):
        return None
    total = torch.get_device_module(device).mem_get_info(device)[1]
    return float(total) * USABLE
