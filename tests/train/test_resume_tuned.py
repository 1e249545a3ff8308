"""In every way of tuning a run that was cut off goes on bit for bit: losses, gradients and what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import Interrupted, log, until
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM
from tuned import tuning, write_world

from sightline.recipe import load_recipe
from sightline.train.loop import train

WAYS = {
    "qlora": ("qlora", "lora", "full", ["tune.llm_lora.dropout=0.3", "optim.optimizer=adamw_8bit"]),
    "qlora, dora": ("qlora", "frozen", "frozen", ["tune.llm_lora.dora=true", "engine.dtype=bfloat16"]),
    "last layer": ("frozen", "full-1", "full", ["optim.optimizer=muon"]),
    "adapter of the last layer": ("lora", "lora-1", "full", ["tune.llm_lora.rslora=true"]),
    "saved modules": ("lora", "frozen", "full", ["tune.llm_lora.modules_to_save=[embed_tokens, lm_head]"]),
    "upper layers, noise": ("full", "full", "full", ["tune.freeze_layers=1", "optim.neftune_alpha=5"]),
    "8 bits": ("full", "full", "full", ["optim.optimizer=adamw_8bit", "optim.weight_decay=0.1"]),
    "a model in half precision": ("full", "frozen", "full", ["engine.dtype=bfloat16"]),
    "adapters on half precision": ("lora", "frozen", "full", ["engine.dtype=bfloat16"]),
    "4 bits, frozen": ("frozen", "frozen", "full", ["tune.llm_bits=4"]),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'sightline-vlm[quantize]'")
    return write_world(tmp_path_factory.mktemp("world"))


def course(run: Path) -> list[tuple[int, float, float]]:
    return [(record["step"], record["loss"], record["grad_norm"]) for record in log(run)]


@pytest.mark.parametrize("way", WAYS)
def test_it_goes_on_bit_for_bit(path: Path, tmp_path: Path, way: str) -> None:
    llm, vision, projector, more = WAYS[way]
    changes = [*tuning(path, llm, vision, projector), *more, "optim.max_steps=6", "run.save_every=2"]
    changes += [f"model.llm={path.parent / 'wide'}"] if "4 bits" in way else []
    if "half precision" in way:
        LlamaForCausalLM.from_pretrained(path.parent / "llm").bfloat16().save_pretrained(tmp_path / "llm")
        AutoTokenizer.from_pretrained(path.parent / "llm").save_pretrained(tmp_path / "llm")
        changes += [f"model.llm={tmp_path / 'llm'}"]
    recipe = load_recipe(str(path), changes)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", after_step=until(5))
    train(recipe, tmp_path / "run", resume="auto")
    train(recipe, tmp_path / "whole")
    ours, theirs = course(tmp_path / "run"), course(tmp_path / "whole")
    assert ours == theirs and len(ours) == 6
    assert ours[-1][1] < ours[0][1]
    for file in ("checkpoint-6/weights.safetensors", "hf/model.safetensors"):
        one, other = load_file(tmp_path / "run" / file), load_file(tmp_path / "whole" / file)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "run" / "learned").exists() is (llm != "full")
