"""The whole way in one command, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def demo(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sightline", "demo", "--quick", "--work-dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=HERE, timeout=600, check=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo") / "run"
    return folder, demo(folder)


def test_quick_demo_learns(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Its own demands decide: it fails when seeing does not beat grey pictures, or captions answer questions."""
    folder, result = done
    assert result.returncode == 0, result.stderr[-3000:]
    assert "multiple choice, circular" in result.stderr
    assert result.stdout.count("USER: ") == result.stdout.count("ASSISTANT: ") == 3
    assert (folder / "report.html").stat().st_size > 50_000


def test_both_stages_lower_the_loss(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = done
    for stage in ("pretrain", "finetune"):
        losses = [json.loads(line)["loss"] for line in (folder / stage / "log.jsonl").read_text().splitlines()]
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), stage
        assert {path.name for path in (folder / stage).iterdir()} >= {"hf", "recipe.yaml", "run.json", "report.html"}


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = demo(tmp_path)
    assert result.returncode == 2 and "not the demo's" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
