"""Two processes learn what one learns: the same losses, the same weights, and one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"tune": {"llm": "lora", "llm_lora": {"r": 4, "alpha": 8, "dropout": 0.0}}},
}


def trained(recipe: Path, run: Path, *, ranks: int, more: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *start, "-m", "sightline", "train", str(recipe), *more, "--work-dir", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("way", [pytest.param(way, marks=[pytest.mark.slow] * (way == "lora")) for way in WAYS])
def test_two_ranks_learn_what_one_learns(tmp_path: Path, way: str) -> None:
    recipe = tiny.write_recipe(tmp_path, optim={"lr": 1e-3, "epochs": 1}, **WAYS[way])
    for ranks in (1, 2):
        done = trained(recipe, tmp_path / str(ranks), ranks=ranks)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stderr.count("finished: ") == 1
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) == len(two) > 2
    assert one == pytest.approx(two, abs=1e-6)
    weights = [load_file(tmp_path / ranks / "hf" / "model.safetensors") for ranks in ("1", "2")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path, optim={"lr": 1e-3, "epochs": 1}, run={"save_every": 2})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert trained(recipe, whole, ranks=1).returncode == 0
    # The same recipe, so that the rate takes the same course: killed by its own data would be another run.
    first = trained(recipe, cut, ranks=2)
    assert first.returncode == 0, first.stderr[-2000:]
    again = tmp_path / "again"
    done = trained(recipe, again, ranks=1, more=("--resume", str(cut / "checkpoint-2")))
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(again) == pytest.approx(losses(whole)[2:], abs=1e-6)


def test_the_environment_of_xtuner_starts_as_many(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path, optim={"lr": 1e-3, "epochs": 1, "max_steps": 1})
    command = [sys.executable, "-m", "sightline", "train", str(recipe), "--work-dir", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NPROC_PER_NODE": "2"}
    more = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    done = subprocess.run([*command, "--deepspeed", "deepspeed_zero2"], **more)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("models are not sharded yet") == done.stderr.count("finished: ") == 1
    environment["NPROC_PER_NODE"] = "two"
    refused = subprocess.run(command, **more)  # type: ignore[call-overload]
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: the environment says NPROC_PER_NODE=two, which is no number\n",
    )


def test_a_failed_rank_fails_the_command(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path)
    done = trained(recipe, tmp_path / "run", ranks=2, more=("model.llm=/nowhere",))
    assert done.returncode != 0
    assert "error: no model folder /nowhere" in done.stderr
