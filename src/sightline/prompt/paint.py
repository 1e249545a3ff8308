"""Encoded prompts and what people wrote -> what a terminal shows of it: painted, folded, without control characters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from sightline.terminal import printable_lines
from sightline.types import IGNORE, IMAGE, Encoded

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from rich.text import Text

MARKS = ("⟦", "⟧")
"""Around the targets, where there are no colours."""

GREEN = "bold green"
"""How `Prompter.explain` paints targets."""


def marks_for(console: Console) -> tuple[str, str]:
    """What stands around targets on this terminal: nothing where it has colours."""
    return MARKS if console.color_system is None or console.no_color else ("", "")


def paint(
    encoded: Encoded,
    decode: Callable[[list[int]], str],
    image_token_id: int,
    image_lengths: Sequence[int],
    marks: tuple[str, str],
) -> Text:
    """The tokens as coloured text: targets green and between `marks`, image tokens folded, the rest dim."""
    from rich.text import Text

    result, before, lengths = Text(), list[int](), iter(image_lengths)
    for ids, is_image, is_target in _runs(encoded, image_token_id):
        if is_image:
            result.append(_images(len(ids), lengths), style="black on cyan")
        else:
            # Some tokenizers drop a space at the beginning of what they decode: it must not be the beginning.
            text = decode(before + ids)[len(decode(before)) :]
            opened, closed = marks if is_target else ("", "")
            result.append(opened + text + closed, style=GREEN if is_target else "dim")
        before = ids[-1:]
    return result


def _images(tokens: int, lengths: Iterator[int]) -> str:
    """So many image tokens in a row, which are those of the next images."""
    here: list[int] = []
    while sum(here) < tokens:
        here.append(next(lengths))
    if len(here) == 1:
        return f"{IMAGE} x {tokens} tokens"
    return f"{len(here)} {IMAGE} x {' + '.join(map(str, here)) if len(set(here)) > 1 else here[0]}"


def _runs(encoded: Encoded, image_token_id: int) -> list[tuple[list[int], bool, bool]]:
    runs: list[tuple[list[int], bool, bool]] = []
    for token, label in zip(encoded.ids.tolist(), encoded.labels.tolist(), strict=True):
        kind = (token == image_token_id, label != IGNORE)
        if runs and runs[-1][1:] == kind:
            runs[-1][0].append(token)
        else:
            runs.append(([token], *kind))
    return runs


def folded(numbers: np.ndarray) -> str:
    """Numbers in a row, those that are repeated more than twice written once: 1 319 -100*576 2."""
    runs = [(number, len(list(same))) for number, same in groupby(numbers.tolist())]
    return " ".join(f"{number}*{times}" if times > 2 else " ".join([str(number)] * times) for number, times in runs)


def printable_paint(painted: Text) -> Text:
    """What `paint` made, with control characters as escapes."""
    from rich.text import Text

    pieces = ((printable_lines(painted.plain[span.start : span.end]), span.style) for span in painted.spans)
    return Text.assemble(*pieces)
