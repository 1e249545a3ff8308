"""`convert merge` with a base and an adapter: what other programs load is the sum, with the base's files beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import llama_like
import pytest
import tiny
import torch
import xtuner_like
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPVisionModel

from sightline import cli


def merge(*words: str | Path) -> int:
    return cli.main(["convert", "merge", *map(str, words)])


def test_a_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny.make_llm(tmp_path / "a llm 模型")
    lora = xtuner_like.factors(xtuner_like.weights(base), "q_proj", "up_proj")
    adapter = xtuner_like.write_adapter(tmp_path / "adapter", lora)
    assert merge(f"{base}/", f"{adapter}/", f"{tmp_path}/out/") == 0
    assert "merged and unmerged: outputs differ by at most" in capsys.readouterr().err
    found, wanted = xtuner_like.weights(tmp_path / "out"), xtuner_like.merged(xtuner_like.weights(base), lora)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("red").input_ids


def test_a_vision_tower(tmp_path: Path) -> None:
    tower = tiny.make_tower(tmp_path / "tower")
    torch.manual_seed(2)
    model = get_peft_model(CLIPVisionModel.from_pretrained(tower), LoraConfig(r=4, target_modules=["q_proj", "fc1"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    assert merge(tower, tmp_path / "adapter", tmp_path / "out", "--is-clip") == 0
    found = CLIPVisionModel.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in model.merge_and_unload().state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


def test_an_internlm2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its names stay, and its code is carried along; none of it is run."""
    settings = llama_like.config("internlm2")
    weights = llama_like.internlm2(settings)
    base = tmp_path / "llm"
    llama_like.write(base, settings, weights)
    tiny.make_tokenizer("first").backend_tokenizer.save(str(base / "tokenizer.json"))
    (base / "modeling_internlm2.py").write_text("raise SystemExit('run')\n")
    lora = xtuner_like.factors(weights, "attention.wqkv", "attention.wo", "output")
    adapter = xtuner_like.write_adapter(tmp_path / "adapter", lora)
    assert merge(base, adapter, tmp_path / "out") == 0
    assert "no outputs were compared" in capsys.readouterr().err
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in xtuner_like.merged(weights, lora).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
    assert (tmp_path / "out" / "modeling_internlm2.py").is_file()
    llamafied = cli.main(["llamafy", str(tmp_path / "out"), str(tmp_path / "llama")])
    assert llamafied == 0


def test_an_adapter_in_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base = tiny.make_llm(tmp_path / "llm")
    adapter = xtuner_like.write_adapter(tmp_path / "adapter", xtuner_like.factors(xtuner_like.weights(base), "q_proj"))
    place = tmp_path / "hub" / "models--xtuner--lora"
    shutil.copytree(adapter, place / "snapshots" / "0123")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123")
    assert merge(base, adapter, tmp_path / "here") == merge(base, "xtuner/lora", tmp_path / "hubs") == 0
    here, hubs = (load_file(tmp_path / name / "model.safetensors") for name in ("here", "hubs"))
    assert all(torch.equal(here[name], hubs[name]) for name in here)
