"""Pictures of any size -> LLaVA-NeXT's tiles: one of the whole picture, then those of the grid that suits it best.

Which grid, which pixels and how many tokens are transformers' answers, bit for bit; the tokens need the header alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sightline.prompt.resample import Axis, resample
from sightline.types import Encoded

if TYPE_CHECKING:
    import torch

_BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Tiles:
    """The grids that a picture may be laid on, and what the vision tower makes of a tile."""

    grids: tuple[tuple[int, int], ...]
    """Height and width in pixels, both multiples of `side`. Of equally good ones the first is taken."""
    side: int
    """Pixels of a tile's side: what the vision tower takes."""
    patches: int
    """Features of a tile's side: a tile has patches x patches."""

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Height and width in pixels of the grid that keeps most of a picture and, among those, wastes least."""

        def worth(grid: tuple[int, int]) -> tuple[int, int]:
            high, wide = grid
            scale = min(wide / width, high / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - high * wide

        return max(self.grids, key=worth)

    def tokens(self, width: int, height: int) -> int:
        """How many tokens a picture takes: as a whole, then the rows of its tiles without padding, a newline each."""
        high, wide = self.grid(width, height)
        rows, columns = (self.patches * (length // self.side) for length in (high, wide))
        # Like transformers, down to the order of the operations: another rounding would be another number of tokens.
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        return self.patches**2 + rows * (columns + 1)

    @property
    def most_tokens(self) -> int:
        """What the picture that takes the most tokens takes."""
        return max(self.tokens(width, height) for height, width in self.grids)


def cut(picture: Image.Image, tiles: Tiles) -> np.ndarray:
    """An RGB picture stretched to one tile, then its tiles row by row, black around it: uint8 [N, 3, side, side]."""
    width, height = picture.size
    side = tiles.side
    high, wide = tiles.grid(width, height)
    down, across = high, wide
    if wide / width < high / height:
        down = min(ceil(height * (wide / width)), high)
    else:
        across = min(ceil(width * (high / height)), wide)
    canvas = np.zeros((3, high, wide), dtype=np.uint8)
    top, left = (high - down) // 2, (wide - across) // 2
    canvas[:, top : top + down, left : left + across] = _resized(picture, across, down)
    parts = canvas.reshape(3, high // side, side, wide // side, side).transpose(1, 3, 0, 2, 4)
    return np.concatenate([_resized(picture, side, side)[None], parts.reshape(-1, 3, side, side)])


def cut_all(pictures: Iterable[Image.Image], tiles: Tiles, processor: Any) -> torch.Tensor:
    """All tiles of RGB pictures, one picture behind the other: uint8 [N, 3, side, side].

    Where the processor has settings that are not known here: what it makes of them itself, float32.
    """
    import torch

    if _is_known(processor, tiles):
        return torch.from_numpy(np.concatenate([cut(picture, tiles) for picture in pictures]))
    return torch.cat([processor([picture], return_tensors="pt")["pixel_values"][0] for picture in pictures])


def heights_and_widths(samples: Iterable[Encoded]) -> tuple[tuple[int, int], ...]:
    """The sizes of all pictures that are cut into tiles, in order, as the model's `image_sizes` has them."""
    return tuple((height, width) for sample in samples for width, height in sample.sizes)


def square_grids(side: int) -> tuple[tuple[int, int], ...]:
    """LLaVA-1.6's grids, for a tower of that many pixels: 1 x 2, 2 x 1, 2 x 2, 3 x 1 and 1 x 3 tiles."""
    return tuple((rows * side, columns * side) for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))


def grids_of(processor: Any) -> tuple[tuple[int, int], ...]:
    """The grids of an image processor of transformers."""
    return as_grids(processor.image_grid_pinpoints)


def as_grids(pairs: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Grids as JSON has them -> tuples."""
    return tuple((int(height), int(width)) for height, width in pairs)


def _is_known(processor: Any, tiles: Tiles) -> bool:
    """Whether the steps and settings of a processor are those of `cut`."""
    if type(processor).__name__ != "LlavaNextImageProcessorPil" or grids_of(processor) != tiles.grids:
        return False
    steps = (processor.do_convert_rgb, processor.do_resize, processor.do_rescale, processor.do_normalize)
    sides = [value for setting in (processor.size, processor.crop_size) for value in dict(setting).values() if value]
    return all(steps) and processor.resample == Image.Resampling.BICUBIC and set(sides) == {tiles.side}


def _resized(picture: Image.Image, across: int, down: int) -> np.ndarray:
    width, height = picture.size
    return resample(picture, Axis(width, width, 0, across, 0, across), Axis(height, height, 0, down, 0, down), _BLACK)
