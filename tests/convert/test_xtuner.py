"""XTuner's folders in and out: bit-equal round trips, adapters against the paper's sum, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import llama_like
import pytest
import tiny
import torch
import xtuner_like
from exports import make_case
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from xtuner_like import factors, merged, write_adapter, write_notes, write_projector

from sightline.convert import hf, xtuner
from sightline.convert.names import XTUNER_PROJECTOR, rename
from sightline.convert.source import Source
from sightline.convert.verify import compare
from sightline.errors import ModelError
from sightline.model.assemble import assemble, make_prompter
from sightline.model.llamafy import llamafy
from sightline.model.parts import find_parts
from sightline.model.save import hub_state, save
from sightline.recipe import ModelRecipe

BIG: Any = {"max_shard_size": "5GB"}


def tensors(source: Source) -> dict[str, torch.Tensor]:
    return {name: tensor.read() for name, tensor in source.tensors.items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [
        name for name in one if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name])
    ] == []


@pytest.mark.parametrize("case", ["byte", "rope", "legacy", "tied", "crop", "llama3_chat", "sharded"])
def test_out_and_in_again(tmp_path: Path, case: str) -> None:
    save(make_case(tmp_path, case), tmp_path / "hf")
    before = hf.read(tmp_path / "hf")
    xtuner.write(before, tmp_path / "out", max_shard_size="60KB" if case == "sharded" else "5GB")
    after = xtuner.read(tmp_path / "out")
    assert_same(tensors(before), tensors(after))
    assert compare(before, after).largest_difference == 0
    assert after.prompter.template == before.prompter.template
    hf.write(after, tmp_path / "again", **BIG)
    for name in ("config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json"):
        assert json.loads((tmp_path / "again" / name).read_text()) == json.loads((tmp_path / "hf" / name).read_text())


def test_half_precision_stays(tmp_path: Path) -> None:
    save(make_case(tmp_path, "byte"), tmp_path / "hf", dtype=torch.bfloat16)
    xtuner.write(hf.read(tmp_path / "hf"), tmp_path / "out", **BIG)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    for place in ("", "projector", "visual_encoder"):
        assert json.loads((tmp_path / "out" / place / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_layout(tmp_path: Path) -> None:
    """Files and names as xtuner 0.2.0's pth_to_hf has them; its chat was run on such folders by hand."""
    save(make_case(tmp_path, "byte"), tmp_path / "hf")
    xtuner.write(hf.read(tmp_path / "hf"), tmp_path / "out", **BIG)
    out = tmp_path / "out"
    assert {path.name for path in (out / "projector").iterdir()} == {"config.json", "model.safetensors"}
    assert {"model.safetensors", "config.json", "preprocessor_config.json"} == {
        path.name for path in (out / "visual_encoder").iterdir()
    }
    names = [f"model.{number}.{kind}" for number in (0, 2) for kind in ("bias", "weight")]
    assert sorted(load_file(out / "projector" / "model.safetensors")) == names
    assert all(name.startswith("vision_model.") for name in load_file(out / "visual_encoder" / "model.safetensors"))
    config = json.loads((out / "projector" / "config.json").read_text())
    assert (config["model_type"], config["visual_hidden_size"], config["llm_hidden_size"]) == ("projector", 32, 64)
    assert "auto_map" not in config  # xtuner registers the class, and no code of ours is to be run
    llm = json.loads((out / "config.json").read_text())
    assert (llm["model_type"], llm["architectures"]) == ("llama", ["LlamaForCausalLM"])
    processor = json.loads((out / "visual_encoder" / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "CLIPImageProcessor"
    assert not (out / "processor_config.json").exists()
    AutoModelForCausalLM.from_pretrained(out)


def test_parts_that_were_frozen_are_left_out(tmp_path: Path, parts: Path) -> None:
    spec = ModelRecipe(llm=str(parts / "llm"), vision_tower=str(parts / "tower"), template="vicuna")
    save(assemble(spec, make_prompter(spec)), tmp_path / "hf")
    before = hf.read(tmp_path / "hf")
    xtuner.write(replace(before, adapters={}), tmp_path / "out", **BIG, learned=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["projector"]
    named = {"llm": str(parts / "llm"), "vision_tower": str(parts / "tower"), "template": "vicuna"}
    assert_same(tensors(before), tensors(xtuner.read(tmp_path / "out", **named)))


@pytest.mark.parametrize("kind", ["siglip", "dinov2"])
def test_other_towers_and_layers(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    tower = families.make_tower(tmp_path / "tower", kind)
    llm = tiny.make_llm(tmp_path / "llm")
    spec = ModelRecipe(llm=str(llm), vision_tower=str(tower), template="vicuna", vision_feature_layer=-1)
    save(assemble(spec, make_prompter(spec)), tmp_path / "hf")
    before = hf.read(tmp_path / "hf")
    xtuner.write(before, tmp_path / "out", **BIG)
    said = capsys.readouterr().err
    assert "load CLIP" in said and "take layer -2" in said
    after = xtuner.read(tmp_path / "out")
    assert_same(tensors(before), tensors(after))
    assert after.config.vision_feature_layer == -1
    assert compare(before, after).largest_difference == 0


def test_a_projector_of_one_layer(tmp_path: Path, parts: Path) -> None:
    write_projector(tmp_path / "x" / "projector", xtuner_like.projector(32, 64, depth=1))
    source = xtuner.read(tmp_path / "x", **named(parts))
    assert torch.equal(source.tensors["multi_modal_projector.linear_2.weight"].read(), torch.eye(64))
    xtuner.write(source, tmp_path / "out", **BIG)
    assert sorted(load_file(tmp_path / "out" / "projector" / "model.safetensors")) == ["model.0.bias", "model.0.weight"]
    assert json.loads((tmp_path / "out" / "projector" / "config.json").read_text())["depth"] == 1
    assert_same(tensors(source), tensors(xtuner.read(tmp_path / "out")))


def test_a_projector_that_no_other_format_holds(tmp_path: Path, parts: Path) -> None:
    write_projector(tmp_path / "x" / "projector", xtuner_like.projector(32, 64, depth=3))
    assert "of 3 layers" in refusal(tmp_path / "x", **named(parts))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model without room for tokens, and a vision tower of transformers 4."""
    folder = tmp_path_factory.mktemp("parts")
    tiny.make_llm(folder / "llm")
    xtuner_like.as_transformers_4(tiny.make_tower(folder / "tower"))
    return folder


def named(parts: Path) -> dict[str, Any]:
    return {"llm": str(parts / "llm"), "vision_tower": str(parts / "tower"), "template": "vicuna"}


@pytest.fixture
def trained(tmp_path: Path, parts: Path) -> Path:
    """What XTuner leaves of a training with adapters on both."""
    folder = tmp_path / "trained"
    llm, tower = xtuner_like.weights(parts / "llm"), xtuner_like.weights(parts / "tower")
    write_adapter(folder / "llm_adapter", factors(llm, "q_proj", "v_proj", "down_proj", "lm_head"), str(parts / "llm"))
    write_adapter(folder / "visual_encoder_adapter", factors(tower, "q_proj", "fc1"), str(parts / "tower"))
    write_projector(folder / "projector", xtuner_like.projector(32, 64))
    write_notes(folder, parts / "llm", parts / "tower")
    return folder


def test_adapters_are_added_as_written_in_the_paper(trained: Path, parts: Path) -> None:
    source = xtuner.read(trained, **named(parts))
    found = tensors(source)
    llm, tower = xtuner_like.weights(parts / "llm"), xtuner_like.weights(parts / "tower")
    llm = merged(llm, factors(llm, "q_proj", "v_proj", "down_proj", "lm_head"))
    tower = merged(tower, factors(tower, "q_proj", "fc1"))
    for name, tensor in llm.items():
        hub = f"language_model.{name}"
        torch.testing.assert_close(found.pop(hub)[: len(tensor)], tensor, rtol=1e-6, atol=1e-6)
    for name, tensor in tower.items():
        torch.testing.assert_close(found.pop(f"vision_tower.{name}"), tensor, rtol=1e-6, atol=1e-6)
    projector = xtuner_like.projector(32, 64)
    assert_same(found, {rename(name, XTUNER_PROJECTOR): tensor for name, tensor in projector.items()})


def test_adapters_as_peft_merges_them(trained: Path, parts: Path) -> None:
    found = tensors(xtuner.read(trained, **named(parts)))
    llm: Any = AutoModelForCausalLM.from_pretrained(parts / "llm")
    merged = PeftModel.from_pretrained(llm, trained / "llm_adapter").merge_and_unload()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(found[f"language_model.{name}"][: len(tensor)], tensor, rtol=1e-6, atol=1e-6)


def test_what_its_configuration_names_is_found(trained: Path, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = xtuner.read(trained)
    assert_same(tensors(source), tensors(xtuner.read(trained, **named(parts))))
    assert (source.prompter.template.name, source.prompter.template.default_system) == ("vicuna", "")
    assert source.parts == {"llm": str(parts / "llm"), "vision_tower": str(parts / "tower")}
    assert "xtuner_config.py names" in capsys.readouterr().err


def test_the_same_as_put_together_in_memory(tmp_path: Path, parts: Path) -> None:
    """Room for tokens, the mean rows, the whole configuration: as `assemble` has them."""
    write_projector(tmp_path / "x" / "projector", xtuner_like.projector(32, 64))
    spec = ModelRecipe(
        llm=str(parts / "llm"),
        vision_tower=str(parts / "tower"),
        template="vicuna",
        projector_from=str(tmp_path / "x" / "projector"),
    )
    vlm = assemble(spec, make_prompter(spec))
    source = xtuner.read(tmp_path / "x", **named(parts))
    rows = len(xtuner_like.weights(parts / "llm")["lm_head.weight"])
    assert source.tensors["language_model.lm_head.weight"].shape[0] > rows
    assert_same(tensors(source), hub_state(vlm.model.state_dict(), vlm.model.config))
    ours, theirs = source.config.to_dict(), vlm.model.config.to_dict()
    for part in (ours, theirs, *(c[key] for c in (ours, theirs) for key in ("text_config", "vision_config"))):
        for key in ("_name_or_path", "dtype"):
            part.pop(key, None)
    assert ours == theirs


def test_adapters_of_an_internlm2(tmp_path: Path, parts: Path) -> None:
    """The queries, keys and values of which lie in one tensor, in groups; against its merged original as a Llama."""
    settings = llama_like.config("internlm2")
    base = llama_like.internlm2(settings)
    lora = factors(base, "attention.wqkv", "feed_forward.w1", "output")
    tokenizer = tiny.make_tokenizer("first").backend_tokenizer
    for name, content in (("llm", base), ("whole", merged(base, lora))):
        llama_like.write(tmp_path / name, settings, content)
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    llamafy(tmp_path / "whole", tmp_path / "llama")
    write_adapter(tmp_path / "x" / "llm_adapter", lora)
    write_projector(tmp_path / "x" / "projector", xtuner_like.projector(32, llama_like.WIDTH))
    found = tensors(xtuner.read(tmp_path / "x", **named(parts) | {"llm": str(tmp_path / "llm")}))
    expected = load_file(tmp_path / "llama" / "model.safetensors")
    assert len(expected) == 3 + 9 * llama_like.LAYERS
    for name, tensor in expected.items():
        torch.testing.assert_close(found[f"language_model.{name}"][: len(tensor)], tensor, rtol=1e-6, atol=1e-6)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as error:
        xtuner.read(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_parts_are_named(tmp_path: Path, trained: Path, parts: Path) -> None:
    (trained / "xtuner_config.py").unlink()
    tower = {"vision_tower": str(parts / "tower")}
    assert "holds no language model" in refusal(trained, **tower)
    assert "holds no vision tower" in refusal(trained, llm=str(parts / "llm"))
    assert "no chat template" in refusal(trained, llm=str(parts / "llm"), **tower)
    assert "unknown prompt template 'vicunya'" in refusal(trained, **named(parts) | {"template": "vicunya"})
    shutil.rmtree(trained / "projector")
    assert "has no projector/" in refusal(trained, **named(parts))
    assert "no model folder" in refusal(tmp_path / "nowhere")


def test_parts_that_are_there_twice(trained: Path, parts: Path) -> None:
    shutil.copytree(parts / "tower", trained / "visual_encoder")
    assert "leave out --visual-encoder" in refusal(trained, **named(parts))
    with pytest.raises(ModelError, match="leave out --adapter"):
        find_parts(trained, llm="x", adapter=str(trained))


def test_damaged_parts_are_named(trained: Path, parts: Path) -> None:
    config = trained / "projector" / "config.json"
    good = config.read_text()
    config.write_text("{")
    assert f"{config} is damaged" in refusal(trained, **named(parts))
    config.write_text(json.dumps(json.loads(good) | {"hidden_act": "relu"}))
    assert "'relu' between its layers" in refusal(trained, **named(parts))
    config.write_text(good)
    file = trained / "projector" / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-200])
    assert str(file) in refusal(trained, **named(parts))
    file.unlink()
    assert "no weights of the projector" in refusal(trained, **named(parts))


@pytest.mark.parametrize(
    "settings",
    [{"depth": 99}, {"depth": "x"}, {"depth": -1}, {"visual_select_layer": "x"}, {"visual_select_layer": [1]}],
)
def test_settings_that_no_projector_has(trained: Path, parts: Path, settings: dict[str, Any]) -> None:
    config = trained / "projector" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    assert f"{trained} says " in refusal(trained, **named(parts))


def test_settings_nested_without_end(trained: Path, parts: Path) -> None:
    (trained / "projector" / "config.json").write_text("[" * 10**5)
    assert "config.json is damaged" in refusal(trained, **named(parts))


@pytest.mark.parametrize(
    "text",
    ["-" * 10**5 + "1", "b" + ".c" * 30_000, "+".join(["1"] * 30_000), "(" * 10**5, "9" * 5000, "1\n#" + "x" * 10**7],
    ids=["signs", "names", "sum", "brackets", "digits", "long"],
)
def test_notes_that_python_cannot_parse_say_nothing(trained: Path, text: str) -> None:
    (trained / "xtuner_config.py").write_text(f"llm_name_or_path = {text}\n")
    assert "holds no language model" in refusal(trained)


def test_a_cut_shard(tmp_path: Path) -> None:
    save(make_case(tmp_path, "byte"), tmp_path / "hf")
    xtuner.write(hf.read(tmp_path / "hf"), tmp_path / "out", max_shard_size="60KB")
    shard = sorted((tmp_path / "out").glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    assert f"{shard} is damaged" in refusal(tmp_path / "out")
    shard.unlink()
    assert f"{shard} is missing" in refusal(tmp_path / "out")


def test_parts_that_do_not_belong_together(tmp_path: Path, trained: Path, parts: Path) -> None:
    wider = tiny.make_llm(tmp_path / "wider", hidden_size=96)
    said = refusal(trained, **named(parts) | {"llm": str(wider)})
    assert "llm_adapter does not belong to this base model" in said and f"made for {parts / 'llm'}" in said
    shutil.rmtree(trained / "llm_adapter")
    assert "of another shape, such as multi_modal_projector" in refusal(trained, **named(parts) | {"llm": str(wider)})


def test_a_next_has_no_such_form(tmp_path: Path, parts: Path) -> None:
    spec = ModelRecipe(llm=str(parts / "llm"), vision_tower=str(parts / "tower"), next=True)
    save(assemble(spec, make_prompter(spec)), tmp_path / "hf")
    with pytest.raises(ModelError, match="LLaVA-NeXT, which XTuner cannot load"):
        xtuner.write(hf.read(tmp_path / "hf"), tmp_path / "out", **BIG)
    assert not (tmp_path / "out").exists()
