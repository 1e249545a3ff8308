"""URLs, whoever wrote them -> what servers answer, within bounds: whom, how long, how much; and secrets stay unsaid."""

from __future__ import annotations

import email.utils
import http.client
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sightline import __version__
from sightline.connections import Refused, Watch, opener, refuse_url
from sightline.limits import limits, remedy

LARGEST_REPLY = 16 << 20
"""Bytes of a reply of an endpoint; what is longer is no reply, and would fill the memory."""

LONGEST_WAIT = 600.0
"""Seconds; an endpoint that asks for more (a spent daily quota) is not waited for."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far a fetch may go. Bytes and whole seconds, all tries together, are the limits called after its kind."""

    kind: str
    """image or download."""
    private: bool
    """Whether addresses of the own machine and network may be asked: never for a URL of a row, unless it is wanted."""
    tries: int
    """In a row without a byte gained."""
    longest_pause: float
    """Seconds between two tries, whatever the server asks for."""

    @property
    def largest(self) -> int:
        return int(getattr(limits(), f"{self.kind}_megabytes") * 1e6)

    @property
    def seconds(self) -> float:
        return float(getattr(limits(), f"{self.kind}_seconds"))

    def too_large(self, size: int) -> Refused:
        """What is said of an answer of so many bytes, or of more."""
        limit = f"{self.kind}_megabytes"
        needed = max(size / 1e6, 2 * self.largest / 1e6)
        return Refused(f"is larger than {self.largest / 1e6:g} MB; fetch it by hand, {remedy(limit, round(needed))}")

    def too_slow(self) -> Refused:
        limit = f"{self.kind}_seconds"
        return Refused(
            f"takes longer than {self.seconds:g} s; fetch it by hand, {remedy(limit, round(self.seconds * 4))}"
        )


def of_image(private: bool) -> Bounds:
    """For one image."""
    return Bounds("image", private, tries=4, longest_pause=30.0)


DOWNLOAD = Bounds("download", private=True, tries=6, longest_pause=300.0)
"""For a part of a known set: Sightline or the user names its server, and a pause of minutes is worth it."""


@contextmanager
def opening(
    url: str,
    bounds: Bounds,
    until: float,
    *,
    headers: Mapping[str, str] = {},
    method: str = "GET",
    timeout: float = 30.0,
) -> Iterator[Any]:
    """The answer to a request, redirects followed, until the clock (`time.monotonic`) says `until`.

    Raises Refused for what no other try will change, and what urllib and http.client raise.
    """
    refuse_url(url)
    own = {"User-Agent": f"sightline/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers={**own, **headers}, method=method)
    watch = Watch(until)
    try:
        with opener(bounds.private, watch).open(request, timeout=timeout) as answer:
            yield answer
        if watch.ended:
            raise bounds.too_slow()  # to whoever reads, it looked like the end of the answer
    except Exception:
        if watch.ended:
            raise bounds.too_slow() from None
        raise
    finally:
        watch.close()


def fetch_bytes(url: str, bounds: Bounds) -> bytes:
    """All of an answer, in memory; raises as `opening` does."""
    with opening(url, bounds, time.monotonic() + bounds.seconds) as answer:
        if (answer.length or 0) > bounds.largest:
            raise bounds.too_large(answer.length)
        content = bytearray()
        while piece := answer.read1(1 << 16):
            content += piece
            if len(content) > bounds.largest:
                raise bounds.too_large(len(content))
        if answer.length:  # bytes that were promised; read1 does not miss them
            raise http.client.IncompleteRead(b"", answer.length)
    return bytes(content)


def read_reply(answer: http.client.HTTPResponse, seconds: float) -> bytes:
    """The body of an endpoint's answer, no more than `LARGEST_REPLY` and no longer than so many seconds."""
    # Piece by piece, because a socket's timeout begins anew with every byte.
    deadline = time.monotonic() + seconds
    content = bytearray()
    while piece := answer.read1(1 << 16):
        content += piece
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(content) > LARGEST_REPLY:
            raise http.client.HTTPException("it has no end")
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return bytes(content)


def retry_after(value: str | None) -> float | None:
    """Seconds, from seconds or a date; None where there is nothing to understand."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{0,9})?", value.strip()):
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None
