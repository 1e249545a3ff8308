"""Shipped recipes: their values as published, and that they are found, resolve and stay short."""

from __future__ import annotations

import pytest

from sightline import recipes
from sightline.recipe import load_recipe

# XTuner v0.1.23, configs/llava/official/llava_v15_7b/*.py, where LLaVA's scripts/v1_5/{pretrain,finetune}.sh agree;
# `template` of the pretraining by LLaVA's `--version plain` (XTuner: vicuna). 2048 = 1472 of text + 576 of image.
PUBLISHED = {
    "model.llm": ("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-7b-v1.5"),
    "model.vision_tower": ("openai/clip-vit-large-patch14-336", "openai/clip-vit-large-patch14-336"),
    "model.template": ("plain", "vicuna"),  # --version
    "model.projector_from": (None, "work_dirs/llava_v15_7b_pretrain"),  # pretrained_pth
    "model.vision_feature_layer": (-2, -2),  # --mm_vision_select_layer
    "model.image_aspect_ratio": ("crop", "pad"),  # pad_image_to_square, --image_aspect_ratio
    "tune.llm": ("frozen", "full"),  # freeze_llm, --tune_mm_mlp_adapter
    "tune.vision_tower": ("frozen", "frozen"),  # freeze_visual_encoder
    "tune.projector": ("full", "full"),
    "data.0.path": (
        "data/llava_data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
        "data/llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json",
    ),
    "data.0.images": ("data/llava_data/LLaVA-Pretrain/images", "data/llava_data/llava_images"),
    "batch.global_batch": (256, 128),  # 8 GPUs x 32, 8 GPUs x 16
    "batch.max_length": (2048, 2048),  # --model_max_length
    "batch.workers": (4, 4),  # --dataloader_num_workers
    "optim.lr": (1e-3, 2e-5),
    "optim.projector_lr": (None, None),
    "optim.weight_decay": (0.0, 0.0),
    "optim.betas": ([0.9, 0.999], [0.9, 0.999]),
    "optim.eps": (1e-8, 1e-8),
    "optim.warmup_ratio": (0.03, 0.03),
    "optim.schedule": ("cosine", "cosine"),
    "optim.clip_grad": (1.0, 1.0),
    "optim.epochs": (1.0, 1.0),
    "engine.gradient_checkpointing": (True, True),
    "run.save_every": (500, 500),  # save_steps (LLaVA: 24000, 50000)
    "run.keep": (2, 2),  # save_total_limit
}


@pytest.mark.parametrize(("column", "name"), [(0, "llava_v15_7b_pretrain"), (1, "llava_v15_7b_finetune")])
def test_shipped_values_are_the_published_ones(column: int, name: str) -> None:
    plain = load_recipe(name).model_dump(mode="json")
    found = {recipes.dotted(path): value for path, value in recipes.flatten(plain)}
    found |= {"optim.betas": plain["optim"]["betas"]}
    assert {key: found[key] for key in PUBLISHED} == {key: values[column] for key, values in PUBLISHED.items()}


def test_the_finetune_starts_where_the_pretraining_ends() -> None:
    assert load_recipe("llava_v15_7b_finetune").model.projector_from == "work_dirs/llava_v15_7b_pretrain"
    assert "llava_v15_7b_pretrain" in recipes.shipped()


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_shipped_recipe_resolves_and_is_short(name: str) -> None:
    load_recipe(name)
    assert 10 <= len(recipes.shipped()[name].read_text().splitlines()) <= 30


def test_names_are_unique() -> None:
    files = list(recipes.recipe_folder().rglob("*.yaml"))
    assert len(files) == len(recipes.shipped()) + len(recipes.bases())
