"""The projector of an earlier run, found wherever it may lie, or refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from assembled import PROJECTOR, projector, put_together, refusal, same, spec
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from sightline.model.assemble import assemble, make_prompter
from sightline.model.load import load
from sightline.model.save import save


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
    message = refusal(spec(world, projector_from=tmp_path))
    assert "linear_1.bias is missing; linear_2.weight is missing; linear_2.bias is missing" in message
    assert "its depth is 1; model.projector_depth is 2" in message


OTHERS = {
    # XTuner's checkpoint (https://github.com/InternLM/xtuner, xtuner/model/llava.py: state_dict), and its folder
    "xtuner": ("iter_12.pth", "projector.model.{0}.{1}", {"llm.base_model.model.lora_A.weight": torch.zeros(2)}),
    "xtuner_folder": ("projector/model.safetensors", "model.{0}.{1}", {}),
    "xtuner_bin": ("projector/pytorch_model.bin", "model.{0}.{1}", {}),
    # LLaVA's: after pretraining, after LoRA, and in a whole model
    "llava": ("mm_projector.bin", "model.mm_projector.{0}.{1}", {}),
    "llava_lora": ("non_lora_trainables.bin", "base_model.model.model.mm_projector.{0}.{1}", {}),
    "llava_whole": (
        "m.safetensors",
        "model.mm_projector.{0}.{1}",
        {"model.layers.0.input_layernorm.weight": torch.ones(2)},
    ),
}


def written(folder: Path, kind: str, values: dict[str, torch.Tensor], *, wrapped: bool = True) -> Path:
    """The projector `values` as another program writes it."""
    file, form, others = OTHERS[kind]
    place = {"1": "0", "2": "2", "3": "4"}
    state = dict(others)
    for name, tensor in values.items():
        layer, part = name.removeprefix("linear_").split(".")
        state[form.format(place[layer], part)] = tensor.half().contiguous()
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        whole = {"meta": {"cfg": "model = dict()", "iter": 12}, "state_dict": state, "message_hub": Hub()}
        torch.save(whole if kind == "xtuner" and wrapped else state, path)
    return path


class Hub:
    """An object of a class that only the other program knows."""

    def __init__(self) -> None:
        self.history = torch.ones(3)


@pytest.mark.parametrize("whole_folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("kind", OTHERS)
def test_projectors_of_other_programs(
    world: Path, tmp_path: Path, kind: str, whole_folder: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {name: tensor.half().float() for name, tensor in projector(put_together(spec(world), seed=5)).items()}
    path = written(tmp_path, kind, wanted)
    if whole_folder and kind == "xtuner":  # of several the newest
        written(tmp_path, "xtuner", {name: 0 * tensor for name, tensor in wanted.items()}).rename(
            tmp_path / "iter_9.pth"
        )
        written(tmp_path, kind, wanted)
    vlm = put_together(spec(world, projector_from=tmp_path if whole_folder else path))
    assert same(projector(vlm), wanted)
    said = capsys.readouterr().err
    left = {"xtuner": "1 of llm", "llava_whole": "1 of model"}.get(kind, "nothing")
    assert f"projector: 4 tensors from {tmp_path}" in said.replace("\n", "")
    assert f"none missing; left over there: {left}" in " ".join(said.split())


def test_a_checkpoint_of_deepspeed(world: Path, tmp_path: Path) -> None:
    """A folder that is called like a file; in pieces (ZeRO-3) it holds no whole tensors."""
    wanted = projector(put_together(spec(world), seed=5))
    names = {name: f"projector.model.{2 * int(name[7]) - 2}.{name.split('.')[1]}" for name in wanted}
    folder = tmp_path / "iter_4.pth"
    folder.mkdir()
    torch.save(
        {"module": {names[name]: tensor for name, tensor in wanted.items()}}, folder / "mp_rank_00_model_states.pt"
    )
    assert same(projector(put_together(spec(world, projector_from=folder))), wanted)
    (folder / "mp_rank_00_model_states.pt").unlink()
    (folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    assert "zero_to_fp32.py" in refusal(spec(world, projector_from=folder))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_projectors_of_all_depths(world: Path, tmp_path: Path, depth: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Saved and read again they are the same; transformers reads those of one and two layers, and no other."""
    recipe = spec(world, projector_depth=depth)
    prompter = make_prompter(recipe)
    torch.manual_seed(3)
    vlm = assemble(recipe, prompter)
    for parameter in vlm.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    assert len(projector(vlm)) == 2 * depth
    assert ("nothing but Sightline loads" in " ".join(capsys.readouterr().err.split())) == (depth > 2)
    pixels = torch.randn(1, 3, 56, 56)
    ids = torch.tensor([[5, *[prompter.image_token_id] * 16, 7, 9]])
    with torch.no_grad():
        states = vlm.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        for number in range(1, depth + 1):
            states = states if number == 1 else torch.nn.functional.gelu(states)
            own = projector(vlm)
            states = states @ own[f"linear_{number}.weight"].T + own[f"linear_{number}.bias"]
        features = torch.cat(tuple(vlm.model.get_image_features(pixel_values=pixels).pooler_output))
        torch.testing.assert_close(features, states[0], rtol=1e-5, atol=1e-5)
        wanted = vlm.model(input_ids=ids, pixel_values=pixels).logits
        folder = save(vlm, tmp_path / "saved")
        again = load(folder, device="cpu").model
        assert same(again.model.multi_modal_projector.state_dict(), own)
        assert torch.equal(again(input_ids=ids, pixel_values=pixels).logits, wanted)
        if depth > 2:
            with pytest.raises(KeyError, match=f"{depth} layers: only Sightline"):
                AutoModelForImageTextToText.from_pretrained(folder)
        else:
            theirs: Any = AutoModelForImageTextToText.from_pretrained(folder)
            torch.testing.assert_close(theirs(input_ids=ids, pixel_values=pixels).logits, wanted, rtol=1e-5, atol=1e-5)
    assert same(projector(put_together(spec(world, projector_depth=depth, projector_from=folder))), own)
    other = 1 + depth % 4
    message = refusal(spec(world, projector_depth=other, projector_from=folder))
    assert f"(its depth is {depth}; model.projector_depth is {other})" in message
    whole = spec(world, llm=None, vision_tower=None, from_model=folder)
    assert same(projector(put_together(whole)), own)


def as_llava(world: Path, **changes: Any) -> dict[Any, Any]:
    """What LLaVA writes as mm_projector.bin; here with a few changes."""
    names = {"linear_1": "0", "linear_2": "2"}
    own = projector(put_together(spec(world)))
    state = {f"model.mm_projector.{names[name[:8]]}{name[8:]}": tensor for name, tensor in own.items()}
    return {**state, **changes}


WRONG: dict[str, tuple[dict[Any, Any], str]] = {
    "not finite": (
        {"model.mm_projector.2.bias": torch.full((64,), float("nan"))},
        "linear_2.bias has entries that are",
    ),
    "whole numbers": ({"model.mm_projector.2.bias": torch.ones(64, dtype=torch.int8)}, "linear_2.bias is of int8"),
    "two": ({"multi_modal_projector.linear_2.bias": torch.ones(64)}, "more than one projector (two of linear_2.bias)"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_projector_that_is_none(world: Path, tmp_path: Path, what: str) -> None:
    changes, words = WRONG[what]
    torch.save(as_llava(world, **changes), tmp_path / "mm_projector.bin")
    assert words in refusal(spec(world, projector_from=tmp_path / "mm_projector.bin"))


def test_what_else_lies_beside_it_is_left(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = as_llava(world, **{"model.image_newline": torch.ones(64)}) | {7: torch.ones(1)}
    torch.save(state, tmp_path / "mm_projector.bin")
    (tmp_path / "checkpoints.bin").mkdir()
    put_together(spec(world, projector_from=tmp_path))
    assert "left over there: 1 of image_newline" in " ".join(capsys.readouterr().err.split())


def test_a_linear_projector_of_llava(world: Path, tmp_path: Path) -> None:
    state = {"model.mm_projector.weight": torch.randn(64, 32), "model.mm_projector.bias": torch.randn(64)}
    torch.save(state, tmp_path / "mm_projector.bin")
    vlm = put_together(spec(world, projector_depth=1, projector_from=tmp_path))
    assert torch.equal(projector(vlm)["linear_1.weight"], state["model.mm_projector.weight"])


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
