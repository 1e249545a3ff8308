"""Counters of the steps -> a progress line, `log.jsonl` in the run folder, and TensorBoard.

`log.jsonl` is the history of one run, a JSON object per step: what a killed run wrote beyond the step from which it
goes on is cut off before the first new line.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live

from sightline.errors import DataError, MissingExtra, UserError
from sightline.files import open_own, write_whole
from sightline.terminal import printable_lines
from sightline.train.progress import Smooth, pieces, progress_line

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILE = "log.jsonl"
QUIET_SECONDS = 10.0
"""The least time between two plain lines, where there is no terminal that could redraw one."""


class Log:
    """The log of a run while it trains: `with Log(...) as log`, then `log.waiting()`, `log.step()`, `log.say()`.

    On something that is no terminal, plain lines take the place of the progress line: for the first step, the last,
    and between them for multiples of `every`, but not more than one in ten seconds.
    `main`: only the main process writes; on the others every call counts and stays silent.
    """

    def __init__(
        self,
        run_folder: Path | str,
        *,
        num_steps: int,
        first_step: int = 0,
        tensorboard: bool = False,
        every: int = 1,
        main: bool = True,
        console: Console | None = None,
    ) -> None:
        self.path = Path(run_folder) / FILE
        self.first_step, self.num_steps, self.every, self.main = first_step, num_steps, every, main
        self._console = console or Console(stderr=True)
        self._tensorboard = tensorboard
        self._file: IO[str] | None = None
        self._live: Live | None = None
        self._board: SummaryWriter | None = None
        self._smooth = Smooth()
        self._done = 0
        self._waited = 0.0
        self._began: float | None = None  # of this step's clock
        self._warm = 0.0  # when the first step, with its warm-up, was over
        self._spoke = -math.inf  # when the last plain line was written

    def __enter__(self) -> Self:
        if self.main:
            cut(self.path, self.first_step)
            if self._tensorboard:
                purged = self.first_step + 1 if self.first_step else None
                self._board = summary_writer()(str(self.path.parent / "tensorboard"), purge_step=purged)
            self._file = TextIOWrapper(open_own(self.path, "ab"), encoding="utf-8")
            if self._console.is_terminal:
                self._live = Live(console=self._console, refresh_per_second=4)
                self._live.start()
        self._last = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        if self._board:
            self._board.close()
        if self._file:
            self._file.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data.

        The first wait after a step also starts the clock of the next one, so that the time taken by checkpoints and
        samples between two steps slows down neither of them in the log.
        """
        start = perf_counter()
        if self._began is None:
            self._began = start
        try:
            yield
        finally:
            self._waited += perf_counter() - start

    def say(self, text: str) -> None:
        """Print a line above the progress line."""
        if self.main:
            self._console.print(printable_lines(text), markup=False, highlight=False, soft_wrap=True)

    def step(
        self,
        *,
        step: int,
        loss: float,
        lr: Mapping[str, float],
        tokens: int,
        samples: int,
        targets: int,
        budget: int,
        grad_norm: float | None = None,
        operations: float = 0.0,
        peak: float | None = None,
    ) -> dict[str, Any]:
        """Log the step that has just ended and return its line of `log.jsonl`.

        `step` counts from 1. All counts are those of the whole step, over ranks and packs: `tokens` without filling,
        `budget` what the packs could have held, `operations` what the step computed. `mfu` is in the line where the
        `peak` of all devices together (operations per second) is known. A loss that is no number becomes null; whether
        to stop is for the loop to decide.
        """
        now = perf_counter()
        seconds = max(now - (self._last if self._began is None else self._began), 1e-9)
        self._done += 1
        self._smooth.add(loss, tokens, seconds, self._waited)
        if self._done == 1:
            self._warm = now
        pace = (now - self._warm) / (self._done - 1) if self._done > 1 else seconds
        record = {
            "step": step,
            "loss": _number(loss),
            "lr": {group: float(value) for group, value in lr.items()},
            "grad_norm": _number(grad_norm),
            "tokens": int(tokens),
            "samples": int(samples),
            "targets": int(targets),
            "tokens_per_second": round(tokens / seconds, 2),
            "samples_per_second": round(samples / seconds, 4),
            "data_share": round(min(self._waited / seconds, 1.0), 4),
            "fill": round(tokens / budget, 4) if budget else None,
            "memory_gb": peak_memory(),
            "seconds": round(seconds, 6),
            "eta_seconds": round(pace * (self.num_steps - step), 1),
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        if peak is not None:
            record["mfu"] = round(operations / seconds / peak, 4)
        if self.main:
            self._write(record)
            self._show(record, now)
        self._last, self._began, self._waited = now, None, 0.0
        return record

    def _write(self, record: Mapping[str, Any]) -> None:
        assert self._file is not None, "Log is used outside its with block"
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            with suppress(OSError):  # closing tries again what is left in the buffer
                self._file.close()
            raise UserError(f"{self.path}: cannot write the log: {error.strerror}") from error
        if self._board:
            for name in ("loss", "grad_norm", "tokens_per_second", "data_share", "fill", "memory_gb", "mfu"):
                if record.get(name) is not None:
                    self._board.add_scalar(f"train/{name}", record[name], record["step"])
            for group, value in record["lr"].items():
                self._board.add_scalar(f"lr/{group}", value, record["step"])

    def _show(self, record: Mapping[str, Any], now: float) -> None:
        if self._live:
            self._live.update(progress_line(record, self._smooth, self.num_steps, self._console.width))
            return
        due = record["step"] % self.every == 0 and now - self._spoke >= QUIET_SECONDS
        if due or self._done == 1 or record["step"] == self.num_steps:
            self._spoke = now
            line = "  ".join(pieces(record, self._smooth, self.num_steps).values())
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The steps of a `log.jsonl`, without the half line that a killed run may leave at its end.

    Raises DataError on any other line that is not a step.
    """
    return [record for _, record in _lines(path)]


def cut(path: Path, last_step: int) -> None:
    """Drop what a log holds beyond `last_step`; the file is replaced as a whole, never left half."""
    if path.exists():
        kept = [line for line, record in _lines(path) if record["step"] <= last_step]
        write_whole(path, "".join(f"{line}\n" for line in kept), replace=True)


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    lines = path.read_text("utf-8", errors="replace").split("\n")
    while lines and not lines[-1]:
        lines.pop()
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record["step"] += 0
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number} is not a step of a log; mend or remove the file") from error
        steps.append((line, record))
    return steps


def peak_memory() -> float | None:
    """The largest amount of memory this process has held, in units of 2**30 bytes.

    On an accelerator what its tensors took; else (and on mps, whose memory is the machine's) the resident set; None
    where the system does not tell.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and accelerator.type != "mps":
        peak = torch.accelerator.max_memory_allocated()
        if peak:  # 0: there is an accelerator, but this run does not use it
            return round(peak / 2**30, 3)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def _number(value: float | None) -> float | None:
    """What JSON can hold: it knows neither NaN nor infinity."""
    return float(value) if value is not None and math.isfinite(value) else None


def summary_writer() -> type[SummaryWriter]:
    """What writes TensorBoard's files; raises MissingExtra where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard", "tensorboard", "run.tensorboard: true") from error
    return SummaryWriter
