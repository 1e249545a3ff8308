"""The log of a run: what stands in log.jsonl, what a resumed run leaves in it, what the terminal shows."""

from __future__ import annotations

import io
import json
import math
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sightline.errors import DataError, MissingExtra, UserError
from sightline.train import metrics
from sightline.train.metrics import Log, cut, peak_memory, read_log
from sightline.train.progress import Smooth, progress_line


class Clock:
    """A time that passes only when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "perf_counter", clock)
    return clock


def plain() -> Console:
    """A console that is no terminal, narrower than the lines written to it."""
    return Console(file=io.StringIO(), width=40)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def one_step(log: Log, step: int, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"loss": 1.0, "lr": {"projector": 1e-3}, "grad_norm": 0.5, "tokens": 90}
    return log.step(step=step, **(values | {"samples": 4, "targets": 30, "budget": 100} | changes))


def run_steps(folder: Path, first: int, last: int, **options: Any) -> None:
    with Log(folder, first_step=first, num_steps=10, console=plain(), **options) as log:
        for step in range(first, last):
            one_step(log, step + 1, loss=10.0 - step)


def test_a_line_says_what_the_step_did(tmp_path: Path, clock: Clock) -> None:
    with Log(tmp_path, num_steps=5, console=plain()) as log:
        with log.waiting():
            clock.now += 0.5
        clock.now += 1.5
        one_step(log, 1, loss=2.25, lr={"llm": 2e-5, "projector": 1e-3})
        clock.now += 60  # a checkpoint is written: it belongs to no step
        with log.waiting():
            clock.now += 1.0
        clock.now += 1.0
        with log.waiting():
            clock.now += 0.5
        clock.now += 1.5
        one_step(log, 2, tokens=120)
    first, second = read_log(tmp_path / "log.jsonl")
    time = datetime.fromisoformat(first.pop("time"))
    assert time.tzinfo is not None
    assert first.pop("memory_gb") > 0
    assert first == {
        "step": 1,
        "loss": 2.25,
        "lr": {"llm": 2e-5, "projector": 1e-3},
        "grad_norm": 0.5,
        "tokens": 90,
        "samples": 4,
        "targets": 30,
        "seconds": 2.0,
        "tokens_per_second": 45.0,
        "samples_per_second": 2.0,
        "data_share": 0.25,
        "fill": 0.9,
        "eta_seconds": 8.0,  # nothing but the first step to go by
    }
    assert second["seconds"] == 4.0
    assert second["tokens_per_second"] == 30.0
    assert second["data_share"] == 0.375
    assert second["eta_seconds"] == 3 * 64.0  # checkpoints take their time in the future as well


def test_a_step_without_waiting_is_timed_from_the_step_before(tmp_path: Path, clock: Clock) -> None:
    with Log(tmp_path, num_steps=5, console=plain()) as log:
        clock.now += 3
        assert one_step(log, 1)["seconds"] == 3.0
        clock.now += 2
        assert one_step(log, 2)["seconds"] == 2.0


def test_a_line_is_in_the_file_as_soon_as_its_step_is_over(tmp_path: Path) -> None:
    with Log(tmp_path, num_steps=5, console=plain()) as log:
        one_step(log, 1)
        assert [step["step"] for step in read_log(tmp_path / "log.jsonl")] == [1]


def test_losses_are_kept_to_the_last_bit_and_no_number_is_null(tmp_path: Path) -> None:
    with Log(tmp_path, num_steps=5, console=plain()) as log:
        one_step(log, 1, loss=0.1 + 0.2)
        one_step(log, 2, loss=math.nan, grad_norm=math.inf)
    first, second = read_log(tmp_path / "log.jsonl")
    assert first["loss"] == 0.1 + 0.2
    assert second["loss"] is None and second["grad_norm"] is None
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


def test_resuming_cuts_off_what_the_killed_run_wrote_beyond_the_checkpoint(tmp_path: Path) -> None:
    run_steps(tmp_path, 0, 6)
    before = (tmp_path / "log.jsonl").read_text().splitlines()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 3.')
    run_steps(tmp_path, 4, 10)
    after = (tmp_path / "log.jsonl").read_text().splitlines()
    assert after[:4] == before[:4]
    assert [json.loads(line)["step"] for line in after] == list(range(1, 11))
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_run_from_the_beginning_starts_an_empty_log(tmp_path: Path) -> None:
    run_steps(tmp_path, 0, 3)
    run_steps(tmp_path, 0, 2)
    assert [step["step"] for step in read_log(tmp_path / "log.jsonl")] == [1, 2]


def test_a_whole_last_line_without_its_newline_stays(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    cut(path, 5)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("broken", ['{"step": 2, "lo', "[1]", "17", '{"loss": 1}', '{"step": "2"}', "\x00\x00"])
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n' + broken + '\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"log\.jsonl: line 2 is not a step"):
        read_log(path)
    path.write_text('{"step": 1}\n' + broken)
    assert read_log(path) == [{"step": 1}]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    console = plain()
    with Log(tmp_path, num_steps=2, main=False, tensorboard=True, console=console) as log:
        log.say("saved")
        with log.waiting():
            pass
        assert one_step(log, 1)["step"] == 1
    assert list(tmp_path.iterdir()) == [] and written(console) == ""


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with (
        pytest.raises(UserError, match=r"log\.jsonl: cannot write the log: No space"),
        Log(tmp_path, num_steps=2, console=plain()) as log,
    ):
        assert log._file is not None
        log._file.close()
        log._file = full.open("w")
        one_step(log, 1)


def test_plain_lines_come_at_most_every_ten_seconds(tmp_path: Path, clock: Clock) -> None:
    console = plain()
    with Log(tmp_path, num_steps=100, every=5, console=console) as log:
        for step in range(1, 101):
            clock.now += 1
            one_step(log, step)
    lines = written(console).splitlines()
    assert [int(line.split("/")[0].removeprefix("step ")) for line in lines] == [1, *range(15, 101, 10), 100]
    assert lines[-1].split(",")[0].startswith("step 100/100  loss 1.0000  lr 1.0e-03  90 tokens/s  fill 90%  ")
    assert lines[-1].endswith("0 s left")


def test_say_takes_one_line_and_reads_no_markup(tmp_path: Path) -> None:
    console = plain()
    text = "saved [checkpoint] " + "x" * 60
    with Log(tmp_path, num_steps=1, console=console) as log:
        log.say(text)
    assert written(console) == text + "\n"


def test_on_a_terminal_one_line_is_redrawn_and_remarks_stay_above(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Log(tmp_path, num_steps=2, console=console) as log:
        one_step(log, 1)
        log.say("saved a checkpoint")
        one_step(log, 2)
    text = written(console)
    assert text.index("saved a checkpoint") < text.rindex("step 2/2")
    assert text.count("\n") == 2  # the remark, and the progress line once it is final


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_the_progress_line_fits(width: int) -> None:
    smooth = Smooth()
    smooth.add(1.5, 20_000, 1.0, 0.1)
    record = {
        "step": 1200,
        "lr": {"llm": 2e-5, "projector": 1e-3},
        "fill": 0.97,
        "memory_gb": 21.5,
        "eta_seconds": 4000,
    }
    line = progress_line(record, smooth, 5197, width)
    assert line.cell_len <= max(width, len("step 1200/5197  loss 1.5000"))
    assert line.plain.startswith("step 1200/5197") and "loss 1.5000" in line.plain
    assert ("21.5 GB" in line.plain) == (width >= 120)
    assert ("waiting 10%" in line.plain) == (width >= 120)
    assert ("1 h 06 min left" in line.plain) == (width >= 60)


def test_smoothing_leaves_out_the_warm_up_and_what_is_no_number() -> None:
    smooth = Smooth()
    smooth.add(4.0, 100, 50.0, 40.0)
    assert (smooth.loss, smooth.tokens_per_second, smooth.data_share) == (pytest.approx(4.0), 2.0, 0.8)
    smooth.add(2.0, 300, 1.0, 0.5)
    smooth.add(2.0, 100, 1.0)
    assert (smooth.tokens_per_second, smooth.data_share) == (200.0, 0.25)
    weights = [0.05 * 0.95**2, 0.05 * 0.95, 0.05]
    expected = (4 * weights[0] + 2 * weights[1] + 2 * weights[2]) / sum(weights)
    assert smooth.loss == pytest.approx(expected)
    smooth.add(math.nan, 100, 1.0)
    assert math.isnan(smooth.loss)
    smooth.add(expected, 100, 1.0)
    assert smooth.loss == pytest.approx(expected)


def test_memory_is_at_least_that_of_the_interpreter() -> None:
    peak = peak_memory()
    assert peak is not None and 0.05 < peak < 1000


def test_tensorboard_holds_the_same_numbers_and_forgets_cut_steps(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_steps(tmp_path, 0, 6, tensorboard=True)
    run_steps(tmp_path, 4, 6, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(k + 1, 10 - k) for k in range(6)]
    assert {"train/fill", "train/tokens_per_second", "lr/projector"} <= set(events.Tags()["scalars"])


def test_missing_tensorboard_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r"run\.tensorboard: true needs .*sightline-vlm\[tensorboard\]"):
        Log(tmp_path, num_steps=1, tensorboard=True, console=plain()).__enter__()
