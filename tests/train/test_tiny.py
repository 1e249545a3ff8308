"""Every shipped recipe on small stand-ins: three steps, interrupted, resumed, exported, loaded, asked."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny as helpers
import torch
from runs import Interrupted, losses, until
from transformers import AutoConfig, AutoTokenizer

from sightline import cli, recipes
from sightline.errors import ModelError
from sightline.model.generate import Sampling, reply
from sightline.model.load import VLM, load
from sightline.model.tiny import tiny
from sightline.prompt.templates import TEMPLATES
from sightline.recipe import Recipe, load_recipe
from sightline.train import command
from sightline.train.loop import train
from sightline.types import ImageRef, ask

SPREAD = [
    "llava_v15_7b_pretrain",
    "llava_llama3_8b_instruct_quant_clip_vit_large_p14_336_e1_gpu1_pretrain",
    "llava_internlm2_chat_7b_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune",
    "llava_phi3_mini_4k_instruct_full_clip_vit_large_p14_336_full_e2_gpu8_internvl_finetune",
    "paddlemix_llava_v1_6_lora_sft",
    "llava_next_qwen3_8b_siglip_finetune",
]
"""Frozen, 4 bits, QLoRA, full, LoRA; Llama, Phi-3, Qwen3; CLIP and SigLIP; whole models; NeXT; each kind of data."""

REST = [name for name in recipes.shipped() if name not in SPREAD and not name.startswith("demo_")]
"""The demo's are left out: it draws their models, and is itself a test."""


def small(name: str, folder: Path, *overrides: str) -> Recipe:
    return tiny(load_recipe(name, ["engine.device=cpu", "engine.dtype=float32", *overrides]), folder / "stand-ins")


def try_out(name: str, tmp_path: Path) -> None:
    recipe, run = small(name, tmp_path), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe, run, after_step=until(2))
    assert [folder.name for folder in run.glob("checkpoint-*")] == ["checkpoint-2"]
    exported = train(recipe, run, resume="auto")
    found = losses(run)
    assert len(found) == 3 and all(map(math.isfinite, found))

    vlm = load(exported, device="cpu", dtype="float32")
    assert vlm.prompter.template.name == recipe.model.template
    picture = next(Path(str(recipe.data[0].images)).glob("*.png"))
    answer = "".join(reply(vlm, [ask("What colour is this?", [ImageRef(str(picture))])], Sampling(max_new_tokens=2)))
    assert isinstance(answer, str)


@pytest.mark.parametrize("name", SPREAD)
def test_a_recipe_runs_on_stand_ins(name: str, tmp_path: Path) -> None:
    try_out(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_every_other_recipe_runs_on_stand_ins(name: str, tmp_path: Path) -> None:
    try_out(name, tmp_path)


@pytest.mark.parametrize("bits", [4, None])
def test_a_frozen_language_model_may_be_held_in_4_bits(bits: int | None, tmp_path: Path) -> None:
    name = "llava_llama3_8b_instruct_quant_clip_vit_large_p14_336_e1_gpu1_pretrain"
    kinds: set[str] = set()

    def look(step: int, vlm: VLM) -> None:
        kinds.update(type(module).__name__ for module in vlm.model.model.language_model.layers.modules())
        raise Interrupted

    recipe = small(name, tmp_path, f"tune.llm_bits={bits or 'null'}")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", after_step=look)
    assert ("Linear4bit" in kinds, "Linear" in kinds) == (bits == 4, bits is None)


def test_models_of_ones_own_have_stand_ins_too(tmp_path: Path) -> None:
    path = helpers.write_recipe(tmp_path)
    made = tiny(load_recipe(str(path)), tmp_path / "stand-ins")
    assert AutoConfig.from_pretrained(str(made.model.llm)).model_type == "llama"
    assert math.isfinite(losses(train(made, tmp_path / "run").parent)[-1])


def test_the_same_stand_ins_each_time(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    for folder in ("one", "other"):
        small("llava_qwen2_5_7b_siglip_finetune", tmp_path / folder)
    files = {
        folder: {str(path.relative_to(tmp_path / folder)): path for path in (tmp_path / folder).rglob("*.*")}
        for folder in ("one", "other")
    }
    assert files["one"].keys() == files["other"].keys() and any("safetensors" in name for name in files["one"])
    assert [name for name, path in files["one"].items() if path.read_bytes() != files["other"][name].read_bytes()] == []
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "family", "kind"),
    [
        ("llava_v15_7b_pretrain", "llama", "<s>"),
        ("llava_next_mistral_7b_finetune", "mistral", "<s>"),
        ("llava_phi3_mini_4k_instruct_full_clip_vit_large_p14_336_e1_gpu8_finetune", "phi3", "<s>"),
        ("llava_llama3_8b_instruct_clip_vit_large_p14_336_e1_gpu8_pretrain", "llama", "<|begin_of_text|>"),
        ("llava_qwen2_5_7b_siglip_finetune", "qwen2", None),
        ("llava_qwen3_8b_siglip_finetune", "qwen3", None),
    ],
)
def test_families_stay(name: str, family: str, kind: str | None, tmp_path: Path) -> None:
    recipe = small(name, tmp_path)
    config, tokenizer = AutoConfig.from_pretrained(recipe.model.llm), AutoTokenizer.from_pretrained(recipe.model.llm)
    assert (config.model_type, tokenizer.bos_token) == (family, kind)
    assert set(TEMPLATES[recipe.model.template].tokens) <= set(tokenizer.get_vocab())
    assert AutoConfig.from_pretrained(recipe.model.vision_tower).model_type.startswith(
        "siglip" if "siglip" in name else "clip"
    )


def test_what_makes_the_recipe_stays(tmp_path: Path) -> None:
    name = "llava_vicuna_7b_v15_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune_refcoco"
    real, stand_in = load_recipe(name, ["tune.vision_last_n=9"]), small(name, tmp_path, "tune.vision_last_n=9")
    assert stand_in.tune == real.tune.model_copy(update={"vision_last_n": 1})
    assert stand_in.optim == real.optim.model_copy(update={"max_steps": 3})
    assert stand_in.batch.max_length == real.batch.max_length
    assert stand_in.model.template == real.model.template and len(stand_in.data) == len(real.data) == 2


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["train", "llava_v15_7b_pretrain", "--tiny", "engine.device=cpu"]
    assert cli.main(command) == 0
    run = Path("work_dirs/tiny/llava_v15_7b_pretrain")
    assert (run / "hf" / "config.json").is_file() and len(losses(run)) == 3
    assert cli.main(command) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_two_ranks_share_one_set_of_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folder = load_recipe("llava_v15_7b_pretrain", ["engine.device=cpu"]), tmp_path / "stand-ins"
    made = command._small(recipe, folder)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("sightline.model.tiny.tiny", None)  # the second one makes nothing
    assert command._small(recipe, folder) == made == load_recipe(str(folder / "recipe.yaml"))


@pytest.mark.slow
def test_two_ranks_try_a_recipe(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sightline"]
    words = ["train", "llava_v15_7b_finetune_lora", "--tiny", "engine.device=cpu", "--work-dir", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *words], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(losses(tmp_path)) == 3 and (tmp_path / "hf" / "config.json").is_file()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.0.use=nix", "data.0.use: no known set of data is called 'nix'"),
        ("model.vision_feature_layer=-99", "model.vision_feature_layer -99: openai/clip"),
        ("model.grid_pinpoints=[[100, 100]]", "grid_pinpoints: [100, 100] does not consist of whole tiles"),
        ("tune.freeze_layers=99", "tune.freeze_layers: 99, but the language model has 32 layers"),
    ],
)
def test_what_the_whole_run_would_refuse_is_refused_here_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    words = ["train", "llava_next_vicuna_7b_finetune", "--tiny", "engine.device=cpu", "--work-dir", str(tmp_path)]
    assert cli.main([*words, override]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="some/model"):
        small("llava_v15_7b_pretrain", tmp_path, "model.llm=some/model")


def test_auto_has_a_chat_template_to_follow(tmp_path: Path) -> None:
    recipe = small("llava_qwen3_8b_siglip_pretrain", tmp_path, "model.template=auto")
    exported = train(recipe, tmp_path / "run")
    assert load(exported, device="cpu").prompter.template.name in ("auto", "chatml")
