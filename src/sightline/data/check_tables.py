"""What a check of data found -> lines and tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sightline.data.checked import Checked, Found, by_kind, common_sizes, histogram, spread
from sightline.data.verdict import KINDS
from sightline.page.numbers import counted
from sightline.terminal import printable

BLOCKS = "▁▂▃▄▅▆▇█"
"""A bar of a histogram that is one line high."""

_REASONS = 8
"""So many of the reasons that are told once are on a terminal."""


def print_checked(checked: Checked, console: Console) -> None:
    """Print the figures, then the findings: of every kind its count, the first row and the remedy."""
    print_numbers(checked, console)
    others = [one for one in checked.found if not one.finding.bad]
    _print_findings("Worth knowing", others, console, "yellow")
    _print_findings("Rows that cannot be used", checked.bad, console, "red")
    if not checked.found:
        _line(console, ("Nothing to complain about.", "green"))


def print_numbers(checked: Checked, console: Console) -> None:
    """Print the figures alone: sets, distributions, sizes of images, the longest rows."""
    _line(console, (checked.title, "bold"))
    for name, value in checked.settings.items():
        _line(console, (f"{name}: ", "dim"), value)
    console.print()
    console.print(_sets(checked), "")
    distributions = _distributions(checked)
    if distributions.row_count:
        console.print(distributions)
        if len(checked.sizes):
            common = ", ".join(f"{size}: {count:,}" for size, count in common_sizes(checked.sizes, 5))
            _line(console, ("most frequent sizes of images: ", "dim"), common)
        console.print()
    if checked.longest:
        _line(console, ("The longest rows", "bold"))
        for one in checked.longest[:3]:
            facts = ", ".join(counted(getattr(one, f"{what}s"), what) for what in ("token", "target", "image"))
            _line(console, f"  {one.origin}: {facts}")
        console.print()


def _sets(checked: Checked) -> Table:
    with_tokens = bool(checked.tokens.size)
    columns = ["rows", "bad", "samples an epoch", "images", *(["tokens", "targets"] if with_tokens else [])]
    keys = ["rows", "bad", "used", "images", *(["tokens", "targets"] if with_tokens else [])]
    totals = {key: sum(getattr(one, key) for one in checked.sets) for key in keys}
    several = len(checked.sets) > 1
    table = _table("set", columns)
    for one in checked.sets:
        cells = []
        for key in keys:
            share = several and key in ("used", "tokens") and totals[key]
            cells.append(f"{getattr(one, key):,}" + (f" ({getattr(one, key) / totals[key]:.1%})" if share else ""))
        table.add_row(Text(printable(one.name)), *cells, style="red" if one.bad else "")
    if several:
        table.add_section()
        table.add_row("all", *(f"{number:,}" for number in totals.values()), style="bold")
    return table


def _distributions(checked: Checked) -> Table:
    sides = checked.sizes.max(axis=1) if len(checked.sizes) else checked.sizes[:, 0]
    values = {"tokens": checked.tokens, "targets": checked.targets, "images": checked.images, "longer side, px": sides}
    table = _table("of a row, an image", ["", "smallest", "median", "95 %", "99 %", "largest"])
    for name, one in values.items():
        if len(one):
            table.add_row(name, bars(one), *(f"{number:,}" for number in spread(one).values()))
    return table


def bars(values: np.ndarray, width: int = 16) -> str:
    """A histogram in one line of at most `width` characters: a space for no value, the lowest bar for one."""
    counts = [count for _, count in histogram(values, width)]
    top = max(counts)
    return "".join(BLOCKS[(len(BLOCKS) - 1) * count // top] if count else " " for count in counts)


def _table(first: str, columns: Sequence[str]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    return table


def _print_findings(title: str, found: Sequence[Found], console: Console, colour: str) -> None:
    if not found:
        return
    _line(console, (title, f"bold {colour}"))
    for kind, ones in by_kind(found).items():
        reasons = list(dict.fromkeys(one.finding.reason for one in ones)) if KINDS[kind].once else []
        count = counted(len(reasons), "key") if reasons else counted(len(ones), "row")
        _line(console, "  ", (KINDS[kind].title, colour), f" ({count}): {KINDS[kind].remedy}")
        for reason in reasons[:_REASONS]:
            same = [one for one in ones if one.finding.reason == reason]
            rows = counted(sum(one.finding.rows for one in same), "row")
            _line(console, f"    {same[0].origin}: {reason}", (f" ({rows})", "dim"))
        if not reasons:
            _line(console, f"    {ones[0].origin}: {ones[0].finding.reason}", (" …" if len(ones) > 1 else "", "dim"))
    console.print()


def _line(console: Console, *parts: str | tuple[str, str]) -> None:
    """One line, never wrapped, so that it can be searched and copied."""
    styled = ((part, "") if isinstance(part, str) else part for part in parts)
    console.print(Text.assemble(*((printable(text), style) for text, style in styled)), soft_wrap=True)
