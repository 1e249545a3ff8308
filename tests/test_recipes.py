"""Shipped recipes: their values as published, and that they are found, resolve and stay short.

`recipes_table.csv` is what XTuner's 33 files say (v0.1.23, configs/llava), in their own words and units; DIFFERENT is
where a recipe says something else on purpose, and docs/recipes.md tells why.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from recipes_others import COMMON, OTHERS

from sightline import recipes
from sightline.errors import RecipeError
from sightline.prompt.templates import TEMPLATES
from sightline.recipe import load_recipe

IMAGE_TOKENS = 576
"""CLIP-L at 336 px: XTuner's max_length leaves them out."""

SETS = {
    "LCS-558k": ["llava_pretrain_558k"],
    "mix665k": ["llava_v15_mix665k"],
    "ShareGPT4V-PT 1246k": ["sharegpt4v_pretrain"],
    "InternVL-SFT (9 sets)": ["internvl_sft"],
    "RefCOCO70k+InvRefCOCO70k+mix665k": ["refcoco", "llava_v15_mix665k"],
}

DIFFERENT: dict[str, dict[str, Any]] = {
    # LLaVA's scripts/v1_5/pretrain.sh, which these two are named after: --version plain.
    "llava_v15_7b_pretrain": {"model.template": "plain"},
    "llava_v15_13b_pretrain": {"model.template": "plain"},
    # scripts/v1_5/finetune_lora.sh: --mm_projector_lr 2e-5.
    "llava_v15_7b_finetune_lora": {"optim.projector_lr": 2e-5},
    "llava_v15_13b_finetune_lora": {"optim.projector_lr": 2e-5},
    # Names the 8B model, whose file it was copied from.
    "llava_llama3_70b_instruct_quant_clip_vit_large_p14_336_e1_gpu8_pretrain": {
        "model.llm": "meta-llama/Meta-Llama-3-70B-Instruct"
    },
}

with (Path(__file__).with_name("recipes_table.csv")).open(encoding="utf-8", newline="") as file:
    TABLE = {row["name"]: row for row in csv.DictReader(file)}


def expected(row: dict[str, str]) -> dict[str, Any]:
    """A row of the table in Sightline's words and units."""
    accumulated = int(row["accumulative_counts"])
    llm_tuning, bits, llm_lora = _tuning(row["llm_tuning"])
    vision_tuning, _, vision_lora = _tuning(row["vit_tuning"])
    return COMMON | {
        "model.llm": row["llm"],
        "model.vision_tower": "openai/clip-vit-large-patch14-336",
        "model.template": row["prompt_template"],
        "model.projector_from": f"work_dirs/{row['pretrain']}" if row["pretrain"] else None,
        "model.image_aspect_ratio": "pad" if row["pad_image_to_square"] == "true" else "crop",
        "tune.llm": llm_tuning,
        "tune.llm_bits": bits,
        "tune.llm_lora": llm_lora,
        "tune.vision_tower": vision_tuning,
        "tune.vision_lora": vision_lora,
        "data": SETS[row["data"]],
        "batch.global_batch": int(row["batch_size"]) * accumulated * int(row["gpus"]),
        "batch.max_length": int(row["max_length"]) + IMAGE_TOKENS,
        "optim.lr": float(row["lr"]),
        "optim.epochs": float(row["max_epochs"]),
        # Iterations of XTuner are micro-batches.
        "run.save_every": round(int(row["save_steps"]) / accumulated),
    }


def _tuning(words: str) -> tuple[str, int | None, tuple[int, int, float] | None]:
    if words == "frozen (4-bit)":
        return "frozen", 4, None
    shape = re.fullmatch(r"(QLoRA|LoRA) r(\d+)/α(\d+)/d([\d.]+)", words)
    if shape is None:
        return words, None, None
    return shape[1].lower(), None, (int(shape[2]), int(shape[3]), float(shape[4]))


def found(name: str) -> dict[str, Any]:
    """What a recipe says, resolved, flat."""
    plain = load_recipe(name).model_dump(mode="json")
    flat = {recipes.dotted(path): value for path, value in recipes.flatten(plain)}
    for part in ("llm_lora", "vision_lora"):
        lora = plain["tune"][part]
        flat[f"tune.{part}"] = lora and (lora["r"], lora["alpha"], lora["dropout"])
    entries = [entry["use"] or (entry["path"], entry["form"]) for entry in plain["data"]]
    return flat | {"data": entries, "optim.betas": tuple(plain["optim"]["betas"])}


def same(name: str, wanted: dict[str, Any]) -> None:
    values = found(name)
    assert {key: values[key] for key in wanted} == wanted


def test_the_table_has_all_of_xtuners_recipes() -> None:
    assert len(TABLE) == 33
    assert sorted([*TABLE, *OTHERS, "demo_pretrain", "demo_finetune"]) == sorted(recipes.shipped())


@pytest.mark.parametrize("name", TABLE)
def test_values_are_those_of_xtuner_but_for_its_errors(name: str) -> None:
    same(name, expected(TABLE[name]) | DIFFERENT.get(name, {}))
    for key, value in DIFFERENT.get(name, {}).items():
        assert expected(TABLE[name]).get(key) != value, "no difference any more"


@pytest.mark.parametrize("name", OTHERS)
def test_values_of_the_other_recipes(name: str) -> None:
    same(name, COMMON | OTHERS[name])


@pytest.mark.parametrize("name", [name for name in recipes.shipped() if "demo" not in name])
def test_a_finetuning_starts_where_a_pretraining_of_the_same_parts_ends(name: str) -> None:
    recipe = load_recipe(name)
    if recipe.tune.llm == "frozen" or recipe.model.from_model is not None:
        assert recipe.model.projector_from is None
        return
    assert recipe.model.projector_from is not None
    folder, _, stage_one = recipe.model.projector_from.partition("/")
    assert folder == "work_dirs"
    before = load_recipe(stage_one)
    assert before.tune.llm == "frozen" and before.tune.vision_tower == "frozen"
    assert (before.model.llm, before.model.vision_tower) == (recipe.model.llm, recipe.model.vision_tower)
    assert before.model.vision_feature_layer == recipe.model.vision_feature_layer


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_shipped_recipe_resolves_and_is_short(name: str) -> None:
    recipe = load_recipe(name)
    lines = recipes.shipped()[name].read_text(encoding="utf-8").splitlines()
    assert 10 <= len(lines) <= 30 and max(map(len, lines)) <= 120
    assert lines[0].startswith("# ")
    assert recipe.model.template in TEMPLATES


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_recipe_says_only_what_its_base_does_not(name: str) -> None:
    """A value that the base has already would hide what makes the recipe."""
    data, _ = recipes.read_yaml(recipes.shipped()[name], name)
    base, _ = recipes.read_yaml(recipes.bases()[data.pop("base")], "base")
    below = dict(recipes.flatten(base))
    sections = {key: value for key, value in data.items() if key != "model"}
    named = [(path, value) for path, value in recipes.flatten(sections) if all(isinstance(key, str) for key in path)]
    repeated = [path for path, value in named if below.get(path) == value]
    assert repeated == []


def test_names_are_unique() -> None:
    files = list(recipes.recipe_folder().rglob("*.yaml"))
    assert len(files) == len(recipes.shipped()) + len(recipes.bases())


def test_what_is_different_and_every_recipe_is_in_the_docs() -> None:
    page = Path(__file__).parents[1].joinpath("docs/recipes.md").read_text(encoding="utf-8")
    assert [name for name in [*TABLE, *OTHERS] if f"`{name}`" not in page] == []
    corrected = page.partition("## What is different from the sources")[2]
    assert [name for name in DIFFERENT if f"`{name}`" not in corrected] == []


@pytest.mark.parametrize("llm", ["full", "lora"])
def test_4_bits_are_for_what_does_not_learn_itself(llm: str) -> None:
    with pytest.raises(RecipeError, match=f"llm_bits is given, but llm is {llm}"):
        load_recipe("llava_v15_7b_pretrain", ["tune.llm_bits=4", f"tune.llm={llm}"])
    held = load_recipe("llava_v15_7b_pretrain", ["tune.llm_bits=4"])
    assert held.tune.quantized and not load_recipe("llava_v15_7b_pretrain").tune.quantized
    assert load_recipe("llava_v15_7b_finetune", ["tune.llm=qlora"]).tune.quantized
