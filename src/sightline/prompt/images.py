"""Where an image comes from -> an upright RGB picture; what is wrong with it, if anything, without decoding it whole."""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import os.path
import urllib.parse
import urllib.request
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sightline.errors import DataError
from sightline.types import ImageRef

MAX_PIXELS = 178_956_970
"""Above this a picture is taken for a decompression bomb (Pillow's own limit for an error: 2 x 89,478,485)."""

_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_TAIL = 64 * 1024
"""Some cameras write a little after the end mark of a JPEG."""


def open_image(ref: ImageRef) -> Image.Image:
    """Decode an image, turn it upright (EXIF) and convert it to RGB; transparency is laid on white.

    Raises DataError naming the image and what is wrong with it.
    """
    return _decode(ref, _read(ref))


def _decode(ref: ImageRef, source: Path | io.BytesIO) -> Image.Image:
    try:
        with _open(ref, source) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"image {name_of(ref)} cannot be decoded ({error}); replace it or drop its row") from error


def check_image(ref: ImageRef) -> tuple[int, int]:
    """Width and height of an image as the model will see it (upright), from the header and the end of the file.

    Raises DataError for a missing, foreign, truncated or gigantic image. Decodes only what looks truncated.
    """
    return _check(ref, _read(ref))


def hold_image(ref: ImageRef) -> ImageRef:
    """Check an image as `check_image` does, and return it with its bytes inside: fetched once for all."""
    source = _read(ref)
    _check(ref, source)
    return ImageRef(source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes())


def _check(ref: ImageRef, source: Path | io.BytesIO) -> tuple[int, int]:
    with _open(ref, source) as picture:
        width, height = picture.size
        ends = _ENDS.get(picture.format or "")
        # Not picture.getexif(): it decodes a whole PNG to look for EXIF behind the pixels.
        exif = Image.Exif()
        exif.load(picture.info.get("exif") or b"")
    if ends is None or ends not in _tail(source):
        _decode(ref, source)
    turned = exif.get(ExifTags.Base.Orientation, 1) >= 5
    return (height, width) if turned else (width, height)


def name_of(ref: ImageRef) -> str:
    """How messages call an image."""
    if isinstance(ref.source, bytes):
        return f"<{len(ref.source)} bytes>"
    return ref.source if len(ref.source) <= 120 else ref.source[:60] + "..."


def _open(ref: ImageRef, source: Path | io.BytesIO) -> Image.Image:
    try:
        picture = Image.open(source)
    except Image.DecompressionBombError as error:
        raise DataError(f"image {name_of(ref)} is too large ({error}); scale it down") from error
    except FileNotFoundError:
        raise DataError(f"image {name_of(ref)} is missing: no file {_path(ref)}") from None
    except IsADirectoryError:
        raise DataError(f"image {name_of(ref)} is a folder: {_path(ref)}") from None
    except UnidentifiedImageError:
        raise DataError(f"image {name_of(ref)} is not an image that Pillow can read") from None
    except OSError as error:
        raise DataError(f"image {name_of(ref)} cannot be read ({error})") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        picture.close()
        raise DataError(f"image {name_of(ref)} is too large: {width} x {height} px; scale it below {MAX_PIXELS:,} px")
    return picture


def _read(ref: ImageRef) -> Path | io.BytesIO:
    source = ref.source
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if source.startswith("data:"):
        head, comma, body = source.partition(",")
        try:
            data = (
                base64.b64decode(body, validate=True)
                if head.endswith(";base64")
                else urllib.parse.unquote_to_bytes(body)
            )
        except binascii.Error as error:
            raise DataError(f"image {name_of(ref)}: broken base64 ({error})") from error
        if not comma:
            raise DataError(f"image {name_of(ref)}: a data URI without a comma")
        return io.BytesIO(data)
    if source.startswith(("http://", "https://")):
        if ref.folder is not None:
            raise DataError(
                f"image {name_of(ref)}: rows are not fetched from the network; download it and name the file"
            )
        try:
            with urllib.request.urlopen(source, timeout=30) as answer:
                return io.BytesIO(answer.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DataError(f"image {source} cannot be fetched ({error})") from error
    return _path(ref)


def _path(ref: ImageRef) -> Path:
    assert isinstance(ref.source, str)
    if ref.folder is None:
        return Path(ref.source)
    # Judged by its words alone: a symbolic link inside the folder is its owner's decision (data sets are often linked
    # together), ".." or an absolute path in a row is not.
    if os.path.isabs(ref.source) or ".." in Path(ref.source).parts:
        raise DataError(f"image {ref.source} leads out of its folder {ref.folder}; write it relative to that folder")
    return Path(ref.folder) / ref.source


def _tail(source: Path | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[-_TAIL:]
    with source.open("rb") as file:
        file.seek(max(0, source.stat().st_size - _TAIL))
        return file.read()
