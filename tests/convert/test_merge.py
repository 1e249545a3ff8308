"""`convert merge` with a base and an adapter: what other programs load is the sum, with the base's files beside it."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import llama_like
import pytest
import tiny
import torch
import xtuner_like
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPVisionModel, LlamaForCausalLM, LlavaForConditionalGeneration

from sightline import cli
from sightline.convert import merge as merge_module
from sightline.recipe import load_recipe
from sightline.train.loop import train


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


@pytest.mark.parametrize(
    "settings", [{"r": 10**7}, {"r": -1}, {"r": "4"}, {"rank_pattern": {"up_proj": 10**7}}, {"rank_pattern": 5}]
)
def test_ranks_that_no_tensor_has(tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any]) -> None:
    """To compare, peft makes factors of the ranks that the adapter's configuration names."""
    base = tiny.make_llm(tmp_path / "llm")
    lora = xtuner_like.factors(xtuner_like.weights(base), "q_proj", "up_proj")
    adapter = xtuner_like.write_adapter(tmp_path / "adapter", lora, **settings)
    assert merge(base, adapter, tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "adapter_config.json" in said and len(said) < 400
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("spelling", ["transformers 4", "transformers 5"])
def test_a_vision_tower_whose_adapter_sightline_or_xtuner_wrote(tmp_path: Path, spelling: str) -> None:
    """They name layers as transformers 4 has them, one level deeper, and list them one by one."""
    tower = tiny.make_tower(tmp_path / "tower")
    weights = {name.removeprefix("vision_model."): tensor for name, tensor in xtuner_like.weights(tower).items()}
    lora = xtuner_like.factors(weights, "q_proj", "fc1")
    deeper = "vision_model." if spelling == "transformers 4" else ""
    layers = sorted({f"{deeper}{name.partition('.lora_')[0]}" for name in lora})
    written = {f"{deeper}{name}": tensor for name, tensor in lora.items()}
    adapter = xtuner_like.write_adapter(tmp_path / "adapter", written, target_modules=layers)
    assert merge(tower, adapter, tmp_path / "out", "--is-clip") == 0
    found = xtuner_like.weights(tmp_path / "out")
    for name, tensor in xtuner_like.merged(weights, lora).items():
        torch.testing.assert_close(found[f"vision_model.{name}"], tensor, rtol=1e-5, atol=1e-5)


def changed(model: Any, spread: float = 0.05) -> Any:
    """What peft has put into a model, as if it had learned."""
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.add_(torch.randn_like(parameter) * spread)
    return model.eval()


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"]},
    ],
)
def test_tied_embeddings_of_which_one_end_has_learned(tmp_path: Path, lora: dict[str, Any]) -> None:
    base = tiny.make_llm(tmp_path / "base", tie_word_embeddings=True)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(r=4, task_type="CAUSAL_LM", **lora))
    changed(model).save_pretrained(tmp_path / "adapter")
    assert merge(base, tmp_path / "adapter", tmp_path / "out") == 0
    ids = torch.arange(3, 30)[None]
    found = LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()(input_ids=ids).logits
    torch.testing.assert_close(found, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    both = "lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")
    assert both == (len(lora["target_modules"]) > 1 or "modules_to_save" in lora)


def test_outputs_that_differ_fail_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.make_llm(tmp_path / "llm")
    lora = xtuner_like.factors(xtuner_like.weights(base), "q_proj")
    adapter = xtuner_like.write_adapter(tmp_path / "adapter", lora)
    monkeypatch.setattr(merge_module, "merged", lambda tensors, folder, own: dict(tensors))  # forgets the adapter
    assert merge(base, adapter, tmp_path / "out") == 2
    assert "merged and unmerged, the outputs differ by up to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spelling", ["transformers 5", "transformers 4"])
def test_an_adapter_of_a_whole_llava(
    tmp_path: Path, spelling: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TRL, ms-swift and LLaMA-Factory save them."""
    recipe = load_recipe(str(tiny.write_recipe(tmp_path / "w", optim={"max_steps": 1})))
    llava = train(recipe, tmp_path / "run")
    lora = LoraConfig(
        r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["multi_modal_projector"]
    )
    changed(get_peft_model(LlavaForConditionalGeneration.from_pretrained(llava), lora), 0.3).save_pretrained(
        tmp_path / "adapter"
    )
    if spelling == "transformers 4":
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        names = {"model.model.language_model.": "model.language_model.model.", "model.model.multi": "model.multi"}
        renamed = {re.sub("|".join(names), lambda m: names[m[0]], key): t for key, t in load_file(file).items()}
        assert renamed.keys().isdisjoint(load_file(file))
        save_file(renamed, file, metadata={"format": "pt"})
    assert merge(llava, tmp_path / "adapter", tmp_path / "out") == 0
    out = load_file(tmp_path / "out" / "model.safetensors")
    before = load_file(llava / "model.safetensors")
    learned = {name for name in out if not torch.equal(out[name], before[name])}
    assert any("multi_modal_projector" in name for name in learned) and any("q_proj" in name for name in learned)
    image = str(next((tmp_path / "w" / "world" / "images").glob("*.jpg")))
    answers = []
    capsys.readouterr()
    for words in ([tmp_path / "out"], [llava, "--adapter", tmp_path / "adapter"], [llava]):
        monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n"))
        chat = ["chat", *words, "--image", image, "--temperature", "0", "--max-new-tokens", "12"]
        assert cli.main([str(word) for word in chat]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]
    assert cli.main(["convert", str(tmp_path / "adapter"), str(tmp_path / "x"), "--to", "official"]) == 2
    said = capsys.readouterr().err
    assert "is an adapter of peft, made for" in said and "sightline convert merge MODEL" in said
