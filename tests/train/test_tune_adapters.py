"""Adapters: where they are put, what learns beside them, and what they add up to."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft.tuners.lora import LoraLayer
from tuned import (
    PROJECTOR,
    TEXT,
    TOWER,
    TOWER_LAYER,
    accumulate,
    expected,
    learners,
    packs,
    set_up,
    tuning,
    write_world,
)

from sightline.errors import RecipeError
from sightline.model.adapters import merge_adapters


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def test_adapters_in_a_tower_without_used_layers_are_refused(path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tune\.vision_lora: there is no linear layer"):
        set_up(path, *tuning(path, "full", "lora", "full"), "model.vision_feature_layer=-4")


def test_adapters_on_named_layers_only(path: Path) -> None:
    changes = [*tuning(path, "lora", "lora", "full"), "tune.llm_lora.target_modules=[q_proj, v_proj]"]
    vlm, _, _, _ = set_up(path, *changes, "tune.vision_lora.target_modules=[fc1]")
    learning = {name for name, p in vlm.model.named_parameters() if p.requires_grad and PROJECTOR not in name}
    assert learning == {
        f"{TEXT}layers.{number}.self_attn.{name}_proj.lora_{ab}.default.weight"
        for number, name, ab in product(range(2), "qv", "AB")
    } | {f"{TOWER}encoder.layers.{number}.mlp.fc1.lora_{ab}.default.weight" for number, ab in product(range(2), "AB")}


def test_a_layer_that_is_not_there(path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        set_up(path, *tuning(path, "lora", "frozen", "full"), "tune.llm_lora.target_modules=[wqkv]")
    assert "wqkv" in str(error.value) and "q_proj" in str(error.value) and "\n" not in str(error.value)


def test_a_layer_that_is_not_there_beside_one_that_is(path: Path) -> None:
    with pytest.raises(RecipeError, match="wqkv"):
        set_up(path, *tuning(path, "lora", "frozen", "full"), "tune.llm_lora.target_modules=[q_proj, wqkv]")


def test_adapters_of_a_larger_tower(path: Path, tmp_path: Path) -> None:
    """With twenty names and more, peft looks for shorter ones that mean the same."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = tiny.make_tower(tmp_path / "tower")
    config = CLIPVisionConfig.from_pretrained(tower)
    config.num_hidden_layers = 12
    CLIPVisionModel(config).save_pretrained(tower)
    vlm, _, _, _ = set_up(path, *tuning(path, "lora", "lora", "full"), f"model.vision_tower={tower}")
    learning = {name for name, p in vlm.model.named_parameters() if p.requires_grad and TOWER in name}
    assert learning == {
        f"{TOWER}encoder.layers.{number}.{name}.lora_{ab}.default.weight"
        for number, name, ab in product(range(11), TOWER_LAYER, "AB")
    }


def test_adapters_begin_as_nothing_and_merge_exactly(path: Path) -> None:
    plain, dataset, _, _ = set_up(path, *tuning(path, "frozen", "frozen", "full"))
    vlm, dataset, engine, _ = set_up(path, *tuning(path, "lora", "lora", "full"), "tune.llm_lora.dropout=0.0")
    batch: Any = next(packs(dataset))
    inputs = {"input_ids": batch.input_ids, "pixel_values": dataset.prompter.pixel_values(batch.pixels)}
    with torch.no_grad():
        torch.testing.assert_close(vlm.model.eval()(**inputs).logits, plain.model.eval()(**inputs).logits)
    engine.module.train()
    for _ in range(3):
        accumulate(vlm, dataset, engine)
        engine.step()
    with torch.no_grad():
        before = vlm.model.eval()(**inputs).logits
        assert not torch.allclose(before, plain.model(**inputs).logits, atol=1e-3)
        merge_adapters(vlm.model)
        torch.testing.assert_close(vlm.model(**inputs).logits, before, rtol=1e-5, atol=1e-5)
    assert {name for name, _ in vlm.model.named_parameters()} == {name for name, _ in plain.model.named_parameters()}


@pytest.mark.parametrize("llm", ["lora", "qlora"])
@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 2)])
def test_the_scale_of_an_adapter(path: Path, llm: str, rslora: bool, scale: float) -> None:
    """alpha / r = 8 / 4, and with rsLoRA alpha / sqrt(r) = 8 / 2 (arXiv 2312.03732)."""
    vlm, _, _, _ = set_up(path, *tuning(path, llm, "frozen", "full"), f"tune.llm_lora.rslora={str(rslora).lower()}")
    found = [layer.scaling["default"] for layer in vlm.model.modules() if isinstance(layer, LoraLayer)]
    assert found == [scale] * 14


@pytest.mark.parametrize("llm", ["lora", "qlora"])
def test_dora_learns_lengths_too(path: Path, llm: str) -> None:
    dora = ["tune.llm_lora.dora=true", "tune.vision_lora.dora=true"]
    vlm, dataset, engine, _ = set_up(path, *tuning(path, llm, "lora", "full"), *dora)
    plain = expected(llm, "lora", "full")
    lengths = {name.replace("lora_A.default", "lora_magnitude_vector.default") for name in plain if "lora_A" in name}
    assert learners(vlm) == plain | lengths and len(lengths) == 14 + 12
    losses = []
    for _ in range(4):
        losses.append(accumulate(vlm, dataset, engine))
        engine.step()
    assert losses[-1] < losses[0]


def test_dora_begins_as_nothing_and_merges_exactly(path: Path) -> None:
    """A weight W becomes m (W + BA) / ||W + BA|| by rows (arXiv 2402.09353), computed here by hand."""
    changes = [*tuning(path, "lora", "frozen", "full"), "tune.llm_lora.dora=true", "tune.llm_lora.dropout=0.0"]
    vlm, dataset, engine, _ = set_up(path, *changes)
    for _ in range(3):
        accumulate(vlm, dataset, engine)
        engine.step()
    layer = vlm.model.get_submodule(f"{TEXT}layers.1.mlp.up_proj")
    with torch.no_grad():
        low_rank = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2
        moved = layer.base_layer.weight + low_rank
        by_hand = layer.lora_magnitude_vector["default"].weight[:, None] * moved / moved.norm(dim=1, keepdim=True)
    assert float(low_rank.abs().max()) > 1e-4
    merge_adapters(vlm.model)
    torch.testing.assert_close(vlm.model.get_submodule(f"{TEXT}layers.1.mlp.up_proj").weight, by_hand)


@pytest.mark.parametrize("llm", ["lora", "qlora"])
def test_modules_that_learn_in_full_beside_adapters(path: Path, llm: str) -> None:
    saved = ["tune.llm_lora.modules_to_save=[embed_tokens, lm_head, layers.0.mlp]"]
    saved += ["tune.vision_lora.modules_to_save=[pre_layrnorm, fc1]"]
    vlm, dataset, engine, _ = set_up(path, *tuning(path, llm, "lora", "full"), *saved)
    names = {name for name in expected(llm, "lora", "full") if f"{TEXT}layers.0.mlp" not in name and "fc1" not in name}
    names |= {f"{TEXT}layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    names |= {f"{TEXT}embed_tokens.weight", "lm_head.weight"}
    names |= {f"{TOWER}pre_layrnorm.{kind}" for kind in ("weight", "bias")}
    names |= {f"{TOWER}encoder.layers.{n}.mlp.fc1.{kind}" for n in range(2) for kind in ("weight", "bias")}
    accumulate(vlm, dataset, engine)
    assert learners(vlm) == names == {name for name, p in vlm.model.named_parameters() if p.grad is not None}
    # They learn, so they are neither in four bits nor in half precision.
    assert {p.dtype for p in vlm.model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("tune.llm_lora.modules_to_save=[head]", "tune.llm_lora.modules_to_save: no module is named head; there are: "),
        ("tune.vision_lora.modules_to_save=[x]", "tune.vision_lora.modules_to_save: no module is named x; there are: "),
        ("tune.llm_lora.modules_to_save=['']", "tune.llm_lora.modules_to_save: no module is named ''; there are: "),
        ("tune.llm_lora.modules_to_save=[rotary_emb]", "tune.llm_lora.modules_to_save: nothing of rotary_emb can"),
        ("tune.vision_lora.modules_to_save=[post_layernorm]", "tune.vision_lora.modules_to_save: nothing of post_laye"),
        ("tune.llm_lora.target_modules=[fc1]", "tune.llm_lora.target_modules: no linear layer is named fc1; there are"),
        ("tune.vision_lora.target_modules=[q]", "tune.vision_lora.target_modules: no linear layer is named q; there a"),
        ("tune.freeze_layers=3", "tune.freeze_layers: 3, but the language model has 2 layers"),
        ("tune.freeze_layers=2", "tune.llm_lora: there is no linear layer that could get an adapter"),
        ("tune.vision_last_n=3", "tune.vision_last_n: 3, but 2 layers of the vision tower are used"),
    ],
)
def test_what_is_not_there(path: Path, change: str, words: str) -> None:
    with pytest.raises(RecipeError) as error:
        set_up(path, *tuning(path, "lora", "lora", "full"), change)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)


def test_targets_by_a_longer_name(path: Path) -> None:
    target = "tune.llm_lora.target_modules=[layers.1.self_attn.q_proj, down_proj]"
    vlm, _, _, _ = set_up(path, *tuning(path, "lora", "frozen", "frozen"), target)
    wanted = ("layers.1.self_attn.q_proj.", "layers.0.mlp.down_proj.", "layers.1.mlp.down_proj.")
    assert learners(vlm) == {name for name in expected("lora", "frozen", "frozen") if any(w in name for w in wanted)}


@pytest.mark.parametrize("llm", ["lora", "qlora"])
def test_what_is_saved_in_full_lies_above_the_frozen_layers(path: Path, llm: str) -> None:
    saved = ["tune.freeze_layers=1", "tune.llm_lora.modules_to_save=[input_layernorm, up_proj]"]
    vlm, _, _, _ = set_up(path, *tuning(path, llm, "frozen", "frozen"), *saved)
    own = {f"{TEXT}layers.1.{name}.weight" for name in ("input_layernorm", "mlp.up_proj")}
    assert {name for name in learners(vlm) if "lora_" not in name} == own


@pytest.mark.parametrize("llm", ["full", "lora", "qlora"])
def test_the_first_layers_stay_frozen(path: Path, llm: str) -> None:
    vlm, dataset, engine, _ = set_up(path, *tuning(path, llm, "frozen", "full"), "tune.freeze_layers=1")
    below = (f"{TEXT}layers.0.", f"{TEXT}embed_tokens.")
    names = {name for name in expected(llm, "frozen", "full") if not name.startswith(below)}
    accumulate(vlm, dataset, engine)
    assert learners(vlm) == names == {name for name, p in vlm.model.named_parameters() if p.grad is not None}


def test_a_tied_head_learns_above_frozen_layers(path: Path, tmp_path: Path) -> None:
    llm = tiny.make_llm(tmp_path / "llm", tie_word_embeddings=True)
    vlm, _, _, _ = set_up(path, *tuning(path, "full", "frozen", "full"), "tune.freeze_layers=2", f"model.llm={llm}")
    assert {name for name in learners(vlm) if PROJECTOR not in name} == {
        f"{TEXT}embed_tokens.weight",
        f"{TEXT}norm.weight",
    }
