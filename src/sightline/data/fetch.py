"""From a URL to a file: resumed where it broke off, retried, checked, and given its name when it is complete.

While it grows the file is called NAME.part; NAME.part.json holds what the server said of it.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import re
import time
import urllib.error
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sightline.connections import Refused, shown_url
from sightline.errors import DataError
from sightline.files import give_name, hold, open_own, write_whole
from sightline.network import DOWNLOAD, Bounds, opening, retry_after
from sightline.runtime import say
from sightline.terminal import printable

TRIES_UNREACHED = 3
"""Tries in a row for a server that was never reached: most likely there is no network."""
TIMEOUT = 60.0
_CHUNK = 1 << 20
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EISDIR, errno.EIO}
"""Complaints of the disk, which no other try will mend."""

Report = Callable[[int, int | None], None]
"""Told again and again: bytes that are there, bytes in all (None: the server does not say)."""


@dataclass(frozen=True, slots=True)
class _Note:
    """What tells whether the file of a later try is the same."""

    source: str
    """The URL, hashed: it may hold a secret."""
    validator: str | None
    """A strong ETag, or the date of the last change."""
    size: int | None


class _TryAgain(Exception):
    def __init__(self, reason: str, pause: float | None = None, reached: bool = True) -> None:
        super().__init__(reason)
        self.pause, self.reached = pause, reached


def fetch(
    url: str,
    target: Path,
    *,
    bounds: Bounds = DOWNLOAD,
    checksum: str | None = None,
    report: Report = lambda there, total: None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch a file; what an earlier try has left is used, if the server still has the same file.

    Raises DataError when the server refuses, when it gives something else than the file (a web page, a wrong
    checksum), beyond the bounds, and after so many tries without a byte gained as they say.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(target)
    try:
        held = hold(part)
    except BlockingIOError:
        raise DataError(f"{shown_url(url)}: another process is fetching it to {target}; wait for that one") from None
    except OSError as error:
        raise DataError(f"{part} cannot be written: {error.strerror}") from None
    with held:
        try:
            _fetch(url, target, part, bounds, checksum, report, pause)
        finally:
            if not _size(part):
                part.unlink(missing_ok=True)


def _fetch(
    url: str,
    target: Path,
    part: Path,
    bounds: Bounds,
    checksum: str | None,
    report: Report,
    pause: Callable[[float], None],
) -> None:
    """The same, when nobody else is at it."""
    until = time.monotonic() + bounds.seconds
    failures, most = 0, _size(part)
    while True:
        try:
            _pull(url, part, bounds, until, report)
            break
        except Refused as reason:
            raise DataError(f"{shown_url(url)} {reason}") from None
        except _TryAgain as reason:
            failures = 0 if _size(part) > most else failures + 1
            most = max(most, _size(part))
            if failures >= (bounds.tries if reason.reached or most else TRIES_UNREACHED):
                kept = f"; what came is kept in {part}" if most else ""
                raise DataError(
                    f"{shown_url(url)}: {reason}, {failures} times in a row; try again later{kept}"
                ) from None
            wait = min(reason.pause if reason.pause is not None else 2.0**failures, bounds.longest_pause)
            if time.monotonic() + wait > until:
                raise DataError(f"{shown_url(url)} {bounds.too_slow()} (the last try: {reason})") from None
            say(printable(f"{target.name}: {reason}; going on in {wait:.0f} s"))
            pause(wait)
    _check(part, target, checksum)
    try:
        give_name(part, target)
    except FileExistsError:
        raise DataError(f"{target} has appeared meanwhile; what was fetched is kept in {part}") from None
    _note_path(part).unlink(missing_ok=True)


def remote_size(url: str) -> int | None:
    """How many bytes a URL would give, as the server says; None when it does not say or cannot be reached."""
    try:
        with opening(url, DOWNLOAD, time.monotonic() + 20.0, method="HEAD", timeout=10.0) as response:
            return _length(response)
    except (OSError, http.client.HTTPException, ValueError, Refused):
        return None


def size_of_part(target: Path) -> int:
    """How many bytes earlier tries have left."""
    return _size(_part_of(target))


def hash_file(path: Path, algorithm: str) -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _pull(url: str, part: Path, bounds: Bounds, until: float, report: Report) -> None:
    """One try. Returns when the file is complete; raises _TryAgain when it is not."""
    note, have = _read_note(part, url), _size(part)
    if note is None or (note.validator is None and note.size is None):
        have = 0
    elif have and have == note.size:
        return
    headers: dict[str, str] = {}
    if note and have:
        headers["Range"] = f"bytes={have}-"
        if note.validator:
            headers["If-Range"] = note.validator
    try:
        with opening(url, bounds, until, headers=headers, timeout=TIMEOUT) as response:
            _refuse_page(url, part, response)
            now, start = _note_of(url, response)
            if (now.size or 0) > bounds.largest:
                raise bounds.too_large(now.size or 0)
            if response.status != 206 or note is None:
                have = 0
                _write_note(part, now)
            elif start != have or _differ(now.validator, note.validator) or _differ(now.size, note.size):
                _forget(part)
                raise _TryAgain("the file has changed at its source, so it begins anew", pause=0.0)
            _copy(response, part, have, now.size, bounds, report)
    except urllib.error.HTTPError as error:
        _refuse(url, part, error)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in _OURS:
            raise DataError(f"{part} cannot be written: {error.strerror}") from None
        if isinstance(error, urllib.error.URLError):
            raise _TryAgain(f"the server cannot be reached ({error.reason})", reached=False) from None
        raise _TryAgain(f"the connection broke off ({error or type(error).__name__})") from None
    except ValueError as error:
        raise DataError(f"{shown_url(url)}: the answer makes no sense ({error})") from None


def _copy(response: Any, part: Path, have: int, total: int | None, bounds: Bounds, report: Report) -> None:
    with open_own(part, "r+b" if have else "wb") as file:
        file.seek(have)
        file.truncate()
        report(have, total)
        while chunk := response.read1(_CHUNK):
            have += len(chunk)
            if have > bounds.largest:
                _forget(part)
                raise bounds.too_large(have)
            file.write(chunk)
            report(have, total)
    if total is not None and have != total:
        if have > total:
            _forget(part)
        raise _TryAgain(f"{have:,} bytes came of {total:,} that were announced")


def _differ(one: str | int | None, other: str | int | None) -> bool:
    return one is not None and other is not None and one != other


def _note_of(url: str, response: Any) -> tuple[_Note, int]:
    """What the server says of the whole file, and the byte at which the answer begins."""
    etag = response.headers.get("ETag", "")
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
    if response.status != 206:
        return _Note(_hashed(url), validator, _length(response)), 0
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if found is None:
        return _Note(_hashed(url), validator, None), -1
    return _Note(_hashed(url), validator, int(found[2]) if found[2] != "*" else None), int(found[1])


def _length(response: Any) -> int | None:
    """How many bytes the answer has; None where the server does not say, or says nonsense."""
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def _refuse_page(url: str, part: Path, response: Any) -> None:
    if response.headers.get_content_type() == "text/html" and ".htm" not in part.name:
        raise DataError(
            f"{shown_url(url)}: gives a web page, not the file (it may ask for a log-in, or the file has moved)"
        )


def _refuse(url: str, part: Path, error: urllib.error.HTTPError) -> None:
    with error:
        if error.code == 416:
            _forget(part)
            raise _TryAgain("the server no longer has the rest of the file, so it begins anew") from None
        if error.code in _AGAIN:
            raise _TryAgain(
                f"the server answers {error.code} {error.reason}", retry_after(error.headers.get("Retry-After"))
            ) from None
        raise DataError(f"{shown_url(url)}: the server answers {error.code} {error.reason}") from None


def _check(part: Path, target: Path, checksum: str | None) -> None:
    if checksum is None:
        return
    algorithm, _, expected = checksum.partition(":")
    found = hash_file(part, algorithm)
    if found != expected:
        aside = target.with_name(target.name + ".unexpected")
        try:
            give_name(part, aside)
        except FileExistsError:  # another one, which stays
            aside = part
        _note_path(part).unlink(missing_ok=True)
        raise DataError(
            f"{target.name}: its {algorithm} is {found}, not {expected}: damaged on the way, or changed at its source. "
            f"It lies in {aside}; rename it to {target.name} if you trust it"
        )


def _part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else 0


def _note_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _hashed(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def _read_note(part: Path, url: str) -> _Note | None:
    try:
        note = _Note(**json.loads(_note_path(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return note if note.source == _hashed(url) else None


def _write_note(part: Path, note: _Note) -> None:
    write_whole(_note_path(part), json.dumps(asdict(note)), replace=True)


def _forget(part: Path) -> None:
    with open_own(part, "wb"):
        pass  # emptied and not removed, for it is held
    _note_path(part).unlink(missing_ok=True)
