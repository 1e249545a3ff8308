"""What learns is what the recipe says, tensor by tensor, and it does learn.

The tiny model has a Llama of two layers (seven matrices and two norms each), a CLIP of three layers of which two are
used (six linear layers and two norms with biases: 16 tensors each), and a projector of two linear layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from sightline.data.collate import Batch, batches
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.plan import Plan
from sightline.errors import RecipeError
from sightline.model.assemble import assemble, make_prompter
from sightline.model.attention import packed_attention
from sightline.model.load import VLM
from sightline.model.tune import apply_tuning, merge_adapters
from sightline.recipe import Recipe, load_recipe
from sightline.runtime import console
from sightline.train.engine import Engine
from sightline.train.optim import set_rates

LLM_LAYER = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
TOWER_LAYER = [f"self_attn.{name}_proj" for name in ("k", "v", "q", "out")] + ["mlp.fc1", "mlp.fc2"]
TEXT, TOWER, PROJECTOR = "model.language_model.", "model.vision_tower.", "model.multi_modal_projector."


def both(prefix: str, names: list[str]) -> set[str]:
    return {f"{prefix}{name}.{kind}" for name in names for kind in ("weight", "bias")}


def expected(llm: str, vision: str, projector: str) -> set[str]:
    """The names of all tensors that learn, written out."""
    names: set[str] = set()
    if llm == "full":
        names |= {"lm_head.weight", f"{TEXT}embed_tokens.weight", f"{TEXT}norm.weight"}
        for layer in (f"{TEXT}layers.0.", f"{TEXT}layers.1."):
            names |= {f"{layer}{name}.weight" for name in LLM_LAYER}
            names |= {f"{layer}{name}_layernorm.weight" for name in ("input", "post_attention")}
    if llm == "lora":
        for layer in (f"{TEXT}layers.0.", f"{TEXT}layers.1."):
            names |= {f"{layer}{name}.lora_{ab}.default.weight" for name in LLM_LAYER for ab in "AB"}
    if vision == "full":
        names |= {f"{TOWER}embeddings.class_embedding", f"{TOWER}embeddings.patch_embedding.weight"}
        names |= {f"{TOWER}embeddings.position_embedding.weight"} | both(TOWER, ["pre_layrnorm"])
        for layer in (f"{TOWER}encoder.layers.0.", f"{TOWER}encoder.layers.1."):
            names |= both(layer, [*TOWER_LAYER, "layer_norm1", "layer_norm2"])
    if vision == "lora":
        for layer in (f"{TOWER}encoder.layers.0.", f"{TOWER}encoder.layers.1."):
            names |= {f"{layer}{name}.lora_{ab}.default.weight" for name in TOWER_LAYER for ab in "AB"}
    if projector == "full":
        names |= both(PROJECTOR, ["linear_1", "linear_2"])
    return names


COUNTS = {
    "llm": {"frozen": 0, "full": 2 * 9 + 3, "lora": 2 * 7 * 2},
    "vision": {"frozen": 0, "full": 2 * 16 + 3 + 2, "lora": 2 * 6 * 2},
    "projector": {"frozen": 0, "full": 4},
}
COMBINATIONS = [
    combination
    for combination in product(("frozen", "full", "lora"), ("frozen", "full", "lora"), ("full", "frozen"))
    if set(combination) != {"frozen"}
]
RATES = ["optim.lr=2e-3", "optim.vision_lr=5e-4", "optim.projector_lr=3e-3"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_recipe(tmp_path_factory.mktemp("world"))


def set_up(path: Path, *changes: str) -> tuple[VLM, Dataset, Engine, Recipe]:
    recipe = load_recipe(str(path), changes)
    torch.manual_seed(0)
    prompter = make_prompter(recipe.model)
    dataset = open_dataset(recipe.data, prompter, recipe.batch.max_length, console)
    vlm = assemble(recipe.model, prompter)
    return vlm, dataset, Engine(vlm, apply_tuning(vlm.model, recipe.tune, recipe.optim), recipe), recipe


def packs(dataset: Dataset) -> Iterator[Batch]:
    plan = Plan(tokens=dataset.tokens, global_batch=12, epochs=9, seed=0)
    return batches(dataset, plan.packs(0, rank=0, world=1, budget=256), workers=0)


def accumulate(vlm: VLM, dataset: Dataset, engine: Engine) -> float:
    """The gradients of twelve rows with pictures and without; the mean loss."""
    total, targets = 0.0, int(dataset.targets[Plan(dataset.tokens, 12, 9, 0).samples(0)].sum())
    with packed_attention(vlm.model):
        for batch in packs(dataset):
            loss = engine.loss_sum(batch)
            engine.backward(loss / targets)
            total += float(loss.detach())
    return total / targets


def tuned(llm: str, vision: str, projector: str) -> list[str]:
    changes = [f"tune.llm={llm}", f"tune.vision_tower={vision}", f"tune.projector={projector}", *RATES]
    for part, how in (("llm", llm), ("vision", vision)):
        changes += [f"tune.{part}_lora.r=4", f"tune.{part}_lora.alpha=8"] if how == "lora" else []
    return changes


@pytest.mark.parametrize(("llm", "vision", "projector"), COMBINATIONS)
def test_what_learns(path: Path, llm: str, vision: str, projector: str) -> None:
    vlm, dataset, engine, _ = set_up(path, *tuned(llm, vision, projector))
    names = expected(llm, vision, projector)
    assert len(names) == COUNTS["llm"][llm] + COUNTS["vision"][vision] + COUNTS["projector"][projector]
    before = {name: parameter.detach().clone() for name, parameter in vlm.model.named_parameters()}

    losses = []
    for step in range(7):
        losses.append(accumulate(vlm, dataset, engine))
        assert {name for name, p in vlm.model.named_parameters() if p.grad is not None} == names
        if step == 1:
            # From the second step on also the first matrix of an adapter: its partner was zero before.
            flat = {name for name, p in vlm.model.named_parameters() if p.grad is not None and not p.grad.any()}
            assert not flat
        engine.step()
        if step == 1:
            now = dict(vlm.model.named_parameters())
            assert {name for name in before if not torch.equal(now[name], before[name])} == names
    # The same rows in every step, so that each one must do better than the one before.
    assert all(after < before - 1e-5 for before, after in pairwise(losses)), losses


@pytest.mark.parametrize(("llm", "vision", "projector"), [("full", "full", "full"), ("lora", "lora", "full")])
def test_each_part_has_its_rate(path: Path, llm: str, vision: str, projector: str) -> None:
    vlm, dataset, engine, _ = set_up(path, *tuned(llm, vision, projector))
    assert [(group.name, group.lr) for group in engine.groups] == [
        ("llm", 2e-3),
        ("vision_tower", 5e-4),
        ("projector", 3e-3),
    ]
    of_model = {id(p): name for name, p in vlm.model.named_parameters()}
    starts = {"llm": (TEXT, "lm_head."), "vision_tower": TOWER, "projector": PROJECTOR}
    for group in engine.groups:
        assert all(of_model[id(p)].startswith(starts[group.name]) for p in group.parameters)
    assert sum(len(group.parameters) for group in engine.groups) == len(expected(llm, vision, projector))

    # AdamW's first step is as long as the rate wherever the gradient is not tiny; only half of it at half the scale.
    before = {name: p.detach().clone() for name, p in vlm.model.named_parameters()}
    set_rates(engine.optimizer, 0.5)
    accumulate(vlm, dataset, engine)
    engine.step()
    for prefix, rate in ((TEXT, 1e-3), (TOWER, 2.5e-4), (PROJECTOR, 1.5e-3)):
        moved = [(p.detach() - before[name]).abs().max() for name, p in vlm.model.named_parameters() if prefix in name]
        assert float(torch.stack(moved).max()) == pytest.approx(rate, rel=1e-2)


def test_rates_that_are_not_given_are_the_common_one(path: Path) -> None:
    _, _, engine, _ = set_up(path, "tune.vision_tower=full", "optim.lr=7e-4")
    assert [(group.name, group.lr) for group in engine.groups] == [
        ("llm", 7e-4),
        ("vision_tower", 7e-4),
        ("projector", 7e-4),
    ]


@pytest.mark.parametrize("vision", ["frozen", "full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_tower_carries_no_graph(path: Path, vision: str, checkpointing: bool) -> None:
    recompute = f"engine.gradient_checkpointing={'true' if checkpointing else 'false'}"
    vlm, dataset, engine, _ = set_up(path, *tuned("full", vision, "full"), recompute)
    seen: list[tuple[bool, bool]] = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append((inputs[0].grad_fn is None, inputs[0].requires_grad))

    vlm.model.model.multi_modal_projector.register_forward_pre_hook(look)
    accumulate(vlm, dataset, engine)
    assert seen and set(seen) == {(vision == "frozen", vision != "frozen")}


@pytest.mark.parametrize(("layer", "used"), [(-1, 3), (-2, 2), (-3, 1), (-4, 0), (1, 1), (3, 3)])
@pytest.mark.parametrize("how", ["full", "lora"])
def test_layers_behind_the_used_one_stay_frozen(path: Path, layer: int, used: int, how: str) -> None:
    if used == 0 and how == "lora":
        return  # nothing to put an adapter on, see below
    changes = [*tuned("frozen", how, "full"), f"model.vision_feature_layer={layer}"]
    vlm, dataset, engine, _ = set_up(path, *changes)
    accumulate(vlm, dataset, engine)
    learning = {name for name, p in vlm.model.named_parameters() if p.requires_grad}
    # What learns is what gets a gradient: nothing waits for a tensor that takes no part.
    assert learning == {name for name, p in vlm.model.named_parameters() if p.grad is not None}
    layers = {name.split(".")[4] for name in learning if "encoder.layers" in name}
    assert layers == {str(number) for number in range(used)}
    assert not any("post_layernorm" in name for name in learning)


def test_adapters_in_a_tower_without_used_layers_are_refused(path: Path) -> None:
    with pytest.raises(RecipeError, match="tune: no linear layer"):
        set_up(path, *tuned("full", "lora", "full"), "model.vision_feature_layer=-4")


def test_tied_embeddings_learn_once(path: Path, tmp_path: Path) -> None:
    llm = tiny.make_llm(tmp_path / "llm", tie_word_embeddings=True)
    vlm, dataset, engine, _ = set_up(path, f"model.llm={llm}")
    assert vlm.model.lm_head.weight is vlm.model.get_input_embeddings().weight
    assert len(engine.groups[0].parameters) == COUNTS["llm"]["full"] - 1
    accumulate(vlm, dataset, engine)
    engine.step()
    assert vlm.model.lm_head.weight is vlm.model.get_input_embeddings().weight


def test_adapters_on_named_layers_only(path: Path) -> None:
    changes = [*tuned("lora", "lora", "full"), "tune.llm_lora.target_modules=[q_proj, v_proj]"]
    vlm, _, _, _ = set_up(path, *changes, "tune.vision_lora.target_modules=[fc1]")
    learning = {name for name, p in vlm.model.named_parameters() if p.requires_grad and PROJECTOR not in name}
    assert learning == {
        f"{TEXT}layers.{number}.self_attn.{name}_proj.lora_{ab}.default.weight"
        for number, name, ab in product(range(2), "qv", "AB")
    } | {f"{TOWER}encoder.layers.{number}.mlp.fc1.lora_{ab}.default.weight" for number, ab in product(range(2), "AB")}


def test_a_layer_that_is_not_there(path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        set_up(path, *tuned("lora", "frozen", "full"), "tune.llm_lora.target_modules=[wqkv]")
    assert "wqkv" in str(error.value) and "q_proj" in str(error.value) and "\n" not in str(error.value)


def test_a_layer_that_is_not_there_beside_one_that_is(path: Path) -> None:
    with pytest.raises(RecipeError, match="wqkv"):
        set_up(path, *tuned("lora", "frozen", "full"), "tune.llm_lora.target_modules=[q_proj, wqkv]")


def test_adapters_of_a_larger_tower(path: Path, tmp_path: Path) -> None:
    """With twenty names and more, peft looks for shorter ones that mean the same."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = tiny.make_tower(tmp_path / "tower")
    config = CLIPVisionConfig.from_pretrained(tower)
    config.num_hidden_layers = 12
    CLIPVisionModel(config).save_pretrained(tower)
    vlm, _, _, _ = set_up(path, *tuned("lora", "lora", "full"), f"model.vision_tower={tower}")
    learning = {name for name, p in vlm.model.named_parameters() if p.requires_grad and TOWER in name}
    assert learning == {
        f"{TOWER}encoder.layers.{number}.{name}.lora_{ab}.default.weight"
        for number, name, ab in product(range(11), TOWER_LAYER, "AB")
    }


def test_adapters_begin_as_nothing_and_merge_exactly(path: Path) -> None:
    plain, dataset, _, _ = set_up(path, *tuned("frozen", "frozen", "full"))
    vlm, dataset, engine, _ = set_up(path, *tuned("lora", "lora", "full"), "tune.llm_lora.dropout=0.0")
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


def test_a_gradient_is_clipped_to_its_norm(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, dataset, engine, _ = set_up(path, "optim.clip_grad=0.25")
    accumulate(vlm, dataset, engine)
    learning = [p for p in vlm.model.parameters() if p.grad is not None]
    by_hand = sum(float((p.grad.double() ** 2).sum()) for p in learning if p.grad is not None) ** 0.5
    used: list[float] = []

    def look(*_: Any) -> None:
        used.append(sum(float((p.grad.double() ** 2).sum()) for p in learning if p.grad is not None) ** 0.5)

    monkeypatch.setattr(engine.optimizer, "step", look)
    assert by_hand > 0.5
    assert engine.step() == pytest.approx(by_hand, rel=1e-5)
    assert used == [pytest.approx(0.25, rel=1e-4)]
    assert all(p.grad is None for p in learning)


def test_learning_tensors_keep_full_precision(path: Path) -> None:
    vlm, dataset, engine, _ = set_up(path, *tuned("lora", "frozen", "full"), "engine.dtype=bfloat16")
    kinds = {(p.requires_grad, p.dtype) for p in vlm.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    losses = []
    for _ in range(4):
        losses.append(accumulate(vlm, dataset, engine))
        engine.step()
    assert losses[-1] < losses[0]
