"""Pictures -> the pixels that a vision tower sees: as uint8 to travel light, and from there as the numbers it takes.

What transformers' image processors do is done here bit for bit, but without their detours; where a processor has
settings that are not known here, it is asked itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sightline.errors import DataError
from sightline.limits import limits, remedy
from sightline.prompt.resample import Axis, resample

if TYPE_CHECKING:
    import torch

KNOWN = ("CLIPImageProcessorPil", "LlavaImageProcessorPil", "SiglipImageProcessorPil")
"""Processors whose steps are those of `fit`; others may do more than their settings say."""

_BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Fit:
    """How a picture of any size becomes one of the tower's size."""

    height: int
    width: int
    shorter: int | None
    """The length to which the shorter side is resized before the middle is cut out; None: both sides are resized to
    height and width as they are."""
    colour: tuple[int, int, int] | None
    """What fills the picture up to a square before; None: it is not filled up."""


def known_fit(processor: Any) -> Fit | None:
    """The fit of a processor of transformers; None where it has a step, or a setting, that is not known here."""
    if type(processor).__name__ not in KNOWN:
        return None
    steps = (processor.do_convert_rgb, processor.do_resize, processor.do_rescale, processor.do_normalize)
    if not all(steps) or processor.resample != Image.Resampling.BICUBIC:
        return None
    colour = None
    if processor.do_pad:
        if type(processor).__name__ != "LlavaImageProcessorPil" or not isinstance(processor.image_mean, tuple):
            return None
        red, green, blue = (int(mean * 255) for mean in processor.image_mean)
        colour = (red, green, blue)
    size, crop = (_given(sides) for sides in (processor.size, processor.crop_size))
    if size.keys() == {"height", "width"} and not processor.do_center_crop:
        return Fit(**size, shorter=None, colour=colour)
    cropped = size.keys() == {"shortest_edge"} and processor.do_center_crop and crop.keys() == {"height", "width"}
    if cropped and max(crop.values()) <= size["shortest_edge"]:  # a larger middle is filled up with black
        return Fit(**crop, shorter=size["shortest_edge"], colour=colour)
    return None


def fit(picture: Image.Image, how: Fit) -> np.ndarray:
    """Pad, resize (bicubic) and crop an RGB picture: uint8 [3, H, W]."""
    width, height = picture.size
    wide, high = picture.size if how.colour is None else (max(picture.size),) * 2
    across, down = (how.width, how.height)
    if how.shorter is not None:
        short, long = sorted((wide, high))
        longer = int(how.shorter * long / short)
        across, down = (how.shorter, longer) if wide <= high else (longer, how.shorter)
    return resample(
        picture,
        Axis(width, wide, (wide - width) // 2, across, (across - how.width) // 2, how.width),
        Axis(height, high, (high - height) // 2, down, (down - how.height) // 2, how.height),
        how.colour or _BLACK,
    )


def fit_all(pictures: Sequence[Image.Image], processor: Any) -> torch.Tensor:
    """RGB pictures as the vision tower sees them: uint8 [N, 3, H, W].

    Where the processor has settings that are not known here: what it makes of them itself, float32.
    """
    import torch

    how = known_fit(processor)
    if how is None:
        for picture in pictures:
            _check_room(picture, processor)
        made: torch.Tensor = processor(list(pictures), return_tensors="pt")["pixel_values"]
        return made
    return torch.from_numpy(np.stack([fit(picture, how) for picture in pictures]))


def _check_room(picture: Image.Image, processor: Any) -> None:
    """Raise DataError where a processor, which resizes all of a picture before it cuts out the middle, makes too much.

    Pictures that are long and narrow grow by their longer side; here only what is kept is ever made (`fit`).
    """
    wide, high = picture.size
    if getattr(processor, "do_pad", False):
        wide = high = max(wide, high)
    made, shorter = wide * high, _given(getattr(processor, "size", None)).get("shortest_edge")
    if shorter is not None and getattr(processor, "do_resize", True):
        made = max(made, round(shorter**2 * max(wide, high) / min(wide, high)))
    if made > limits().image_megapixels * 1e6:
        raise DataError(
            f"an image of {picture.width} x {picture.height} px becomes {made / 1e6:,.0f} megapixels on its way to the "
            f"vision tower, and {limits().image_megapixels:g} are taken; crop it, "
            f"{remedy('image_megapixels', made / 1e6)}",
            "image_bomb",
        )


def levels(processor: Any) -> torch.Tensor:
    """What a processor makes of each level of each colour: float32 [3 * 256]."""
    import torch

    every = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))
    rescaled = processor.rescale(every, processor.rescale_factor)
    numbers = processor.normalize(rescaled, processor.image_mean, processor.image_std)
    return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)).flatten()


def look_up(pixels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 3, H, W] -> float32, by the `levels` of a processor, on the device of the pixels.

    A table and no arithmetic: so the numbers are the processor's own on every device, to the last bit.
    """
    table = table.to(pixels.device)
    return _by_planes(pixels, table) if pixels.is_cpu else _at_once(pixels, table)


def _at_once(pixels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    import torch

    colours = torch.arange(0, 3 * 256, 256, dtype=torch.int32, device=pixels.device)[:, None, None]
    return table.index_select(0, (pixels + colours).flatten()).view(pixels.shape)


def _by_planes(pixels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The same in parts that stay in a processor's cache."""
    import torch

    made = torch.empty(pixels.shape)
    for number, plane in enumerate(pixels.flatten(0, 1)):
        levels_of_one = table.view(3, 256)[number % 3]
        torch.index_select(levels_of_one, 0, plane.flatten().int(), out=made.view(-1, plane.numel())[number])
    return made


def _given(sides: Any) -> dict[str, int]:
    """The sides that a setting of a processor names."""
    return {name: value for name, value in dict(sides or {}).items() if value is not None}
