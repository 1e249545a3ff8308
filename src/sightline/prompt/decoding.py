"""An image file -> Pillow's picture of it, of the formats below only -> an upright RGB picture, in little memory."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np

# Imported by name, because Pillow would look for all of its plug-ins where one of these is unknown to it.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    IcoImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from sightline.limits import limits

FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
        PpmImagePlugin.PpmImageFile,
        IcoImagePlugin.IcoImageFile,
        Jpeg2KImagePlugin.Jpeg2KImageFile,
        AvifImagePlugin.AvifImageFile,
        TgaImagePlugin.TgaImageFile,  # the last, because nothing at the beginning of a file tells it
    )
)
"""What docs/your-own-data.md promises; MPO, which phones write, is a JPEG with another behind it.

Of Pillow's others some start programs (EPS: Ghostscript), most are rare, and all are code that a stranger's file would
reach.
"""

_STRIP = 1 << 20
"""Pixels that are changed at a time."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the picture upright; from 5 on, width and height change places."""


def open_file(source: str | Path | io.BytesIO) -> ImageFile.ImageFile:
    """The one place where a file becomes a picture of Pillow's; only its header is read.

    Raises what Pillow raises, DecompressionBombError beyond the limit of pixels.
    """
    # Pillow refuses at twice this number, also what lies inside of an icon, whose header says less.
    Image.MAX_IMAGE_PIXELS = int(limits().image_megapixels * 1e6 / 2)
    return Image.open(source, formats=FORMATS)


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, as far as the header tells it."""
    try:
        # Not picture.getexif(): it decodes a whole PNG to look for EXIF behind the pixels.
        return _known(Image.Image.getexif(picture))
    except Exception:
        return 1  # EXIF data that cannot be read say nothing; the picture itself may be perfect


def orientation_behind(tail: bytes) -> int | None:
    """What the end of a PNG says of its orientation, behind the pixels; None where it says nothing."""
    found, at = None, tail.find(b"eXIf")
    while at >= 4:
        (length,) = struct.unpack(">I", tail[at - 4 : at])
        end = at + 4 + length
        if end + 4 <= len(tail) and struct.pack(">I", zlib.crc32(tail[at:end])) == tail[end : end + 4]:
            exif = Image.Exif()
            try:
                exif.load(b"Exif\0\0" + tail[at + 4 : end])
                found = _known(exif)
            except Exception:
                found = 1
        at = tail.find(b"eXIf", at + 4)
    return found


def to_rgb(picture: ImageFile.ImageFile) -> Image.Image:
    """Decode, convert to RGB - transparency is laid on white - and turn upright.

    At the fullest moment there are the file's own pixels (1 to 4 bytes each) and those of the result (4). Pillow's own
    steps, one after the other over a whole picture, would hold four or five copies.
    """
    picture.load()
    vars(picture).pop("_decoder", None)  # that of a WebP holds two more copies
    turn = _UPRIGHT.get(orientation(picture))
    made: Image.Image = picture
    if picture.mode != "RGB" or picture.has_transparency_data:
        made = _in_strips(picture)
        picture.close()  # lets its pixels go
    return made if turn is None else made.transpose(turn)


def _in_strips(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    if width * height <= _STRIP:
        return _strip(picture)
    made = Image.new("RGB", picture.size, None)
    step = max(1, _STRIP // max(width, 1))
    for top in range(0, height, step):
        box = (0, top, width, min(top + step, height))
        made.paste(_strip(picture.crop(box)), box)
    return made


def _strip(part: Image.Image) -> Image.Image:
    if part.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which makes a 16-bit picture white.
        return Image.fromarray((np.asarray(part) >> 8).astype(np.uint8)).convert("RGB")
    if part.has_transparency_data:
        rgba = part.convert("RGBA")
        part = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return part.convert("RGB")


def _known(exif: Image.Exif) -> int:
    value = exif.get(ExifTags.Base.Orientation)
    return value if value in _UPRIGHT else 1
