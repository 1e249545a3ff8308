"""The plan as set theory: every sample once, whoever computes it, in whatever packs."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from sightline.data.plan import Pack, Plan, pack

RNG = np.random.default_rng(3)
TOKENS = np.concatenate([RNG.integers(5, 400, 90), [900, 1, 1, 700]])
WORLDS, BUDGETS = (1, 2, 3, 5), (1, 256, 512, 2048, 10**9)


def make_plan(
    *, samples: int = len(TOKENS), batch: int = 16, epochs: float = 1, seed: int = 0, steps: int | None = None
) -> Plan:
    return Plan(TOKENS[:samples], global_batch=batch, epochs=epochs, seed=seed, max_steps=steps)


def length(pack: Pack) -> int:
    return int(sum(TOKENS[sample] for sample in pack))


@pytest.mark.parametrize(("samples", "batch"), [(94, 16), (80, 16), (15, 16), (16, 16), (17, 16), (94, 1), (1, 7)])
def test_an_epoch_sees_every_sample_once(samples: int, batch: int) -> None:
    plan = make_plan(samples=samples, batch=batch, epochs=3)
    per_epoch = math.ceil(samples / batch)
    assert plan.num_steps == 3 * per_epoch
    for epoch in range(3):
        steps = [plan.samples(epoch * per_epoch + step).tolist() for step in range(per_epoch)]
        assert sorted(itertools.chain(*steps)) == list(range(samples))
        assert [len(step) for step in steps[:-1]] == [batch] * (per_epoch - 1)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(1, None, 6), (2, None, 12), (0.5, None, 3), (0.01, None, 1), (1.5, None, 9), (2, 5, 5), (1, 100, 6), (0.5, 1, 1)],
)
def test_the_number_of_steps(epochs: float, max_steps: int | None, expected: int) -> None:
    assert make_plan(epochs=epochs, steps=max_steps).num_steps == expected


def test_half_an_epoch_is_the_beginning_of_a_whole_one() -> None:
    half, whole, short = make_plan(epochs=0.5), make_plan(epochs=2), make_plan(epochs=2, steps=3)
    for step in range(3):
        assert half.samples(step).tolist() == whole.samples(step).tolist() == short.samples(step).tolist()
    seen = np.concatenate([half.samples(step) for step in range(half.num_steps)])
    assert len(set(seen.tolist())) == len(seen) == 48


def test_without_shuffling_every_epoch_follows_the_file() -> None:
    plan = Plan(TOKENS, global_batch=40, epochs=2, seed=5, shuffle=False)
    steps = [list(range(40)), list(range(40, 80)), list(range(80, 94))]
    assert [plan.samples(step).tolist() for step in range(6)] == steps * 2


def test_a_step_is_a_pure_function() -> None:
    plan = make_plan(epochs=2)
    once = [plan.samples(step).tolist() for step in range(plan.num_steps)]
    assert [plan.samples(step).tolist() for step in reversed(range(plan.num_steps))] == once[::-1]
    np.random.seed(1)
    assert make_plan(epochs=2).samples(7).tolist() == once[7]
    code = (
        "import numpy as np; from sightline.data.plan import Plan;"
        "print(Plan(np.ones(94, dtype=np.int64), global_batch=16, epochs=2, seed=0).samples(7).tolist())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert elsewhere.strip() == str(once[7])


def test_the_order_is_another_in_each_epoch_and_with_each_seed() -> None:
    plan = make_plan(epochs=3)
    orders = [np.concatenate([plan.samples(epoch * 6 + step) for step in range(6)]).tolist() for epoch in range(3)]
    orders += [
        np.concatenate([make_plan(seed=seed).samples(step) for step in range(6)]).tolist() for seed in (1, 2**40)
    ]
    assert len({tuple(order) for order in orders}) == 5
    assert all(order != sorted(order) for order in orders)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_ranks_and_packs_share_a_step_among_them(world: int, budget: int) -> None:
    plan = make_plan(epochs=1)
    for step in range(plan.num_steps):
        ranks = [plan.packs(step, rank=rank, world=world, budget=budget) for rank in range(world)]
        assert len({len(packs) for packs in ranks}) == 1
        packs = list(itertools.chain(*ranks))
        assert sorted(itertools.chain(*packs)) == sorted(plan.samples(step).tolist())
        assert all(length(pack) <= budget or len(pack) == 1 for pack in packs)


def test_more_ranks_than_samples() -> None:
    plan = make_plan(samples=3, batch=3)
    ranks = [plan.packs(0, rank=rank, world=5, budget=10**9) for rank in range(5)]
    assert [len(packs) for packs in ranks] == [1] * 5
    assert sorted(itertools.chain(*(packs[0] for packs in ranks))) == [0, 1, 2]
    assert sum(packs[0] == () for packs in ranks) == 2


def test_ranks_are_about_equally_loaded() -> None:
    plan = Plan(np.array([100, 90, 80, 70]), global_batch=4, epochs=1, seed=0)
    ranks = [plan.packs(0, rank=rank, world=2, budget=100) for rank in (0, 1)]
    assert ranks == [[(0,), (3,)], [(1,), (2,)]]  # 170 tokens each
    # Full packs and a small rest would leave one rank waiting for another: all go by what the ranks have in sum.
    plan = make_plan(batch=64)
    for world, budget in itertools.product((2, 3, 8), (1024, 4096, 10**9)):
        loads = [sum(map(length, plan.packs(0, rank=rank, world=world, budget=budget))) for rank in range(world)]
        assert max(loads) - min(loads) <= 0.03 * max(loads)


def test_attention_is_part_of_the_load() -> None:
    tokens = np.array([24, 13, 12, 6])
    ranks = {
        width: [Plan(tokens, 4, 1, 0, width=width).packs(0, rank=rank, world=2, budget=100) for rank in (0, 1)]
        for width in (None, 1, 4096)
    }
    # With a width of 1 a sample of n tokens costs n + n²/12: 72, 27, 24 and 9.
    assert ranks[1] == [[(0,)], [(1, 2, 3)]]
    assert ranks[4096] == ranks[None] == [[(0, 3)], [(1, 2)]]


def test_packs_by_hand() -> None:
    tokens = np.array([6, 5, 4, 3, 2, 12])
    # First fit decreasing into 10: 12 alone (too long for any), 6 + 4, 5 + 3 + 2.
    assert pack(np.array([0, 1, 2, 3, 4, 5]), tokens, 10) == [(5,), (0, 2), (1, 3, 4)]
    assert pack(np.array([4, 2]), tokens, 100) == [(2, 4)]
    assert pack(np.array([], dtype=np.int64), tokens, 10) == []


def test_packs_do_not_depend_on_the_order_of_a_step() -> None:
    samples = np.arange(90)
    shuffled = np.random.default_rng(0).permutation(samples)
    assert pack(samples, TOKENS, 512) == pack(shuffled, TOKENS, 512)


def test_packs_are_full() -> None:
    samples = np.arange(90)
    packs = pack(samples, TOKENS, 1024)
    # First fit decreasing needs at most 11/9 of the best, plus one (Johnson 1973); here that best is total / budget.
    assert len(packs) <= 11 / 9 * math.ceil(TOKENS[:90].sum() / 1024) + 1
