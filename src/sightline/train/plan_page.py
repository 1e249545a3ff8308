"""A forecast -> what the terminal shows."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from sightline.model.estimate_fit import GIB, USABLE
from sightline.terminal import printable
from sightline.train.forecast import Forecast
from sightline.train.plan_command import MFU

MEMORY = {
    "weights": "those that learn in float32",
    "gradients": "in float32",
    "optimizer": "its state",
    "activations": "a pack of {pack:,} tokens",
    "logits": "alive at that moment",
}
PURE = {"weights": "matrices that learn in bfloat16", "gradients": "of matrices in bfloat16"}

PROMISED = {
    "llava_llama3_8b_instruct_quant_clip_vit_large_p14_336_e1_gpu1_pretrain": 20,
    "llava_llama3_8b_instruct_qlora_clip_vit_large_p14_336_e1_gpu1_finetune": 20,
}
"""Recipes of XTuner -> the size of the card (GB) that its documentation promises to be enough."""


def show(name: str, made: Forecast) -> None:
    """Print it."""
    console = Console(highlight=False, emoji=False)
    title = Text.assemble((printable(name), "bold"), f" on {printable(_devices(made))}, nothing loaded\n")
    console.print(title, soft_wrap=True)
    console.print(_parameters(made))
    console.print(_memory(made))
    for line in [*_verdict(name, made), "", *_time(made)]:
        console.print(printable(line), markup=False, soft_wrap=True)


def _devices(made: Forecast) -> str:
    return f"{made.gpus} x {made.gpu.name}" if made.gpus > 1 else made.gpu.name


def _parameters(made: Forecast) -> Table:
    table = Table("parameters", *[_right(name) for name in ("all", "learning", "adapters")], title_justify="left")
    for part in made.parts:
        table.add_row(part.name, f"{part.total:,}", f"{part.learning:,}", f"{part.adapters:,}")
    sums = [sum(getattr(part, name) for part in made.parts) for name in ("total", "learning", "adapters")]
    table.add_section()
    table.add_row("together", *[f"{value:,}" for value in sums])
    return table


def _memory(made: Forecast) -> Table:
    table = Table("memory at the fullest moment", _right("GiB"), "of")
    for name, what in (MEMORY | (PURE if made.pure_bf16 else {})).items():
        value = getattr(made.memory, name)
        table.add_row(name, f"{value / GIB:.2f}", what.format(pack=made.pack_tokens))
    table.add_section()
    table.add_row("together", f"{made.memory.total / GIB:.2f}", f"{made.gpu.room / GIB:.1f} that can be filled")
    return table


def _verdict(name: str, made: Forecast) -> list[str]:
    """Whether it fits, how much more would, and what to do if it does not."""
    lines = []
    if made.recomputed:
        lines.append(f"gradient checkpointing: {made.recomputed} of {made.layers} layers compute activations twice")
    share = f"{made.gpu.gib:g} GB, of which a run can fill {USABLE:.0%}"
    if made.fits:
        lines.append(f"fits on {made.gpu.name} ({share})")
    else:
        lines.append(f"does not fit on {made.gpu.name} ({share})")
    if made.card is not None:
        lines.append(f"the smallest card that holds it has {made.card} GB")
    if (promised := PROMISED.get(name)) is not None:
        lines.append(f"XTuner promises {promised} GB for this recipe; Sightline needs {made.least / GIB:.1f} GiB")
    if made.largest_pack is not None and made.largest_pack >= made.max_length:
        lines.append(f"largest pack that fits: batch.pack_tokens={made.largest_pack} (now {made.pack_tokens})")
    elif made.largest_pack is not None:
        lines.append(f"{made.largest_pack} tokens would fit, but a conversation may have {made.max_length}")
    if not made.fits:
        for overrides, price in made.changes:
            lines.append(f"to make it fit: {overrides} ({price})")
        if not made.changes:
            lines.append("no change of the recipe makes it fit")
        changes_result = not made.changes or any(
            key in overrides for overrides, _ in made.changes for key in ("tune.", "pure_bf16")
        )
        if changes_result and made.spread_over is not None and made.spread_over > 1:
            lines.append(
                f"about {made.spread_over} devices would hold it with weights, gradients and optimiser spread over "
                "them (FSDP2, ZeRO-3), which Sightline does not do yet"
            )
    return lines


def _time(made: Forecast) -> list[str]:
    rows = made.rows
    lines = [
        f"a mean row: {rows.mean('tokens'):.0f} tokens, {rows.mean('targets'):.0f} targets, "
        f"{rows.mean('images'):.2g} images ({rows.source})",
        f"its operations: {made.tflop_per_row:.2f} TFLOP"
        + (
            f", {made.tflop_per_row_executed:.2f} with the second pass of gradient checkpointing"
            if made.tflop_per_row_executed > made.tflop_per_row
            else ""
        ),
    ]
    if made.rows_per_second is None:
        return [*lines, f"time: the peak of {made.gpu.name} is not known, so none is told"]
    lines.append(
        f"at {made.mfu:.0%} of {made.gpu.tflops:g} TFLOP/s ({'assumed' if made.mfu == MFU else 'as given'}, --mfu): "
        f"{made.rows_per_second:.3g} rows/s"
    )
    if made.hours_per_epoch is None:
        lines.append(
            f"100,000 rows: {_hours(100_000 / made.rows_per_second / 3600)} (how many there are: --rows, --data)"
        )
    else:
        lines.append(f"an epoch of {rows.count:,} rows, {made.steps_per_epoch:,} steps: {_hours(made.hours_per_epoch)}")
        if made.hours != made.hours_per_epoch:
            lines.append(f"the whole run: {_hours(made.hours or 0.0)}")
    return lines


def _hours(hours: float) -> str:
    minutes = hours * 60
    if minutes < 1:
        return f"{minutes * 60:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def _right(name: str) -> Column:
    return Column(name, justify="right")
