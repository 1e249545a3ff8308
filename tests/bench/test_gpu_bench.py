"""`make bench-gpu` at small size on a CPU: the same work on both sides, honest figures, and the branches of a GPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

GPU = Path(__file__).parents[2] / "bench" / "gpu"
sys.path.insert(0, str(GPU))

import built  # noqa: E402
import gpu  # noqa: E402
import job  # noqa: E402
import measure_sightline  # noqa: E402
import measure_trainer  # noqa: E402
import older  # noqa: E402
from cases import CASES  # noqa: E402
from rows import draw_rows  # noqa: E402

from sightline.model.attention import _varlen  # noqa: E402

CARD = {"device": "cpu", "dtype": "float32", "warm": 1, "steps": 1, "tiny": True}


def test_rates_by_hand() -> None:
    """Two steps of 2 and 3 seconds: 16 rows, 300 tokens and 5e12 operations in 5 seconds, of 2e12 a second."""
    found = job.rates([10.0, 12.0, 15.0], [100, 200], [1e12, 4e12], rows=8, flops=2e12)
    assert found == {
        "samples_per_second": 3.2,
        "tokens_per_second": 60.0,
        "tflops": 1.0,
        "mfu": 0.5,
        "seconds": [2.0, 3.0],
    }


def both(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], dict[str, Any]]:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # Trainer sets it, and it would stay
    case = CASES[name]
    ours = measure_sightline.measure(job.Job(case=name, settings=case.ours[0], flops=1e11, **CARD))
    keep = gpu.RECOMPUTE if case.theirs[0][1] else gpu.KEEP
    theirs = measure_trainer.measure(job.Job(case=name, settings=(keep,), at_once=2, flops=1e11, **CARD))
    return ours, theirs


@pytest.mark.parametrize("name", CASES)
def test_both_sides_do_the_same_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = both(name, monkeypatch)
    assert ours["targets"] == theirs["targets"] > 0
    assert ours["first_loss"] == pytest.approx(theirs["first_loss"], abs=1e-4)
    assert ours["layers_recomputed"] == (2 if gpu.RECOMPUTE in CASES[name].ours[0] else 0)
    if name in ("llava-7b-stage1", "phi3-mini-full"):  # no dropout, and one rate for all that learns
        assert ours["last_loss"] == pytest.approx(theirs["last_loss"], abs=1e-4)
        assert ours["last_loss"] != pytest.approx(ours["first_loss"], abs=1e-4)
    for facts in (ours, theirs):
        assert facts["tokens_per_second"] > facts["samples_per_second"] > 0
        assert facts["mfu"] * 1e11 == pytest.approx(facts["tflops"] * 1e12, rel=0.1)
        assert facts["peak_gib"] > 0


def test_what_is_counted_is_what_is_computed() -> None:
    """Operations against torch's counter, which does not know the CPU's attention: so both without."""
    from torch.utils.flop_counter import FlopCounterMode

    world = built.build(job.Job(case="phi3-mini-full", settings=(gpu.KEEP,), **CARD))
    engine = measure_sightline.Engine(world.vlm, world.groups, world.recipe)
    rows = [row for row in world.rows if row.pixels is not None][:4]
    batches = [measure_sightline.collated(rows, world.vlm.prompter)]
    with FlopCounterMode(display=False) as counter:
        measure_sightline.one_step(world, engine, batches)
    without = replace(world, cost=replace(world.cost, per_pair=()))
    assert without.operations_of(rows) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_without_packing_each_row_is_a_pack() -> None:
    world = built.build(job.Job(case="llava-7b-lora", **CARD))
    packed = measure_sightline.steps(world, job.Job(case="llava-7b-lora", **CARD), pin=False)
    alone = measure_sightline.steps(world, job.Job(case="llava-7b-lora", without=("packing",), **CARD), pin=False)
    assert [len(batches) for batches in alone] == [4, 4]
    assert sum(map(len, packed)) < 8


def test_as_many_layers_are_computed_twice_as_the_card_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the forecast is asked, as `train` asks it: with the rows at hand, and what there is room for."""
    told = job.Job(case="llava-7b-lora", settings=("batch.pack_tokens=8192",), **CARD)
    world = built.build(told)
    asked: dict[str, Any] = {}

    def forecast(recipe: Any, rows: Any, layers: int, **named: Any) -> int:
        asked.update(named, layers=layers, tokens=rows.mean("tokens"), images=rows.mean("images"), count_=rows.count)
        return 1

    monkeypatch.setattr(measure_sightline, "layers_recomputed", forecast)
    assert measure_sightline.recomputed(world, told) == 0 and not asked  # a CPU keeps all
    monkeypatch.setattr(measure_sightline, "room_on", lambda _: 72.0 * 2**30)
    assert measure_sightline.recomputed(world, told) == 1
    tokens = sum(len(row.encoded.ids) for row in world.rows) / 8
    assert asked["tokens"] == pytest.approx(tokens) and asked["count_"] == 8 and asked["layers"] == 2
    assert asked["room"] == 72 * 2**30 and asked["count"] == 1 and 0 < asked["images"] <= 1
    measure_sightline.recomputed(world, replace(told, limit_gib=50))
    assert asked["room"] == pytest.approx(46 * 2**30)


def test_where_a_forecast_fails_all_layers_are_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `train`: versions differ in what they can follow without numbers, and a measurement shall not end by it."""
    told = job.Job(case="llava-7b-lora", **CARD)
    world = built.build(told)

    def forecast(*_: Any, **__: Any) -> int:
        raise RuntimeError("no fake kernel")

    monkeypatch.setattr(measure_sightline, "layers_recomputed", forecast)
    monkeypatch.setattr(measure_sightline, "room_on", lambda _: 72.0 * 2**30)
    assert measure_sightline.recomputed(world, told) == 2


def test_weights_in_bfloat16_alone_with_8_bit_adamw() -> None:
    """`--set` on the case that learns in full: the smallest that Sightline has."""
    settings = ("engine.pure_bf16=true", "optim.optimizer=adamw_8bit")
    card = CARD | {"dtype": "bfloat16"}
    whole, low = (measure_sightline.measure(job.Job(case="phi3-mini-full", settings=s, **card)) for s in ((), settings))
    assert low["first_loss"] == pytest.approx(whole["first_loss"], rel=5e-3)
    assert low["last_loss"] < low["first_loss"]
    args = gpu.parsed(["--cases", "phi3-mini-full", "--set", *settings])
    assert all(told["settings"][-2:] == [*settings] for _, told in gpu.attempts("sightline", "phi3-mini-full", args))


def test_the_other_trainer_keeps_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which copies keys and values: no work of training."""
    from transformers.cache_utils import DynamicCache

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(DynamicCache, "__init__", lambda *_, **__: pytest.fail("a cache is made"))
    measure_trainer.measure(job.Job(case="phi3-mini-full", settings=(gpu.KEEP,), at_once=2, **CARD))


def at_full_size(name: str) -> Any:
    return job.Job(case=name, device="cpu", dtype="bfloat16", warm=1, steps=1).recipe


def test_rows_are_the_same_each_time_and_as_long_as_real_ones() -> None:
    """A LLaVA-1.5 at full size: 576 features a picture; text alone is about a sixteenth of the mixture."""
    model, tiles = built.blank(
        job.Job(case="llava-7b-lora", device="cpu", dtype="bfloat16", warm=1, steps=1).recipe, tiny=False
    )
    prompter = built.prompter_for(model.config, tiles)
    one, other = (draw_rows("mixture", 128, prompter, model.config.image_token_index, 28, 2048) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert (a.encoded.ids == b.encoded.ids).all() and (a.encoded.labels == b.encoded.labels).all()
    places = [int((row.encoded.ids == prompter.image_token_id).sum()) for row in one]
    assert set(places) == {0, 576}
    assert [count == 0 for count in places] == [row.pixels is None for row in one]
    assert 2 <= places.count(0) <= 16
    assert 700 < sum(len(row.encoded.ids) for row in one) / 128 < 1000


def test_parameters_at_full_size() -> None:
    """As published: 7.06 G of LLaVA-1.5-7B, 8.03 G of Llama-3-8B, 3.82 G of Phi-3-mini."""
    sizes = {"llava-7b-lora": 7.06, "llama3-8b-qlora": 8.03 + 0.33, "phi3-mini-full": 3.82 + 0.32, "next-7b-lora": 7.06}
    for name, size in sizes.items():
        model, _ = built.blank(at_full_size(name), tiny=False)
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(size, rel=0.01), name


def test_layers_of_4_bits_are_those_of_a_run() -> None:
    """Layer by layer on the device, and as `quantize` does it: the same modules."""
    world = built.build(job.Job(case="llama3-8b-4bit-stage1", **CARD))
    kinds = {n: type(m).__name__ for n, m in world.vlm.model.named_modules() if isinstance(m, torch.nn.Linear)}
    four = {name for name, kind in kinds.items() if kind == "Linear4bit"}
    assert four == {name for name in kinds if ".language_model.layers." in name} and len(four) == 2 * 7


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("old", [False, True])
def test_varlen_gets_what_its_kernel_takes(window: int | None, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torch's kernel, as torch 2.13 and 2.11 declare it, checks its arguments and computes plainly."""
    lengths, heads, groups, width = (3, 1, 9), 4, 2, 16

    def plain(
        q: Any, k: Any, v: Any, at: Any, also_at: Any, longest: int, also: int, *, scale: Any, window_size: Any
    ) -> Any:
        assert q.shape == (13, heads, width) and k.shape == v.shape == (13, groups, width)
        assert at.dtype == torch.int32 and at.tolist() == also_at.tolist() == [0, 3, 4, 13]
        assert longest == also == 9 and type(longest) is int
        assert window_size == ((-1, 0) if window is None else (window - 1, 0))
        pieces = []
        for start, end in zip(at.tolist(), at.tolist()[1:], strict=False):
            size = end - start
            seen = torch.ones(size, size, dtype=torch.bool).tril().triu(-window_size[0] if window else -size)
            one = [tensor[start:end].transpose(0, 1)[None] for tensor in (q, k, v)]
            pieces.append(scaled_dot_product_attention(*one, attn_mask=seen, scale=scale, enable_gqa=True))
        return torch.cat(pieces, dim=2)[0].transpose(0, 1)

    def newer(*args: Any, enable_gqa: bool = False, **named: Any) -> Any:
        assert enable_gqa
        return plain(*args, **named)

    monkeypatch.setattr(older.varlen, "varlen_attn", plain if old else newer)
    older.adapt()
    q, k, v = (torch.randn(1, count, 13, width, dtype=torch.bfloat16) for count in (heads, groups, groups))
    found = _varlen(q, k, v, lengths, 0.3, window)
    monkeypatch.setattr("sightline.model.attention.look", lambda: ())
    expected, _ = measure_sightline.attention._attend(
        torch.nn.Module(), q, k, v, None, sample_lengths=lengths, scaling=0.3, sliding_window=window
    )
    assert found.shape == (1, 13, heads, width)
    torch.testing.assert_close(found, expected)


def test_memory_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 4 * 2**30)
    assert job.memory(torch.device("cuda")) == {"peak_gib": 3.0, "reserved_gib": 4.0}
