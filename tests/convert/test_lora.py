"""Adapters that peft wrote, merged tensor by tensor, against peft's own merge_and_unload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CLIPVisionModel, GPT2Config, GPT2LMHeadModel

from sightline.convert.lora import adapter_config, check_for_peft, merged
from sightline.convert.tensors import in_folder
from sightline.errors import ModelError

QV = ["q_proj", "v_proj"]
CASES: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": QV},
    "patterns": {
        "target_modules": [*QV, "down_proj"],
        "rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 3},
        "alpha_pattern": {"q_proj": 5, "^model.layers.0.mlp.down_proj": 7},
    },
    "rslora": {"target_modules": QV, "use_rslora": True},
    "dora": {"target_modules": QV, "use_dora": True},
    "saved": {"target_modules": QV, "modules_to_save": ["lm_head", "norm"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "bias": {"target_modules": QV, "bias": "all"},
}


def shaken(model: Any) -> Any:
    """As far from the beginning as a trained adapter."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
        assert not torch.isnan(parameter).any(), name
    return model


def adapted(base: Path, out: Path, *, dtype: torch.dtype = torch.float32, **settings: Any) -> dict[str, torch.Tensor]:
    """Write an adapter of these settings; returns what peft makes of it and the base."""
    base_model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if settings.get("bias") == "all":
        assert base_model.config.attention_bias
    model = shaken(get_peft_model(base_model, LoraConfig(r=4, lora_alpha=6, **settings)))
    model.save_pretrained(out)
    return dict(model.merge_and_unload().state_dict())


@pytest.mark.parametrize("case", CASES)
def test_the_sum_is_the_one_that_peft_makes(tmp_path: Path, case: str) -> None:
    base = tiny.make_llm(tmp_path / "llm", attention_bias=case == "bias")
    expected = adapted(base, tmp_path / "adapter", **CASES[case])
    before = in_folder(base)
    result = merged(before, tmp_path / "adapter")
    assert result.keys() == expected.keys()
    changed = 0
    for name, tensor in result.items():
        assert tensor.shape == tuple(expected[name].shape)
        torch.testing.assert_close(tensor.read(), expected[name], rtol=1e-6, atol=1e-6)
        changed += not torch.equal(tensor.read(), before[name].read())
    assert changed == {"patterns": 6, "saved": 10, "embedding": 3, "bias": 4 + 8}.get(case, 4)


def test_half_precision_is_added_in_float32(tmp_path: Path) -> None:
    base = tiny.make_llm(tmp_path / "llm", dtype="bfloat16")
    exact = adapted(base, tmp_path / "adapter", target_modules=QV)
    for name, tensor in merged(in_folder(base), tmp_path / "adapter").items():
        assert tensor.dtype == tensor.read().dtype
        assert torch.equal(tensor.read(), exact[name].to(tensor.dtype)), name


def test_a_file_of_torch_and_other_names(tmp_path: Path) -> None:
    base = tiny.make_llm(tmp_path / "llm")
    expected = adapted(base, tmp_path / "adapter", target_modules=QV)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    tensors = {f"language_model.{name}": tensor for name, tensor in in_folder(base).items()}
    result = merged(tensors, tmp_path / "adapter", lambda name: f"language_model.{name}")
    for name, tensor in expected.items():
        torch.testing.assert_close(result[f"language_model.{name}"].read(), tensor, rtol=1e-6, atol=1e-6)


def test_a_convolution(tmp_path: Path) -> None:
    tower = tiny.make_tower(tmp_path / "tower")
    settings = LoraConfig(r=4, lora_alpha=6, target_modules=["patch_embedding", "q_proj"])
    model = shaken(get_peft_model(CLIPVisionModel.from_pretrained(tower), settings))
    model.save_pretrained(tmp_path / "adapter")
    tensors = {name.removeprefix("vision_model."): tensor for name, tensor in in_folder(tower).items()}
    result = merged(tensors, tmp_path / "adapter", lambda name: name.removeprefix("vision_model."))
    for name, tensor in model.merge_and_unload().state_dict().items():
        torch.testing.assert_close(result[name.removeprefix("vision_model.")].read(), tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
def test_weights_kept_the_other_way_round(tmp_path: Path, dora: bool) -> None:
    small = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=16)
    base = GPT2LMHeadModel(small)
    base.save_pretrained(tmp_path / "llm")
    settings = LoraConfig(r=4, lora_alpha=6, target_modules=["c_attn"], fan_in_fan_out=True, use_dora=dora)
    model = shaken(get_peft_model(base, settings))
    model.save_pretrained(tmp_path / "adapter")
    result = merged(in_folder(tmp_path / "llm"), tmp_path / "adapter")
    name = "transformer.h.0.attn.c_attn.weight"
    torch.testing.assert_close(result[name].read(), model.merge_and_unload().state_dict()[name], rtol=1e-6, atol=1e-6)


def refusal(tensors: Any, folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        merged(tensors, folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    adapted(tiny.make_llm(folder / "llm"), folder / "adapter", target_modules=QV)
    return folder


def test_another_base_is_refused(pair: Path, tmp_path: Path) -> None:
    wider = in_folder(tiny.make_llm(tmp_path / "wider", hidden_size=96))
    said = refusal(wider, pair / "adapter")
    assert "does not belong" in said and "q_proj.weight is [96, 96], the adapter's is [64, 64]" in said
    assert f"made for {pair / 'llm'}" in said
    shallow = in_folder(tiny.make_llm(tmp_path / "shallow", num_hidden_layers=1))
    assert "2 of its tensors are not in it, such as model.layers.1" in refusal(shallow, pair / "adapter")
    quantised = {name: t.then(lambda x: x.to(torch.uint8)) for name, t in in_folder(pair / "llm").items()}
    quantised = {name: type(t)(t.shape, torch.uint8, t.read) for name, t in quantised.items()}
    assert "unquantised" in refusal(quantised, pair / "adapter")


def test_more_rows_than_the_base_are_refused(pair: Path, tmp_path: Path) -> None:
    adapter = changed(pair, tmp_path, {})
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        weights | {"base_model.model.lm_head.weight": torch.zeros(999, 64)}, adapter / "adapter_model.safetensors"
    )
    assert "lm_head.weight" in refusal(in_folder(pair / "llm"), adapter)


def changed(pair: Path, tmp_path: Path, settings: dict[str, Any]) -> Path:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = json.loads((pair / "adapter" / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | settings))
    weights = (pair / "adapter" / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    return adapter


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"use_qalora": True}, "use_qalora"),
        ({"lora_alpha": None}, "damaged"),
    ],
)
def test_other_kinds_are_refused(pair: Path, tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    assert reason in refusal(in_folder(pair / "llm"), changed(pair, tmp_path, settings))


def test_damaged_adapters_are_named(pair: Path, tmp_path: Path) -> None:
    base = in_folder(pair / "llm")
    adapter = changed(pair, tmp_path, {})
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    half = {name: tensor for name, tensor in weights.items() if "layers.1.self_attn.v_proj.lora_B" not in name}
    save_file(half, file)
    assert "of model.layers.1.self_attn.v_proj it has lora_A only" in refusal(base, adapter)
    save_file({name: t[:1] if "layers.0.self_attn.v_proj.lora_A" in name else t for name, t in weights.items()}, file)
    assert "do not fit together" in refusal(base, adapter)
    save_file({**weights, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias": torch.zeros(64)}, file)
    assert "lora_B.bias" in refusal(base, adapter)
    file.write_bytes(b"")
    assert "damaged" in refusal(base, adapter)
    file.unlink()
    assert "half an adapter" in refusal(base, adapter)
    (adapter / "adapter_config.json").write_text("[]")
    assert "damaged" in refusal(base, adapter)
    with pytest.raises(ModelError, match="no adapter"):
        adapter_config(tmp_path)


@pytest.mark.parametrize("key", ["rank_pattern", "target_modules", "exclude_modules", "layers_pattern"])
def test_so_are_those_that_peft_alone_tries(pair: Path, tmp_path: Path, key: str) -> None:
    pattern = "(([a-z0-9_.]+)+)!"
    value = {pattern: 3} if key == "rank_pattern" else [pattern] if key == "layers_pattern" else pattern
    adapter = changed(pair, tmp_path, {key: value})
    merged(in_folder(pair / "llm"), adapter)
    with pytest.raises(ModelError, match=rf"{key} '\(\(\[a-z0-9_.\]\+\)\+\)!' could match for ever .*--no-verify"):
        check_for_peft(adapter)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(?!.*visual).*(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*",
        r"^(model|language_model)(?=\.).*\.(q_proj|o_proj|up_proj)$",
    ],
    ids=["people's", "ms-swift's"],
)
def test_patterns_in_use_pass(pair: Path, tmp_path: Path, pattern: str) -> None:
    adapter = changed(pair, tmp_path, {"target_modules": pattern})
    merged(in_folder(pair / "llm"), adapter)
    check_for_peft(adapter)


@pytest.mark.parametrize(
    "patterns",
    [{"(([a-z0-9_.]+)+)!": 3}, {"(" * 5000: 3}, {"a{9999999999}": 3}, {f"layer{n}": 3 for n in range(2001)}],
    ids=["ambiguous", "deep", "often", "many"],
)
def test_patterns_that_could_match_for_ever_are_refused(pair: Path, tmp_path: Path, patterns: dict[str, int]) -> None:
    said = refusal(in_folder(pair / "llm"), changed(pair, tmp_path, {"alpha_pattern": patterns}))
    assert "adapter_config.json" in said and len(said) < 500
