"""The adapters of a LoRA run, exported apart: peft puts them on the bare language model, and it is our merged one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import trained
from comparing import OWN, difference, figure, said_by
from transformers import AutoModelForCausalLM

LORA = {"r": 8, "alpha": 16, "dropout": 0.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tune = {"llm": "lora", "llm_lora": LORA, "vision_tower": "lora", "vision_lora": LORA, "projector": "full"}
    return trained.train(tmp_path_factory.mktemp("lora"), tune=tune)


@pytest.fixture(scope="module")
def apart(run: Path) -> Path:
    out = run.parent / "apart"
    trained.sightline("convert", run / "learned", out, "--to", "xtuner", "--learned")
    return out


@pytest.mark.parametrize("name", [OWN, pytest.param("transformers-4_57", marks=pytest.mark.clients)])
def test_the_same_language_model(run: Path, apart: Path, tmp_path: Path, name: str) -> None:
    bare = run.parent / "vicuna"
    merged = tmp_path / "merged"
    trained.sightline("convert", run / "learned", merged, "--to", "xtuner", "--fp32")
    with torch.inference_mode():
        ids = torch.tensor([[1, *range(300, 340)]])
        ours, before = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits[0]
            for folder in (merged, bare)
        )
    asked = {"llm": str(bare), "adapter": str(apart / "llm_adapter"), "ids": ids[0].tolist()}
    said = said_by(name, "run_peft.py", asked, tmp_path)
    assert said["untouched"] == []
    largest = difference(said["logits"], ours)
    figure(f"peft {said['version']}, our llm_adapter", largest, ours)
    assert largest < 1e-4 < difference(said["logits"], before)


def test_only_what_learned_is_there(run: Path, apart: Path) -> None:
    assert {path.name for path in apart.iterdir()} == {
        *("llm_adapter", "visual_encoder_adapter", "projector", "conversion.json"),
    }
    settings = json.loads((apart / "llm_adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == str(run.parent / "vicuna")
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (8, 16, "LORA")
    assert json.loads((apart / "conversion.json").read_text(encoding="utf-8"))["largest_difference"] < 1e-4
