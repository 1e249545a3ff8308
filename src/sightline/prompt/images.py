"""Where an image comes from -> an upright RGB picture; what is wrong with it, without decoding it whole."""

from __future__ import annotations

import base64
import http.client
import io
import os
import re
import stat
import struct
import urllib.parse
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from sightline.connections import Refused, shown_url
from sightline.errors import DataError
from sightline.limits import limits, remedy
from sightline.network import fetch_bytes, of_image
from sightline.pointers import POINTER
from sightline.prompt.decoding import open_file, orientation, orientation_behind, to_rgb
from sightline.types import ImageRef

MAX_SIDE = 65_535
"""Of a JPEG, too. A longer line of pixels is small itself, but not the square to which it may be padded."""

_END_OF_PNG = b"IEND\xaeB`\x82"
_END_OF_JPEG, _SCAN_OF_JPEG = b"\xff\xd9", b"\xff\xda"
_ENDS = {"PNG": _END_OF_PNG, "GIF": b";"}
_TAIL = 64 * 1024
"""Some cameras write a little after the end mark of a JPEG."""

_LONGEST_PATH = 240
"""Characters of one in a message: those of a folder of the user's, and as many of what a row says."""

_TO_BE_SURE = 32
"""Megapixels; what is larger is not decoded only to see whether it is whole: each process would need a gigabyte."""


def open_image(ref: ImageRef) -> Image.Image:
    """Decode an image, turn it upright (EXIF) and convert it to RGB; transparency is laid on white.

    Raises DataError naming the image and what is wrong with it.
    """
    return _decode(ref, _read(ref))


def check_image(ref: ImageRef) -> tuple[int, int]:
    """Width and height of an image as the model will see it (upright), from the header and the end of the file.

    Raises DataError for a missing, foreign, truncated or gigantic image, and a PNG with a wrong byte. Decodes only what
    looks damaged.
    """
    return _check(ref, _read(ref))


def hold_image(ref: ImageRef) -> ImageRef:
    """Check an image as `check_image` does, and return it with its bytes inside: fetched once for all."""
    source = _read(ref)
    _check(ref, source)
    return ImageRef(source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes())


def _decode(ref: ImageRef, source: Path | io.BytesIO) -> Image.Image:
    with _one_line(ref), _open(ref, source) as picture:
        return to_rgb(picture)


def _check(ref: ImageRef, source: Path | io.BytesIO) -> tuple[int, int]:
    with _one_line(ref), _open(ref, source) as picture:
        tail = _tail(source)
        width, height = picture.size
        turned = (orientation_behind(tail) if picture.format == "PNG" else None) or orientation(picture)
        if not _is_whole(picture.format, tail) or (picture.format == "PNG" and not _sums_agree(source)):
            if width * height <= _TO_BE_SURE * 1e6:
                return _decode(ref, source).size
            _check_large(ref, picture, tail)
        return (height, width) if turned >= 5 else (width, height)


def _sums_agree(source: Path | io.BytesIO) -> bool:
    """Whether the pieces of a PNG that hold its pixels are as they were written; reads the file once."""
    with io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else source.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IEND":
                return True
            if kind != b"IDAT":
                file.seek(length + 4, os.SEEK_CUR)
                continue
            data, found = file.read(length), file.read(4)
            if len(data) < length or found != struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))):
                return False
    return False


def _check_large(ref: ImageRef, picture: ImageFile.ImageFile, tail: bytes) -> None:
    """Whether a large image that looks damaged is so, as far as that is seen without all of its pixels."""
    if picture.format == "JPEG":
        picture.draft("RGB", (1, 1))  # decodes all of the file, to an eighth of each side
        picture.load()
    elif picture.format in _ENDS and not tail.rstrip(b"\0").endswith(_ENDS[picture.format]):
        raise DataError(
            f"image {name_of(ref)} is cut off: its end mark is missing; replace it or drop its row", "image_unreadable"
        )
    elif picture.format == "PNG":
        raise DataError(
            f"image {name_of(ref)} is damaged: a checksum inside is wrong; replace it or drop its row",
            "image_unreadable",
        )


def name_of(ref: ImageRef) -> str:
    """How messages call an image."""
    if isinstance(ref.source, bytes):
        return f"<{len(ref.source)} bytes>"
    if ref.source.startswith(("http://", "https://")):
        return shown_url(ref.source)
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


def _open(ref: ImageRef, source: Path | io.BytesIO) -> ImageFile.ImageFile:
    try:
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode) and not source.is_dir():
            # A pipe or a device, whose end may never come.
            raise DataError(f"image {name_of(ref)} is no file: {_shown_path(ref)}", "image_unreadable")
        picture = open_file(source)
    except Image.DecompressionBombError as error:
        found = re.search(r"[0-9]+", str(error))
        raise _too_large(ref, "it has", int(found[0]) if found else 0) from error
    except FileNotFoundError:
        raise DataError(f"image {name_of(ref)} is missing: no file {_shown_path(ref)}", "image_missing") from None
    except IsADirectoryError:
        raise DataError(f"image {name_of(ref)} is a folder: {_shown_path(ref)}", "image_missing") from None
    except UnidentifiedImageError:
        if _begins(source, POINTER):
            raise DataError(
                f"image {name_of(ref)} is a pointer of git-lfs, not the image: `git lfs pull` brings it",
                "image_missing",
            ) from None
        raise DataError(
            f"image {name_of(ref)} is not an image of a known format; save it as JPEG or PNG", "image_unreadable"
        ) from None
    except OSError as error:
        if error.errno is None:
            raise  # Pillow's, not the system's: the file is damaged
        raise DataError(f"image {name_of(ref)} cannot be read ({error.strerror})", "image_unreadable") from error
    width, height = picture.size
    if max(width, height) > MAX_SIDE:
        picture.close()
        raise DataError(
            f"image {name_of(ref)} is too large: {width} x {height} px; scale each side to {MAX_SIDE:,}", "image_bomb"
        )
    if width * height > limits().image_megapixels * 1e6:
        picture.close()
        raise _too_large(ref, f"{width} x {height} px are", width * height)
    if picture.mode in ("I", "F"):
        picture.close()
        raise DataError(
            f"image {name_of(ref)} holds 32-bit numbers, whose white is unknown; save it with 8 or 16 bits",
            "image_unreadable",
        )
    return picture


def _too_large(ref: ImageRef, what: str, pixels: int) -> DataError:
    return DataError(
        f"image {name_of(ref)} is too large: {what} {pixels / 1e6:.1f} megapixels, and "
        f"{limits().image_megapixels:g} are taken; scale it down, {remedy('image_megapixels', pixels / 1e6)}",
        "image_bomb",
    )


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
            # The user has typed it: it may be one of the own network.
            return io.BytesIO(fetch_bytes(source, of_image(private=True)))
        except Refused as error:
            raise DataError(f"image {shown_url(source)} {error}", "image_missing") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DataError(
                f"image {shown_url(source)} cannot be fetched ({_reason(error)})", "image_missing"
            ) from error
    return _path(ref)


def _path(ref: ImageRef) -> Path:
    assert isinstance(ref.source, str)
    if ref.folder is None:
        return Path(ref.source)
    # Judged by its words alone: a symbolic link inside the folder is its owner's decision (data sets are often linked
    # together), ".." or an absolute path in a row is not.
    if os.path.isabs(ref.source) or ".." in Path(ref.source).parts:
        raise DataError(
            f"image {name_of(ref)} leads out of its folder {ref.folder}; write it relative to that folder",
            "image_outside",
        )
    return Path(ref.folder) / ref.source


def _shown_path(ref: ImageRef) -> str:
    path = str(_path(ref))
    return path if len(path) <= _LONGEST_PATH else f"{path[: _LONGEST_PATH - 4]} ..."


def _begins(source: Path | io.BytesIO, mark: bytes) -> bool:
    if isinstance(source, io.BytesIO):
        return source.getvalue().startswith(mark)
    with source.open("rb") as file:
        return file.read(len(mark)) == mark


def _tail(source: Path | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[-_TAIL:]
    with source.open("rb") as file:
        file.seek(max(0, source.stat().st_size - _TAIL))
        return file.read()
