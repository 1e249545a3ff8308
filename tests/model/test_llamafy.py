"""InternLM, InternLM2 and Phi-3 as Llamas: the logits of the originals, in whatever files they come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import llama_like
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from sightline.errors import ModelError
from sightline.model.llamafy import llamafy, window_note

IDS = torch.tensor([5, 17, 301, 42, 42, 9, 555, 3, 88, 120, 7])


def with_tokenizer(folder: Path) -> Path:
    import tiny

    tiny.make_tokenizer("first").backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def original(
    folder: Path, kind: str, *, files: int = 1, form: str = "safetensors", **changes: Any
) -> llama_like.Tensors:
    settings = llama_like.config(kind, **changes)
    tensors = llama_like.internlm2(settings) if kind == "internlm2" else llama_like.internlm(settings)
    with_tokenizer(llama_like.write(folder, settings, tensors, files=files, form=form))
    return tensors


def logits(folder: Path, ids: torch.Tensor = IDS) -> torch.Tensor:
    model, report = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        result: torch.Tensor = model(ids[None]).logits[0]
    return result


@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": True}, {"num_key_value_heads": 1}, {"num_key_value_heads": 4}, {"rope_theta": 1e6}],
    ids=["grouped", "biased", "one-group", "no-groups", "theta"],
)
def test_internlm2_as_its_published_architecture(tmp_path: Path, changes: dict[str, Any]) -> None:
    tensors = original(tmp_path / "in", "internlm2", **changes)
    llamafy(tmp_path / "in", tmp_path / "out")
    settings = llama_like.config("internlm2", **changes)
    wanted = llama_like.internlm2_logits(tensors, IDS, settings, settings["rope_theta"])
    assert wanted.abs().max() > 1
    torch.testing.assert_close(logits(tmp_path / "out"), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_internlm_as_its_published_architecture(tmp_path: Path, bias: bool) -> None:
    tensors = original(tmp_path / "in", "internlm", bias=bias)
    llamafy(tmp_path / "in", tmp_path / "out")
    torch.testing.assert_close(
        logits(tmp_path / "out"), llama_like.internlm_logits(tensors, IDS, 10000.0), rtol=1e-5, atol=1e-5
    )


def test_positions_beyond_the_trained_ones(tmp_path: Path) -> None:
    """Both stretch the base of their ropes by the length: base * (factor * length / 64 - factor + 1)^(d / (d - 2))."""
    ids = torch.arange(3, 103)
    width = llama_like.HEAD
    for kind, changes, factor in (
        ("internlm", {"rotary": {"type": "dynamic", "base": 10000}}, 1.0),
        ("internlm2", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 2.0),
    ):
        tensors = original(tmp_path / kind, kind, **changes)
        llamafy(tmp_path / kind, tmp_path / f"{kind}-llama")
        base = 10000.0 * (factor * 100 / 64 - (factor - 1)) ** (width / (width - 2))
        settings = llama_like.config(kind)
        if kind == "internlm":
            wanted = llama_like.internlm_logits(tensors, ids, base)
        else:
            wanted = llama_like.internlm2_logits(tensors, ids, settings, base)
        torch.testing.assert_close(logits(tmp_path / f"{kind}-llama", ids), wanted, rtol=1e-4, atol=1e-4)


LONG = {**families.LONG, "original_max_position_embeddings": 64}
PHI3: dict[str, dict[str, Any]] = {
    "mini": {},
    "grouped": families.GROUPED,
    "window": families.WINDOW,
    "long": {"rope_parameters": LONG, "original_max_position_embeddings": 64, "max_position_embeddings": 256},
    "tied": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("name", PHI3)
def test_phi3_as_transformers_own(tmp_path: Path, name: str) -> None:
    families.make_family(tmp_path / "in", {"model_type": "phi3", "vocab_size": 560, "pad_token_id": 0, **PHI3[name]})
    llamafy(tmp_path / "in", tmp_path / "out")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "in")
    lengths = (9,) if name == "window" else (11, 64) if name != "long" else (11, 64, 65, 100)
    for length in lengths:
        ids = torch.arange(length) % 500 + 3
        with torch.no_grad():
            wanted = theirs(ids[None], use_cache=False).logits[0]
        torch.testing.assert_close(logits(tmp_path / "out", ids), wanted, rtol=1e-5, atol=1e-5)


def test_beyond_its_window_phi3_is_no_llama_and_that_is_said(tmp_path: Path) -> None:
    families.make_family(
        tmp_path / "in", {"model_type": "phi3", "vocab_size": 560, "pad_token_id": 0, **families.WINDOW}
    )
    llamafy(tmp_path / "in", tmp_path / "out")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "in")
    ids = torch.arange(3, 13)
    with torch.no_grad():
        wanted = theirs(ids[None], use_cache=False).logits[0]
    ours = logits(tmp_path / "out", ids)
    torch.testing.assert_close(ours[:9], wanted[:9], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours[9], wanted[9], atol=1e-3)
    config = json.loads((tmp_path / "in" / "config.json").read_text(encoding="utf-8"))
    assert window_note(config).startswith("equal up to 9 tokens")
    assert window_note({**config, "sliding_window": None}) == ""


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_shard_by_shard(tmp_path: Path, form: str) -> None:
    original(tmp_path / "in", "internlm2", files=3, form=form)
    original(tmp_path / "whole", "internlm2")
    llamafy(tmp_path / "in", tmp_path / "out", max_shard_size=50_000)
    llamafy(tmp_path / "whole", tmp_path / "one")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            assert file.stat().st_size < 60_000 or len(list(tensors.keys())) == 1
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "one"))


def test_the_number_format_stays(tmp_path: Path) -> None:
    settings = llama_like.config("internlm2", torch_dtype="bfloat16")
    tensors = {name: tensor.bfloat16() for name, tensor in llama_like.internlm2(settings).items()}
    with_tokenizer(llama_like.write(tmp_path / "in", settings, tensors))
    llamafy(tmp_path / "in", tmp_path / "out")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16


def without(name: str, tensors: llama_like.Tensors) -> llama_like.Tensors:
    return {key: tensor for key, tensor in tensors.items() if name not in key}


def test_what_is_refused(tmp_path: Path) -> None:
    settings = llama_like.config("internlm2")
    tensors = llama_like.internlm2(settings)
    wide = {**tensors, "model.norm.weight": torch.zeros(7)}
    cases: dict[str, tuple[dict[str, Any], llama_like.Tensors, str]] = {
        "missing": (
            settings,
            without("layers.1.attention.wo", tensors),
            "1 tensors are missing, such as model.layers.1",
        ),
        "more": (settings, {**tensors, "v_head.weight": torch.zeros(1)}, "v_head.weight [1] has no place"),
        "shape": (settings, wide, "model.norm.weight [7] has no place"),
        "reward": ({**settings, "architectures": ["InternLM2ForRewardModel"]}, tensors, "not a language model"),
        "other": ({**settings, "model_type": "llama"}, tensors, "InternLM, InternLM2 and Phi-3 become Llamas"),
        "partial": (
            {**settings, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.75},
            tensors,
            "only 75% of each head",
        ),
        "endless": ({**settings, "num_hidden_layers": 10**7}, tensors, "--raise-limit layers=10000000"),
        "empty": (settings, {}, "has no weights"),
    }
    for name, (config, weights, words) in cases.items():
        folder = with_tokenizer(llama_like.write(tmp_path / name, config, weights or {"x": torch.zeros(1)}))
        if not weights:
            (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError) as error:
            llamafy(folder, tmp_path / f"{name}-out")
        assert words in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / f"{name}-out").exists()
    (tmp_path / "empty" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        llamafy(tmp_path / "empty", tmp_path / "out", weights=False)


def test_a_folder_without_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config.json"):
        llamafy(tmp_path, tmp_path / "out")


def test_phi3_keeps_its_tokenizer(tmp_path: Path) -> None:
    families.make_family(tmp_path / "in", {"model_type": "phi3", "vocab_size": 560, "pad_token_id": 0})
    llamafy(tmp_path / "in", tmp_path / "out")
    text = "What colour is this?\n"
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / name)(text)["input_ids"] for name in ("out", "in"))
    assert ours == theirs and len(ours) > 4
