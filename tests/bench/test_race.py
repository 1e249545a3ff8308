"""`bench/race`: which racers are meant, and that none is left behind; the race itself takes an hour."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RACE = Path(__file__).parents[2] / "bench" / "race"
sys.path.insert(0, str(RACE))

import race  # noqa: E402


def test_racers_by_how_they_begin() -> None:
    assert race.chosen(["ms-swift", "TRL SFTTrainer, row"]) == [
        "sightline",
        "TRL SFTTrainer, row by row",
        "ms-swift, batches of 8",
        "ms-swift, row by row",
    ]
    assert race.chosen(["sightline"]) == ["sightline"]
    with pytest.raises(ValueError, match="'trainer' begins no racer's name; there are: sightline; transformers"):
        race.chosen(["sightline", "trainer"])


@pytest.mark.parametrize("told", [["--racers", "trainer"], ["--modes", "stage2"], ["--rounds", "0"], ["--steps", "0"]])
def test_what_is_no_race_is_said_before_the_world_is_made(told: list[str]) -> None:
    done = subprocess.run([sys.executable, RACE / "race.py", *told], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "error: " in done.stderr and "making the world" not in done.stdout


def test_a_race_that_is_ended_leaves_no_racer_held(tmp_path: Path) -> None:
    """SIGTERM, as `kill` and `timeout` send it; a racer that is held would keep its memory for ever."""
    racer = tmp_path / "racer.py"
    racer.write_text(
        "import os, time\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "while True:\n"
        "    os.write(int(os.environ['RACE_PIPE']), b'{\"loss\": 1.0, \"targets\": 1}\\n')\n"
        "    time.sleep(0.05)\n"
    )
    (tmp_path / "tokens.json").write_text("[]")
    program = (
        f"import sys; sys.path.insert(0, {str(RACE)!r}); import race; from pathlib import Path\n"
        f"place = Path({str(tmp_path)!r}); race.RACERS = {{'one': (None, [{str(racer)!r}])}}\n"
        "race.race(['one'], 'full', place, place, 1000, 1, False)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "round 2" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=10)
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    try:
        while time.monotonic() < until:
            os.kill(pid, 0)
            time.sleep(0.1)
    except ProcessLookupError:
        return
    os.killpg(pid, signal.SIGKILL)
    pytest.fail("the racer is still there")
