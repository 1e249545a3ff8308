"""Advice about memory as arithmetic: needs are made up, so that what fits is known beforehand."""

from __future__ import annotations

import pytest

from sightline.errors import UserError
from sightline.model.estimate_fit import (
    GIB,
    USABLE,
    advise,
    cards_needed,
    changed,
    gpu_named,
    gpus,
    largest_budget,
    peak_flops,
)
from sightline.recipe import Recipe, load_recipe


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("llava_v15_7b_finetune", ["engine.gradient_checkpointing=false", "batch.pack_tokens=8192"])


def need(recipe: Recipe) -> float:
    """8 for a full model, 3 less in 8 bits, 1 less in bfloat16, and 2 for adapters, half with 4 bits; 4 per 8192
    tokens, a quarter when recomputed."""
    kept = {"full": 8.0, "lora": 2.0, "qlora": 1.0, "frozen": 1.5}[recipe.tune.llm]
    kept -= 3 if recipe.optim.optimizer == "adamw_8bit" and recipe.tune.llm == "full" else 0
    kept -= 1 if recipe.engine.pure_bf16 and recipe.tune.llm == "full" else 0
    activations = 4 * (recipe.batch.pack_tokens or recipe.batch.max_length) / 8192
    return kept + activations / (4 if recipe.engine.gradient_checkpointing else 1)


@pytest.mark.parametrize(
    ("room", "overrides"),
    [
        (9.0, ["batch.pack_tokens=2048"]),
        # Each of the cheap ones alone leaves 9 or more; adapters alone would leave 6, but are another kind of tuning.
        (5.3, ["batch.pack_tokens=2048", "engine.gradient_checkpointing=true", "optim.optimizer=adamw_8bit"]),
        (6.5, ["batch.pack_tokens=2048", "optim.optimizer=adamw_8bit"]),  # recomputing is not needed beside them
        (4.3, ["batch.pack_tokens=2048", "engine.gradient_checkpointing=true", "optim.optimizer=adamw_8bit",
               "engine.pure_bf16=true"]),
        # What made the whole model smaller does nothing for adapters on 4 bits.
        (1.3, ["batch.pack_tokens=2048", "engine.gradient_checkpointing=true", "tune.llm=qlora"]),
    ],
)  # fmt: skip
def test_the_cheapest_change_that_is_enough(recipe: Recipe, room: float, overrides: list[str]) -> None:
    made = advise(recipe, need, room)
    assert made is not None and [o for change in made for o in change.overrides] == overrides
    assert need(made[-1].recipe) <= room < need(recipe)
    assert all(change.price for change in made)


def test_the_advice_is_understood_by_a_recipe(recipe: Recipe) -> None:
    made = advise(recipe, need, 1.3)
    assert made is not None
    read = load_recipe(
        "llava_v15_7b_finetune",
        ["engine.gradient_checkpointing=false", "batch.pack_tokens=8192", *[o for c in made for o in c.overrides]],
    )
    assert read == made[-1].recipe


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_bfloat16_is_no_advice_for_a_run_in_another_format(recipe: Recipe, dtype: str) -> None:
    made = advise(changed(recipe, {"engine.dtype": dtype}), need, 4.3)
    assert made is not None and "tune.llm=lora" in made[-1].overrides
    assert not any("pure_bf16" in override for change in made for override in change.overrides)


def test_bfloat16_is_no_advice_for_a_device_that_has_none(recipe: Recipe) -> None:
    made = advise(recipe, need, 4.3, bfloat16=False)
    assert made is not None and made[-1].overrides == ("tune.llm=lora",)
    assert [key for key, gpu in gpus().items() if not gpu.bfloat16] == ["v100-32g", "t4"]


def test_nothing_helps(recipe: Recipe) -> None:
    assert advise(recipe, need, 1.0) is None


def test_a_budget_that_fits_is_taken_rather_than_the_smallest(recipe: Recipe) -> None:
    made = advise(recipe, need, 11.0, largest=6144)
    assert made is not None and made[0].overrides == ("batch.pack_tokens=6144",)


def test_a_frozen_model_can_be_held_in_4_bits() -> None:
    stage_1 = load_recipe("llava_v15_7b_pretrain")
    made = advise(stage_1, lambda r: 1.0 if r.tune.quantized else 2.0, 1.5)
    assert made is not None and made[0].overrides == ("tune.llm_bits=4",)


def test_changed_is_checked_like_a_recipe(recipe: Recipe) -> None:
    assert changed(recipe, {"tune.llm": "lora"}).tune.llm_lora is not None
    with pytest.raises(ValueError):
        changed(recipe, {"batch.max_length": 0})


@pytest.mark.parametrize(
    ("room", "largest"),
    [
        (100 + 0.01 * 64, 64),
        (100 + 0.01 * 5000, 4992),  # in steps of 64
        (100 + 0.01 * 63, None),
        (10**9, 2**20),
    ],
)
def test_the_largest_budget_on_a_line(room: float, largest: int | None) -> None:
    assert largest_budget(lambda tokens: 100 + 0.01 * tokens, room, 2048) == largest


def test_the_largest_budget_holds_where_the_line_bends() -> None:
    def bent(tokens: int) -> float:
        return 100 + 0.01 * tokens + (0.05 * (tokens - 4096) if tokens > 4096 else 0)

    made = largest_budget(bent, 200, 2048)
    assert made is not None and bent(made) <= 200


def test_cards_needed_for_what_is_spread() -> None:
    # 100 shared and 10 of one's own: 100 / 3 + 10 = 43.3 on three cards of 44, 60 on two.
    assert cards_needed(100, 10, 44) == 3
    assert cards_needed(100, 10, 110) == 1
    assert cards_needed(100, 10, 10) is None


def test_gpus_by_name_and_by_size() -> None:
    assert gpu_named("H100").tflops == 989
    assert gpu_named("rtx-4090") is gpus()["4090"]
    small = gpu_named("20gb")
    assert (small.gib, small.tflops, small.room) == (20, None, 20 * GIB * USABLE)
    for wrong in ("h1000", "gb", "-4gb", "0gb"):
        with pytest.raises(UserError, match="not known; there are"):
            gpu_named(wrong)


@pytest.mark.parametrize(
    ("reported", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GH200", None),
        ("Tesla T4", 65),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_by_what_the_driver_calls_a_device(reported: str, tflops: float | None) -> None:
    peak = peak_flops(reported)
    assert peak == (None if tflops is None else pytest.approx(tflops * 1e12))
