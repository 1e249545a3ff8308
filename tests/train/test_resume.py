"""A run that was killed goes on as if nothing had happened: the same losses and the same weights, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from runs import Interrupted, log, until
from safetensors.torch import load_file

from sightline.recipe import Recipe, load_recipe
from sightline.train.loop import train

LORA = ["tune.llm=lora", "tune.llm_lora.r=4", "tune.llm_lora.dropout=0.3", "tune.vision_tower=lora"]
FULL = ["tune.vision_tower=full", "optim.weight_decay=0.1"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes: dict[str, Any] = {"optim": {"epochs": 3}, "run": {"save_every": 2, "keep": 2}}
    return tiny.write_recipe(tmp_path_factory.mktemp("world"), **changes)


def course(run: Path) -> list[tuple[int, float, float]]:
    """What must not differ by a bit: step, loss and norm of the gradient."""
    return [(record["step"], record["loss"], record["grad_norm"]) for record in log(run)]


def assert_same_run(one: Path, other: Path) -> None:
    assert course(one) == course(other)
    assert [step for step, *_ in course(one)] == list(range(1, 13))
    ours, theirs = (load_file(run / "hf" / "model.safetensors") for run in (one, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("checkpoint-10", "checkpoint-12"):
        a, b = (torch.load(run / name / "optimizer.pt", weights_only=True)["state"] for run in (one, other))
        assert all(torch.equal(a[key][field], b[key][field]) for key in a for field in a[key])


def interrupted(recipe: Recipe, run: Path, last: int) -> Path:
    with pytest.raises(Interrupted):
        train(recipe, run, after_step=until(last))
    assert len(log(run)) == last and not (run / "hf").exists()
    return run


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_bit_for_bit(path: Path, tmp_path: Path, tuning: list[str], workers: int) -> None:
    recipe = load_recipe(str(path), [*tuning, f"batch.workers={workers}", "batch.pack_tokens=150"])
    train(recipe, tmp_path / "whole")
    run = interrupted(recipe, tmp_path / "run", 7)
    train(recipe, run, resume="auto")
    assert_same_run(run, tmp_path / "whole")


def test_it_may_be_interrupted_any_number_of_times(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(path), LORA)
    train(recipe, tmp_path / "whole")
    run = interrupted(recipe, tmp_path / "run", 1)
    for last in (3, 4, 9):
        with pytest.raises(Interrupted):
            train(recipe, run, resume="auto", after_step=until(last))
    train(recipe, run, resume="auto")
    assert_same_run(run, tmp_path / "whole")


def test_a_finished_run_is_finished_once_more(path: Path, tmp_path: Path) -> None:
    """Killed between its last checkpoint and the export, it has only that left to do."""
    recipe = load_recipe(str(path), LORA)
    train(recipe, tmp_path / "whole")
    run = shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(run / "hf")
    train(recipe, run, resume="auto", after_step=until(12))
    assert_same_run(run, tmp_path / "whole")


def test_an_older_checkpoint_by_its_path(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(path), LORA)
    train(recipe, tmp_path / "whole")
    run = shutil.copytree(tmp_path / "whole", tmp_path / "run")
    train(recipe, run, resume=str(run / "checkpoint-10"))
    assert_same_run(run, tmp_path / "whole")


def test_from_another_folder_into_a_new_one(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(path), LORA)
    train(recipe, tmp_path / "whole")
    for wanted in (tmp_path / "whole" / "checkpoint-10", tmp_path / "whole"):
        run = tmp_path / f"from_{wanted.name}"
        train(recipe, run, resume=str(wanted))
        assert course(run) == course(tmp_path / "whole")[10 if wanted.name == "checkpoint-10" else 12 :]
        ours, theirs = (load_file(folder / "hf" / "model.safetensors") for folder in (run, tmp_path / "whole"))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_does_not_belong_to_the_results_may_change(path: Path, tmp_path: Path) -> None:
    """Another token budget, more workers, other habits of saving: the same losses up to rounding."""
    train(load_recipe(str(path), FULL), tmp_path / "whole")
    run = interrupted(load_recipe(str(path), FULL), tmp_path / "run", 5)
    other = ["batch.pack_tokens=100", "batch.workers=1", "run.save_every=3", "run.keep=1", "run.log_every=4"]
    train(load_recipe(str(path), [*FULL, *other, "engine.gradient_checkpointing=true"]), run, resume="auto")
    assert [step for step, *_ in course(run)] == list(range(1, 13))
    assert [loss for _, loss, _ in course(run)] == pytest.approx([loss for _, loss, _ in course(tmp_path / "whole")])


def test_going_back_does_not_cost_the_work_done_since(path: Path, tmp_path: Path) -> None:
    """After the newest checkpoint turned out damaged, the new ones must stay, whatever their number."""
    recipe = load_recipe(str(path), [*FULL, "run.keep=1"])
    run = interrupted(load_recipe(str(path), [*FULL, "run.keep=9"]), tmp_path / "run", 11)
    with pytest.raises(Interrupted):
        train(recipe, run, resume=str(run / "checkpoint-2"), after_step=until(5))
    assert (run / "checkpoint-4").is_dir() and not (run / "checkpoint-2").exists()
    train(recipe, run, resume=str(run / "checkpoint-4"))
    assert [folder.name for folder in run.glob("checkpoint-*")] == ["checkpoint-12"]
    train(recipe, tmp_path / "whole")
    assert course(run) == course(tmp_path / "whole")


def command(path: Path, run: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    """The command line as a user types it, with the threads of this process: their number decides roundings."""
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(source)}
    return [sys.executable, "-m", "sightline", "train", str(path), "--work-dir", str(run), *words], environment


def killed(path: Path, run: Path, *words: str, after: int) -> None:
    """Start a run as a program of its own and kill it without warning once its log holds so many steps."""
    words, environment = command(path, run, *words)
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (run / "log.jsonl").exists() or (run / "log.jsonl").read_bytes().count(b"\n") < after:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("tuning", [LORA, pytest.param(FULL, marks=pytest.mark.slow)], ids=["lora", "full"])
def test_kill_9(path: Path, tmp_path: Path, tuning: list[str]) -> None:
    tuning = [*tuning, "batch.pack_tokens=40"]  # more work in a step, so that the kill comes in time
    train(load_recipe(str(path), tuning), tmp_path / "whole")
    run = tmp_path / "run"
    killed(path, run, *tuning, after=5)
    assert 5 <= len(log(run)) < 12 and not (run / "hf").exists()
    words, environment = command(path, run, "--resume", *tuning)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_same_run(run, tmp_path / "whole")


DIES_WHILE_SAVING = """
import os, signal, sys, torch
from sightline.cli import main

write, saved = torch.save, []

def die(state, file):
    saved.append(1)
    if len(saved) == 2:
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(state, file)

torch.save = die
main(sys.argv[1:])
"""


def test_kill_9_in_the_middle_of_a_save(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(path), LORA)
    train(recipe, tmp_path / "whole")
    run = tmp_path / "run"
    words, environment = command(path, run, *LORA)
    died = subprocess.run([sys.executable, "-c", DIES_WHILE_SAVING, *words[3:]], env=environment, timeout=120)
    assert died.returncode == -signal.SIGKILL
    assert [folder.name for folder in run.glob("checkpoint-*")] == ["checkpoint-2"]
    assert len(list(run.glob(".checkpoint-4.*.partial"))) == 1
    train(recipe, run, resume="auto")
    assert_same_run(run, tmp_path / "whole")
    assert not list(run.glob(".*"))
