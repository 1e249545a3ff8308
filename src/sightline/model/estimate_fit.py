"""What a recipe needs and what a device has -> the largest token budget, and the cheapest change that makes it fit.

Pure: memory is asked of a function, so that the advice can be tried without a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from sightline.errors import UserError
from sightline.recipe import Recipe

GPUS = Path(__file__).with_name("estimate_gpus.json")

USABLE = 0.92
"""The share of a device's memory that a run can fill: the rest is the driver's context and gaps between tensors."""

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A kind of device, as its maker describes it."""

    key: str
    name: str
    gib: float
    tflops: float | None
    """Dense bfloat16 (float16 on Volta and Turing) with sums in float32, 10**12 per second; None where unknown."""
    reported_as: tuple[str, ...] = ()
    """How the name ends that the driver gives it."""
    bfloat16: bool = True
    """Whether it computes in that format."""

    @property
    def room(self) -> float:
        """Bytes that a run can fill."""
        return self.gib * GIB * USABLE


@cache
def gpus() -> dict[str, Gpu]:
    """The devices whose figures are known, by their short names."""
    rows = [row | {"reported_as": tuple(row["reported_as"])} for row in json.loads(GPUS.read_text(encoding="utf-8"))]
    return {row["key"]: Gpu(**row) for row in rows}


def gpu_named(name: str) -> Gpu:
    """A device by its short name, or `24gb` for any of that size; raises UserError for another name."""
    short = re.sub("^rtx[-_ ]?", "", name.lower())
    if short in gpus():
        return gpus()[short]
    size = short.removesuffix("gib").removesuffix("gb")
    if size != short and size.replace(".", "", 1).isdecimal() and float(size) > 0:
        return Gpu(short, f"a device of {size} GB", float(size), None)
    raise UserError(f"--gpu {name}: not known; there are {', '.join(gpus())}, or write its memory, such as 20gb")


def peak_flops(device_name: str) -> float | None:
    """Operations per second of the device that a driver calls so; None where its figures are not known.

    The name must end so: an H200 NVL or a 4090 D is slower than what it is named after.
    """
    for gpu in gpus().values():
        if gpu.tflops is not None and any(f" {device_name}".endswith(f" {ending}") for ending in gpu.reported_as):
            return gpu.tflops * 1e12
    return None


def largest_budget(need: Callable[[int], float], room: float, first: int, most: int = 2**20) -> int | None:
    """The largest pack (tokens, in steps of 64) whose need fits into the room, at most a 32nd too small.

    None where even 64 tokens do not fit. `need` is nearly a line: between what fits and what does not it is cut there.
    """
    low, at_low = 64, need(64)
    high, at_high = max(128, first), need(max(128, first))
    if at_low > room:
        return None
    while at_high <= room and high < most:
        slope = max(at_high - at_low, 1.0) / (high - low)
        low, at_low = high, at_high
        high = min(most, max(high + 64, int((room - at_low) / slope * 1.05) + high))
        at_high = need(high)
    if at_high <= room:
        return most
    while high - low > max(64, low // 32):
        cut = low + int((room - at_low) / (at_high - at_low) * (high - low))
        tokens = min(max(cut // 64 * 64, low + 64), (high - 1) // 64 * 64)
        at_tokens = need(tokens)
        if at_tokens <= room:
            low, at_low = tokens, at_tokens
        else:
            high, at_high = tokens, at_tokens
    return low // 64 * 64


@dataclass(frozen=True)
class Change:
    """A change of a recipe that saves memory."""

    values: dict[str, Any]
    """At dotted keys."""
    price: str
    """What it costs, in words."""
    recipe: Recipe
    """With this change, and with those that are advised before it."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """As they are written behind `sightline train`."""
        return tuple(f"{key}={_written(value)}" for key, value in self.values.items())


def possible_changes(recipe: Recipe, largest: int | None = None, *, bfloat16: bool = True) -> list[Change]:
    """What could be changed in this recipe, the cheapest first: those that leave the result alone before the others.

    `largest`: the largest token budget that fits. `bfloat16`: whether the device has it.
    """
    found = []

    def offer(values: dict[str, Any], price: str) -> None:
        found.append(Change(values, price, changed(recipe, values)))

    shortest, budget = recipe.batch.max_length, budget_of(recipe)
    smaller = max(shortest, largest or 0)
    if smaller < budget:
        offer({"batch.pack_tokens": smaller}, "the same result, with more and smaller micro-batches")
    if recipe.engine.gradient_checkpointing is not True:
        offer({"engine.gradient_checkpointing": True}, "the same result, in about a third more time")
    if recipe.optim.optimizer == "adamw":
        offer({"optim.optimizer": "adamw_8bit"}, "nearly the same result; needs the extra quantize")
    engine = recipe.engine
    if recipe.tune.llm == "full" and bfloat16 and not engine.pure_bf16 and engine.dtype in ("auto", "bfloat16"):
        offer({"engine.pure_bf16": True}, "weights and steps rounded to bfloat16: a less exact result")
    if recipe.tune.llm == "full":
        offer({"tune.llm": "lora"}, "adapters learn instead of all weights; set a rate for them, such as optim.lr=2e-4")
    if recipe.tune.llm == "frozen" and not recipe.tune.quantized:
        offer({"tune.llm_bits": 4}, "the frozen language model is slightly less exact, and slower; needs quantize")
    if recipe.tune.llm in ("full", "lora"):
        price = "adapters on weights of 4 bits: slower, slightly less exact; needs the extra quantize"
        offer({"tune.llm": "qlora"}, price)
    return found


def budget_of(recipe: Recipe) -> int:
    """Tokens of its fullest pack: a single conversation may be longer than the budget."""
    return max(recipe.batch.pack_tokens or 0, recipe.batch.max_length)


def advise(
    recipe: Recipe,
    need: Callable[[Recipe], float],
    room: float,
    largest: int | None = None,
    *,
    bfloat16: bool = True,
) -> list[Change] | None:
    """The cheapest changes after which the recipe fits; None where all do not do.

    Of each price one alone is tried, then together with all that are cheaper, less those that are not needed beside
    it: what is tuned changes last. `largest` and `bfloat16`: as in `possible_changes`.
    """
    taken: list[Change] = []
    present = recipe
    alone = iter(possible_changes(recipe, largest, bfloat16=bfloat16))
    while changes := possible_changes(present, bfloat16=bfloat16):
        if (one := next(alone, None)) is not None and need(one.recipe) <= room:
            return [one]
        taken.append(changes[0])
        present = changes[0].recipe
        if need(present) <= room:
            return _needed(recipe, taken, need, room)
    return None


def _needed(recipe: Recipe, taken: list[Change], need: Callable[[Recipe], float], room: float) -> list[Change]:
    """The changes without which the recipe would not fit, the dearer ones left out first."""
    for change in taken[-2::-1]:
        fewer = _in_turn(recipe, [other for other in taken if other.values != change.values])
        if need(fewer[-1].recipe) <= room:
            taken = fewer
    return taken


def _in_turn(recipe: Recipe, changes: list[Change]) -> list[Change]:
    """The changes, one made after the other."""
    made = []
    for change in changes:
        recipe = changed(recipe, change.values)
        made.append(replace(change, recipe=recipe))
    return made


def cards_needed(shared: float, own: float, room: float, most: int = 64) -> int | None:
    """Over how many devices what can be shared (weights, gradients, optimiser) has to be spread; None beyond `most`."""
    return next((count for count in range(1, most + 1) if shared / count + own <= room), None)


def changed(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with other values at dotted keys, checked again."""
    plain = recipe.model_dump()
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = plain
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return type(recipe).model_validate(plain)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
