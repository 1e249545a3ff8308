"""Pictures -> rows in a journal, many asked about at a time; progress, and when it is useless to go on."""

from __future__ import annotations

import datetime
import functools
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn

from sightline.data.endpoint import Endpoint, Stopped, Unanswered
from sightline.data.journal import Journal
from sightline.data.pairs import Task, row_about
from sightline.data.sources import Row
from sightline.errors import DataError, UserError
from sightline.runtime import console, say

_SECONDS_BETWEEN_LINES = 30.0
"""Of progress, where there is no terminal."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a picture."""

    name: str
    spent: Counter[str]
    row: Row | None = None
    failed: str | None = None
    readable: bool = True


def ask_about_all(
    endpoint: Endpoint, task: Task, folder: Path, names: Sequence[str], journal: Journal, threads: int, patience: int
) -> list[Outcome]:
    """Ask about the pictures of a folder, each outcome into the journal at once; return those without a row.

    Raises what makes it useless to go on, when the replies under way are in: an error that every request would meet,
    or `patience` pictures in succession that could be read but got no row.
    """
    failures: list[Outcome] = []
    fatal: Exception | None = None
    count = in_succession = 0
    said: set[str] = set()
    started = last_line = time.monotonic()
    columns = BarColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("", total=len(names))
        ask = functools.partial(_ask, endpoint, task, folder, journal)
        for event in _events(names, ask, min(threads, len(names)), endpoint.stop):
            if isinstance(event, Outcome):
                count += 1
                if event.row is not None:
                    in_succession = 0
                else:
                    failures.append(event)
                    in_succession += event.readable
                if in_succession >= patience:
                    event = UserError(f"{in_succession} pictures in succession got no row, the last: {event.failed}")
            if isinstance(event, Exception) and fatal is None:
                fatal = event
                endpoint.stop.set()
                say("stopping as soon as the replies under way are in (Ctrl-C: at once)")
            while not endpoint.faults.empty():
                fault = endpoint.faults.get()
                kind = re.split("[(:]", fault)[0]
                if kind not in said:
                    said.add(kind)
                    say(f"{fault}; trying again")
            line = _status(count, len(names), time.monotonic() - started, journal.spent, len(failures))
            bar.update(shown, completed=count, description=line)
            if not console.is_terminal and time.monotonic() - last_line > _SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                say(line)
    if fatal is not None:
        raise fatal
    return failures


def cost(spent: Counter[str]) -> str:
    """What replies have cost, in words."""
    sent, received = spent["prompt_tokens"], spent["completion_tokens"]
    text = f"tokens: {sent:,} sent, {received:,} received, replies: {spent['replies']:,}"
    missing = spent["without_usage"]
    return text + (f" (without a number of tokens: {missing:,})" if missing else "")


def _ask(endpoint: Endpoint, task: Task, folder: Path, journal: Journal, name: str) -> Outcome:
    outcome = _outcome(endpoint, task, folder, name)
    # Here and not where outcomes are shown: no thread asks for more before what it has got is on the disk.
    journal.add(name, outcome.row, outcome.spent, outcome.failed)
    return outcome


def _outcome(endpoint: Endpoint, task: Task, folder: Path, name: str) -> Outcome:
    spent = Counter[str]()
    try:
        name.encode()
        return Outcome(name, spent, row_about(endpoint, folder, name, task, spent))
    except Unanswered as error:
        return Outcome(name, spent, failed=str(error))
    except DataError as error:
        return Outcome(name, spent, failed=str(error), readable=False)
    except UnicodeEncodeError:
        return Outcome(name, spent, failed="its name is not UTF-8; rename it", readable=False)


def _events(
    names: Sequence[str], ask: Callable[[str], Outcome], threads: int, stop: threading.Event
) -> Iterator[Outcome | Exception | None]:
    """Outcomes and errors as they come, and None where a second brings none; sets `stop` when it is left."""
    pending: queue.SimpleQueue[str] = queue.SimpleQueue()
    events: queue.SimpleQueue[Outcome | Exception | None] = queue.SimpleQueue()
    for name in names:
        pending.put(name)

    def work() -> None:
        try:
            while not stop.is_set():
                events.put(ask(pending.get_nowait()))
        except (queue.Empty, Stopped):
            pass
        except Exception as error:
            events.put(error)
        events.put(None)

    # Daemons, so that Ctrl-C does not wait for replies.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    try:
        for worker in workers:
            worker.start()
        running = len(workers)
        while running:
            try:
                event = events.get(timeout=1.0)
            except queue.Empty:
                yield None
                continue
            if event is None:
                running -= 1
            else:
                yield event
    finally:
        stop.set()


def _status(count: int, total: int, seconds: float, spent: Counter[str], failed: int) -> str:
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    left = datetime.timedelta(seconds=round((total - count) * seconds / count)) if count else "?"
    line = f"{count}/{total} pictures, {tokens:,} tokens, {left} left"
    return line + (f", {failed} without a row" if failed else "")
