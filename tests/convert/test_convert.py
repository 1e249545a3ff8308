"""`convert pth_to_hf` gives the model that the run wrote itself, or says in one line what does not fit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from runs import contents, half_written
from safetensors.torch import load_file

from sightline import cli
from sightline.convert.source import Source
from sightline.convert.verify import Proof, write_proof
from sightline.errors import CheckpointError
from sightline.recipe import load_recipe
from sightline.train.loop import train

LORA = {"llm": "lora", "llm_lora": {"r": 4, "alpha": 8}, "projector": "full"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two steps with an adapter, whose run is beside it in `run`."""
    folder = tmp_path_factory.mktemp("world")
    path = tiny.write_recipe(folder, tune=LORA, optim={"lr": 0.01, "epochs": 1, "max_steps": 2})
    train(load_recipe(str(path), []), folder / "run")
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "models" / "mine"


def convert(recipe: Path, checkpoint: Path, out: Path | str, *flags: str) -> int:
    return cli.main(["convert", "pth_to_hf", str(recipe), str(checkpoint), str(out), *flags])


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one line of an error."""
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(said) == 1
    return said[0]


@pytest.mark.parametrize("checkpoint", ["", "checkpoint-2"])
def test_a_checkpoint_becomes_the_model_that_the_run_wrote(
    recipe: Path, out: Path, capsys: pytest.CaptureFixture[str], checkpoint: str
) -> None:
    run = recipe.parent / "run"
    assert convert(recipe, run / checkpoint, out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert contents(out) == contents(run / "hf")
    assert [path.name for path in out.parent.iterdir()] == ["mine"]


def test_the_recipe_of_the_run_folder_serves_as_well(recipe: Path, out: Path) -> None:
    run = recipe.parent / "run"
    assert convert(run / "recipe.yaml", run, out) == 0
    assert contents(out) == contents(run / "hf")


def test_small_files_and_number_formats(recipe: Path, out: Path) -> None:
    run = recipe.parent / "run"
    half = ("--cfg-options", "engine.dtype=bfloat16")
    assert convert(recipe, run, out, "--max-shard-size", "50kb", *half) == 0
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert {str(tensor.dtype) for shard in shards for tensor in load_file(shard).values()} == {"torch.bfloat16"}
    full = out.with_name("full")
    assert convert(recipe, run, full, "--fp32", *half) == 0
    assert contents(full) == contents(run / "hf")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("tune.llm_lora.alpha=16", "tune.llm_lora.alpha: 8 in the checkpoint, 16 now"),
        ("tune.llm_lora.r=8", "tune.llm_lora.r: 4 in the checkpoint, 8 now"),
        ("model.vision_feature_layer=-1", "model.vision_feature_layer: -2 in the checkpoint, -1 now"),
        ("model.template=chatml", "model.template: vicuna in the checkpoint, chatml now"),
    ],
)
def test_another_recipe_is_refused(
    recipe: Path, out: Path, capsys: pytest.CaptureFixture[str], change: str, reason: str
) -> None:
    code = convert(recipe, recipe.parent / "run", out, "--cfg-options", change)
    assert reason in refusal(capsys, code)
    assert not out.exists()


def test_what_does_not_change_the_model_may_differ(recipe: Path, out: Path) -> None:
    # `train --seed 7`, and then the command of the guides with the recipe alone.
    changes = ("optim.lr=1.0", "batch.global_batch=1", "run.save_every=1", "engine.device=cuda", "run.seed=7")
    assert convert(recipe, recipe.parent / "run", out, "--cfg-options", *changes) == 0
    assert contents(out) == contents(recipe.parent / "run" / "hf")


def test_a_checkpoint_of_another_version_knows_other_values(recipe: Path, out: Path, tmp_path: Path) -> None:
    older = shutil.copytree(recipe.parent / "run" / "checkpoint-2", tmp_path / "checkpoint-2")
    state = json.loads((older / "state.json").read_text())
    state["identity"]["model"]["forgotten"] = 2
    del state["identity"]["model"]["image_aspect_ratio"], state["identity"]["tune"]["llm_lora"]["dropout"]
    (older / "state.json").write_text(json.dumps(state))
    assert convert(recipe, older, out) == 0
    assert contents(out) == contents(recipe.parent / "run" / "hf")


def test_a_base_model_that_was_moved_is_remarked(
    recipe: Path, out: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    moved = shutil.copytree(recipe.parent / "llm", tmp_path / "moved")
    assert convert(recipe, recipe.parent / "run", out, "--cfg-options", f"model.llm={moved}") == 0
    said = capsys.readouterr().err
    assert f"model.llm: {recipe.parent / 'llm'} in the checkpoint, {moved} now" in said
    assert "must be the same weights" in said
    assert contents(out) == contents(recipe.parent / "run" / "hf")


@pytest.mark.parametrize("name", [".", "/", "full", "file", "file/below"])
def test_an_unfit_folder_is_refused_before_anything_is_loaded(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr("sightline.model.restore.assemble", lambda *_: pytest.fail("loaded"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    target = name if name in (".", "/") else str(tmp_path / name)
    assert target in refusal(capsys, convert(recipe, recipe.parent / "run", target))
    assert (tmp_path / "full" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("size", ["abc", "5", "0", "-1GB", "5 apples", ""])
def test_a_size_that_is_none_is_refused(recipe: Path, out: Path, size: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        convert(recipe, recipe.parent / "run", out, f"--max-shard-size={size}")
    assert stopped.value.code == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"step": 2}', b"\xff", b'{"identity": 5}'])
def test_a_damaged_checkpoint_is_named(
    recipe: Path, out: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    damaged = shutil.copytree(recipe.parent / "run" / "checkpoint-2", tmp_path / "checkpoint-2")
    (damaged / "state.json").write_bytes(content)
    assert f"{damaged} is damaged: state.json" in refusal(capsys, convert(recipe, damaged, out))


def test_weights_cut_in_half_are_named(
    recipe: Path, out: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    damaged = shutil.copytree(recipe.parent / "run" / "checkpoint-2", tmp_path / "checkpoint-2")
    weights = (damaged / "weights.safetensors").read_bytes()
    (damaged / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    assert f"{damaged}/weights.safetensors is damaged" in refusal(capsys, convert(recipe, damaged, out))
    assert not out.exists()


def test_a_folder_without_checkpoints_is_named(recipe: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, convert(recipe, recipe.parent / "llm", out))
    assert "is neither a checkpoint nor a run with checkpoints" in message


def test_a_disk_that_cannot_be_written_is_named(
    recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> Path:
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr("sightline.convert.anything.hf.write", fails)
    assert refusal(capsys, convert(recipe, recipe.parent / "run", out)) == (
        f"error: cannot write {out}: Permission denied; choose another folder"
    )


def test_a_killed_conversion_leaves_nothing_that_disturbs(recipe: Path, out: Path) -> None:
    out.parent.mkdir()
    half_written(out)
    assert convert(recipe, recipe.parent / "run", out) == 0
    assert [path.name for path in out.parent.iterdir()] == ["mine"]


KILLED = """
import os, signal, sys
from sightline import cli
from sightline.convert import anything

anything.compare = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
cli.main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no kill there")
def test_a_kill_before_the_proof_leaves_no_folder_of_that_name(recipe: Path, out: Path) -> None:
    words = ["convert", "pth_to_hf", str(recipe), str(recipe.parent / "run"), str(out)]
    died = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL
    (left,) = out.parent.iterdir()
    assert (left / "new" / "mine" / "model.safetensors").is_file(), "it was whole, but not proven"
    assert cli.main(words) == 0
    assert [path.name for path in out.parent.iterdir()] == ["mine"] and (out / "conversion.json").is_file()


@pytest.mark.parametrize("to", ["huggingface", "official", "xtuner", "gguf"])
def test_the_proof_comes_before_the_name(
    recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    proven: list[Path] = []

    def write_and_look(proof: Proof, folder: Path) -> None:
        assert not out.exists() and folder.name == "mine"
        write_proof(proof, folder)
        proven.append(folder)

    monkeypatch.setattr("sightline.convert.anything.write_proof", write_and_look)
    assert cli.main(["convert", str(recipe.parent / "run"), str(out), "--to", to]) == 0, capsys.readouterr().err
    assert len(proven) == 1 and (out / "conversion.json").is_file()


def test_an_error_of_the_proof_names_the_folder_that_was_asked_for(
    recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def differs(source: Source, result: Source) -> Proof:
        raise CheckpointError(f"{result.path} answers otherwise")

    monkeypatch.setattr("sightline.convert.anything.compare", differs)
    assert refusal(capsys, convert(recipe, recipe.parent / "run", out)) == f"error: {out} answers otherwise"
    assert not list(out.parent.iterdir())
