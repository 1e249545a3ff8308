"""A function that works on what strangers wrote -> the same function in a child process, bounded in time and memory.

On Linux the child is a fork, so it costs a few milliseconds and knows all that its parent knows. Elsewhere, where a
fork of a process with accelerator libraries may crash, the function runs in this process without bounds.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

Answer = Callable[[Any], Any]

_LENGTH = struct.Struct("<Q")


class Failed(Exception):
    """The function has raised an error, which the text tells, or has met a `bound`: seconds, megabytes, characters."""

    def __init__(self, text: str, bound: str | None = None) -> None:
        super().__init__(text)
        self.bound = bound


@contextmanager
def in_child(answer: Answer, *, seconds: float, megabytes: float, characters: float) -> Iterator[Answer]:
    """Yield `answer` as it runs in a child: plain JSON values in, plain JSON values out.

    Each call may take so many seconds and give so many characters of JSON; the child may take so many megabytes beyond
    what its parent has. The yielded function raises Failed; after a bound was hit, the child is gone and so is each
    later answer.
    """
    if sys.platform != "linux":
        yield _here(answer)
        return
    questions, asks = os.pipe()
    hears, answers = os.pipe()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of forks beside threads
        child = os.fork()
    if child == 0:
        os.close(asks)
        os.close(hears)
        _serve(answer, questions, answers, seconds, megabytes)
    os.close(questions)
    os.close(answers)

    def ask(question: Any) -> Any:
        with suppress(BrokenPipeError):  # told below, by what the child has died of
            _write(asks, json.dumps(question).encode())
        return _heard(hears, child, seconds, megabytes, characters)

    try:
        yield ask
    finally:
        os.close(asks)
        os.close(hears)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def _here(answer: Answer) -> Answer:
    def ask(question: Any) -> Any:
        try:
            return json.loads(json.dumps(answer(question)))
        except Exception as error:
            raise Failed(_told(error)) from error

    return ask


def _serve(answer: Answer, questions: int, answers: int, seconds: float, megabytes: float) -> None:
    """Answer until nobody asks any more. Never returns."""
    try:
        import resource

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # libraries that die have much to say
            os.dup2(silence, stream)
        _bound(resource.RLIMIT_AS, _address_space() + megabytes * 1e6)
        _bound(resource.RLIMIT_CORE, 0)
        while (question := _read(questions, None)) is not None:
            # Ends a child whose parent was killed meanwhile.
            spent = sum(os.times()[:2])
            _bound(resource.RLIMIT_CPU, spent + seconds + 2)
            try:
                content = json.dumps({"answer": answer(json.loads(question))})
            except MemoryError:
                return  # as where a library has ended the process for lack of memory
            except BaseException as error:  # a panic of a Rust library is none of Exception's
                content = json.dumps({"error": _told(error)})
            _write(answers, content.encode())
    finally:
        os._exit(0)


def _bound(kind: int, most: float) -> None:
    """Let this process have no more of something; nor more than the user's own bound (`ulimit`), which stays."""
    import resource

    _, hard = resource.getrlimit(kind)
    largest = (1 << 62) if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(kind, (int(min(most, largest)), hard))


def _told(error: BaseException) -> str:
    return str(error)[:500] or type(error).__name__


def _heard(hears: int, child: int, seconds: float, megabytes: float, characters: float) -> Any:
    try:
        content = _read(hears, time.monotonic() + seconds, characters)
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        raise Failed(f"it takes more than {seconds:g} seconds", "seconds") from None
    except OverflowError:
        os.kill(child, signal.SIGKILL)
        raise Failed(f"it makes more than {characters:,.0f} characters", "characters") from None
    if content is None:
        raise Failed(f"it takes more than {megabytes:g} MB of memory", "megabytes")
    said = json.loads(content)
    if "error" in said:
        raise Failed(said["error"])
    return said["answer"]


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _write(pipe: int, content: bytes) -> None:
    content = _LENGTH.pack(len(content)) + content
    while content:
        content = content[os.write(pipe, content) :]


def _read(pipe: int, deadline: float | None, most: float = float("inf")) -> bytes | None:
    """One message; None where the other side has gone."""
    head = _exactly(pipe, _LENGTH.size, deadline)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > most:
        raise OverflowError
    return _exactly(pipe, length, deadline)


def _exactly(pipe: int, length: int, deadline: float | None) -> bytes | None:
    content = bytearray()
    while len(content) < length:
        if deadline is not None:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
        if not (piece := os.read(pipe, min(1 << 20, length - len(content)))):
            return None
        content += piece
    return bytes(content)
