"""A disk that fills up costs the newest checkpoint at most; a folder is whole or not there."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import SHORT, contents, half_written
from safetensors.torch import load_file

from sightline.errors import CheckpointError
from sightline.files import appearing
from sightline.model import save as save_module
from sightline.recipe import load_recipe
from sightline.train import checkpoint as checkpoint_module
from sightline.train.loop import train

Usage = namedtuple("Usage", "total used free")


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def over_quota(*_: Any, **__: Any) -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def half_then_full(state: Any, file: Path, **_: Any) -> None:
    """As the library says it, which has no error number: save a file on a full disk with safetensors 0.8."""
    from safetensors import SafetensorError

    file.write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


write_state = torch.save


def to_a_full_device(state: Any, file: Any) -> None:
    """What torch itself raises when the system says that nothing more can be written."""
    with open("/dev/full", "wb", buffering=0) as device:
        write_state(state, device)


needs_full_device = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="/dev/full is Linux's")


@pytest.mark.parametrize(
    ("module", "name", "replacement"),
    [
        (checkpoint_module, "save_file", full),
        (checkpoint_module, "save_file", over_quota),
        (checkpoint_module, "save_file", half_then_full),
        pytest.param(torch, "save", to_a_full_device, marks=needs_full_device),
        (checkpoint_module, "dump_recipe", full),
        (shutil, "disk_usage", lambda folder: Usage(10**9, 10**9 - 100, 100)),
    ],
    ids=["system", "quota", "safetensors", "torch", "text", "before"],
)
def test_no_space_left(
    path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, replacement: Any
) -> None:
    before = contents(run / "checkpoint-2")
    monkeypatch.setattr(module, name, replacement)
    with pytest.raises(CheckpointError) as error:
        train(load_recipe(str(path), SHORT), run, resume="auto")
    message = str(error.value)
    assert message.startswith("no space left") and str(run / "checkpoint-4") in message and "\n" not in message
    assert contents(run / "checkpoint-2") == before
    assert {folder.name for folder in run.iterdir() if folder.is_dir()} == {"checkpoint-2"}
    monkeypatch.undo()
    train(load_recipe(str(path), SHORT), run, resume="auto")
    assert (run / "hf" / "model.safetensors").is_file() and not list(run.glob(".*"))


def test_what_a_checkpoint_needs_is_asked_for_before(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of two bytes have moments of eight."""
    pure = load_recipe(str(path), [*SHORT, "engine.dtype=bfloat16", "engine.pure_bf16=true"])
    train(pure, tmp_path / "whole")
    weights = load_file(tmp_path / "whole" / "checkpoint-4" / "weights.safetensors")
    matrices = sum(2 * tensor.numel() for tensor in weights.values() if tensor.ndim > 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9, 4.8 * matrices))
    written: list[Path] = []
    monkeypatch.setattr(checkpoint_module, "save_file", lambda state, file, **_: written.append(file))
    with pytest.raises(CheckpointError, match="no space left"):
        train(pure, tmp_path / "run")
    assert not written


def test_no_space_left_for_the_finished_model(path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_module, "save_file", half_then_full)
    with pytest.raises(
        CheckpointError, match=rf"^no space left while writing {re.escape(str(run / 'hf'))}; .*--resume\)$"
    ):
        train(load_recipe(str(path), SHORT), run, resume="auto")
    assert {folder.name for folder in run.iterdir() if folder.is_dir()} == {"checkpoint-2", "checkpoint-4", "learned"}
    monkeypatch.undo()
    train(load_recipe(str(path), SHORT), run, resume="auto")
    assert (run / "hf" / "model.safetensors").is_file()


def test_another_error_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), appearing(tmp_path / "new", needs=1) as partial:
        (partial / "file").write_text("x", encoding="utf-8")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_at_one_stroke(tmp_path: Path) -> None:
    with appearing(tmp_path / "new", needs=1) as partial:
        (partial / "file").write_text("first", encoding="utf-8")
        assert not (tmp_path / "new").exists()
    assert contents(tmp_path) == {"new/file": b"first"}
    with appearing(tmp_path / "new", needs=1, replace=True) as partial:
        (partial / "other").write_text("second", encoding="utf-8")
        assert contents(tmp_path / "new") == {"file": b"first"}
    assert contents(tmp_path) == {"new/other": b"second"}
    with pytest.raises(KeyError), appearing(tmp_path / "new", needs=1, replace=True):
        raise KeyError
    assert contents(tmp_path) == {"new/other": b"second"}


def test_what_a_killed_run_was_writing_goes(path: Path, run: Path) -> None:
    """Also where no step is saved under that number again; what is not the run's own stays."""
    for name in ("checkpoint-3", "hf", "mine"):
        half_written(run / name)
    (run / ".checkpoint-3.partial").mkdir()  # only looks alike
    mine = {left for left in run.glob(".*") if ".mine." in left.name or left.name == ".checkpoint-3.partial"}
    train(load_recipe(str(path), SHORT), run, resume="auto")
    assert set(run.glob(".*")) == mine


def test_others_may_read_what_is_written(run: Path) -> None:
    """safetensors makes files that only their owner can read."""
    rights = {file.name: oct(file.stat().st_mode) for file in (run / "checkpoint-2").iterdir()}
    assert set(rights.values()) == {oct((run / "log.jsonl").stat().st_mode)}, rights


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(path: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="locked"):
        train(load_recipe(str(path), SHORT), tmp_path / "locked" / "run")


def test_a_run_folder_that_is_a_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x", encoding="utf-8")
    with pytest.raises(CheckpointError) as error:
        train(load_recipe(str(path), SHORT), tmp_path / "run")
    assert str(error.value).startswith(f"cannot write to {tmp_path / 'run'}") and "\n" not in str(error.value)
