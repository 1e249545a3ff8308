"""NEFTune's noise: as large as the paper says, on text alone, the same however a step is cut into packs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import losses
from tuned import packs, set_up, write_world

from sightline.data.collate import Batch
from sightline.data.dataset import Dataset
from sightline.data.plan import Plan
from sightline.model.load import VLM
from sightline.recipe import load_recipe
from sightline.train.loop import train
from sightline.train.noise import noisy_embeddings

WIDTH = 64


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def noise_of(vlm: VLM, batch: Batch, samples: tuple[int, ...], alpha: float | None = 5.0, **more: Any) -> torch.Tensor:
    """What is added to the embeddings of a pack: float32 [T, d]."""
    embed = vlm.model.get_input_embeddings()
    with torch.no_grad():
        plain = embed(batch.input_ids)[0]
        with noisy_embeddings(vlm, batch, samples, alpha, **({"seed": 1, "step": 2} | more)):
            noisy = embed(batch.input_ids)[0]
        assert torch.equal(embed(batch.input_ids)[0], plain)  # and afterwards it is gone
    return noisy - plain


@pytest.fixture(scope="module")
def setting(path: Path) -> tuple[VLM, Dataset, list[tuple[int, ...]], list[Batch]]:
    vlm, dataset, _, _ = set_up(path)
    names = Plan(tokens=dataset.tokens, global_batch=12, epochs=9, seed=0).packs(0, rank=0, world=1, budget=256)
    return vlm, dataset, names, list(packs(dataset))


def test_it_is_uniform_up_to_alpha_over_the_root_of_l_d(setting: Any) -> None:
    """arXiv 2310.05914, algorithm 1, with the L of each sample of a pack."""
    vlm, _, names, batches = setting
    seen = 0
    for samples, batch in zip(names, batches, strict=True):
        is_text = batch.input_ids[0] != vlm.prompter.image_token_id
        noise = noise_of(vlm, batch, samples)
        assert not noise[~is_text].any()
        pieces = zip(noise.split(batch.sample_lengths), is_text.split(batch.sample_lengths), strict=True)
        for _, (piece, text) in zip(samples, pieces, strict=False):
            most = 5.0 / (int(text.sum()) * WIDTH) ** 0.5
            moved = piece[text] / most
            assert 0.98 < float(moved.abs().max()) <= 1 + 1e-4
            assert abs(float(moved.mean())) < 0.05 and float(moved.std()) == pytest.approx(3**-0.5, rel=0.05)
            seen += 1
    assert seen == 12


def test_it_depends_on_seed_step_and_sample_alone(setting: Any) -> None:
    vlm, dataset, names, batches = setting
    (samples, batch), *_ = [(s, b) for s, b in zip(names, batches, strict=True) if len(s) > 1]
    noise = noise_of(vlm, batch, samples)
    torch.rand(7)
    assert torch.equal(noise, noise_of(vlm, batch, samples))
    for change in ({"seed": 2}, {"step": 3}):
        assert not torch.equal(noise, noise_of(vlm, batch, samples, **change))
    first, second = noise.split(batch.sample_lengths)[:2]
    assert not torch.equal(first[:5], second[:5])
    from sightline.data.collate import batches as prepare

    (alone,) = prepare(dataset, [samples[1:2]], workers=0)
    torch.testing.assert_close(noise_of(vlm, alone, samples[1:2])[: len(second)], second)


def test_none_is_none(setting: Any) -> None:
    vlm, _, names, batches = setting
    assert not noise_of(vlm, batches[0], names[0], alpha=None).any()


def test_losses_depend_on_it_but_not_on_packs(path: Path, tmp_path: Path) -> None:
    """With and without images, in packs and one by one; answers between steps are not disturbed by it."""

    def course(name: str, *changes: str) -> list[float]:
        train(load_recipe(str(path), ["optim.max_steps=3", *changes]), tmp_path / name)
        return losses(tmp_path / name)

    plain, noisy = course("plain"), course("noisy", "optim.neftune_alpha=50")
    assert abs(plain[0] - noisy[0]) > 1e-3
    assert course("alone", "optim.neftune_alpha=50", "batch.pack_tokens=2") == pytest.approx(noisy, rel=1e-5)
