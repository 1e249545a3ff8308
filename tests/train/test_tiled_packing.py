"""A pack of pictures in tiles gives what transformers' own LLaVA-NeXT gives for its samples one by one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from rich.console import Console
from transformers import LlavaNextForConditionalGeneration

from sightline.data.collate import Batch, PackReader
from sightline.data.dataset import Dataset, open_dataset
from sightline.model.assemble import assemble, make_prompter
from sightline.model.attention import packed_attention
from sightline.model.load import VLM
from sightline.prompt.images import open_image
from sightline.recipe import DataRecipe, ModelRecipe
from sightline.train.loss import PackedLoss

SINGLE, TEXT, PAIR, TURNS = 0, 3, 4, 5
"""Rows of `tiny.make_data`: one picture, none, two pictures inside the text, two turns."""

SHAPES = {"0_0.jpg": (150, 50), "4_0.jpg": (400, 300), "4_1.jpg": (30, 170), "5_0.png": (900, 2)}
"""Pictures of these rows that are given other sizes; those of the last lose all rows of their tiles."""

Model = LlavaNextForConditionalGeneration


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[VLM, Dataset]:
    folder = tmp_path_factory.mktemp("world")
    tiny.make_data(folder)
    rng = np.random.default_rng(0)
    for name, (width, height) in SHAPES.items():
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / name)
    tiny.make_llm(folder / "llm", initializer_range=0.06)
    tiny.make_tower(folder / "tower")
    spec = ModelRecipe(llm=str(folder / "llm"), vision_tower=str(folder / "tower"), next=True)
    prompter = make_prompter(spec)
    torch.manual_seed(7)
    vlm = assemble(spec, prompter)
    vlm.model.requires_grad_(True)
    entry = DataRecipe(path=str(folder / "data.json"), images=str(folder / "images"))
    return vlm, open_dataset((entry,), prompter, 512, Console(quiet=True))


def theirs(dataset: Dataset, sample: int) -> dict[str, Any]:
    """The pixels of a sample as transformers' processor makes them: padded to as many tiles, and the sizes."""
    images = dataset.encode(sample).images
    if not images:
        return {}
    processor = dataset.prompter.image_processor
    return dict(processor([open_image(image) for image in images], return_tensors="pt"))


def apart(model: Model, dataset: Dataset, samples: tuple[int, ...]) -> tuple[list[torch.Tensor], float, dict[str, Any]]:
    """The oracle: logits of each sample by itself, the sum of its losses, gradients; all by transformers."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    logits, total = [], 0.0
    for sample in samples:
        encoded = dataset.encode(sample)
        ids, labels = (torch.from_numpy(array)[None] for array in (encoded.ids, encoded.labels))
        out = model(input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids), **theirs(dataset, sample))
        (out.loss * encoded.num_targets).backward()
        total += float(out.loss.detach()) * encoded.num_targets
        logits.append(out.logits[0].detach())
    return logits, total, gradients(model)


def together(vlm: VLM, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    model = copy.deepcopy(vlm.model)
    model.train()
    with packed_attention(model):
        total = PackedLoss(model)(batch, vlm.prompter.pixel_values(batch.pixels))
        total.backward()
    return float(total.detach()), gradients(model)


def gradients(model: Model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    away = sum(float((one[name] - other[name]).norm()) ** 2 for name in other)
    return (away / sum(float(g.norm()) ** 2 for g in other.values())) ** 0.5


def read(dataset: Dataset, *pack: int) -> Batch:
    batch = PackReader(dataset)[pack]
    assert isinstance(batch, Batch)
    return batch


def test_logits_of_a_pack_are_those_of_its_samples(made: tuple[VLM, Dataset]) -> None:
    vlm, dataset = made
    samples = (PAIR, TEXT, SINGLE, TURNS)
    batch = read(dataset, *samples)
    assert batch.image_sizes == ((300, 400), (170, 30), (50, 150), (2, 900))
    assert batch.pixels.shape == (5 + 4 + 4 + 3, 3, 56, 56)
    with torch.no_grad(), packed_attention(vlm.model):
        hidden = vlm.model.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            pixel_values=vlm.prompter.pixel_values(batch.pixels),
            image_sizes=batch.image_sizes,
            use_cache=False,
            sample_lengths=batch.sample_lengths,
        ).last_hidden_state[0]
        found = vlm.model.lm_head(hidden).split(batch.sample_lengths)
    expected, _, _ = apart(vlm.model, dataset, samples)
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_a_pack_equals_its_samples(made: tuple[VLM, Dataset]) -> None:
    vlm, dataset = made
    samples = (PAIR, TEXT, SINGLE, TURNS)
    batch = read(dataset, *samples)
    loss, found = together(vlm, batch)
    _, expected, wanted = apart(vlm.model, dataset, samples)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert difference(found, wanted) < 1e-6
    assert float(wanted["model.image_newline"].norm()) > 1e-3


def test_the_tower_runs_once_over_all_tiles(made: tuple[VLM, Dataset]) -> None:
    vlm, dataset = made
    counts: list[int] = []
    hook = vlm.model.model.vision_tower.register_forward_hook(lambda _, args, out: counts.append(len(args[0])))
    together(vlm, read(dataset, PAIR, SINGLE))
    hook.remove()
    assert counts == [13]


@pytest.mark.parametrize("samples", [(TEXT,), (TEXT, 9, 15), ()])
def test_the_stand_in_image_adds_nothing(made: tuple[VLM, Dataset], samples: tuple[int, ...]) -> None:
    vlm, dataset = made
    loss, found = together(vlm, read(dataset, *samples))
    _, expected, wanted = apart(vlm.model, dataset, samples)
    assert loss == pytest.approx(expected, rel=1e-6)
    seeing = {name for name in found if any(part in name for part in ("vision_tower", "projector", "newline"))}
    # All of them take part in the backward pass, or other ranks would wait for them.
    assert len(seeing) == 3 + 2 + 2 * 16 + 4 + 1
    assert all(not found[name].any() for name in seeing)
    if samples:
        assert difference({name: g for name, g in found.items() if name not in seeing}, wanted) < 1e-6


def test_the_index_counts_what_the_model_gets(made: tuple[VLM, Dataset]) -> None:
    _, dataset = made
    for sample in range(len(dataset)):
        encoded = dataset.encode(sample)
        assert len(encoded.ids) == dataset.tokens[sample]
        assert encoded.num_targets == dataset.targets[sample]
        if encoded.images:
            pixels = theirs(dataset, sample)
            assert encoded.sizes == tuple((int(w), int(h)) for h, w in pixels["image_sizes"])
    assert len({tuple(size) for size in dataset.index.sizes.tolist()}) > 5
