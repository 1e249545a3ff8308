"""What is no picture, half of one or not allowed is said in one line; what is merely odd is a picture."""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from picture_files import noise, said, saved, scene, turned, undecodable
from PIL import Image

from sightline.errors import DataError
from sightline.prompt.images import check_image, hold_image, name_of, open_image
from sightline.types import ImageRef

UNKNOWN = "image {} is not an image of a known format; save it as JPEG or PNG"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    folder = str(tmp_path)
    for look in (check_image, open_image, hold_image):
        assert said(ImageRef("a.jpg", folder), look) == f"image a.jpg is missing: no file {tmp_path / 'a.jpg'}"
        assert said(ImageRef("folder", folder), look) == f"image folder is a folder: {tmp_path / 'folder'}"
        assert said(ImageRef("text.jpg", folder), look) == UNKNOWN.format("text.jpg")
        assert said(ImageRef("empty.jpg", folder), look) == UNKNOWN.format("empty.jpg")
        assert "image text.jpg/a.jpg cannot be read (" in said(ImageRef("text.jpg/a.jpg", folder), look)
        assert "image a\x00b" in said(ImageRef("a\x00b", folder), look)
        assert "cannot be read (" in said(ImageRef("x" * 300, folder), look)


def test_a_wrong_byte_in_the_middle_of_a_png(tmp_path: Path) -> None:
    whole = saved(noise(), "PNG")
    wrong = whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 0xFF]) + whole[len(whole) // 2 + 1 :]
    (tmp_path / "wrong.png").write_bytes(wrong)
    for ref in (ImageRef(wrong), ImageRef("wrong.png", str(tmp_path))):
        assert "cannot be decoded (" in said(ref, check_image) and "cannot be decoded (" in said(ref, open_image)
    # A checksum that is wrong itself, by a writer without care, spoils no pixel.
    at = whole.index(b"IDAT")
    (length,) = struct.unpack(">I", whole[at - 4 : at])
    careless = whole[: at + 4 + length] + b"\0\0\0\0" + whole[at + 8 + length :]
    assert check_image(ImageRef(careless)) == open_image(ImageRef(careless)).size
    assert check_image(ImageRef(undecodable(whole))) == noise().size
    assert "cannot be decoded (" in said(ImageRef(undecodable(whole)), open_image)


@pytest.mark.parametrize("path", ["../secret.png", "deep/../../secret.png", "..", "deep/.."])
def test_paths_that_leave_their_folder(path: str, tmp_path: Path) -> None:
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(saved(scene(), "PNG"))
    folder = str(tmp_path / "images")
    assert (
        said(ImageRef(path, folder))
        == f"image {path} leads out of its folder {folder}; write it relative to that folder"
    )
    absolute = str(tmp_path / "secret.png")
    assert f"image {absolute} leads out of its folder {folder}" in said(ImageRef(absolute, folder), open_image)
    assert check_image(ImageRef(absolute)) == (60, 40)


def test_links_inside_a_folder_are_its_owners_decision(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a..b.png").write_bytes(saved(scene(), "PNG"))
    (tmp_path / "images").symlink_to(tmp_path / "elsewhere")
    assert check_image(ImageRef("a..b.png", str(tmp_path / "images"))) == (60, 40)


def preview_inside() -> Image.Exif:
    """EXIF data with a preview, which is a whole JPEG of its own."""
    exif = turned(1)
    exif[0x927C] = saved(scene(), "JPEG")
    return exif


@pytest.mark.parametrize(
    "settings", [{}, {"progressive": True}, {"exif": preview_inside()}], ids=["", "scans", "preview"]
)
@pytest.mark.parametrize("size", [(60, 40), (400, 300), (900, 700)])
def test_jpegs_that_are_cut_off(settings: dict[str, object], size: tuple[int, int]) -> None:
    data = saved(noise(*size), "JPEG", **settings)
    assert check_image(ImageRef(data)) == size
    for length in (len(data) // 2, len(data) - 10, len(data) * 9 // 10):
        assert "cannot be decoded" in said(ImageRef(data[:length]))
        assert "cannot be decoded" in said(ImageRef(data[:length]), open_image)


def test_a_jpeg_with_something_behind_its_end() -> None:
    data = saved(noise(60, 40), "JPEG")
    for behind in (b"\x00" * 5, b"SEFT" * 200, bytes(70_000), b"\xff\xda and \xff", data[: len(data) // 2]):
        assert check_image(ImageRef(data + behind)) == (60, 40)
        assert open_image(ImageRef(data + behind)).size == (60, 40)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_kinds_that_are_cut_off(kind: str) -> None:
    data = saved(noise(), kind)
    for length in (len(data) // 2, len(data) - 40):
        assert said(ImageRef(data[:length])) and said(ImageRef(data[:length]), open_image)


def test_a_whole_png_or_jpeg_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    refs = [ImageRef(saved(noise(), kind)) for kind in ("PNG", "JPEG")]
    monkeypatch.setattr(Image.Image, "load", lambda picture: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda picture: pytest.fail("decoded"))
    assert [check_image(ref) for ref in refs] == [(400, 300)] * 2


def huge_png(side: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_a_picture_of_60000_by_60000_px() -> None:
    data = huge_png(60_000)
    assert len(data) < 100
    start = time.process_time()
    for look in (check_image, open_image, hold_image):
        assert "is too large" in said(ImageRef(data), look)
    assert time.process_time() - start < 1
    # A scan of 100 megapixels, for which Pillow warns: large, and allowed.
    assert check_image(ImageRef(huge_png(10_000))) == (10_000, 10_000)
    assert "--raise-limit image_megapixels=144" in said(ImageRef(huge_png(12_000)), check_image)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "ICO", "TGA"])
def test_damage_anywhere_is_said_in_one_line(kind: str) -> None:
    rng = np.random.default_rng(1)
    settings = {"exif": turned(6)} if kind in ("PNG", "JPEG", "WEBP") else {}
    data = saved(noise(61, 47), kind, **settings)
    for _ in range(60):
        broken = np.frombuffer(data, dtype=np.uint8).copy()
        places = rng.integers(0, rng.choice([40, 300, len(data)]), size=rng.integers(1, 6)) % len(data)
        broken[places] = rng.integers(0, 256, size=len(places))
        for look in (check_image, open_image):
            try:
                look(ImageRef(broken.tobytes()))
            except DataError as error:
                assert "\n" not in str(error)


def test_names_in_messages_are_short() -> None:
    assert name_of(ImageRef("a.jpg")) == "a.jpg"
    assert name_of(ImageRef(b"123")) == "<3 bytes>"
    assert len(name_of(ImageRef("data:image/png;base64," + "A" * 100_000))) < 70


def test_what_never_ends_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for look in (check_image, open_image, hold_image):
        assert said(ImageRef("pipe.png", str(tmp_path)), look) == f"image pipe.png is no file: {tmp_path / 'pipe.png'}"


def test_a_side_of_a_million_would_be_padded_to_a_square_of_it() -> None:
    assert "65,535" in said(ImageRef(saved(Image.new("L", (1, 65_536)), "PNG")), check_image)
    assert check_image(ImageRef(saved(Image.new("L", (1, 65_535)), "PNG"))) == (1, 65_535)
