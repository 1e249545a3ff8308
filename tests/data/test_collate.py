"""Packed sequences, counted out by hand; batches in order, whoever prepares them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prompters import FEATURES, make_prompter
from rich.console import Console
from tiny import make_data

from sightline.data import collate as collating
from sightline.data.collate import Batch, PackReader, batches, collate
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.plan import Plan
from sightline.errors import DataError
from sightline.limits import Limits, limits, use
from sightline.recipe import DataRecipe
from sightline.types import IGNORE, Encoded, ImageRef

X = IGNORE
STAND_IN = Encoded(np.array([50, 50]), np.array([X, X]), ())
GREY = torch.full((1, 3, 2, 2), 0.5)


def sample(ids: list[int], labels: list[int], images: int = 0) -> Encoded:
    return Encoded(np.array(ids), np.array(labels), tuple(ImageRef(f"{n}") for n in range(images)))


def pictures(number: int) -> torch.Tensor:
    return torch.arange(number * 12, dtype=torch.float32).reshape(number, 3, 2, 2)


def test_a_pack_by_hand() -> None:
    first = sample([1, 50, 50, 4, 5, 6, 7], [X, X, X, X, 5, X, 7], images=1)
    second = sample([8, 9, 10], [X, 9, 10])
    batch = collate([first, second], pictures(1), STAND_IN, GREY)
    assert batch.input_ids.tolist() == [[1, 50, 50, 4, 5, 6, 7, 8, 9, 10]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2]]
    assert batch.sample_lengths == (7, 3)
    # 5 stands at 4 and is said by what stands at 3; 7 at 6 by 5; 9 at 8 by 7; 10 at 9 by 8.
    assert batch.predict_at.tolist() == [3, 5, 7, 8]
    assert batch.target_ids.tolist() == [5, 7, 9, 10]
    assert torch.equal(batch.pixels, pictures(1))
    assert (batch.num_targets, batch.num_tokens) == (4, 10)
    assert {value.dtype for name, value in vars(batch).items() if name.endswith(("_ids", "_at"))} == {torch.int64}


def test_a_sample_is_never_predicted_from_its_neighbour() -> None:
    everything = sample([1, 2, 3], [1, 2, 3], images=1)
    batch = collate([everything, everything], pictures(2), STAND_IN, GREY)
    assert batch.predict_at.tolist() == [0, 1, 3, 4]
    assert batch.target_ids.tolist() == [2, 3, 2, 3]
    assert batch.num_targets == everything.num_targets * 2


def test_a_pack_of_text_gets_a_stand_in() -> None:
    text = sample([1, 2, 3], [X, X, 3])
    batch = collate([text], None, STAND_IN, GREY)
    assert batch.input_ids.tolist() == [[1, 2, 3, 50, 50]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.sample_lengths == (3, 2)
    assert (batch.predict_at.tolist(), batch.target_ids.tolist()) == ([1], [3])
    assert torch.equal(batch.pixels, GREY)


def test_an_empty_pack_is_the_stand_in_alone() -> None:
    batch = collate([], None, STAND_IN, GREY)
    assert batch.input_ids.tolist() == [[50, 50]]
    assert (batch.num_targets, batch.sample_lengths) == (0, (2,))


def test_pixels_follow_the_samples() -> None:
    two, one = sample([50, 50, 50, 50, 1], [X] * 5, images=2), sample([50, 50, 2], [X, X, 2], images=1)
    batch = collate([two, one], pictures(3), STAND_IN, GREY)
    assert torch.equal(batch.pixels, pictures(3))
    assert batch.to(torch.device("cpu")).sample_lengths == (5, 3)


# --- from files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    path, images = make_data(tmp_path)
    entry = DataRecipe(path=str(path), images=str(images))
    return open_dataset((entry,), make_prompter(), 512, Console(quiet=True))


def read(dataset: Dataset, *pack: int) -> Batch:
    batch = PackReader(dataset)[pack]
    assert isinstance(batch, Batch)
    return batch


def test_a_pack_is_its_samples_one_after_the_other(dataset: Dataset) -> None:
    pack = (4, 3, 0, 5)  # two pictures, none, one, one with two turns
    batch = read(dataset, *pack)
    alone = [read(dataset, sample) for sample in pack]
    lengths = [int(dataset.tokens[sample]) for sample in pack]
    assert list(batch.sample_lengths) == lengths
    starts = np.cumsum([0, *lengths])
    for number, single in enumerate(alone):
        here = slice(starts[number], starts[number + 1])
        assert torch.equal(batch.input_ids[:, here], single.input_ids[:, : lengths[number]])
    at = torch.cat([single.predict_at + int(start) for single, start in zip(alone, starts, strict=False)])
    assert torch.equal(batch.predict_at, at)
    assert torch.equal(batch.target_ids, torch.cat([single.target_ids for single in alone]))
    assert torch.equal(batch.target_ids, batch.input_ids[0, batch.predict_at + 1])
    assert torch.equal(batch.pixels, torch.cat([alone[0].pixels, *(a.pixels for a in alone[2:])]))
    assert (batch.input_ids == dataset.prompter.image_token_id).sum() == FEATURES * len(batch.pixels) == FEATURES * 4


def test_text_alone_has_the_grey_picture(dataset: Dataset) -> None:
    for batch in (read(dataset, 3), read(dataset)):
        assert torch.equal(batch.pixels, dataset.prompter.grey_pixels())
        assert (batch.input_ids == dataset.prompter.image_token_id).sum() == FEATURES
    assert read(dataset).num_targets == 0
    assert read(dataset, 3).num_targets == dataset.targets[3]


def test_batches_come_in_order_whoever_prepares_them(dataset: Dataset) -> None:
    plan = Plan(dataset.tokens, global_batch=8, epochs=1, seed=0)
    packs = [pack for step in range(3) for pack in plan.packs(step, rank=0, world=1, budget=256)]
    here = list(batches(dataset, packs, workers=0))
    there = list(batches(dataset, packs, workers=2))
    assert len(here) == len(there) == len(packs)
    for one, other in zip(here, there, strict=True):
        assert one.sample_lengths == other.sample_lengths
        for name in ("input_ids", "position_ids", "predict_at", "target_ids", "pixels"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert sum(batch.num_targets for batch in here) == dataset.targets.sum()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_lost_on_the_way_is_named_with_its_row(workers: int, dataset: Dataset) -> None:
    source = dataset.index.sources[0]
    rows = source.rows
    name = rows[0]["image"]
    (Path(str(source.images)) / name).unlink()
    with pytest.raises(DataError) as error:
        list(batches(dataset, [(1,), (2, 0)], workers=workers))
    message = str(error.value)
    assert message.startswith(f"{rows.path}: row 1: image {name} is missing: no file ")
    assert message.endswith("left out by on_bad_row: skip, the run goes on with --resume)")
    assert "\n" not in message


def test_worker_processes_have_the_limits_of_their_parent(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(collating, "DataLoader", lambda *_, **settings: made.append(settings) or [])
    use(Limits(image_megapixels=3))
    try:
        assert list(batches(dataset, [], workers=1)) == []
        use(Limits())
        pickle.loads(pickle.dumps(made[0]["worker_init_fn"]))(0)
        assert limits().image_megapixels == 3
    finally:
        use(Limits())
