"""A picture and the boxes that a text speaks of -> one SVG with the picture inside and the boxes drawn on it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sightline.prompt.images import open_image
from sightline.types import ImageRef

Picture = Image.Image | ImageRef | Path | str
Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the picture as it is, from its upper left corner."""

TINY = 256
"""Up to so many pixels on the longer side a picture is embedded as it is and enlarged without blurring."""

LARGEST = 640
"""Pixels on the longer side of an embedded picture, at most."""

_NUMBER = r"\s*(\d+(?:\.\d*)?|\.\d+)\s*"
_BOX = re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]")


def boxes_in(text: str, size: tuple[int, int]) -> list[Box]:
    """The boxes `[x1, y1, x2, y2]` of a text, in pixels of a picture of `size` (width, height).

    Models see pictures padded to a square, centred, and speak of places as shares of that square's side. What lies
    in the padding is cut off; four numbers that cannot be a box on the square are none.
    """
    width, height = size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    boxes = []
    for match in _BOX.finditer(text):
        x1, y1, x2, y2 = (float(number) for number in match.groups())
        if max(x1, y1, x2, y2) <= 1 and x1 < x2 and y1 < y2:
            across = [min(max(x * side - left, 0.0), float(width)) for x in (x1, x2)]
            down = [min(max(y * side - top, 0.0), float(height)) for y in (y1, y2)]
            boxes.append((across[0], down[0], across[1], down[1]))
    return boxes


def open_picture(picture: Picture) -> Image.Image:
    """The picture in RGB and upright, as the model's eyes get it. Raises DataError when it cannot be read."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    return open_image(picture if isinstance(picture, ImageRef) else ImageRef(str(picture)))


def picture_svg(
    image: Image.Image, *, answer: Sequence[Box] = (), truth: Sequence[Box] = (), largest: int = LARGEST
) -> str:
    """The embedded picture, scaled to `largest` pixels, with the boxes of the answer and of the truth."""
    width, height = image.size
    tiny = max(width, height) <= TINY
    boxes = [("truth", box) for box in truth] + [("answer", box) for box in answer]
    drawn = "".join(
        f'<rect class="box {whose}" x="{x1:.2f}" y="{y1:.2f}" width="{x2 - x1:.2f}" height="{y2 - y1:.2f}">'
        f"<title>box of the {whose}</title></rect>"
        for whose, (x1, y1, x2, y2) in boxes
    )
    return (
        f'<svg class="picture" viewBox="0 0 {width} {height}" role="img" aria-label="picture, {width} x {height}">'
        f'<image class="{"crisp" if tiny else "photo"}" width="{width}" height="{height}" '
        f'preserveAspectRatio="none" href="{_data_uri(image, tiny, largest)}"/>{drawn}</svg>'
    )


def _data_uri(image: Image.Image, tiny: bool, largest: int) -> str:
    """PNG for tiny pictures, whose every pixel will be seen; JPEG for photographs, a tenth of the size."""
    small = image.copy()
    small.thumbnail((largest, largest))
    file = io.BytesIO()
    kind = "png" if tiny else "jpeg"
    small.save(file, kind, **({"optimize": True} if tiny else {"quality": 85}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
