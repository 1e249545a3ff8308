"""An image that passes the check and cannot be decoded: the run stops, or goes on without its row, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from picture_files import undecodable
from runs import log, losses
from test_several_ranks import trained as trained_by

from sightline.data.collate import PackReader
from sightline.data.dataset import open_dataset
from sightline.errors import CheckpointError, DataError
from sightline.model.assemble import make_prompter
from sightline.prompt.images import check_image
from sightline.recipe import load_recipe
from sightline.runtime import console
from sightline.train.loop import train
from sightline.types import ImageRef

BROKEN = 5
"""The row of it, counted from 0."""
SKIP = "data.0.on_bad_row=skip"


def world(folder: Path, *, rows: int, **changes: Any) -> tuple[Path, Path, Path]:
    """A recipe, its data and its images, of which that of one row is broken and shown by no other."""
    recipe = tiny.write_recipe(folder, **changes)
    data, images = tiny.make_data(folder / "own", rows=rows)
    made = json.loads(data.read_text())
    (images / "broken.png").write_bytes(undecodable((images / made[BROKEN]["image"]).read_bytes()))
    made[BROKEN]["image"] = "broken.png"
    data.write_text(json.dumps(made))
    return recipe, data, images


def of(data: Path, images: Path, *more: str) -> list[str]:
    return [f"data.0.path={data}", f"data.0.images={images}", *more]


def test_a_step_is_learned_from_the_samples_that_are_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, data, images = world(tmp_path, rows=8, optim={"max_steps": 1}, batch={"global_batch": 8})
    assert check_image(ImageRef("broken.png", str(images)))
    train(load_recipe(str(recipe), of(data, images, SKIP)), tmp_path / "run")
    said = capsys.readouterr().err
    assert f"step 1 goes on without {data}: row {BROKEN + 1}: image broken.png cannot be decoded" in said
    assert "1 row could not be read during the run and taught nothing" in said
    (listed,) = [json.loads(line) for line in (tmp_path / "run" / "bad_rows.jsonl").read_text().splitlines()]
    assert (listed["file"], listed["row"], listed["kind"]) == (str(data), BROKEN + 1, "image_unreadable")
    # The same as if the row had never been there.
    rows = json.loads(data.read_text())
    del rows[BROKEN]
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps(rows))
    train(load_recipe(str(recipe), of(fewer, images)), tmp_path / "fewer")
    for key in ("loss", "grad_norm"):
        assert log(tmp_path / "run")[0][key] == pytest.approx(log(tmp_path / "fewer")[0][key], rel=1e-4)
    # On two ranks, only one of which met it.
    done = trained_by(recipe, tmp_path / "two", ranks=2, more=tuple(of(data, images, SKIP)))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("goes on without") == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "run"), abs=1e-5)
    assert (tmp_path / "two" / "bad_rows.jsonl").read_text() == (tmp_path / "run" / "bad_rows.jsonl").read_text()


def test_a_run_that_stopped_goes_on_without_the_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"optim": {"epochs": 2, "lr": 1e-3}, "batch": {"global_batch": 2, "shuffle": False}}
    recipe, data, images = world(tmp_path, rows=8, run={"save_every": 1}, **changes)
    with pytest.raises(DataError) as error:
        train(load_recipe(str(recipe), of(data, images)), tmp_path / "run")
    message = str(error.value)
    assert message.startswith(f"{data}: row {BROKEN + 1}: image broken.png cannot be decoded") and "\n" not in message
    assert "left out by on_bad_row: skip, the run goes on with --resume" in message
    assert "in order" not in message and len(losses(tmp_path / "run")) == 2
    train(load_recipe(str(recipe), of(data, images, SKIP)), tmp_path / "run", resume="auto")
    said = capsys.readouterr().err
    # Once, although both epochs meet it.
    assert len(losses(tmp_path / "run")) == 8 and said.count("goes on without") == 1


def test_a_row_that_is_taken_away_makes_other_steps(tmp_path: Path) -> None:
    recipe, data, images = world(tmp_path, rows=8, run={"save_every": 1}, batch={"global_batch": 2, "shuffle": False})
    with pytest.raises(DataError):
        train(load_recipe(str(recipe), of(data, images)), tmp_path / "run")
    rows = json.loads(data.read_text())
    del rows[BROKEN]
    data.write_text(json.dumps(rows))
    with pytest.raises(CheckpointError, match="an image that cannot be read: replace it under its own name"):
        train(load_recipe(str(recipe), of(data, images)), tmp_path / "run", resume="auto")


def test_the_samples_beside_it_stay_as_they_are(tmp_path: Path) -> None:
    recipe, data, images = world(tmp_path, rows=8)
    made = load_recipe(str(recipe), of(data, images, SKIP))
    prompter = make_prompter(made.model)
    dataset = open_dataset(made.data, prompter, made.batch.max_length, console)
    batch = PackReader(dataset)[(BROKEN - 1, BROKEN, BROKEN + 1)]
    beside = PackReader(dataset)[(BROKEN - 1, BROKEN + 1)]
    assert not isinstance(batch, DataError) and not isinstance(beside, DataError)
    (left_out,) = batch.left_out
    assert left_out.targets == dataset.targets[BROKEN] > 0
    assert batch.target_ids.tolist() == beside.target_ids.tolist()
    assert batch.sample_lengths == (beside.sample_lengths[0], len(prompter.grey_prompt().ids), beside.sample_lengths[1])
