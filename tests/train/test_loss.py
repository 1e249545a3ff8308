"""The loss against sums of logarithms made by hand, with a language model that is a table of vectors."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from sightline.data.collate import Batch
from sightline.train.loss import PackedLoss

VOCABULARY, WIDTH = 5, 3
SEEN = torch.zeros(1, 3, 2, 2)


class Table(nn.Module):
    """Gives every token its vector, whatever stands around it; remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(VOCABULARY, WIDTH)
        self.vision_tower = nn.Linear(1, 1)
        self.keywords: dict[str, Any] = {}

    def forward(self, input_ids: torch.Tensor, **keywords: Any) -> SimpleNamespace:
        self.keywords = keywords
        return SimpleNamespace(last_hidden_state=self.vectors(input_ids))


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    whole: Any = nn.Module()
    whole.model, whole.lm_head = Table(), nn.Linear(WIDTH, VOCABULARY, bias=False)
    return whole


def batch(ids: list[int], at: list[int], targets: list[int]) -> Batch:
    return Batch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.arange(len(ids))[None],
        sample_lengths=(len(ids),),
        predict_at=torch.tensor(at, dtype=torch.long),
        target_ids=torch.tensor(targets, dtype=torch.long),
        pixels=torch.zeros(1, 3, 2, 2, dtype=torch.uint8),
    )


def by_hand(model: Any, ids: list[int], at: list[int], targets: list[int]) -> float:
    vectors, head = model.model.vectors.weight.tolist(), model.lm_head.weight.tolist()
    total = 0.0
    for place, target in zip(at, targets, strict=True):
        logits = [sum(a * b for a, b in zip(vectors[ids[place]], row, strict=True)) for row in head]
        total += math.log(sum(math.exp(value) for value in logits)) - logits[target]
    return total


IDS, AT, TARGETS = [3, 1, 4, 1, 0, 2, 2, 4], [1, 2, 3, 5, 6], [4, 1, 0, 2, 4]


def test_it_is_the_sum_over_the_targets(model: Any) -> None:
    loss = PackedLoss(model)(batch(IDS, AT, TARGETS), SEEN)
    assert loss.shape == ()
    assert float(loss.detach()) == pytest.approx(by_hand(model, IDS, AT, TARGETS), rel=1e-6)


def test_the_loss_of_even_odds_is_the_logarithm_of_their_number(model: Any) -> None:
    nn.init.zeros_(model.lm_head.weight)
    assert float(PackedLoss(model)(batch(IDS, AT, TARGETS), SEEN).detach()) == pytest.approx(5 * math.log(VOCABULARY))


def test_what_stands_in_front_of_no_target_learns_nothing(model: Any) -> None:
    PackedLoss(model)(batch(IDS, AT, TARGETS), SEEN).backward()
    # Token 3 is in front of nothing that is learnt.
    learnt = model.model.vectors.weight.grad.abs().sum(1) > 0
    assert learnt.tolist() == [False, True, True, False, True]


def test_no_target_is_no_loss(model: Any) -> None:
    loss = PackedLoss(model)(batch(IDS, [], []), SEEN)
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert not model.lm_head.weight.grad.any() and not model.model.vectors.weight.grad.any()


def test_the_model_is_told_the_borders_and_keeps_no_cache(model: Any) -> None:
    PackedLoss(model)(batch(IDS, AT, TARGETS), SEEN)
    told = model.model.keywords
    assert tuple(told["sample_lengths"]) == (8,) and told["use_cache"] is False
    assert told["position_ids"].tolist() == [list(range(8))]


def test_pixels_take_the_number_format_of_the_tower(model: Any) -> None:
    model.model.vision_tower.to(torch.bfloat16)
    PackedLoss(model)(batch(IDS, AT, TARGETS), SEEN)
    assert cast(torch.Tensor, model.model.keywords["pixel_values"]).dtype == torch.bfloat16


def test_the_sum_is_made_in_full_precision(model: Any) -> None:
    model.to(torch.bfloat16)
    loss = PackedLoss(model)(batch(IDS * 40, [i * 8 for i in range(40)], [1] * 40), SEEN)
    assert loss.dtype == torch.float32
    # In bfloat16 a sum of this size has steps of 0.5.
    logits = model.lm_head(model.model.vectors.weight[3]).detach().double()
    expected = 40 * float(logits.exp().sum().log() - logits[1])
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
