"""AdamW whose moments are kept in 8 bits: for which tensors, how near to AdamW, and where there is none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.errors import MissingExtra, UserError
from sightline.model.estimate_memory import optimizer_bytes
from sightline.model.tune import Group
from sightline.recipe import OptimRecipe
from sightline.train.optim import check_optimizer, make_optimizer, set_rates

OPTIM = OptimRecipe(lr=0.01, optimizer="adamw_8bit", weight_decay=0.1, betas=(0.9, 0.98))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear, self.norm = nn.Embedding(80, 64), nn.Linear(64, 128), nn.LayerNorm(128)


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'sightline-vlm[quantize]'")


def of(network: Network, optim: OptimRecipe = OPTIM) -> Any:
    group = Group("llm", tuple(network.parameters()), 0.01, frozenset({id(network.table.weight)}))
    return make_optimizer([group], optim)


def step(network: Network, optimizer: Any, number: int) -> None:
    torch.manual_seed(number)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def test_the_matrices_have_8_bits_and_the_rest_32() -> None:
    network = Network()
    optimizer = of(network)
    step(network, optimizer, 0)
    kept = {}
    for part in optimizer.parts:
        for parameter, state in part.state.items():
            name = next(name for name, p in network.named_parameters() if p is parameter)
            kept[name] = {value.dtype for key, value in state.items() if key in ("state1", "state2", "exp_avg")}
    full = {torch.float32}
    vectors = dict.fromkeys(("table.weight", "linear.bias", "norm.weight", "norm.bias"), full)
    assert kept == {"linear.weight": {torch.uint8}, **vectors}


def test_a_plan_foresees_the_bytes_of_the_state() -> None:
    network = Network()
    optimizer = of(network)
    step(network, optimizer, 0)
    # The table of 256 values that 8 bits stand for is one for all tensors, and steps are counted, not stored at length.
    shared = {"qmap1", "qmap2", "step"}
    kept = [
        value.nbytes
        for part in optimizer.parts
        for state in part.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and key not in shared
    ]
    group = Group("llm", tuple(network.parameters()), 0.01, frozenset({id(network.table.weight)}))
    assert optimizer_bytes([group], OPTIM) == sum(kept)


def test_it_is_near_to_adamw() -> None:
    """Ten steps of random gradients: what 8 bits change is a few hundredths of the way gone."""
    torch.manual_seed(0)
    ours, theirs = Network(), Network()
    theirs.load_state_dict(ours.state_dict())
    start = ours.linear.weight.detach().clone()
    eight, whole = of(ours), of(theirs, OPTIM.model_copy(update={"optimizer": "adamw"}))
    for number in range(10):
        for network, optimizer in ((ours, eight), (theirs, whole)):
            assert set_rates(optimizer, 1 / (1 + number)) == pytest.approx({"llm": 0.01 / (1 + number)})
            step(network, optimizer, number)
    apart = (ours.linear.weight - theirs.linear.weight).norm() / (theirs.linear.weight - start).norm()
    assert 0 < float(apart) < 0.05
    for name in ("table.weight", "linear.bias", "norm.weight"):
        assert torch.equal(ours.get_parameter(name), theirs.get_parameter(name))


def test_it_goes_on_from_its_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, two = Network(), Network()
    first = of(one)
    for number in range(3):
        step(one, first, number)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    two.load_state_dict(one.state_dict())
    second = of(two)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for network, optimizer in ((one, first), (two, second)):
        set_rates(optimizer, 0.5)
        step(network, optimizer, 9)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    ("optimizer", "device", "words"),
    [
        ("paged_adamw_8bit", "cpu", "only GPUs of CUDA have pages, cpu has none; use adamw_8bit"),
        ("paged_adamw_8bit", "mps", "only GPUs of CUDA have pages, mps has none; use adamw"),
        ("adamw_8bit", "mps", "bitsandbytes computes on cuda, cpu, xpu, not on mps"),
    ],
)
def test_where_there_is_none_it_is_said(optimizer: Any, device: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        check_optimizer(OptimRecipe(lr=1, optimizer=optimizer), torch.device(device))
    assert str(error.value) == f"optim.optimizer: {optimizer}: {words}"


def test_it_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra, match=r"^optim\.optimizer: adamw_8bit needs the package 'bitsandbytes': pip"):
        of(Network())
    check_optimizer(OptimRecipe(lr=1, optimizer="muon"), torch.device("cpu"))
