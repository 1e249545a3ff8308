"""How many layers compute their activations twice: the arithmetic, the memory that this takes, and that nothing else
changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_rehearse import PACK, small_recipe
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import GPT2Config, GPT2Model, MixtralConfig

from sightline.errors import ModelError
from sightline.model.estimate_fit import changed
from sightline.model.estimate_memory import Memory, Watch, without_contents
from sightline.train import loop
from sightline.train.forecast import layers_recomputed
from sightline.train.plan_rows import Kind, Rows
from sightline.train.recompute import between, fewest, recompute
from sightline.train.rehearse import _step, rehearse, tuned

LAYERS = 8


@pytest.mark.parametrize(
    ("room", "layers"),
    # 100 with none, 30 with all of 8: each saves 10, but one, whose activations are there while it computes them.
    [(100, 0), (99, 1), (90, 1), (89, 2), (55, 5), (31, 7), (30, 8), (10, 8)],
)
def test_as_few_as_will_do(room: float, layers: int) -> None:
    assert fewest(100, 30, room, LAYERS) == layers


def test_what_lies_between() -> None:
    kept, twice = Memory(5, 1, 2, 100, 7), Memory(5, 1, 2, 30, 7)
    assert between(kept, twice, 2, 8) == Memory(5, 1, 2, 80, 7)
    assert between(kept, twice, 8, 8) == between(kept, twice, 7, 8) == twice
    assert between(kept, twice, 1, 1) == twice


def test_the_first_layers_are_those_that_do(tmp_path: Path) -> None:
    blank, _ = tuned(small_recipe(tmp_path, {"num_hidden_layers": 4}, ["tune.llm=lora"]))
    llm = blank.model.model.language_model
    recompute(llm, 0)
    assert not any(layer.gradient_checkpointing for layer in llm.layers)
    recompute(llm, 3)
    assert [layer.gradient_checkpointing for layer in llm.layers] == [True, True, True, False]


def test_layers_may_have_another_name() -> None:
    """GPT-2 calls them `h`."""
    llm = GPT2Model(GPT2Config(n_embd=8, n_head=2, n_layer=4, vocab_size=16, n_positions=8))
    recompute(llm, 3)
    assert [layer.gradient_checkpointing for layer in llm.h] == [True, True, True, False]


@pytest.mark.parametrize("layers", [2, 5])
def test_memory_is_what_is_said(tmp_path: Path, layers: int) -> None:
    recipe = small_recipe(tmp_path, {"hidden_size": 128, "num_hidden_layers": LAYERS}, ["tune.llm=lora"])
    recipe = changed(recipe, {"engine.gradient_checkpointing": False})
    kept, twice = (
        rehearse(changed(recipe, {"engine.gradient_checkpointing": each}), PACK, torch.float32)
        for each in (False, True)
    )
    said = between(kept, twice, layers, LAYERS)
    blank, _ = tuned(recipe)
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_contents(blank.model, torch.float32)
        recompute(blank.model.model.language_model, layers)
        watch = Watch(blank.model, blank.model.config.text_config.vocab_size)
        forward, backward = _step(blank, recipe, PACK, torch.float32, watch)
    seen = max(forward.total, backward.total)
    assert seen == pytest.approx(said.activations + said.logits, rel=0.03)


def test_the_room_decides(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"hidden_size": 128, "num_hidden_layers": 4}, ["tune.llm=lora"])
    rows = Rows(10, (Kind(1.0, 200, 100, 1),), "made up")
    assert layers_recomputed(recipe, rows, 4, room=1e12, count=1) == 0
    assert layers_recomputed(recipe, rows, 4, room=1, count=1) == 4
    for wish, layers in ((True, 4), (False, 0)):
        fixed = changed(recipe, {"engine.gradient_checkpointing": wish})
        assert layers_recomputed(fixed, rows, 4, room=1, count=1) == layers


def test_experts_cannot_be_rehearsed(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {}, ["tune.llm=full"])
    shutil.rmtree(tmp_path / "llm")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4).save_pretrained(tmp_path / "llm")
    rows = Rows(10, (Kind(1.0, 200, 100, 1),), "made up")
    with pytest.raises(ModelError, match="mixture of experts"):
        layers_recomputed(recipe, rows, 2, room=1e12, count=1)


def unknown(*_: Any, **__: Any) -> int:
    raise ModelError("a mixture of experts")


def untold(*_: Any, **__: Any) -> int:
    """As tensors without contents fail where a model looks into them."""
    raise RuntimeError("aten::item\nlong explanation")


@pytest.mark.parametrize(
    ("rehearsal", "reason"), [(unknown, "a mixture of experts"), (untold, "aten::item")], ids=["experts", "contents"]
)
def test_where_memory_cannot_be_told_a_run_begins_all_the_same(
    trained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rehearsal: Any, reason: str
) -> None:
    monkeypatch.setattr(loop, "room_on", lambda device: 1e12)
    monkeypatch.setattr(loop, "layers_recomputed", rehearsal)
    trained("optim.max_steps=1", "run.export=false")
    said = capsys.readouterr().err
    assert f"cannot be told ({reason}): all layers compute their activations twice" in said, said


def test_a_run_that_is_short_of_memory(
    trained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_loop import losses

    changes = ["tune.llm=lora", "tune.llm_lora.dropout=0.2", "optim.max_steps=3"]
    plain = losses(trained(*changes, name="plain"))
    assert "compute their activations twice" not in capsys.readouterr().err
    monkeypatch.setattr(loop, "room_on", lambda device: 1.0)
    short = losses(trained(*changes, name="short"))
    assert "2 of 2 layers compute their activations twice" in capsys.readouterr().err
    assert short == pytest.approx(plain, rel=1e-6)
