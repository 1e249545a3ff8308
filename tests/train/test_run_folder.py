"""A run's folder belongs to one run at a time, and nothing in it is replaced that no run has written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from runs import SHORT, Interrupted, contents, half_written, log, losses, until

from sightline import cli
from sightline.errors import CheckpointError, UserError
from sightline.model.load import VLM
from sightline.recipe import load_recipe
from sightline.train.folder import RECIPE_BESIDE, WRITTEN, claimed
from sightline.train.loop import train

ONE_STEP = [*SHORT, "optim.max_steps=1"]


def refused(run: Path, path: Path, *changes: str, resume: str | None = None) -> str:
    """The one line, when nothing has been touched."""
    before = contents(run)
    with pytest.raises((CheckpointError, UserError)) as error:
        train(load_recipe(str(path), [*SHORT, *changes]), run, resume=resume)
    assert "\n" not in str(error.value) and contents(run) == before
    return str(error.value)


def test_a_recipe_in_the_work_dir_stays(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = tmp_path / "project"
    project.mkdir()
    mine = "# why the rate is what it is\n" + path.read_text(encoding="utf-8")
    (project / "recipe.yaml").write_text(mine, encoding="utf-8")
    words = ["train", str(project / "recipe.yaml"), *SHORT, "--work-dir", str(project)]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert f"{project / RECIPE_BESIDE}" in capsys.readouterr().err
    assert cli.main([*words, "--resume"]) == 0
    assert (project / "recipe.yaml").read_text(encoding="utf-8") == mine
    assert load_recipe(str(project / RECIPE_BESIDE)) == load_recipe(str(path), SHORT)
    assert "save_every: 2" in (project / "report.html").read_text(encoding="utf-8")
    shutil.rmtree(project / "hf")
    assert cli.main(["convert", str(project), str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("name", ["log.jsonl", "run.json", "report.html", "bad_rows.jsonl"])
def test_what_is_not_the_runs_is_not_replaced(path: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / name).write_text("mine", encoding="utf-8")
    assert refused(run, path).startswith(f"{run / name} is there already, and not of this run; put it aside")
    (run / name).unlink()
    (run / name).symlink_to(tmp_path / "elsewhere")
    refused(run, path, resume="auto")
    assert [file.name for file in run.iterdir()] == [name] and not (tmp_path / "elsewhere").exists()


def test_a_run_without_a_checkpoint_begins_again(path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(load_recipe(str(path), SHORT), run, after_step=until(1))
    first = losses(run)
    message = refused(run, path, "optim.lr=3e-3")
    assert message.startswith(f"{run / 'log.jsonl'} is there already, and not of this run")
    edited = (run / "recipe.yaml").read_text(encoding="utf-8") + "# mine now\n"
    (run / "recipe.yaml").write_text(edited, encoding="utf-8")
    train(load_recipe(str(path), SHORT), run)
    assert losses(run)[:1] == first and len(losses(run)) == 4
    assert (run / "recipe.yaml").read_text(encoding="utf-8") == edited and (run / RECIPE_BESIDE).is_file()


def test_what_a_finished_run_leaves_when_its_checkpoints_are_gone_stays(path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(load_recipe(str(path), SHORT), run)
    for name in ("hf", "learned", "checkpoint-2", "checkpoint-4"):
        shutil.rmtree(run / name)
    assert refused(run, path).startswith(f"{run / 'report.html'} is there already")


def test_a_run_of_an_older_version_goes_on(path: Path, run: Path) -> None:
    (run / WRITTEN).unlink()
    train(load_recipe(str(path), SHORT), run, resume="auto")
    assert len(log(run)) == 4 and not (run / RECIPE_BESIDE).exists()


def test_a_model_that_appears_in_a_run_stays(path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def appear(step: int, vlm: VLM) -> None:
        (run / "hf").mkdir(exist_ok=True)
        (run / "hf" / "mine.txt").write_text("mine", encoding="utf-8")

    with pytest.raises(CheckpointError, match="hf was not written by this run; put it aside"):
        train(load_recipe(str(path), ONE_STEP), run, after_step=appear)
    assert contents(run / "hf") == {"mine.txt": b"mine"}
    (run / "hf").rename(run / "aside")
    train(load_recipe(str(path), ONE_STEP), run, resume="auto")
    train(load_recipe(str(path), ONE_STEP), run, resume="auto")  # and once more, over its own


def test_the_list_is_not_anybodys_file(path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for content in ("my own list\n", '{"made by": "sightline train"}\n{"no": "record"}\n', "[" * 100_000):
        (run / WRITTEN).write_text(content, encoding="utf-8")
        assert refused(run, path).startswith(f"{run / WRITTEN} is not the list of what a run has written")


@pytest.mark.parametrize("cut", [0, 5, 40])
def test_a_list_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path, cut: int) -> None:
    with claimed(tmp_path) as folder:
        folder.note("log.jsonl")
        folder.note("report.html")
    whole = (tmp_path / WRITTEN).read_bytes()
    (tmp_path / WRITTEN).write_bytes(whole[: len(whole) - cut])
    for name in ("log.jsonl", "report.html"):
        (tmp_path / name).touch()
    with claimed(tmp_path) as folder:
        assert folder.owns("log.jsonl") is (cut < 40) and folder.owns("report.html") is (cut == 0)


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_what_is_in_the_way_is_one_line_for_all_ranks(path: Path, tmp_path: Path, ranks: str) -> None:
    (tmp_path / "run.json").write_text("mine", encoding="utf-8")
    words = [sys.executable, "-m", "sightline", "train", str(path), "--work-dir", str(tmp_path)]
    environment = os.environ | {"NPROC_PER_NODE": ranks}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"error: {tmp_path / 'run.json'} is there already, and not of this run")
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


HOLDS = "import sys, pathlib; from sightline.train.folder import claimed\n" + (
    "with claimed(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_runs_do_not_share_a_folder(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["train", str(path), *ONE_STEP, "--work-dir", str(run)]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        assert cli.main(words) == 2
        said = f"error: another run is writing to {run}; wait for it, or choose another --work-dir\n"
        assert capsys.readouterr().err == said
        several = subprocess.run(
            [sys.executable, "-m", "sightline", *words],
            env=os.environ | {"NPROC_PER_NODE": "2"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (several.returncode, several.stderr) == (2, said), "before any process is started"
        first.kill()
        first.wait()
    assert cli.main(words) == 0


def test_a_folder_that_was_made_for_nothing_goes(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), claimed(tmp_path / "a" / "b"):
        raise Interrupted
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_behind_a_link_is_the_runs(path: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (run / "checkpoint-2").rename(tmp_path / "disk" / "moved")
    (run / "checkpoint-2").symlink_to(tmp_path / "disk" / "moved")
    train(load_recipe(str(path), [*SHORT, "run.keep=1"]), run, resume="auto")
    assert len(log(run)) == 4 and (tmp_path / "disk" / "moved" / "state.json").is_file(), "a link is not removed"


def test_a_checkpoint_of_another_run_is_said_to_be_one(path: Path, run: Path, original: Path) -> None:
    other = original / "checkpoint-2"
    assert refused(run, path, resume=str(other)) == (
        f"{run} already holds a run; {other} is not of it: leave that path out, or choose another --work-dir"
    )


def test_stand_ins_take_no_folder_of_the_users(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "run" / "stand-ins" / "llm"
    mine.mkdir(parents=True)
    (mine / "config.json").write_text("mine")
    before = contents(tmp_path / "run")
    assert cli.main(["train", str(path), "--tiny", "--work-dir", str(tmp_path / "run")]) == 2
    assert "stand-ins holds something else than stand-ins; choose another --work-dir" in capsys.readouterr().err
    assert contents(tmp_path / "run") == before


def test_a_killed_save_comes_back_whole(path: Path, run: Path) -> None:
    """What a kill has left in the middle of a save is swept, the checkpoint before it stays."""
    half_written(run / "checkpoint-4")
    train(load_recipe(str(path), SHORT), run, resume="auto")
    assert not list(run.glob(".*")) and (run / "checkpoint-4" / "state.json").is_file()


def test_the_list_names_what_was_written(path: Path, tmp_path: Path, trained: Callable[..., Path]) -> None:
    run = trained(*ONE_STEP)
    lines = [json.loads(line) for line in (run / WRITTEN).read_text(encoding="utf-8").splitlines()]
    named = {line["wrote"] for line in lines if "wrote" in line}
    assert named == {"recipe.yaml", "run.json", "log.jsonl", "learned", "hf", "report.html"}
    assert yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["optim"]["max_steps"] == 1
