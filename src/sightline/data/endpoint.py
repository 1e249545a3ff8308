"""Messages -> a model's reply, from any OpenAI-compatible endpoint; tried again where that can help, and only there."""

from __future__ import annotations

import http.client
import json
import queue
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline import __version__
from sightline.connections import Watch, opener
from sightline.errors import UserError, shown
from sightline.network import LONGEST_WAIT, read_reply, retry_after
from sightline.terminal import printable

_LONGEST_BACKOFF = 60.0
_READ = 10_000
"""Characters of an endpoint's message that are looked at; 200 of them are shown."""
_SECRET = 8
"""Characters that a key has at least."""
_WORTH_ANOTHER_TRY = {408, 409, 425, 429}
"""And all from 500 on."""


class Unanswered(Exception):
    """This request gets no reply, another one may."""


class Stopped(Exception):
    """The work was stopped while this request waited."""


class _TryAgain(Exception):
    """A fault that may pass; `after` is the wait in seconds that the endpoint asks for."""

    def __init__(self, fault: str, after: float | None = None) -> None:
        super().__init__(fault)
        self.after = after


@dataclass
class Endpoint:
    """Who replies, and how patiently it is asked; shared by threads."""

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    extra: dict[str, Any] = field(default_factory=dict)
    """More fields of the request, such as `max_tokens`."""
    timeout: float = 120.0
    """Seconds without a sign of life, and for the body of a reply."""
    tries: int = 6
    first_wait: float = 2.0
    """Seconds; doubles with each try."""

    faults: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue, repr=False)
    """Why something is being tried again, for whoever tells the user."""
    stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _quiet_until: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.base_url)
            well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            parts, well_formed = urllib.parse.urlsplit(""), False
        if parts.username is not None or parts.query or parts.fragment:
            # Not repeated: it may hold a password.
            raise UserError("--base-url holds more than an address; keys are taken from OPENAI_API_KEY alone")
        if not well_formed or not re.fullmatch(r"[!-~]+", self.base_url):
            raise UserError(f"--base-url {shown(self.base_url)} is no http(s) address such as http://localhost:8000/v1")
        if self.key is not None and not re.fullmatch(r"[!-~]+", self.key):
            raise UserError("the key in OPENAI_API_KEY has characters that no HTTP header can hold; set it again")

    @property
    def url(self) -> str:
        return self.base_url.rstrip("/") + "/chat/completions"

    def hidden(self, text: str) -> str:
        """The text on one short line and without the key, which some servers repeat in their errors."""
        line = printable(" ".join(text.split()))
        if self.key is not None:
            line = line.replace(self.key, "***")
        return line if len(line) <= 200 else line[:200] + "..."

    def is_repeated_in(self, text: str) -> bool:
        """Whether a text holds the key; a short one (EMPTY, none, ollama) is no secret, but may be a word."""
        return self.key is not None and len(self.key) >= _SECRET and self.key in text


@dataclass(frozen=True)
class Reply:
    """What the model said."""

    text: str
    finish: str
    """Why it ended: `stop`, `length` (cut off), `content_filter`, or what else the endpoint says."""


def complete(endpoint: Endpoint, messages: Sequence[dict[str, Any]], spent: Counter[str]) -> Reply:
    """Ask for a reply and add what it cost to `spent` (replies, prompt_tokens, completion_tokens, without_usage).

    Raises Unanswered when this request gets none, UserError when no request would, Stopped when the work was stopped.
    """
    body = json.dumps({"model": endpoint.model, "messages": messages, **endpoint.extra}).encode()
    for number in range(1, endpoint.tries + 1):
        _wait(endpoint, endpoint._quiet_until - time.monotonic())
        try:
            return _to_reply(endpoint, _post(endpoint, body), spent)
        except _TryAgain as fault:
            if number == endpoint.tries:
                raise Unanswered(f"{fault}, {endpoint.tries} times in all") from fault
            endpoint.faults.put(str(fault))
            wait = min(endpoint.first_wait * 2.0 ** min(number - 1, 100), _LONGEST_BACKOFF) * random.uniform(0.75, 1.25)
            if fault.after is not None:
                wait = fault.after
                # Holds for all threads: the limit is the account's, not the request's.
                endpoint._quiet_until = max(endpoint._quiet_until, time.monotonic() + wait)
            _wait(endpoint, wait)
    raise AssertionError("the last try has returned or raised")


def _wait(endpoint: Endpoint, seconds: float) -> None:
    if endpoint.stop.wait(max(seconds, 0.0)):
        raise Stopped


def _post(endpoint: Endpoint, body: bytes) -> bytes:
    headers = {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "User-Agent": f"sightline/{__version__}",
    }
    if endpoint.key is not None:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    request = urllib.request.Request(endpoint.url, body, headers)
    watch = Watch(time.monotonic() + 3 * endpoint.timeout)  # for the request, its reply's head and its body
    # No redirects: a redirected POST would become a GET, and would take the key to another host.
    http_only = opener(True, watch, redirects=False)
    try:
        with http_only.open(request, timeout=endpoint.timeout) as answer:
            content = read_reply(answer, endpoint.timeout)
        if watch.ended:  # what looked like the end of the reply
            raise TimeoutError
        return content
    except urllib.error.HTTPError as error:
        with error:
            raise _verdict(endpoint, error) from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(f"{endpoint.url}: its certificate is not trusted ({reason.verify_message})") from None
        if isinstance(reason, TimeoutError) or watch.ended:
            raise _TryAgain(f"no reply within {endpoint.timeout:g} s") from None
        if isinstance(reason, http.client.IncompleteRead):
            raise _TryAgain("the reply broke off") from None
        what = "no connection" if isinstance(error, OSError) else "no proper reply"
        raise _TryAgain(f"{what} ({endpoint.hidden(str(reason) or type(reason).__name__)})") from None
    finally:
        watch.close()


def _verdict(endpoint: Endpoint, error: urllib.error.HTTPError) -> Exception:
    """What an HTTP error means for this request and for all others."""
    status = error.code
    assert isinstance(error.fp, http.client.HTTPResponse)
    try:
        content = read_reply(error.fp, endpoint.timeout)
    except (OSError, http.client.HTTPException):
        content = b""
    says = endpoint.hidden(_message(content))
    fault = f"HTTP {status} ({says})" if says else f"HTTP {status}"
    if status == 401:
        remedy = "check OPENAI_API_KEY" if endpoint.key else "set OPENAI_API_KEY in the environment"
    elif status == 402 or (status == 429 and b"insufficient_quota" in content):
        remedy = "the account has no credit left"
    elif status == 404:
        remedy = "check --model and --base-url (most end in /v1)"
    elif status < 400:
        where = endpoint.hidden(error.headers.get("Location", "somewhere else"))
        remedy = f"it points to {where}; name the final address with --base-url"
    elif status >= 500 or status in _WORTH_ANOTHER_TRY:
        after = retry_after(error.headers.get("Retry-After"))
        if after is None or after <= LONGEST_WAIT:
            return _TryAgain(fault, after)
        remedy = f"it asks to wait {after / 60:.0f} minutes; start again then"
    else:
        return Unanswered(fault)
    return UserError(f"{endpoint.url}: {fault}: {remedy}")


def _to_reply(endpoint: Endpoint, content: bytes, spent: Counter[str]) -> Reply:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        says = endpoint.hidden(content.decode(errors="replace")) or "nothing at all"
        raise _TryAgain(f"the reply is no JSON: {says}") from None
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if isinstance(usage, dict):
        for name in ("prompt_tokens", "completion_tokens"):
            if type(usage.get(name)) is int:
                spent[name] += usage[name]
    else:
        spent["without_usage"] += 1
    spent["replies"] += 1
    match answer:
        case {"choices": [{"message": {"content": str(text)}} as choice, *_]}:
            if endpoint.is_repeated_in(text):
                raise _TryAgain("the reply repeats the key, so it is not kept")
            return Reply(text, endpoint.hidden(str(choice.get("finish_reason"))))
        case {"choices": [{"message": {"refusal": str(refusal)}}, *_]}:
            return Reply("", f"refusal: {endpoint.hidden(refusal)}")
        case {"choices": [{"message": dict()} as choice, *_]}:
            return Reply("", endpoint.hidden(str(choice.get("finish_reason"))))
    raise _TryAgain(f"the reply holds no message: {endpoint.hidden(_message(content))}")


def _message(content: bytes) -> str:
    """What an endpoint says about an error, in any of the forms in use."""
    text = content.decode(errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return re.sub(r"<[^<>]*>", " ", text[:_READ])
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and name in value:
            value = value[name]
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:_READ]
