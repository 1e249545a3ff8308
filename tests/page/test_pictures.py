"""Boxes of a text on the picture that it speaks of."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from sightline.errors import DataError
from sightline.page.pictures import boxes_in, open_picture, picture_svg
from sightline.types import ImageRef


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("[0.25, 0.5, 0.75, 1.0]", (100, 100), [(25, 50, 75, 100)]),
        # 200 x 100 lies in the middle of 200 x 200, with 50 rows of padding above and below.
        ("[0.1, 0.25, 0.5, 0.75]", (200, 100), [(20, 0, 100, 100)]),
        ("[0.1, 0.35, 0.5, 0.5]", (200, 100), [(20, 20, 100, 50)]),
        # 60 x 80 in 80 x 80: ten columns of padding on the left; the box begins in them and is cut.
        ("at [0.0,0.5,0.5,0.75].", (60, 80), [(0, 40, 30, 60)]),
        # An odd rest: 57 in 80 leaves 11 on the left and 12 on the right, as LLaVA pads.
        ("[0.5, 0, 1, 1]", (57, 80), [(29, 0, 57, 80)]),
        ("one [0,0,.5,.5] and one [0.5,0.5,1.,1]", (10, 10), [(0, 0, 5, 5), (5, 5, 10, 10)]),
        ("[0.5, 0.5, 0.5, 0.9]", (10, 10), []),  # no width
        ("[0.9, 0.1, 0.2, 0.5]", (10, 10), []),  # its right side is left of its left side
        ("[10, 20, 30, 40]", (100, 100), []),  # no shares
        ("[0.1, 0.2, 0.3]", (10, 10), []),
        ("two red circles", (10, 10), []),
    ],
)
def test_boxes(text: str, size: tuple[int, int], expected: list[tuple[float, ...]]) -> None:
    boxes = boxes_in(text, size)
    assert len(boxes) == len(expected)
    for box, hand in zip(boxes, expected, strict=True):
        assert box == pytest.approx(hand)


def embedded(svg: str) -> Image.Image:
    found = re.search(r'href="data:image/(png|jpeg);base64,([^"]*)"', svg)
    assert found is not None
    return Image.open(io.BytesIO(base64.b64decode(found[2])))


def test_a_tiny_picture_is_embedded_pixel_by_pixel() -> None:
    image = Image.effect_noise((56, 40), 80).convert("RGB")
    svg = picture_svg(image, answer=[(1, 2, 11, 22)], truth=[(0, 0, 5, 5)])
    assert embedded(svg).tobytes() == image.tobytes()
    assert 'viewBox="0 0 56 40"' in svg and 'class="crisp"' in svg
    assert '<rect class="box answer" x="1.00" y="2.00" width="10.00" height="20.00">' in svg
    assert '<rect class="box truth" x="0.00" y="0.00" width="5.00" height="5.00">' in svg


def test_a_large_picture_is_made_small_but_keeps_its_coordinates() -> None:
    image = Image.effect_noise((3000, 1500), 80).convert("RGB")
    svg = picture_svg(image)
    assert embedded(svg).size == (640, 320)
    assert 'viewBox="0 0 3000 1500"' in svg and 'class="photo" width="3000" height="1500"' in svg
    assert len(svg) < 300_000


def test_pictures_come_from_paths_references_and_memory(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6), "red")
    image.save(tmp_path / "a.png")
    for picture in (image, tmp_path / "a.png", str(tmp_path / "a.png"), ImageRef("a.png", str(tmp_path))):
        assert open_picture(picture).tobytes() == image.tobytes()
    with pytest.raises(DataError, match=r"b\.png"):
        open_picture(tmp_path / "b.png")
