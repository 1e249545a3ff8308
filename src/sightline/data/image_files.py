"""Images of rows, whatever they are (bytes, data URIs, URLs, paths) -> files in one folder, and their paths in it."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sightline.connections import shown_url
from sightline.data.fetch import fetch
from sightline.data.formats import is_url, within
from sightline.data.forms.reading import Picture
from sightline.errors import DataError, UserError
from sightline.files import give_name, write_whole
from sightline.network import of_image
from sightline.prompt.decoding import open_file
from sightline.prompt.images import check_image, hold_image
from sightline.types import ImageRef

_AT_ONCE = 8
"""Images that are fetched."""
_WAITING = 64
"""Images that are fetched or waited for, where a server asks for it: so that one server holds up no other."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass
class ImageFiles:
    """A folder that images are gathered in; what is there already is used, and never written over."""

    folder: Path
    images: str | None
    """The folder that paths of rows are relative to; None: `folder` itself."""
    fetches: bool
    """Whether images are fetched from the network."""
    private: bool = False
    """Whether URLs of rows may lead into the own network."""
    pause: Callable[[float], object] | None = None
    """Waits between the tries to fetch an image."""
    written: int = 0
    """Files made of embedded images, and copies."""
    _fetched: dict[str, Future[str | DataError]] = field(default_factory=dict, repr=False)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_WAITING), repr=False)
    _asking: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_AT_ONCE), repr=False)
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False)

    def begin(self, pictures: Iterable[Picture]) -> None:
        """Begin to fetch the URLs among these pictures; `keep` waits for each, and tells what failed."""
        if self.fetches:
            for url in _urls(pictures):
                if url not in self._fetched:
                    self._fetched[url] = self._pool.submit(self._fetch, url)

    def forget(self, pictures: Iterable[Picture]) -> None:
        """Of pictures that were kept: what came of their URLs."""
        for url in _urls(pictures):
            self._fetched.pop(url, None)

    def close(self) -> None:
        """Fetch no more."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def keep(self, picture: Picture) -> Picture:
        """The picture as a path in the folder. Raises DataError where it is missing or no image."""
        source = picture.source
        if picture.data is not None:
            return Picture(self._write(_checked(ImageRef(picture.data)), source))
        assert source is not None
        if source.startswith("data:"):
            return Picture(self._write(_checked(ImageRef(source)), None))
        if is_url(source):
            if not self.fetches:
                raise DataError(
                    f"image {shown_url(source)} is not fetched; --download FOLDER does that", "image_missing"
                )
            self.begin([picture])
            found = self._fetched[source].result()
            if isinstance(found, DataError):
                raise found
            return Picture(found)
        return Picture(self._copy(source))

    def _write(self, data: bytes, name: str | None) -> str:
        """Write bytes under the name they have, or else under one made of their content."""
        digest = hashlib.sha256(data).hexdigest()[:16]
        if name is None or not _is_plain(name):
            name = f"{digest}{_suffix(data)}"
        elif not _holds(self.folder / name, data) and (self.folder / name).exists():
            path = PurePosixPath(name)
            name = str(path.with_name(f"{path.stem}-{digest}{path.suffix}"))
        if not _holds(self.folder / name, data):
            self._put(self.folder / name, data)
        return name

    def _copy(self, source: str) -> str:
        images = str(self.folder) if self.images is None else self.images
        path = within(source, images)
        data = _checked(ImageRef(path, images))
        if Path(images).resolve() == self.folder.resolve():
            return path
        target = self.folder / path
        if not target.exists():
            self._put(target, data)
        elif not _holds(target, data):
            raise DataError(f"image {path}: {target} is another picture; choose an empty folder")
        return path

    def _fetch(self, url: str) -> str | DataError:
        with self._asking:
            return self._fetch_now(url)

    def _wait(self, seconds: float) -> None:
        """Between two tries another image is fetched."""
        self._asking.release()
        try:
            (self.pause or self._stopped.wait)(seconds)
        finally:
            self._asking.acquire()
        self._go_on()

    def _go_on(self, *_: object) -> None:
        if self._stopped.is_set():
            raise DataError("is not fetched: the work was stopped")

    def _fetch_now(self, url: str) -> str | DataError:
        stem, suffix = _name_of_url(url)
        # Looked for by their names: the folder may hold a million files.
        there = [path for end in (*_SUFFIXES, ".fetched") if (path := self.folder / f"{stem}{end}").exists()]
        target = there[0] if there else self.folder / f"{stem}{suffix or '.fetched'}"
        try:
            if not there:
                fetch(url, target, bounds=of_image(self.private), report=self._go_on, pause=self._wait)
        except DataError as error:
            return DataError(f"image {error}", "image_missing")
        except OSError as error:
            raise UserError(f"cannot write to {self.folder} ({error.strerror or error})") from error
        try:
            check_image(ImageRef(str(target)))
        except DataError as error:
            if not there:  # else it may be the user's, whatever it is
                target.unlink()
            return DataError(f"what {shown_url(url)} gives cannot be used: {error}", "image_unreadable")
        if target.suffix == ".fetched":
            named = target.with_suffix(_suffix(target.read_bytes()))
            try:
                give_name(target, named)
            except FileExistsError:  # another process has fetched it, too
                target.unlink()
            return named.name
        return target.name

    def _put(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror})") from error
        self.written += 1


def _urls(pictures: Iterable[Picture]) -> Iterator[str]:
    return (one.source for one in pictures if one.data is None and one.source and is_url(one.source))


def embedded(picture: Picture, images: str | None) -> Picture:
    """The picture with its bytes, where it is a path into the folder `images`; URLs and data URIs stay as they are."""
    source = picture.source
    if picture.data is not None or images is None or source is None or source.startswith("data:") or is_url(source):
        return picture
    return Picture(source, _checked(ImageRef(within(source, images), images)))


def _checked(ref: ImageRef) -> bytes:
    data = hold_image(ref).source
    assert isinstance(data, bytes)
    return data


def _suffix(data: bytes) -> str:
    """What the name of an image file should end in; MPO, which phones write, is a JPEG with more behind it."""
    with open_file(io.BytesIO(data)) as image:
        return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(str(image.format), f".{str(image.format).lower()}")


def _is_plain(name: str) -> bool:
    """Whether a name can be a path in the folder, and is one of an image."""
    path = PurePosixPath(name)
    clean = all(re.fullmatch(r"[^\x00-\x1f\\:*?\"<>|]+", part) and not part.startswith(".") for part in path.parts)
    return clean and not path.is_absolute() and path.suffix.lower() in _SUFFIXES and len(name) < 200


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def _name_of_url(url: str) -> tuple[str, str]:
    """The name of a URL's file, made of the URL alone, so that a second start finds it; its suffix may be empty."""
    path = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem)[:60] or "image"
    suffix = path.suffix.lower()
    return (
        f"{stem}-{hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}",
        suffix if suffix in _SUFFIXES else "",
    )
