"""The losses of a run are those of its plan, however a step is cut up, and those written down here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import log, losses

from sightline.data.collate import batches
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.plan import Plan
from sightline.model.assemble import assemble, make_prompter
from sightline.model.attention import packed_attention
from sightline.model.load import VLM
from sightline.model.tune import apply_tuning
from sightline.recipe import Recipe, load_recipe
from sightline.runtime import console, seed_everything
from sightline.train.engine import Engine
from sightline.train.loss import PackedLoss
from sightline.train.optim import lr_scale, set_rates

GOLDEN = [6.200294, 5.976353, 5.709474, 5.686716, 5.515919, 5.465243]
"""The losses of `test_golden_losses`, as this test printed them on x86-64 with torch 2.13.0 and transformers 5.23.0.

They may only change together with a sentence that says why the results of all recipes may change.
"""


Trained = Callable[..., Path]


def test_golden_losses(trained: Trained) -> None:
    changes = ["tune.vision_tower=full", "optim.max_steps=6", "optim.weight_decay=0.1", "optim.projector_lr=2e-3"]
    found = losses(trained(*changes, "batch.global_batch=5", "batch.pack_tokens=200"))
    assert found == pytest.approx(GOLDEN, abs=1e-4)


@pytest.mark.parametrize("tuning", [["tune.vision_tower=full"], ["tune.llm=lora", "tune.llm_lora.dropout=0.0"]])
def test_the_token_budget_changes_no_loss(trained: Trained, tuning: list[str]) -> None:
    runs = [trained(*tuning, f"batch.pack_tokens={budget}", name=str(budget)) for budget in (16, 150, 4000)]
    fills = [log(run)[0]["fill"] for run in runs]
    assert fills[0] > 1 > fills[1] > fills[2]  # samples by themselves, a few in a pack, all in one
    one_by_one, *others = map(losses, runs)
    assert len(one_by_one) == 8 and one_by_one[-1] < one_by_one[0] - 0.1
    for other in others:
        assert other == pytest.approx(one_by_one, rel=1e-5)


def test_workers_change_nothing_at_all(trained: Trained) -> None:
    changes = ["tune.llm=lora", "tune.llm_lora.dropout=0.2", "optim.max_steps=4", "batch.pack_tokens=150"]
    alone = losses(trained(*changes, "batch.workers=0", name="alone"))
    assert losses(trained(*changes, "batch.workers=2", name="helped")) == alone


def set_up(recipe: Recipe) -> tuple[VLM, Dataset, Plan, Engine]:
    prompter = make_prompter(recipe.model)
    dataset = open_dataset(recipe.data, prompter, recipe.batch.max_length, console)
    plan = Plan(dataset.tokens, recipe.batch.global_batch, recipe.optim.epochs, recipe.run.seed, recipe.optim.max_steps)
    seed_everything(recipe.run.seed)
    vlm = assemble(recipe.model, prompter)
    return vlm, dataset, plan, Engine(vlm, apply_tuning(vlm.model, recipe.tune, recipe.optim), recipe)


def simulated(recipe: Recipe, world: int, budget: int) -> list[float]:
    """The losses of so many ranks, one after the other in this process; their gradients are added up."""
    vlm, dataset, plan, engine = set_up(recipe)
    means = []
    for step in range(plan.num_steps):
        targets = int(dataset.targets[plan.samples(step)].sum())
        set_rates(engine.optimizer, lr_scale(step, plan.num_steps, recipe.optim))
        shares = [plan.packs(step, rank=rank, world=world, budget=budget) for rank in range(world)]
        assert len({len(packs) for packs in shares}) == 1
        total = 0.0
        with packed_attention(vlm.model):
            for packs in shares:
                for batch in batches(dataset, packs, workers=0):
                    loss = engine.loss_sum(batch)
                    engine.backward(loss / targets)
                    total += float(loss.detach())
        means.append(total / targets)
        engine.step()
    return means


@pytest.mark.parametrize("tuning", [["tune.vision_tower=full"], ["tune.llm=frozen"]])
def test_the_number_of_ranks_changes_no_loss(path: Path, trained: Trained, tuning: list[str]) -> None:
    changes = [*tuning, "batch.global_batch=5", "optim.max_steps=6"]
    real = losses(trained(*changes))
    recipe = load_recipe(str(path), changes)
    # Seven ranks for five samples: two of them have nothing but the stand-in image.
    for world, budget in ((1, 90), (2, 256), (2, 90), (3, 150), (7, 256)):
        assert simulated(recipe, world, budget) == pytest.approx(real, rel=1e-5), (world, budget)


@pytest.mark.parametrize("global_batch", [5, 24, 100])
def test_every_sample_is_seen_once_an_epoch(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, global_batch: int
) -> None:
    seen: list[int] = []
    encode = Dataset.encode

    def remember(dataset: Dataset, sample: int) -> Any:
        seen.append(int(sample))
        return encode(dataset, sample)

    monkeypatch.setattr(Dataset, "encode", remember)
    run = trained(f"batch.global_batch={global_batch}", "optim.epochs=3", "batch.pack_tokens=180")
    epochs = [seen[start : start + 24] for start in range(0, len(seen), 24)]
    assert len(epochs) == 3
    assert all(Counter(epoch) == Counter(range(24)) for epoch in epochs)
    if global_batch == 5:
        assert len({tuple(epoch) for epoch in epochs}) == 3  # each in an order of its own
    records = log(run)
    assert [record["step"] for record in records] == list(range(1, 3 * math.ceil(24 / global_batch) + 1))
    assert sum(record["samples"] for record in records) == 72


def test_the_targets_of_the_log_are_those_of_the_batches(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    batches_seen: list[tuple[int, int]] = []
    forward = PackedLoss.forward

    def remember(module: PackedLoss, batch: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        stand_in = batch.sample_lengths[-1] if not bool((batch.target_ids >= 0).any()) else 0
        batches_seen.append((batch.num_targets, batch.num_tokens - stand_in))
        return forward(module, batch, pixel_values)

    monkeypatch.setattr(PackedLoss, "forward", remember)
    run = trained("batch.pack_tokens=4000", "optim.max_steps=4")
    assert [(record["targets"], record["tokens"]) for record in log(run)] == batches_seen


def test_the_seed_decides(trained: Trained) -> None:
    first, again, other = (
        losses(trained("optim.max_steps=2", f"run.seed={seed}", name=name))
        for seed, name in ((7, "first"), (7, "again"), (8, "other"))
    )
    assert first == again and first != other
