"""Where an image comes from -> an upright RGB picture; what is wrong with it, without decoding it whole."""

from __future__ import annotations

import base64
import http.client
import io
import os.path
import stat
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from sightline.errors import DataError
from sightline.limits import limits, remedy
from sightline.types import ImageRef

MAX_SIDE = 65_535
"""Of a JPEG, too. A longer line of pixels is small itself, but not the square to which it may be padded."""

_END_OF_PNG = b"IEND\xaeB`\x82"
_END_OF_JPEG, _SCAN_OF_JPEG = b"\xff\xd9", b"\xff\xda"
_TAIL = 64 * 1024
"""Some cameras write a little after the end mark of a JPEG."""

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


def open_image(ref: ImageRef) -> Image.Image:
    """Decode an image, turn it upright (EXIF) and convert it to RGB; transparency is laid on white.

    Raises DataError naming the image and what is wrong with it.
    """
    return _decode(ref, _read(ref))


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


def _decode(ref: ImageRef, source: Path | io.BytesIO) -> Image.Image:
    with _one_line(ref), _open(ref, source) as picture:
        picture.load()
        turn = _UPRIGHT.get(_orientation(picture))
        upright = picture if turn is None else picture.transpose(turn)
        if upright.mode.startswith("I;16"):
            # Pillow's own conversion clips at 255, which makes a 16-bit picture white.
            return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
        if upright.has_transparency_data:
            rgba = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return upright if upright.mode == "RGB" else upright.convert("RGB")  # which would copy


def _check(ref: ImageRef, source: Path | io.BytesIO) -> tuple[int, int]:
    with _one_line(ref), _open(ref, source) as picture:
        tail = _tail(source)
        if not _is_whole(picture.format, tail):
            return _decode(ref, source).size
        if b"eXIf" in tail:
            picture.load()  # a PNG may tell its orientation behind the pixels
        width, height = picture.size
        return (height, width) if _orientation(picture) >= 5 else (width, height)


def name_of(ref: ImageRef) -> str:
    """How messages call an image."""
    if isinstance(ref.source, bytes):
        return f"<{len(ref.source)} bytes>"
    return ref.source if len(ref.source) <= 120 else ref.source[:60] + "..."


@contextmanager
def _one_line(ref: ImageRef) -> Iterator[None]:
    """Make a DataError of whatever Pillow stumbles over in a damaged file: it has no error of its own for that."""
    # For good, because warnings.catch_warnings() is not safe among threads, which a server has.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"image {name_of(ref)} cannot be decoded ({_reason(error)}); replace it or drop its row", "image_unreadable"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _open(ref: ImageRef, source: Path | io.BytesIO) -> Image.Image:
    try:
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode) and not source.is_dir():
            # A pipe or a device, whose end may never come.
            raise DataError(f"image {name_of(ref)} is no file: {source}", "image_unreadable")
        picture = Image.open(source)
    except Image.DecompressionBombError as error:
        raise DataError(f"image {name_of(ref)} is too large ({error}); scale it down", "image_bomb") from error
    except FileNotFoundError:
        raise DataError(f"image {name_of(ref)} is missing: no file {_path(ref)}", "image_missing") from None
    except IsADirectoryError:
        raise DataError(f"image {name_of(ref)} is a folder: {_path(ref)}", "image_missing") from None
    except UnidentifiedImageError:
        raise DataError(f"image {name_of(ref)} is not an image that Pillow can read", "image_unreadable") from None
    except OSError as error:
        if error.errno is None:
            raise  # Pillow's, not the system's: the file is damaged
        raise DataError(f"image {name_of(ref)} cannot be read ({error})", "image_unreadable") from error
    width, height = picture.size
    if max(width, height) > MAX_SIDE:
        picture.close()
        raise DataError(
            f"image {name_of(ref)} is too large: {width} x {height} px; scale each side to {MAX_SIDE:,}", "image_bomb"
        )
    if (megapixels := width * height / 1e6) > limits().image_megapixels:
        picture.close()
        raise DataError(
            f"image {name_of(ref)} is too large: {width} x {height} px are {megapixels:.1f} megapixels, and "
            f"{limits().image_megapixels:g} are taken; scale it down, {remedy('image_megapixels', megapixels)}",
            "image_bomb",
        )
    if picture.mode in ("I", "F"):
        picture.close()
        raise DataError(
            f"image {name_of(ref)} holds 32-bit numbers, whose white is unknown; save it with 8 or 16 bits",
            "image_unreadable",
        )
    return picture


def _orientation(picture: Image.Image) -> int:
    try:
        # Not picture.getexif(): it decodes a whole PNG to look for EXIF behind the pixels.
        value = Image.Image.getexif(picture).get(ExifTags.Base.Orientation)
    except Exception:
        return 1  # EXIF data that cannot be read say nothing; the picture itself may be perfect
    return value if value in _UPRIGHT else 1


def _is_whole(kind: str | None, tail: bytes) -> bool:
    """Whether the end mark is there; in a JPEG behind the last scan, because its preview has an end mark too."""
    if kind == "JPEG":
        return tail.rfind(_END_OF_JPEG) > tail.rfind(_SCAN_OF_JPEG)
    return kind == "PNG" and _END_OF_PNG in tail


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
        except ValueError as error:
            raise DataError(f"image {name_of(ref)}: broken base64 ({error})", "image_unreadable") from error
        if not comma:
            raise DataError(f"image {name_of(ref)}: a data URI without a comma", "image_unreadable")
        return io.BytesIO(data)
    if source.startswith(("http://", "https://")):
        if ref.folder is not None:
            raise DataError(
                f"image {name_of(ref)}: rows are not fetched from the network; download it and name the file",
                "image_missing",
            )
        try:
            with urllib.request.urlopen(source, timeout=30) as answer:
                return io.BytesIO(answer.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DataError(f"image {source} cannot be fetched ({_reason(error)})", "image_missing") from error
    return _path(ref)


def _path(ref: ImageRef) -> Path:
    assert isinstance(ref.source, str)
    if ref.folder is None:
        return Path(ref.source)
    # Judged by its words alone: a symbolic link inside the folder is its owner's decision (data sets are often linked
    # together), ".." or an absolute path in a row is not.
    if os.path.isabs(ref.source) or ".." in Path(ref.source).parts:
        raise DataError(
            f"image {ref.source} leads out of its folder {ref.folder}; write it relative to that folder",
            "image_outside",
        )
    return Path(ref.folder) / ref.source


def _tail(source: Path | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[-_TAIL:]
    with source.open("rb") as file:
        file.seek(max(0, source.stat().st_size - _TAIL))
        return file.read()
