"""The projector of an earlier run, found wherever it may lie, or refused in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from assembled import PROJECTOR, projector, put_together, refusal, same, spec
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize("source", ["run", "run/hf", "run/checkpoint-8", "sharded", "transformers"])
def test_the_projector_of_another_model(
    world: Path, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = load_file(world / "run" / "hf" / "model.safetensors")
    wanted = {name: learned[f"multi_modal_projector.{name}"] for name in PROJECTOR}
    folder = world / source
    if source == "sharded":  # the two layers in different files
        folder = tmp_path
        save_file(
            {f"multi_modal_projector.{name}": wanted[name] for name in PROJECTOR if "1" in name},
            folder / "a.safetensors",
        )
        save_file(
            {f"multi_modal_projector.{name}": wanted[name] for name in PROJECTOR if "2" in name},
            folder / "b.safetensors",
        )
    if source == "transformers":  # the names of a model in memory
        folder = tmp_path
        save_file({f"model.multi_modal_projector.{name}": wanted[name] for name in PROJECTOR}, folder / "m.safetensors")
    vlm = put_together(spec(world, projector_from=folder))
    assert same(projector(vlm), wanted)
    assert not same(projector(put_together(spec(world))), wanted)
    assert "projector: 4 tensors" in capsys.readouterr().err


def test_an_older_checkpoint_has_an_older_projector(world: Path) -> None:
    third, eighth = (
        projector(put_together(spec(world, projector_from=world / "run" / f"checkpoint-{n}"))) for n in (3, 8)
    )
    assert not same(third, eighth)


def test_a_projector_of_other_shapes(world: Path, tmp_path: Path) -> None:
    wide = tiny.make_llm(tmp_path / "wide", hidden_size=128)
    message = refusal(spec(world, llm=wide, projector_from=world / "run"))
    assert "linear_1.weight is [64, 32], not [128, 32]" in message and str(world / "run") in message


def test_a_projector_with_a_part_missing(world: Path, tmp_path: Path) -> None:
    save_file({"multi_modal_projector.linear_1.weight": torch.zeros(64, 32)}, tmp_path / "model.safetensors")
    assert refusal(spec(world, projector_from=tmp_path)).endswith("(multi_modal_projector.* in a .safetensors file)")


def test_folders_without_a_projector(world: Path, tmp_path: Path) -> None:
    assert "no folder" in refusal(spec(world, projector_from=tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", world / "llm", world / "recipe.yaml"):
        message = refusal(spec(world, projector_from=folder))
        assert message.startswith(f"model.projector_from: {folder} holds no projector")


def test_a_projector_in_a_damaged_file(world: Path, tmp_path: Path) -> None:
    content = (world / "run" / "hf" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "damaged" in refusal(spec(world, projector_from=tmp_path))


def test_a_whole_model_may_take_another_projector(world: Path, tmp_path: Path) -> None:
    third = world / "run" / "checkpoint-3"
    whole = spec(world, llm=None, vision_tower=None, from_model=world / "run" / "hf", projector_from=third)
    assert same(projector(put_together(whole)), projector(put_together(spec(world, projector_from=third))))
