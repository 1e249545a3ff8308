"""Checkpoints are whole or not there, and what is wrong with one is said in a line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import SHORT, contents
from safetensors.torch import load_file, save_file

from sightline.errors import CheckpointError
from sightline.model.weights import checkpoints, find_checkpoint
from sightline.recipe import load_recipe
from sightline.train.checkpoint import prune
from sightline.train.loop import train


@pytest.fixture
def refused(path: Path, run: Path) -> Callable[..., str]:
    """Try to go on with a changed recipe; the message, which is one line, and nothing was touched."""

    def attempt(*changes: str, resume: str | None = "auto", recipe: Path = path) -> str:
        before = contents(run)
        with pytest.raises(CheckpointError) as error:
            train(load_recipe(str(recipe), [*SHORT, *changes]), run, resume=resume)
        message = str(error.value)
        assert "\n" not in message and contents(run) == before
        return message

    return attempt


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optim.lr=3e-3", "optim.lr: 0.001 in the checkpoint, 0.003 now"),
        ("batch.global_batch=5", "batch.global_batch: 6 in the checkpoint, 5 now"),
        ("run.seed=1", "run.seed: 42 in the checkpoint, 1 now"),
        ("tune.llm_lora.r=8", "tune.llm_lora.r: 4 in the checkpoint, 8 now"),
        ("tune.vision_tower=full", "tune.vision_tower: frozen in the checkpoint, full now"),
        ("optim.max_steps=5", "optim.max_steps: 4 in the checkpoint, 5 now"),
        ("engine.dtype=bfloat16", "engine.dtype: auto in the checkpoint, bfloat16 now"),
        ("data.0.head=12", "data.0.head: null in the checkpoint, 12 now"),
        ("model.template=plain", "model.template: vicuna in the checkpoint, plain now"),
    ],
)
def test_another_recipe(refused: Callable[..., str], run: Path, change: str, words: str) -> None:
    message = refused(change)
    assert message == f"{run / 'checkpoint-2'} was made with another recipe: {words}"


def test_every_difference_is_named(refused: Callable[..., str]) -> None:
    message = refused("optim.lr=3e-3", "optim.betas=[0.8, 0.9]", "tune.llm=full", "tune.llm_lora=null")
    for key in ("optim.lr", "optim.betas.0", "optim.betas.1", "tune.llm:", "tune.llm_lora.alpha"):
        assert key in message


def test_other_data(refused: Callable[..., str], path: Path, tmp_path: Path) -> None:
    data = Path(load_recipe(str(path)).data[0].path)
    text = data.read_text(encoding="utf-8")
    assert text.count("It is a red square.") > 1
    try:
        data.write_text(text.replace("It is a red square.", "It is a square, red.", 1), encoding="utf-8")
        message = refused()
    finally:
        data.write_text(text, encoding="utf-8")
    assert "checkpoint-2 was made with other data" in message


def test_other_data_of_the_same_lengths(refused: Callable[..., str], path: Path) -> None:
    data = Path(load_recipe(str(path)).data[0].path)
    text = data.read_text(encoding="utf-8")
    try:
        data.write_text(text.replace("A colour.", "A calour.", 1), encoding="utf-8")
        assert "other data" in refused()
    finally:
        data.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "recipe.yaml"])
@pytest.mark.parametrize("damage", [halve, Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_file_that_is_cut(
    refused: Callable[..., str], run: Path, name: str, damage: Callable[[Path], object]
) -> None:
    file = run / "checkpoint-2" / name
    size = file.stat().st_size
    damage(file)
    found = file.stat().st_size if file.exists() else 0
    message = refused()
    assert message == (
        f"checkpoint {run / 'checkpoint-2'} is damaged: {name} has {found} of {size} bytes; resume from an older one"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"step": 2}', '{"files": []}', '{"files": 3}', "\xff"])
def test_a_state_that_cannot_be_read(refused: Callable[..., str], run: Path, text: str) -> None:
    (run / "checkpoint-2" / "state.json").write_text(text, encoding="latin-1")
    assert refused().endswith("is damaged: state.json cannot be read; resume from an older one")


def test_a_state_cut_in_half(refused: Callable[..., str], run: Path) -> None:
    halve(run / "checkpoint-2" / "state.json")
    assert "is damaged: state.json cannot be read" in refused()


def spoil(file: Path) -> None:
    """Other bytes, as many as before."""
    content = bytearray(file.read_bytes())
    content[:200] = b"\x00" * 200
    content[-200:] = b"\x00" * 200
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt"])
def test_a_file_of_the_right_size_but_other_bytes(path: Path, run: Path, name: str) -> None:
    spoil(run / "checkpoint-2" / name)
    with pytest.raises(CheckpointError, match=r"^checkpoint .*checkpoint-2 is damaged.*older one$"):
        train(load_recipe(str(path), SHORT), run, resume="auto")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_an_optimizer_file_cannot_run_code(path: Path, run: Path, tmp_path: Path) -> None:
    file = run / "checkpoint-2" / "optimizer.pt"
    torch.save({"state": Evil(tmp_path / "evil")}, file)
    state = json.loads((run / "checkpoint-2" / "state.json").read_text(encoding="utf-8"))
    state["files"]["optimizer.pt"] = file.stat().st_size
    (run / "checkpoint-2" / "state.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
        train(load_recipe(str(path), SHORT), run, resume="auto")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.popitem(), "holds other tensors than this recipe tunes (1 differ, such as "),
        (lambda weights: weights.update(extra=torch.zeros(1)), "holds other tensors than this recipe tunes (1 differ"),
        (lambda weights: weights.update({min(weights): torch.zeros(3, 4)}), " is [3, 4], expected ["),
    ],
)
def test_weights_that_do_not_fit(path: Path, run: Path, change: Callable[[Any], object], words: str) -> None:
    file = run / "checkpoint-2" / "weights.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    state = json.loads((run / "checkpoint-2" / "state.json").read_text(encoding="utf-8"))
    state["files"][file.name] = file.stat().st_size
    (run / "checkpoint-2" / "state.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(CheckpointError) as error:
        train(load_recipe(str(path), SHORT), run, resume="auto")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["nowhere", "empty", "file", "hf"])
def test_a_path_that_is_no_checkpoint(refused: Callable[..., str], path: Path, tmp_path: Path, kind: str) -> None:
    wanted = tmp_path / kind
    if kind == "file":
        wanted.write_text("x", encoding="utf-8")
    elif kind != "nowhere":
        wanted.mkdir()
    assert refused(resume=str(wanted)) == f"{wanted} is neither a checkpoint nor a run with checkpoints"


def test_a_run_is_not_started_over_another(refused: Callable[..., str], run: Path) -> None:
    words = f"{run} already holds a run; go on with --resume, or choose another --work-dir"
    assert refused(resume=None) == words
    shutil.rmtree(run / "checkpoint-2")
    (run / "hf").mkdir()
    (run / "hf" / "config.json").write_text("{}", encoding="utf-8")
    assert refused(resume=None) == words
    assert refused(resume="auto") == words


def test_a_checkpoint_of_another_run_does_not_overwrite_this_one(
    refused: Callable[..., str], original: Path, run: Path
) -> None:
    assert "already holds a run" in refused(resume=str(original / "checkpoint-2"))


def test_a_damaged_run_is_named_before_the_data_is_read(refused: Callable[..., str], run: Path, path: Path) -> None:
    halve(run / "checkpoint-2" / "optimizer.pt")
    assert "is damaged" in refused("data.0.path=/nowhere.json")


def test_nothing_to_go_on_from_begins(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(load_recipe(str(path), SHORT), tmp_path / "new", resume="auto")
    assert "starting from the beginning" in capsys.readouterr().err
    assert (tmp_path / "new" / "hf").is_dir()


def test_the_newest_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-100", "checkpoint-x", "checkpoint-", ".checkpoint-500"):
        (tmp_path / name).mkdir()
    (tmp_path / ".checkpoint-900.partial").mkdir()
    names = [folder.name for folder in checkpoints(tmp_path)]
    assert names == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert find_checkpoint(tmp_path).name == "checkpoint-100"


@pytest.mark.parametrize(
    ("step", "keep", "left"),
    [(4, 1, [4, 5]), (4, 2, [3, 4, 5]), (5, 1, [5]), (5, 9, [1, 2, 3, 4, 5]), (5, 3, [3, 4, 5])],
)
def test_the_newest_stay(tmp_path: Path, step: int, keep: int, left: list[int]) -> None:
    for number in range(1, 6):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "state.json").touch()
    kept = {"checkpoint-mine", "checkpoint-0"}  # the latter is no checkpoint, whatever its name
    for name in kept:
        (tmp_path / name).mkdir()
    prune(tmp_path, step, keep)
    assert {folder.name for folder in tmp_path.iterdir()} == kept | {f"checkpoint-{n}" for n in left}


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_a_run_keeps_so_many(path: Path, tmp_path: Path, keep: int, left: list[int]) -> None:
    train(load_recipe(str(path), [*SHORT, "run.save_every=1", f"run.keep={keep}"]), tmp_path / "run")
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == [f"checkpoint-{number}" for number in left]


def test_no_checkpoint_but_the_last(path: Path, tmp_path: Path) -> None:
    train(load_recipe(str(path), [*SHORT, "run.save_every=0"]), tmp_path / "run")
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["checkpoint-4"]


def test_a_checkpoint_holds_what_learns_and_no_more(run: Path) -> None:
    weights = load_file(run / "checkpoint-2" / "weights.safetensors")
    assert len(weights) == 2 * 7 * 2 + 4  # an adapter of two matrices at seven places in two layers; the projector
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    state = json.loads((run / "checkpoint-2" / "state.json").read_text(encoding="utf-8"))
    assert state["step"] == 2 and state["identity"]["run"] == {"seed": 42} and "torch" in state["versions"]
    assert load_recipe(str(run / "checkpoint-2" / "recipe.yaml")).run.save_every == 2
