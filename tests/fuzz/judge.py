"""A command on a file that was made to harm -> in a process of its own, and what is to be said against how it ended."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0
"""For one input, on a machine that does something else beside."""

MEGABYTES = 3_000
"""Of address space beyond what the parent has."""

LONGEST = 1_500
"""Characters of a line of error; a few hundred where it holds no path."""

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What does things to a terminal, or reorders what stands on it."""

PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")
"""What Python tells an audit hook before another program starts."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run on one input has ended."""

    code: int | None
    """None: killed, because it took too long, or by the system."""
    seconds: float
    output: str
    programs: tuple[str, ...]
    remark: str = ""
    """What whoever ran it found wrong, such as a text that was lost."""


def run(work: Callable[[], tuple[int, str]], output: Path, *, seconds: float = SECONDS) -> Ended:
    """Run `work` in a fork with its output in a file; it returns an exit code and a remark."""
    begun = time.monotonic()
    notes = output.with_suffix(".notes")
    child = os.fork()
    if child == 0:
        _work(work, output, notes)
    code: int | None = None
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() - begun > seconds:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.005)
    else:
        code = os.waitstatus_to_exitcode(ended[1])
    said = output.read_bytes().decode("utf-8", "replace") if output.exists() else ""
    lines = notes.read_text(errors="replace").splitlines() if notes.exists() else []
    programs = tuple(line[9:] for line in lines if line.startswith("program: "))
    remark = "; ".join(line[8:] for line in lines if line.startswith("remark: "))
    return Ended(code, time.monotonic() - begun, said, programs, remark)


def _work(work: Callable[[], tuple[int, str]], output: Path, notes: Path) -> None:
    code, note = 1, os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        with open("/proc/self/statm") as file:
            here = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (here + MEGABYTES * 1_000_000,) * 2)

        def hook(event: str, args: tuple[object, ...]) -> None:
            if event in PROGRAMS:
                os.write(note, f"program: {event} {args[:2]!r}"[:300].replace("\n", " ").encode() + b"\n")

        sys.addaudithook(hook)
        code, remark = work()
        if remark:
            os.write(note, f"remark: {remark}\n".encode(errors="replace"))
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def verdict(ended: Ended, *, allowed: tuple[str, ...] = ()) -> str | None:
    """What is wrong with how a run has ended; None where nothing is. `allowed` are programs that it may start."""
    foreign = [program for program in ended.programs if not any(name in program for name in allowed)]
    if foreign:
        return f"foreign program: {foreign[0]}"
    if ended.code is None:
        return f"hang: no end within {ended.seconds:.0f} s"
    if ended.code < 0:
        return f"killed by signal {-ended.code}"
    if "Traceback (most recent call last)" in ended.output:
        last = [
            line for line in ended.output.splitlines() if re.match(r"[A-Za-z_.]+(Error|Exception|Exit|Panic)", line)
        ]
        return f"{'memory' if 'MemoryError' in ended.output else 'traceback'}: {(last or ['?'])[-1][:200]}"
    if ended.code not in (0, 2):
        return f"exit code {ended.code}: {ended.output[-200:]!r}"
    if found := CONTROL.search(ended.output):
        around = ended.output[max(0, found.start() - 60) : found.end() + 20]
        return f"control character {found[0]!r} in the output: {around!r}"
    errors = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    if ended.code == 2 and not errors:
        return f"exit code 2 without an error: {ended.output[-200:]!r}"
    if errors and len(longest := max(errors, key=len)) > LONGEST:
        return f"an error of {len(longest)} characters: {longest[:200]!r}"
    return f"lost: {ended.remark}" if ended.remark else None
