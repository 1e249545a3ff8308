"""The course of the learning rate by hand, and AdamW's groups and first steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.model.tune import Group
from sightline.recipe import OptimRecipe
from sightline.train.optim import lr_scale, make_optimizer, set_rates


def course(num_steps: int, **settings: Any) -> list[float]:
    optim = OptimRecipe(lr=1.0, **settings)
    return [lr_scale(step, num_steps, optim) for step in range(num_steps)]


def test_cosine_with_warmup_by_hand() -> None:
    # 10 steps, of which ceil(10 * 0.15) = 2 rise; the other 8 are at 0/8, 1/8, ... of half a cosine.
    assert course(10, warmup_ratio=0.15) == pytest.approx(
        [0.5, 1.0, 1.0, 0.9619398, 0.8535534, 0.6913417, 0.5, 0.3086583, 0.1464466, 0.0380602], abs=1e-7
    )


def test_linear_and_constant_by_hand() -> None:
    assert course(6, warmup_ratio=0.3, schedule="linear") == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    assert course(6, warmup_ratio=0.3, schedule="constant") == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 1.0])


def test_warmup_stable_decay_by_hand() -> None:
    # The last 0.3 * 10 = 3 steps fall along a line that would reach zero behind the last one.
    assert course(10, warmup_ratio=0.2, schedule="wsd") == pytest.approx([0.5, *[1.0] * 7, 2 / 3, 1 / 3])


def test_no_warmup_begins_at_the_top() -> None:
    assert course(4, warmup_ratio=0, schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert course(1, warmup_ratio=0) == [1.0]


def test_nothing_but_warmup() -> None:
    assert course(4, warmup_ratio=1.0) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert course(1, warmup_ratio=1.0) == [1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 33, 1000])
def test_every_step_moves_and_none_exceeds_the_top(schedule: str, warmup: float, num_steps: int) -> None:
    scales = course(num_steps, warmup_ratio=warmup, schedule=schedule)
    assert min(scales) > 0 and max(scales) <= 1
    if num_steps > 1 and warmup < 1 and schedule != "constant":
        top = scales.index(max(scales))
        assert all(a >= b for a, b in zip(scales[top:], scales[top + 1 :], strict=False))


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 2), nn.LayerNorm(2)


def groups() -> list[Group]:
    torch.manual_seed(0)
    return [Group(name, tuple(Part().parameters()), lr) for name, lr in (("llm", 1e-2), ("projector", 3e-2))]


def test_only_matrices_decay() -> None:
    parts = groups()
    optimizer = make_optimizer(parts, OptimRecipe(lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-7))
    rows = [
        (row["name"], row["weight_decay"], [tuple(p.shape) for p in row["params"]]) for row in optimizer.param_groups
    ]
    assert rows == [
        ("llm", 0.1, [(2, 3)]),
        ("llm", 0.0, [(2,), (2,), (2,)]),
        ("projector", 0.1, [(2, 3)]),
        ("projector", 0.0, [(2,), (2,), (2,)]),
    ]
    assert {(row["betas"], row["eps"]) for row in optimizer.param_groups} == {((0.8, 0.9), 1e-7)}


def test_rates_are_set_by_part() -> None:
    optimizer = make_optimizer(groups(), OptimRecipe(lr=1e-2))
    assert set_rates(optimizer, 0.5) == pytest.approx({"llm": 5e-3, "projector": 1.5e-2})
    assert set_rates(optimizer, 0.1) == pytest.approx({"llm": 1e-3, "projector": 3e-3})  # of the top, not of the last
    assert [row["lr"] for row in optimizer.param_groups] == pytest.approx([1e-3, 1e-3, 3e-3, 3e-3])


def test_the_first_steps_of_adamw_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([[2.0]]))
    group = Group("llm", (weight,), 0.1)
    optimizer = make_optimizer([group], OptimRecipe(lr=0.1, weight_decay=0.5, betas=(0.9, 0.99), eps=1e-8))
    value, first, second = 2.0, 0.0, 0.0
    for step, (gradient, scale) in enumerate([(0.3, 1.0), (-0.7, 0.5), (0.2, 0.25)], 1):
        set_rates(optimizer, scale)
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        rate = 0.1 * scale
        value -= rate * 0.5 * value
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        value -= rate * (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.99**step)) + 1e-8)
        assert float(weight.detach()) == pytest.approx(value, rel=1e-6)


def test_a_group_of_vectors_only_makes_one_row() -> None:
    optimizer = make_optimizer([Group("llm", (nn.Parameter(torch.zeros(3)),), 1.0)], OptimRecipe(lr=1.0))
    assert [(row["name"], len(row["params"])) for row in optimizer.param_groups] == [("llm", 1)]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear, self.norm = nn.Embedding(5, 3), nn.Linear(3, 4), nn.LayerNorm(4)


def stepped(optimizers: list[torch.optim.Optimizer], network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()


def with_muon(network: Network) -> torch.optim.Optimizer:
    group = Group("llm", tuple(network.parameters()), 0.02, frozenset({id(network.table.weight)}))
    return make_optimizer([group], OptimRecipe(lr=0.02, optimizer="muon", weight_decay=0.1, betas=(0.9, 0.98)))


def test_muon_moves_the_matrices_and_adamw_the_rest() -> None:
    """Against torch's own two optimisers, with a rate that changes on the way."""
    torch.manual_seed(0)
    ours, theirs = Network(), Network()
    theirs.load_state_dict(ours.state_dict())
    optimizer = with_muon(ours)
    vectors = [theirs.linear.bias, *theirs.norm.parameters()]
    muon = torch.optim.Muon([theirs.linear.weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rows = [{"params": [theirs.table.weight], "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(rows, lr=0.02, betas=(0.9, 0.98))
    for step, scale in enumerate((1.0, 0.5, 0.25)):
        assert set_rates(optimizer, scale) == pytest.approx({"llm": 0.02 * scale})
        for row in [*muon.param_groups, *adamw.param_groups]:
            row["lr"] = 0.02 * scale
        stepped([optimizer], ours, step)
        stepped([muon, adamw], theirs, step)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), parameter, rtol=1e-5, atol=1e-6)


def test_muon_goes_on_from_its_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, two = Network(), Network()
    first = with_muon(one)
    stepped([first], one, 0)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    two.load_state_dict(one.state_dict())
    second = with_muon(two)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for network, optimizer in ((one, first), (two, second)):
        set_rates(optimizer, 0.5)
        stepped([optimizer], network, 1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
