"""Files become pictures in one place, in the promised formats alone, in little memory, and as they always did."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from picture_files import noise, said, saved, scene, turned
from PIL import Image

from sightline.limits import Limits, use
from sightline.prompt import decoding, images
from sightline.prompt.decoding import FORMATS, orientation, orientation_behind, to_rgb
from sightline.prompt.images import check_image, open_image
from sightline.types import ImageRef

PACKAGE = Path(decoding.__file__).parents[1]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def usual_limits() -> Iterator[None]:
    yield
    use(Limits())


# --- formats ----------------------------------------------------------------------------------------------------------


def opens(path: Path) -> Iterator[int]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in ("open", "Parser") and isinstance(node.value, ast.Name):
            yield from [node.lineno] * (node.value.id in ("Image", "ImageFile", "PIL"))
        elif isinstance(node, ast.ImportFrom) and node.module in ("PIL.Image", "PIL.ImageFile"):
            yield node.lineno


def test_files_become_pictures_in_one_place() -> None:
    found = [f"{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*.py") for _ in opens(path)]
    assert found == ["prompt/decoding.py"]


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("x.png", "x.eps"):
        (tmp_path / name).write_bytes(EPS)
        for look in (check_image, open_image):
            assert "is not an image of a known format" in said(ImageRef(name, str(tmp_path)), look)
    assert not marker.exists()


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_the_formats_that_are_promised(kind: str) -> None:
    try:
        data = saved(scene(64, 64), kind)
    except OSError as error:
        pytest.skip(f"this Pillow lacks it: {error}")
    assert check_image(ImageRef(data)) == open_image(ImageRef(data)).size == (64, 64)
    promised = (PACKAGE.parents[1] / "docs" / "your-own-data.md").read_text()
    assert {"JPEG2000": "JPEG 2000", "WEBP": "WebP"}.get(kind, kind) in promised


@pytest.mark.parametrize("kind", ["SGI", "PCX", "DDS", "SPIDER", "IM"])
def test_other_formats_are_not_read(kind: str) -> None:
    picture = scene().convert("F") if kind == "SPIDER" else scene()
    assert "is not an image of a known format" in said(ImageRef(saved(picture, kind)))


# --- memory -----------------------------------------------------------------------------------------------------------


def whole(picture: Image.Image) -> Image.Image:
    """What was done to whole pictures, one step after the other."""
    picture.load()
    turn = decoding._UPRIGHT.get(orientation(picture))
    upright = picture if turn is None else picture.transpose(turn)
    if upright.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return upright.convert("RGB")


def files() -> Iterator[tuple[str, bytes]]:
    colours = noise(61, 47)
    see_through = colours.convert("RGBA")
    see_through.putalpha(noise(61, 47).convert("L").rotate(180))
    deep = Image.fromarray(np.random.default_rng(2).integers(0, 65536, (47, 61), dtype=np.uint16))
    palette = colours.quantize(40)
    for turn in (1, 6):
        exif = turned(turn)
        for picture in (colours, see_through, see_through.convert("LA"), colours.convert("L"), palette, deep):
            yield f"{picture.mode} {turn}", saved(picture, "PNG", exif=exif)
        for mode in ("RGB", "L", "P", "1"):
            picture = palette if mode == "P" else colours.convert(mode)
            clear = 5 if mode == "P" else (1, 2, 3) if mode == "RGB" else 0
            yield f"{mode} with a clear colour {turn}", saved(picture, "PNG", transparency=clear, exif=exif)
        for picture in (colours, see_through):
            yield f"webp {picture.mode} {turn}", saved(picture, "WEBP", lossless=True, exif=exif)
    yield "palette with alpha", saved(palette, "PNG", transparency=bytes(range(0, 240, 6)))
    for picture in (colours.convert("CMYK"), colours.convert("LAB"), colours.convert("YCbCr"), deep, see_through):
        yield f"tiff {picture.mode}", saved(picture, "TIFF")
    yield "jpeg cmyk", saved(colours.convert("CMYK"), "JPEG")
    yield "gif", saved(palette, "GIF", transparency=3)
    yield "j2k", saved(see_through, "JPEG2000")


@pytest.mark.parametrize(("name", "data"), [pytest.param(*each, id=each[0]) for each in files()])
def test_strips_make_what_whole_pictures_made(name: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_STRIP", 300)  # four lines
    expected = whole(decoding.open_file(io.BytesIO(data)))
    made = to_rgb(decoding.open_file(io.BytesIO(data)))
    assert (made.mode, made.size) == ("RGB", expected.size)
    assert made.tobytes() == expected.tobytes()


MEASURE = """
import resource, sys
from sightline.prompt.images import open_image
from sightline.types import ImageRef
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
picture = open_image(ImageRef(sys.argv[1]))
print((peak() - before) / (picture.width * picture.height))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource")
@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_two_copies_at_most(mode: str, tmp_path: Path) -> None:
    picture = Image.new(mode, (4000, 3000))
    picture.save(tmp_path / "large.png", **({"transparency": 0} if mode == "P" else {}))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large.png")]
    bytes_a_pixel = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert bytes_a_pixel < 10  # 13 and 16 with Pillow's own steps


# --- large ones are not decoded to be checked -------------------------------------------------------------------------


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_TO_BE_SURE", 0)


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_a_large_one_is_judged_by_its_header(kind: str, all_are_large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda picture: pytest.fail("decoded"))
    assert check_image(ImageRef(saved(scene(), kind))) == (60, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_a_large_one_that_is_cut_off_is_seen(kind: str, all_are_large: None) -> None:
    data = saved(noise(400, 300), kind)
    for length in (len(data) // 2, len(data) - 10):
        assert said(ImageRef(data[:length]))


def test_a_large_jpeg_with_more_behind_it_is_whole(all_are_large: None) -> None:
    assert check_image(ImageRef(saved(noise(60, 40), "JPEG") + bytes(70_000))) == (60, 40)


def test_exif_behind_the_pixels_is_read_from_the_end() -> None:
    exif = turned(6)
    whole = saved(scene(), "PNG", exif=exif)
    assert orientation_behind(whole[whole.index(b"eXIf") - 4 :]) == 6
    assert orientation_behind(whole.replace(b"eXIf", b"eXIg")) is None
    assert orientation_behind(b"\xff\xff\xff\xffeXIf" + bytes(50)) is None, "pixels that look like it"
    assert orientation_behind(b"eXIf") is None


def test_an_icon_holds_no_more_than_it_may(usual_limits: None) -> None:
    icon = saved(scene(64, 64), "ICO", sizes=[(64, 64)])
    assert check_image(ImageRef(icon)) == (64, 64)
    use(Limits(image_megapixels=0.001))
    assert "--raise-limit image_megapixels=0.004096" in said(ImageRef(icon))


def test_what_is_larger_than_pillow_takes_can_be_allowed(usual_limits: None) -> None:
    large = saved(Image.new("1", (20_000, 10_000)), "PNG")
    assert "--raise-limit image_megapixels=200" in said(ImageRef(large))
    use(Limits(image_megapixels=200))
    assert check_image(ImageRef(large)) == (20_000, 10_000)
