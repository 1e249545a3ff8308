"""Image files of all kinds, made on the spot, and what is said about those that are none."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from sightline.errors import DataError
from sightline.prompt.images import check_image
from sightline.types import ImageRef

RED, GREEN = (220, 30, 30), (30, 180, 60)
ORIENTATION = 0x0112


def scene(width: int = 60, height: int = 40) -> Image.Image:
    """Red, with a green upper left corner."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(GREEN, (0, 0, width // 3, height // 2))
    return picture


def noise(width: int = 400, height: int = 300) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(picture: Image.Image, kind: str, **settings: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def said(ref: ImageRef, look: Callable[[ImageRef], object] = check_image) -> str:
    with pytest.raises(DataError) as error:
        look(ref)
    assert "\n" not in str(error.value)
    return str(error.value)


def huge_png() -> bytes:
    """A PNG whose header promises 20,000 x 20,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def undecodable(png: bytes) -> bytes:
    """The same with pixels that no decoder takes, and with checksums that are right: only decoding finds it."""
    made, at = png[:8], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        if kind == b"IDAT":
            data = data[:20] + b"\xff" * (length - 20)
        made += struct.pack(">I", length) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        at += 12 + length
    return made
