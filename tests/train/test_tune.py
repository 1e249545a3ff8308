"""What learns is what the recipe says, tensor by tensor, and it does learn; `tuned.py` has the names written out."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from tuned import (
    PROJECTOR,
    TEXT,
    TOWER,
    accumulate,
    expected,
    set_up,
    tuning,
    write_world,
)

from sightline.train.optim import set_rates

COUNTS = {
    "llm": {"frozen": 0, "full": 2 * 9 + 3, "lora": 2 * 7 * 2, "qlora": 2 * 7 * 2},
    "vision": {"frozen": 0, "full": 2 * 16 + 3 + 2, "lora": 2 * 6 * 2, "full-1": 16, "lora-1": 6 * 2},
    "projector": {"frozen": 0, "full": 4},
}
COMBINATIONS = [c for c in product(*(list(counts) for counts in COUNTS.values())) if set(c) != {"frozen"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(("llm", "vision", "projector"), COMBINATIONS)
def test_what_learns(path: Path, llm: str, vision: str, projector: str) -> None:
    if llm == "qlora":
        pytest.importorskip("bitsandbytes")
    vlm, dataset, engine, _ = set_up(path, *tuning(path, llm, vision, projector))
    names = expected(llm, vision, projector)
    assert len(names) == COUNTS["llm"][llm] + COUNTS["vision"][vision] + COUNTS["projector"][projector]
    before = {name: parameter.detach().clone() for name, parameter in vlm.model.named_parameters()}

    losses = []
    for step in range(5):
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
    vlm, dataset, engine, _ = set_up(path, *tuning(path, llm, vision, projector))
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
    vlm, dataset, engine, _ = set_up(path, *tuning(path, "full", vision, "full"), recompute)
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
    changes = [*tuning(path, "frozen", how, "full"), f"model.vision_feature_layer={layer}"]
    vlm, dataset, engine, _ = set_up(path, *changes)
    accumulate(vlm, dataset, engine)
    learning = {name for name, p in vlm.model.named_parameters() if p.requires_grad}
    # What learns is what gets a gradient: nothing waits for a tensor that takes no part.
    assert learning == {name for name, p in vlm.model.named_parameters() if p.grad is not None}
    layers = {name.split(".")[4] for name in learning if "encoder.layers" in name}
    assert layers == {str(number) for number in range(used)}
    assert not any("post_layernorm" in name for name in learning)


def test_tied_embeddings_learn_once(path: Path, tmp_path: Path) -> None:
    llm = tiny.make_llm(tmp_path / "llm", tie_word_embeddings=True)
    vlm, dataset, engine, _ = set_up(path, f"model.llm={llm}")
    assert vlm.model.lm_head.weight is vlm.model.get_input_embeddings().weight
    assert len(engine.groups[0].parameters) == COUNTS["llm"]["full"] - 1
    accumulate(vlm, dataset, engine)
    engine.step()
    assert vlm.model.lm_head.weight is vlm.model.get_input_embeddings().weight


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
    vlm, dataset, engine, _ = set_up(path, *tuning(path, "lora", "frozen", "full"), "engine.dtype=bfloat16")
    kinds = {(p.requires_grad, p.dtype) for p in vlm.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    losses = []
    for _ in range(4):
        losses.append(accumulate(vlm, dataset, engine))
        engine.step()
    assert losses[-1] < losses[0]
