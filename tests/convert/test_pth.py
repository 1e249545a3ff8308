"""Checkpoints of XTuner's training, files of mmengine and folders of DeepSpeed, on the models of a recipe."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import llama_like
import pytest
import tiny
import torch
import xtuner_like
from deepspeed_like import write_stage_2, write_stage_3
from safetensors.torch import load_file
from xtuner_like import checkpoint, factors, merged, write_mmengine

from sightline.convert import hf, pth, zero
from sightline.convert.names import XTUNER_PROJECTOR, rename
from sightline.errors import CheckpointError, ModelError, UserError
from sightline.model.llamafy import llamafy
from sightline.recipe import Recipe

LORA = {"r": xtuner_like.RANK, "alpha": xtuner_like.ALPHA}
LLM_KINDS, TOWER_KINDS = ("q_proj", "up_proj"), ("k_proj", "fc2")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny.make_llm(folder / "llm")
    xtuner_like.as_transformers_4(tiny.make_tower(folder / "tower"))
    return folder


def recipe(parts: Path, *, model: dict[str, Any] | None = None, **tune: Any) -> Recipe:
    whole = {"llm": str(parts / "llm"), "vision_tower": str(parts / "tower"), "template": "vicuna"}
    return Recipe.model_validate(
        {
            "model": model or whole,
            "tune": {"llm": "frozen", **tune},
            "data": [{"path": "unused.json"}],
            "batch": {"global_batch": 1, "max_length": 64},
            "optim": {"lr": 1e-3, "epochs": 1},
        }
    )


def changed(tensors: xtuner_like.Tensors) -> xtuner_like.Tensors:
    return {name: tensor + 0.5 for name, tensor in tensors.items()}


def expected(
    llm: xtuner_like.Tensors, tower: xtuner_like.Tensors, projector: xtuner_like.Tensors
) -> xtuner_like.Tensors:
    result = {f"language_model.{name}": tensor for name, tensor in llm.items()}
    result |= {f"vision_tower.{name}": tensor for name, tensor in tower.items()}
    return result | {rename(name, XTUNER_PROJECTOR): tensor for name, tensor in projector.items()}


def assert_holds(place: Path, made: Recipe, wanted: xtuner_like.Tensors) -> None:
    found = pth.read(place, made).tensors
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].read()[: len(tensor)], tensor, rtol=1e-6, atol=1e-6)


def test_a_projector_alone(parts: Path, tmp_path: Path) -> None:
    llm, tower = xtuner_like.weights(parts / "llm"), xtuner_like.weights(parts / "tower")
    projector = xtuner_like.projector(32, 64)
    file = write_mmengine(tmp_path / "iter_10.pth", checkpoint(projector=projector))
    assert_holds(file, recipe(parts), expected(llm, tower, projector))


def test_adapters_of_both(parts: Path, tmp_path: Path) -> None:
    llm, tower = xtuner_like.weights(parts / "llm"), xtuner_like.weights(parts / "tower")
    projector = xtuner_like.projector(32, 64)
    for_llm, for_tower = factors(llm, *LLM_KINDS), factors(tower, *TOWER_KINDS)
    file = write_mmengine(tmp_path / "iter_10.pth", checkpoint(for_llm, for_tower, projector))
    wanted = expected(merged(llm, for_llm), merged(tower, for_tower), projector)
    for how in ("lora", "qlora"):
        assert_holds(file, recipe(parts, llm=how, llm_lora=LORA, vision_tower="lora", vision_lora=LORA), wanted)


def test_everything_was_trained(parts: Path, tmp_path: Path) -> None:
    llm, tower = changed(xtuner_like.weights(parts / "llm")), changed(xtuner_like.weights(parts / "tower"))
    projector = xtuner_like.projector(32, 64)
    more = {"visual_encoder.vision_model.embeddings.position_ids": torch.arange(17)}
    file = write_mmengine(tmp_path / "iter_10.pth", checkpoint(llm, tower, projector) | more)
    assert_holds(file, recipe(parts, llm="full", vision_tower="full"), expected(llm, tower, projector))


@pytest.mark.parametrize("lora", [False, True])
def test_an_internlm2(parts: Path, tmp_path: Path, lora: bool) -> None:
    settings = llama_like.config("internlm2")
    base = llama_like.internlm2(settings)
    learned = factors(base, "attention.wqkv", "attention.wo", "output") if lora else changed(base)
    tokenizer = tiny.make_tokenizer("first").backend_tokenizer
    for name, content in (("llm", base), ("whole", merged(base, learned) if lora else learned)):
        llama_like.write(tmp_path / name, settings, content)
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    llamafy(tmp_path / "whole", tmp_path / "llama")
    projector, tower = xtuner_like.projector(32, llama_like.WIDTH), xtuner_like.weights(parts / "tower")
    file = write_mmengine(tmp_path / "iter_10.pth", checkpoint(learned, projector=projector))
    model = {"llm": str(tmp_path / "llm"), "vision_tower": str(parts / "tower"), "template": "vicuna"}
    made = recipe(parts, model=model, llm="lora", llm_lora=LORA) if lora else recipe(parts, model=model, llm="full")
    assert_holds(file, made, expected(load_file(tmp_path / "llama" / "model.safetensors"), tower, projector))


def test_on_a_whole_model(parts: Path, tmp_path: Path) -> None:
    """A second stage that went on from a model of a run."""
    llm, tower = xtuner_like.weights(parts / "llm"), xtuner_like.weights(parts / "tower")
    first = write_mmengine(tmp_path / "first.pth", checkpoint(projector=xtuner_like.projector(32, 64)))
    hf.write(pth.read(first, recipe(parts)), tmp_path / "hf", max_shard_size="5GB")
    lora, projector = factors(llm, *LLM_KINDS), changed(xtuner_like.projector(32, 64))
    file = write_mmengine(tmp_path / "iter_10.pth", checkpoint(lora, projector=projector))
    model = {"from_model": str(tmp_path / "hf"), "template": "vicuna"}
    made = recipe(parts, model=model, llm="lora", llm_lora=LORA)
    assert_holds(file, made, expected(merged(llm, lora), tower, projector))


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_folder_of_deepspeed(parts: Path, tmp_path: Path, stage: int, ranks: int) -> None:
    llm, tower = changed(xtuner_like.weights(parts / "llm")), xtuner_like.weights(parts / "tower")
    projector = xtuner_like.projector(32, 64)
    state = checkpoint(llm, projector=projector)
    (write_stage_2 if stage == 2 else write_stage_3)(tmp_path / "iter_10.pth", state, ranks)
    assert_holds(tmp_path / "iter_10.pth", recipe(parts, llm="full"), expected(llm, tower, projector))


def test_frozen_parameters_beside_the_others_do_not_count(parts: Path, tmp_path: Path) -> None:
    """DeepSpeed keeps them too, unless it is asked not to; the recipe's are the same, and not rounded."""
    llm, tower = xtuner_like.weights(parts / "llm"), xtuner_like.weights(parts / "tower")
    projector = xtuner_like.projector(32, 64)
    frozen = checkpoint(llm, tower) | {"llm.model.rotary_emb.inv_freq": torch.ones(8)}
    folder = write_stage_2(tmp_path / "iter_10.pth", checkpoint(projector=projector), 2, frozen=frozen)
    assert_holds(folder, recipe(parts), expected(llm, tower, projector))
    for file in folder.glob("*_optim_states.pt"):
        file.unlink()
    assert zero.read(folder).keys() == checkpoint(projector=projector).keys()


@pytest.mark.parametrize("write", [write_stage_2, write_stage_3])
def test_numbers_that_no_parameter_has(parts: Path, tmp_path: Path, write: Any) -> None:
    """Not even those of a bias: of a checkpoint that is whole, no number is left over but to fill it up."""
    folder = write(tmp_path / "iter_10.pth", checkpoint(projector=xtuner_like.projector(32, 64)), 2)
    for file in folder.glob("*model_states.pt"):
        content = torch.load(file, weights_only=False)
        assert content["param_shapes"][0].popitem() == ("projector.model.0.bias", torch.Size([64]))
        torch.save(content, file)
    assert "of another version of DeepSpeed" in refusal(folder, recipe(parts))


def test_weights_of_half_precision_serve_without_the_optimiser(parts: Path, tmp_path: Path) -> None:
    state = checkpoint(projector=xtuner_like.projector(32, 64))
    folder = write_stage_2(tmp_path / "iter_10.pth", state, 2)
    for file in folder.glob("*_optim_states.pt"):
        file.unlink()
    found = zero.read(folder)
    assert {name: tensor.dtype for name, tensor in found.items()} == dict.fromkeys(state, torch.bfloat16)
    assert all(torch.equal(found[name].read(), state[name].bfloat16()) for name in state)


def test_the_newest_of_a_folder_of_deepspeed(tmp_path: Path) -> None:
    state = {"projector.model.0.weight": torch.randn(3, 5)}
    write_stage_2(tmp_path / "global_step7", state, 2)
    (tmp_path / "latest").write_text("global_step7\n")
    assert torch.equal(zero.read(tmp_path)["projector.model.0.weight"].read(), state["projector.model.0.weight"])
    for text in ("global_step9", "../elsewhere", ""):
        (tmp_path / "latest").write_text(text)
        with pytest.raises(CheckpointError, match="which is not there"):
            zero.read(tmp_path)


def refusal(place: Path, made: Recipe) -> str:
    with pytest.raises(UserError) as error:
        pth.read(place, made)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_pieces_that_are_missing(parts: Path, tmp_path: Path) -> None:
    state = checkpoint(projector=xtuner_like.projector(32, 64))
    for stage, write in ((2, write_stage_2), (3, write_stage_3)):
        folder = write(tmp_path / f"iter_{stage}.pth", state, 3)
        last = max(folder.glob("*_optim_states.pt"))
        last.unlink()
        assert "of 3 ranks, but has the files of 2" in refusal(folder, recipe(parts))
        shutil.rmtree(folder)
        (folder / "empty").mkdir(parents=True)
        assert "is no checkpoint of DeepSpeed" in refusal(folder, recipe(parts))
    folder = write_stage_3(tmp_path / "again.pth", state, 2)
    for file in folder.glob("*_optim_states.pt"):
        file.unlink()
    assert "none of the optimiser's files" in refusal(folder, recipe(parts))


@pytest.mark.parametrize("stage", [2, 3])
def test_shapes_that_are_not_those_of_the_numbers(parts: Path, tmp_path: Path, stage: int) -> None:
    write = write_stage_2 if stage == 2 else write_stage_3
    folder = write(tmp_path / "x", checkpoint(projector=xtuner_like.projector(32, 64)), 2, too_much=7000)
    assert "damaged, or of another version" in refusal(folder, recipe(parts))


@pytest.mark.parametrize(
    ("tune", "reason"),
    [
        ({"llm": "full"}, "made with tune.llm=lora, and the recipe says full"),
        ({}, "made with tune.llm=lora, and the recipe says frozen"),
        ({"llm": "lora", "llm_lora": {"r": 64, "alpha": 6}}, "adapters of rank 4, and the recipe says tune.llm: r 64"),
        (
            {"llm": "lora", "llm_lora": LORA, "vision_tower": "full"},
            "tune.vision_tower=frozen, and the recipe says full",
        ),
    ],
)
def test_another_recipe_is_refused(parts: Path, tmp_path: Path, tune: dict[str, Any], reason: str) -> None:
    lora = factors(xtuner_like.weights(parts / "llm"), "q_proj")
    file = write_mmengine(tmp_path / "iter_10.pth", checkpoint(lora, projector=xtuner_like.projector(32, 64)))
    assert reason in refusal(file, recipe(parts, **tune))


def test_another_base_is_refused(parts: Path, tmp_path: Path) -> None:
    tiny.make_llm(tmp_path / "wide", hidden_size=96)
    wide = xtuner_like.weights(tmp_path / "wide")
    projector = xtuner_like.projector(32, 64)
    file = write_mmengine(tmp_path / "lora.pth", checkpoint(factors(wide, "q_proj"), projector=projector))
    assert "does not belong to this base model" in refusal(file, recipe(parts, llm="lora", llm_lora=LORA))
    file = write_mmengine(tmp_path / "full.pth", checkpoint(wide, projector=projector))
    assert "in the model that the recipe names" in refusal(file, recipe(parts, llm="full"))
    file = write_mmengine(tmp_path / "projector.pth", checkpoint(projector=xtuner_like.projector(32, 96)))
    assert "of another shape" in refusal(file, recipe(parts))


def test_half_of_a_language_model(parts: Path, tmp_path: Path) -> None:
    llm = xtuner_like.weights(parts / "llm")
    half = {name: tensor for name, tensor in llm.items() if "layers.1" not in name}
    file = write_mmengine(tmp_path / "iter_10.pth", checkpoint(half, projector=xtuner_like.projector(32, 64)))
    assert "lacks 9 tensors of the llm" in refusal(file, recipe(parts, llm="full"))


def test_other_files_are_named(parts: Path, tmp_path: Path) -> None:
    lacking = write_mmengine(tmp_path / "a.pth", checkpoint(factors(xtuner_like.weights(parts / "llm"), "q_proj")))
    assert "holds no projector" in refusal(lacking, recipe(parts, llm="lora", llm_lora=LORA))
    assert "it holds backbone.weight" in refusal(
        write_mmengine(tmp_path / "b.pth", {"backbone.weight": torch.ones(2)}), recipe(parts)
    )
    assert "holds no weights" in refusal(write_mmengine(tmp_path / "c.pth", {}), recipe(parts))
    whole = write_mmengine(tmp_path / "d.pth", checkpoint(projector=xtuner_like.projector(32, 64)))
    whole.write_bytes(whole.read_bytes()[:-300])
    assert f"cannot read {whole}" in refusal(whole, recipe(parts))


def test_nothing_in_a_file_is_run(parts: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "run"),)

    state = checkpoint(projector=xtuner_like.projector(32, 64))
    torch.save({"meta": Trap(), "state_dict": state}, tmp_path / "iter_10.pth")
    pth.read(tmp_path / "iter_10.pth", recipe(parts))
    torch.save({"state_dict": Trap()}, tmp_path / "iter_11.pth")
    with pytest.raises((CheckpointError, ModelError)):
        pth.read(tmp_path / "iter_11.pth", recipe(parts))
    assert not (tmp_path / "run").exists()
