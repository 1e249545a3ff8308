"""From an archive (zip, tar, tar.gz) to a folder: nothing leaves the folder, nothing that is there is overwritten.

The files go to PLACE.unpacking/files first and to their place when all are there, so a place is never half filled.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sightline.errors import DataError, shown
from sightline.files import give_name, is_own, open_own

_SPARE = 64 << 20
"""Bytes that stay free on the disk."""
_CHUNK = 1 << 20
_MARK = ("sightline.txt", "An archive is being unpacked here by sightline data prepare.\n")
"""By this a folder that may be used again, and removed, is told from a user's of that name."""
_JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db")
PICTURES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What became of the files of an archive."""

    placed: int
    same: int
    """Were there already, with the same size."""
    different: int
    """Were there already with another size, and were left as they are."""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    size: int
    problem: str | None
    """Why it must not be unpacked."""
    open: Callable[[], IO[bytes]]


def unpack(
    archive: Path,
    place: Path,
    *,
    take: tuple[str, ...] = (),
    report: Callable[[int, int | None], None] = lambda there, total: None,
) -> Unpacked:
    """Unpack an archive into a folder, without the outer folders that all its files share.

    `take`: only the files of these names, wherever they lie in the archive. `report` is told the bytes written.
    Raises DataError when the archive is damaged, names a path outside the folder, holds a link or a device, or does
    not fit on the disk; nothing is placed then.
    """
    place = place.resolve()  # where a user has linked it to another disk, the files must grow on that disk
    outer = place.with_name(place.name + ".unpacking")
    staging = _staging(outer)
    try:
        with _entries(archive) as (entries, total):
            _extract(archive, entries, staging, take, None if take else total, report)
        missing = [name for name in take if not (staging / name).is_file()]
        if missing:
            raise DataError(f"{archive} does not hold {', '.join(missing)}; it is not the archive that was expected")
        done = _settle(staging if take else _core(staging), place)
    except Exception as error:  # but not a kill: then the next start goes on from what is in the staging folder
        shutil.rmtree(outer, ignore_errors=True)
        raise _explained(error, archive, place) from None
    shutil.rmtree(outer, ignore_errors=True)
    return done


def _staging(outer: Path) -> Path:
    """Where the files grow: in a folder that says by a mark that it is ours; DataError where it is another's."""
    staging = outer / "files"
    try:
        if not is_own(outer, *_MARK):
            raise DataError(f"{outer} is in the way, where archives are unpacked first; remove or rename it")
        staging.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{outer} cannot be written: {error.strerror}") from None
    return staging


def _explained(error: Exception, archive: Path, place: Path) -> Exception:
    # zipfile raises NotImplementedError for a way of compression that it does not know, which damage looks like.
    damaged = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError)
    if isinstance(error, damaged) or (isinstance(error, OSError) and error.errno is None):  # gzip gives no number
        said = str(error)[:200]  # zipfile quotes what stands where a name should be, which may be all of the file
        return DataError(f"{archive} is damaged ({said}); delete it and fetch it again")
    if isinstance(error, OSError):
        return DataError(f"{archive} cannot be unpacked into {place}: {error}")
    return error


def names_to_jpg(folder: Path) -> tuple[int, int]:
    """Give all pictures of a folder the ending .jpg, as OCR-VQA's rows have it; what they contain stays.

    Returns how many were renamed, and how many not because a .jpg of their name is there already.
    """
    renamed = left = 0
    for directory, _, names in os.walk(folder, followlinks=True):
        there = set(names)
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending == ".jpg" or ending.lower() not in PICTURES:
                continue
            if stem + ".jpg" in there:
                left += 1
                continue
            give_name(Path(directory, name), Path(directory, stem + ".jpg"))
            there.add(stem + ".jpg")
            renamed += 1
    return renamed, left


@contextmanager
def _entries(archive: Path) -> Iterator[tuple[Iterator[_Entry], int | None]]:
    """The files of an archive, one after another, and the sum of their sizes where the archive has a list of them."""
    if tarfile.is_tarfile(archive):  # first: a zip is told by its end, and may be the last file of a tar
        with tarfile.open(archive) as tape:
            yield _members(tape), None
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            # Not info.is_dir(), which stumbles over a file without a name.
            infos = [info for info in packed.infolist() if not info.filename.endswith("/")]
            if sum(info.compress_size for info in infos) > archive.stat().st_size:
                raise zipfile.BadZipFile("its files lie one in another")
            yield (_zip_entry(packed, info) for info in infos), sum(info.file_size for info in infos)
    else:
        raise DataError(
            f"{archive} is neither a zip nor a tar archive, or it was cut off; delete it and fetch it again"
        )


def _members(tape: tarfile.TarFile) -> Iterator[_Entry]:
    for member in tape:
        if not member.isdir():
            yield _tar_entry(tape, member)
    if isinstance(tape.fileobj, io.BufferedReader):  # cut off between two files, which tarfile takes for the end
        tape.fileobj.seek(tape.offset)
        if len(tape.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")


def _zip_entry(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    kind = stat.S_IFMT(info.external_attr >> 16)
    problem = None
    if kind not in (0, stat.S_IFREG):
        problem = "a link" if kind == stat.S_IFLNK else "no plain file"
    elif info.flag_bits & 1:
        problem = "encrypted"
    return _Entry(info.filename, info.file_size, problem, lambda: packed.open(info))


def _tar_entry(tape: tarfile.TarFile, member: tarfile.TarInfo) -> _Entry:
    problem = None
    if member.issparse():
        problem = "a sparse file: a few bytes that stand for gigabytes"
    elif not member.isreg():
        problem = "a link" if member.issym() or member.islnk() else "no plain file"

    def content() -> IO[bytes]:
        stream = tape.extractfile(member)
        assert stream is not None, "a regular file has content"
        return stream

    return _Entry(member.name, member.size, problem, content)


def _extract(
    archive: Path,
    entries: Iterator[_Entry],
    staging: Path,
    take: tuple[str, ...],
    total: int | None,
    report: Callable[[int, int | None], None],
) -> None:
    if total is not None:
        _make_sure(archive, total - _bytes_in(staging), staging)
    written, seen = 0, set[str]()
    for entry in entries:
        parts = _path_of(archive, entry)
        if not parts:
            continue
        if entry.problem:
            raise DataError(f"{archive} holds {shown(entry.name)}, which is {entry.problem}; it was not unpacked")
        if take and parts[-1] not in take:
            continue
        target = staging / parts[-1] if take else staging.joinpath(*parts)
        if str(target) in seen:
            raise DataError(f"{archive} holds {shown(entry.name)} twice, and one would be lost; it was not unpacked")
        seen.add(str(target))
        if not (target.is_file() and target.stat().st_size == entry.size):
            if total is None:
                _make_sure(archive, entry.size, staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            with entry.open() as source, open_own(target, "wb") as file:
                _copy(archive, entry, source, file)
        written += entry.size
        report(written, total)


def _copy(archive: Path, entry: _Entry, source: IO[bytes], file: IO[bytes]) -> None:
    """Copy no more than was declared: the room on the disk was judged by that."""
    left = entry.size
    while chunk := source.read(min(_CHUNK, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise DataError(f"{archive}: {shown(entry.name)} is larger than it says; it was not unpacked")
        file.write(chunk)
    if left:
        raise DataError(f"{archive} is damaged ({shown(entry.name)} breaks off); delete it and fetch it again")


def _path_of(archive: Path, entry: _Entry) -> list[str]:
    """The folders and the name of an entry; empty for what no one wants. DataError when it would leave the folder."""
    if not entry.name:
        raise DataError(f"{archive} holds a file without a name; it was not unpacked")
    name = entry.name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or (parts and parts[0][1:2] == ":"):
        raise DataError(
            f"{archive} holds the path {shown(entry.name)}, which leads out of its folder; it was not unpacked"
        )
    return [] if set(parts) & set(_JUNK) else parts


def _make_sure(archive: Path, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free - _SPARE
    if size > free:
        raise DataError(
            f"{archive} needs {size / 1e9:,.1f} GB, {max(free, 0) / 1e9:,.1f} GB are free in {folder.parent}"
        )


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _core(folder: Path) -> Path:
    """Below the folders that hold nothing but one folder."""
    while True:
        inside = list(os.scandir(folder))
        if len(inside) != 1 or not inside[0].is_dir(follow_symlinks=False):
            return folder
        folder = Path(inside[0].path)


def _settle(source: Path, place: Path) -> Unpacked:
    """Move the files to their place; what is there already stays."""
    if not os.path.lexists(place):
        placed = sum(len(names) for _, _, names in os.walk(source))
        os.rename(source, place)
        return Unpacked(placed, same=0, different=0)
    placed = same = different = 0
    for directory, _, names in os.walk(source):
        into = place / Path(directory).relative_to(source)
        into.mkdir(parents=True, exist_ok=True)
        for name in names:
            ours, theirs = Path(directory) / name, into / name
            try:
                give_name(ours, theirs)
                placed += 1
                continue
            except FileExistsError:
                pass
            if theirs.is_file() and theirs.stat().st_size == ours.stat().st_size:
                same += 1
            else:
                different += 1
    return Unpacked(placed, same, different)
