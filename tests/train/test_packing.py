"""A packed batch gives the loss and every gradient that transformers gives for its samples one by one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prompters import seen
from transformers import LlavaForConditionalGeneration, MistralConfig, MistralForCausalLM

from sightline.data.collate import Batch, PackReader
from sightline.data.dataset import Dataset, open_dataset
from sightline.model.assemble import assemble, make_prompter
from sightline.model.attention import packed_attention
from sightline.recipe import DataRecipe, ModelRecipe
from sightline.runtime import console
from sightline.train.head import PIECE
from sightline.train.loss import PackedLoss

SINGLE, TEXT, PAIR, TURNS = 0, 3, 4, 5
"""Rows of `tiny.make_data`: one picture, none, two pictures inside the text, two turns."""

SPREAD = 0.06
"""Of the random weights; so wide that attention matters for the loss."""

MEAN, STD = torch.tensor(((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))[:, :, None, None]
"""Of CLIP's colours."""

Model = LlavaForConditionalGeneration


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny.make_data(folder)
    tiny.make_tower(folder / "tower")
    return folder


def mistral(folder: Path) -> Path:
    """A model whose positions see eight tokens back."""
    tokenizer = tiny.make_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    sizes |= {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "sliding_window": 8}
    config = MistralConfig(initializer_range=SPREAD, **sizes)
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


LLMS: dict[str, Callable[[Path], Path]] = {
    "grouped": lambda folder: tiny.make_llm(folder, initializer_range=SPREAD),
    "tied": lambda folder: tiny.make_llm(folder, initializer_range=SPREAD, tie_word_embeddings=True),
    "window": mistral,
}


def made(world: Path, llm: str = "grouped") -> tuple[Model, Dataset]:
    folder = world / f"llm_{llm}"
    if not folder.exists():
        LLMS[llm](folder)
    spec = ModelRecipe(llm=str(folder), vision_tower=str(world / "tower"))
    prompter = make_prompter(spec)
    torch.manual_seed(7)
    model = assemble(spec, prompter).model
    entry = DataRecipe(path=str(world / "data.json"), images=str(world / "images"))
    model.requires_grad_(True)
    return model, open_dataset((entry,), prompter, 512, console)


def apart(model: Model, dataset: Dataset, samples: tuple[int, ...]) -> tuple[float, dict[str, torch.Tensor]]:
    """The oracle: each sample by itself through transformers' own forward, attention and loss."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    total = 0.0
    for sample in samples:
        encoded = dataset.encode(sample)
        pixels = {"pixel_values": seen(dataset.prompter, encoded.images)} if encoded.images else {}
        ids, labels = (torch.from_numpy(array)[None] for array in (encoded.ids, encoded.labels))
        mean = model(input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids), **pixels).loss
        (mean * encoded.num_targets).backward()
        total += float(mean.detach()) * encoded.num_targets
    return total, gradients(model)


def together(model: Model, batch: Batch, **keywords: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model = copy.deepcopy(model)
    model.train()
    if keywords.pop("checkpointing", False):
        model.model.language_model.activation_checkpointing_enable({"use_reentrant": False})
    piece = keywords.pop("piece", PIECE)
    with packed_attention(model):
        batch = dataclasses.replace(batch, **keywords)
        total = PackedLoss(model, piece=piece)(batch, (batch.pixels / 255 - MEAN) / STD)
        total.backward()
    return float(total.detach()), gradients(model)


def gradients(model: Model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Between two gradients of the whole model, relative to the length of the second."""
    return sum(away(one, other).values()) ** 0.5 / sum(float(g.norm()) ** 2 for g in other.values()) ** 0.5


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The same tensor by tensor."""
    # A key's bias shifts all scores of a query alike: its gradient is rounding and nothing else.
    return max(d**0.5 / float(other[name].norm()) for name, d in away(one, other).items() if "k_proj.bias" not in name)


def away(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    assert one.keys() == other.keys()
    return {name: float((one[name] - other[name]).norm()) ** 2 for name in other}


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("rows", [4096, 7], ids=["whole", "pieces"])
def test_a_pack_equals_its_samples(world: Path, llm: str, checkpointing: bool, rows: int) -> None:
    samples = (PAIR, TEXT, SINGLE, TURNS)
    model, dataset = made(world, llm)
    batch = PackReader(dataset)[samples]
    assert isinstance(batch, Batch)
    assert batch.pixels.shape[0] == 4 and batch.num_targets > 7
    loss, found = together(model, batch, checkpointing=checkpointing, piece=rows * len(model.lm_head.weight))
    expected, wanted = apart(model, dataset, samples)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert len(wanted) == 3 + 2 + 2 * 16 + 4 + 2 * 9 + (2 if llm == "tied" else 3)
    assert difference(found, wanted) < 1e-6
    # With rounding out of the way, each tensor by itself.
    model.double()
    assert largest_difference(together(model, batch)[1], apart(model, dataset, samples)[1]) < 1e-6


@pytest.mark.parametrize("samples", [(TEXT,), (TEXT, 9, 15)])
def test_the_stand_in_image_adds_nothing(world: Path, samples: tuple[int, ...]) -> None:
    model, dataset = made(world)
    batch = PackReader(dataset)[samples]
    assert isinstance(batch, Batch)
    loss, found = together(model, batch)
    expected, wanted = apart(model, dataset, samples)
    assert loss == pytest.approx(expected, rel=1e-6)
    seeing = {name for name in found if "vision_tower" in name or "projector" in name}
    assert difference({name: g for name, g in found.items() if name not in seeing}, wanted) < 1e-6
    # It takes part in the backward pass, or other ranks would wait for it.
    assert len(seeing) == 3 + 2 + 2 * 16 + 4
    assert all(not found[name].any() for name in seeing)


def test_a_rank_with_nothing_to_do_has_zero_gradients(world: Path) -> None:
    model, dataset = made(world)
    batch = PackReader(dataset)[()]
    assert isinstance(batch, Batch)
    loss, found = together(model, batch)
    assert loss == 0.0 and batch.num_targets == 0
    assert len(found) == 3 + 2 + 2 * 16 + 4 + 2 * 9 + 3
    assert all(not gradient.any() for gradient in found.values())


def test_the_comparison_notices_attention_that_crosses(world: Path) -> None:
    samples = (PAIR, TEXT, SINGLE, TURNS)
    model, dataset = made(world)
    batch = PackReader(dataset)[samples]
    assert isinstance(batch, Batch)
    expected, wanted = apart(model, dataset, samples)
    loss, found = together(model, batch, sample_lengths=(batch.num_tokens,))
    assert abs(loss - expected) > 1e-3 * expected
    assert difference(found, wanted) > 1e-2


def test_the_comparison_notices_an_image_in_another_place(world: Path) -> None:
    samples = (PAIR, SINGLE)
    model, dataset = made(world)
    batch = PackReader(dataset)[samples]
    assert isinstance(batch, Batch)
    _, wanted = apart(model, dataset, samples)
    _, found = together(model, batch, pixels=batch.pixels.flip(0))
    assert difference(found, wanted) > 1e-2


def test_checkpointing_computes_each_layer_twice(world: Path) -> None:
    model, dataset = made(world)
    batch = PackReader(dataset)[SINGLE,]
    assert isinstance(batch, Batch)
    calls: list[int] = []
    counted = copy.deepcopy(model)
    layer: Any = counted.model.language_model.layers[0]
    layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    together(counted, batch)
    assert len(calls) == 1
    together(counted, batch, checkpointing=True)
    assert len(calls) == 3
