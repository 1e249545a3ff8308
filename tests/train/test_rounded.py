"""Weights in bfloat16 alone: rounding is right in the mean, small steps are not lost, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from runs import Interrupted, losses, until
from safetensors.torch import load_file
from torch import nn

from sightline.errors import CheckpointError, RecipeError, UserError
from sightline.model.tune import Group
from sightline.recipe import OptimRecipe, load_recipe
from sightline.train import loop
from sightline.train.loop import train
from sightline.train.optim import make_optimizer, set_rates
from sightline.train.rounded import Rounded, rounded

PURE = ["engine.dtype=bfloat16", "engine.pure_bf16=true"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_value_becomes_one_of_its_neighbours_as_often_as_it_is_near() -> None:
    # Between 1 and 2 numbers of bfloat16 are 1/128 apart: a quarter of the way is rounded up in a quarter of all cases.
    for sign in (1, -1):
        drawn = rounded(torch.full((100_000,), sign * (1 + 0.25 / 128)), generator()).float()
        assert set(drawn.tolist()) == {sign * 1.0, sign * (1 + 1 / 128)}
        assert (drawn.abs() > 1).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_what_bfloat16_holds_stays() -> None:
    exact = torch.tensor([0.0, -0.0, 1.0, -3.0, 2.0**-130, float("inf"), float("-inf")])
    for seed in range(20):
        assert torch.equal(rounded(exact, generator(seed)).float(), exact)
    # The bits of a NaN are up to who makes it: those of CUDA are all ones, and one more would be -0.
    nans = torch.tensor([0x7FC00000, 0x7FFFFFFF, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    assert nans.isnan().all() and rounded(nans, generator()).isnan().all()


def test_steps_that_are_smaller_than_a_number_of_bfloat16_add_up() -> None:
    """As far in the mean as in float32, where rounding to the nearest would stay at the start."""
    start, rate = 1.0, 1e-4  # a fortieth of the distance to the next lower number
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = nn.Parameter(torch.full((64, 64), start, dtype=dtype))
        stepping = make_optimizer([Group("llm", (weight,), rate)], OptimRecipe(lr=rate))
        gradients = torch.Generator().manual_seed(1)
        for _ in range(40):
            weight.grad = (1 + torch.rand(64, 64, generator=gradients)).to(dtype)
            stepping.step()
            stepping.zero_grad()
            assert weight.grad is None and weight.dtype == dtype
        ends.append(weight.detach().float().mean().item())
    assert ends[1] == pytest.approx(ends[0], abs=0.05 * abs(ends[0] - start))
    assert torch.tensor(start - rate).bfloat16().item() == start


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_is_that_of_float32_and_then_rounded(optimizer: str) -> None:
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        weight = nn.Parameter((1.25 + 0.25 * torch.rand(64, 64)).bfloat16().to(dtype))
        stepping = make_optimizer([Group("llm", (weight,), 0.05)], OptimRecipe(lr=0.05, optimizer=optimizer))
        weight.grad = torch.randn(64, 64).bfloat16().to(dtype)
        stepping.step()
        ends.append(weight.detach().float())
    whole, low = ends
    assert (low - whole).abs().max() < 1 / 128 and not torch.equal(low, whole.bfloat16().float())
    assert (whole - whole.bfloat16().float()).abs().max() > 1 / 512


def test_the_noise_of_a_step_is_that_of_all_ranks() -> None:
    """Whatever each has drawn before, as for dropout: their copies must stay equal."""
    ends = []
    for rank in range(2):
        weight = nn.Parameter(torch.full((64, 64), 1.25).bfloat16())
        stepping = make_optimizer([Group("llm", (weight,), 1e-3)], OptimRecipe(lr=1e-3))
        torch.manual_seed(rank)
        for _ in range(3):
            weight.grad = torch.ones_like(weight)
            stepping.step()
        ends.append(weight.detach())
    assert torch.equal(*ends) and len(ends[0].unique()) > 1


def test_vectors_are_as_ever_and_rates_reach_all() -> None:
    matrix, vector = nn.Parameter(torch.ones(4, 4).bfloat16()), nn.Parameter(torch.ones(4))
    optimizer = make_optimizer([Group("llm", (matrix, vector), 0.5)], OptimRecipe(lr=0.5, weight_decay=0.1))
    plain, low = optimizer.parts  # type: ignore[attr-defined]
    assert isinstance(low, Rounded) and isinstance(plain, torch.optim.AdamW)
    assert plain.param_groups[0]["params"] == [vector]
    assert set_rates(optimizer, 0.5) == {"llm": 0.25}
    matrix.grad, vector.grad = torch.ones_like(matrix), torch.ones_like(vector)
    optimizer.step()
    # AdamW's first step is as long as its rate, after 0.25 x 0.1 of the weight; 0.725 in bfloat16 has 1/256 of leeway.
    assert vector.tolist() == pytest.approx([0.75] * 4)
    assert matrix.tolist()[0] == pytest.approx([0.725] * 4, abs=1 / 256)
    optimizer.zero_grad()
    assert matrix.grad is None and vector.grad is None
    assert all(whole.numel() == 0 for whole in low.whole)


def test_a_run_learns_as_one_with_whole_weights(trained: Callable[..., Path]) -> None:
    whole, pure = (losses(trained(*changes, name=name)) for name, changes in (("whole", PURE[:1]), ("pure", PURE)))
    assert pure != whole and pure == pytest.approx(whole, rel=0.02) and pure[-1] < pure[0] - 0.3


def test_a_checkpoint_holds_half_and_a_run_goes_on_bit_for_bit(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(path), [*PURE, "run.save_every=2", "optim.max_steps=6"])
    train(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "cut", after_step=until(3))
    train(recipe, tmp_path / "cut", resume="auto")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    kept = load_file(next((tmp_path / "cut").glob("checkpoint-6")) / "weights.safetensors")
    assert {tensor.dtype for tensor in kept.values() if tensor.ndim > 1} == {torch.bfloat16}
    assert {tensor.dtype for tensor in kept.values() if tensor.ndim == 1} == {torch.float32}
    other = load_recipe(str(path), [PURE[0], "run.save_every=2", "optim.max_steps=6"])
    with pytest.raises(CheckpointError, match="pure_bf16"):
        train(other, tmp_path / "cut", resume="auto")


def test_old_runs_go_on(path: Path) -> None:
    """Their checkpoints say nothing of it."""
    identity = load_recipe(str(path)).identity()
    assert json.loads(json.dumps(identity))["engine"].keys() == {"dtype"}


def test_it_is_refused_where_the_run_computes_in_another_format(path: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="pure_bf16 computes in bfloat16, not in float16"):
        load_recipe(str(path), ["engine.pure_bf16=true", "engine.dtype=float16"])
    recipe = load_recipe(str(path), ["engine.pure_bf16=true", "engine.dtype=auto", "engine.device=cpu"])
    with pytest.raises(UserError, match=r"engine.pure_bf16: cpu takes float32 by itself; add engine.dtype=bfloat16"):
        train(recipe, tmp_path / "run")


def test_a_device_without_bfloat16_is_not_asked_for_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old GPU takes float16 by itself, and would refuse engine.dtype=bfloat16."""
    monkeypatch.setattr(loop, "pick_dtype", lambda name, device: torch.float16)
    with pytest.raises(UserError, match=r"engine.pure_bf16: cpu does not compute in bfloat16; leave it out"):
        train(load_recipe(str(path), ["engine.pure_bf16=true"]), tmp_path / "run")


def test_8_bits_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'sightline-vlm[quantize]'")
    recipe = load_recipe(
        str(tiny.write_recipe(tmp_path, optim={"lr": 1e-3, "epochs": 2}, run={"save_every": 3})),
        [*PURE, "optim.optimizer=adamw_8bit"],
    )
    train(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "cut", after_step=until(4))
    train(recipe, tmp_path / "cut", resume="auto")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
