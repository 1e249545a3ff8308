"""Pictures of every kind and from everywhere come out upright and in colour."""

from __future__ import annotations

import base64
import io
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from picture_files import said, saved, scene, turned
from PIL import Image, ImageOps

from sightline.limits import Limits, use
from sightline.prompt.images import check_image, hold_image, name_of, open_image
from sightline.types import ImageRef

# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "modes"),
    [
        ("PNG", ("RGB", "L", "P", "1")),
        ("JPEG", ("RGB", "L", "CMYK")),
        ("WEBP", ("RGB", "L", "P")),
        ("BMP", ("RGB", "L", "P", "1")),
        ("GIF", ("L", "P", "1")),
        ("TIFF", ("RGB", "L", "P", "CMYK", "1")),
    ],
)
def test_kinds_and_modes(kind: str, modes: tuple[str, ...]) -> None:
    for mode in modes:
        picture = scene().quantize(4) if mode == "P" else scene().convert(mode)
        ref = ImageRef(saved(picture, kind))
        opened = open_image(ref)
        assert (opened.mode, opened.size, check_image(ref)) == ("RGB", (60, 40), (60, 40))
        expected = np.asarray(picture.convert("RGB"), dtype=int)
        assert abs(np.asarray(opened, dtype=int) - expected).mean() < 6  # lossy kinds blur the edges


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    for picture in (rgba, rgba.convert("LA"), rgba.quantize(4)):
        opened = open_image(ImageRef(saved(picture, "PNG")))
        assert opened.getpixel((1, 0)) == (255, 255, 255)
        assert opened.getpixel((0, 0)) != (255, 255, 255)
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert open_image(ImageRef(saved(half, "PNG"))).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    opened = open_image(ImageRef(saved(palette, "GIF", transparency=0)))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]


def test_sixteen_bits_keep_their_brightness() -> None:
    grey = Image.fromarray(np.array([[0, 256 * 100, 65535]], dtype=np.uint16))
    for kind in ("PNG", "TIFF"):
        opened = open_image(ImageRef(saved(grey, kind)))
        assert [opened.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (100, 100, 100), (255, 255, 255)]


def test_numbers_without_a_known_white_are_refused() -> None:
    numbers = Image.fromarray(np.linspace(0, 9, 12, dtype=np.float32).reshape(3, 4))
    ref = ImageRef(saved(numbers, "TIFF"))
    assert said(ref) == said(ref, open_image)
    assert "holds 32-bit numbers" in said(ref) and "save it with 8 or 16 bits" in said(ref)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_turned_pictures_come_out_upright(kind: str, orientation: int) -> None:
    settings = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = saved(scene(), kind, exif=turned(orientation), **settings)
    upright = open_image(ImageRef(data))
    # The oracle is Pillow's own reading of the tag.
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert upright.size == ((40, 60) if orientation >= 5 else (60, 40))
    assert upright.tobytes() == expected.tobytes()
    assert check_image(ImageRef(data)) == upright.size


def test_a_png_may_tell_its_orientation_behind_the_pixels() -> None:
    whole = saved(scene(), "PNG", exif=turned(6))
    place = whole.index(b"eXIf") - 4
    length = struct.unpack(">I", whole[place : place + 4])[0] + 12
    exif = whole[place : place + length]
    end = whole.index(b"IEND") - 4
    moved = whole[:place] + whole[place + length : end] + exif + whole[end:]
    assert check_image(ImageRef(moved)) == open_image(ImageRef(moved)).size == (40, 60)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_does_not_exist_turns_nothing(value: int) -> None:
    ref = ImageRef(saved(scene(), "JPEG", exif=turned(value)))
    assert check_image(ref) == open_image(ref).size == (60, 40)


def test_damaged_exif_data_do_not_spoil_a_picture() -> None:
    data = saved(scene(), "JPEG", exif=turned(6))
    for broken in (
        data.replace(b"MM\x00*", b"MM\x99*", 1),
        data.replace(b"MM\x00*\x00\x00\x00\x08", b"MM\x00*\x00\x00\x99\x99", 1),
    ):
        assert broken != data
        ref = ImageRef(broken)
        assert check_image(ref) == open_image(ref).size == (60, 40)


# --- where it comes from ----------------------------------------------------------------------------------------------


def test_bytes_data_uri_path_and_folder_are_the_same_picture(tmp_path: Path) -> None:
    data = saved(scene(), "PNG")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "bild äö 图.png").write_bytes(data)
    percent = "".join(f"%{byte:02x}" for byte in data)
    refs = [
        ImageRef(data),
        ImageRef("data:image/png;base64," + base64.b64encode(data).decode()),
        ImageRef("data:image/png," + percent),
        ImageRef(str(tmp_path / "deep" / "bild äö 图.png")),
        ImageRef("deep/bild äö 图.png", str(tmp_path)),
        ImageRef("./deep//bild äö 图.png", str(tmp_path)),
    ]
    for ref in refs:
        assert check_image(ref) == (60, 40)
        assert open_image(ref).tobytes() == scene().tobytes()
        assert open_image(hold_image(ref)).tobytes() == scene().tobytes()
    assert hold_image(refs[-1]) == ImageRef(data)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("data:image/png;base64,????", "broken base64"),
        ("data:image/png;base64,äöü", "broken base64"),
        ("data:image/png;base64,aGVsbG8=", "is not an image of a known format; save it as JPEG or PNG"),
        ("data:image/png;base64", "a data URI without a comma"),
        ("data:,", "is not an image of a known format; save it as JPEG or PNG"),
    ],
)
def test_data_uris_that_hold_no_picture(source: str, message: str) -> None:
    assert message in said(ImageRef(source)) and message in said(ImageRef(source), open_image)


class Site(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        data = saved(scene(), "PNG")
        path = self.path.partition("?")[0]
        if path == "/gone.png":
            self.send_error(404)
        elif path == "/rubbish":
            self.wfile.write(b"\x00\x01\x02 no http\r\n\r\n")
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data) + 99 * (path == "/short.png")))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def site() -> Iterator[str]:
    Site.asked = []
    server = HTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_addresses(site: str) -> None:
    assert open_image(ImageRef(f"{site}/a.png")).tobytes() == scene().tobytes()
    held = hold_image(ImageRef(f"{site}/b.png"))
    assert check_image(held) == (60, 40) and open_image(held).size == (60, 40)
    assert Site.asked == ["/a.png", "/b.png"]


def test_addresses_that_give_no_picture(site: str) -> None:
    assert "cannot be fetched (HTTP Error 404" in said(ImageRef(f"{site}/gone.png"))
    for path in ("short.png", "rubbish"):
        assert f"image {site}/{path} cannot be fetched" in said(ImageRef(f"{site}/{path}"))
    assert "cannot be fetched" in said(ImageRef("http://127.0.0.1:1/a.png"))


def test_rows_are_not_fetched(site: str, tmp_path: Path) -> None:
    for look in (check_image, open_image, hold_image):
        assert "rows are not fetched from the network" in said(ImageRef(f"{site}/a.png", str(tmp_path)), look)
    assert Site.asked == []


def test_addresses_beyond_the_bounds(site: str) -> None:
    use(Limits(image_megabytes=1e-4))
    try:
        assert "a.png is larger than 0.0001 MB; fetch it by hand, or" in said(ImageRef(f"{site}/a.png"))
    finally:
        use(Limits())


@pytest.mark.parametrize("path", ["gone.png", "short.png", "a b", "rubbish"])
def test_secrets_of_addresses_are_not_said(site: str, path: str) -> None:
    for url in (f"{site}/{path}?token=hush", f"http://me:hush@{site.removeprefix('http://')}/{path}"):
        assert "hush" not in said(ImageRef(url))
        assert "hush" not in said(ImageRef(url, "images"))
    assert name_of(ImageRef("http://me:hush@x/a?hush")) == "http://x/a?..."
