"""What is written for the official programs: fields as released, files that they read, and the same model read back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import exports
import official_files as made
import pytest
import tiny
import torch
from families import LLMS, make_family, make_tower
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

from sightline.convert import hf, official
from sightline.convert.source import Source
from sightline.errors import ModelError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.make_parts(tmp_path_factory.mktemp("world"))


def same_tensors(one: Source, other: Source) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        before, after = tensor.read(), other.tensors[name].read()
        assert before.dtype == after.dtype and torch.equal(before, after), name


CASES: dict[str, dict[str, Any]] = {
    "pad": {},
    "crop": {"image_aspect_ratio": "crop"},
    "next": {"next": True},
    "linear": {"projector_depth": 1},
    "other_layer": {"vision_feature_layer": -1},
    "other_template": {"template": "llava_llama_2", "system": "Be brief."},
}


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(world: Path, tmp_path: Path, case: str) -> None:
    before = hf.read(made.assembled(world, tmp_path / "hf", **CASES[case]))
    official.write(before, tmp_path / "official", max_shard_size="100KB")
    assert len(list((tmp_path / "official").glob("model-*.safetensors"))) > 1
    between = official.read(tmp_path / "official")
    same_tensors(before, between)
    hf.write(between, tmp_path / "back", max_shard_size="5GB")
    after = hf.read(tmp_path / "back")
    same_tensors(before, after)
    one, other = (json.loads((tmp_path / at / "config.json").read_text()) for at in ("hf", "back"))
    assert one == other
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "generation_config.json"):
        assert json_or_text(tmp_path / "hf" / name) == json_or_text(tmp_path / "back" / name), name
    assert before.prompter.template == after.prompter.template
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def json_or_text(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else text


@pytest.mark.parametrize("kind", ["v15", "v16"])
def test_official_files_come_back_as_they_were(world: Path, tmp_path: Path, kind: str) -> None:
    write = made.write_v15 if kind == "v15" else made.write_v16
    given = write(world, tmp_path / "llava-v1.5-7b")
    official.write(official.read(given), tmp_path / "again", max_shard_size="5GB")
    tensors = load_file(tmp_path / "again" / "model.safetensors")
    expected = made.llm_tensors(world) | made.projector_tensors()
    if kind == "v16":
        expected |= made.newline() | made.tower_tensors(world)
    expected = {name: tensor for name, tensor in expected.items() if not name.endswith("position_ids")}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    one, other = (json.loads((at / "config.json").read_text()) for at in (given, tmp_path / "again"))
    left_out = made.NOT_WRITTEN | {"torch_dtype", "mm_vision_tower_lr", "tokenizer_model_max_length"}
    assert {key: value for key, value in one.items() if key not in left_out} == {
        key: value for key, value in other.items() if key in one and key not in left_out
    }


def test_the_vision_tower_is_one_that_clients_load(world: Path, tmp_path: Path) -> None:
    """SGLang and the official code take it by CLIPVisionModel; LMDeploy looks for vision_config in its config.json."""
    source = hf.read(made.assembled(world, tmp_path / "hf"))
    official.write(source, tmp_path / "llava", max_shard_size="5GB")
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    tower = Path(config["mm_vision_tower"])
    assert tower.is_absolute() and tower.parent == tmp_path / "llava" and "clip" in str(tower)
    loaded, report = CLIPVisionModel.from_pretrained(tower, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    original = CLIPVisionModel.from_pretrained(world / "tower")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), original.parameters(), strict=True))
    assert AutoConfig.from_pretrained(tower).vision_config.image_size == 56
    assert CLIPVisionConfig.from_pretrained(tower).patch_size == 14
    names = load_file(tower / "model.safetensors").keys()
    assert all(name.startswith("vision_model.") for name in names)
    for place in (tower, tmp_path / "llava"):
        processor = CLIPImageProcessor.from_pretrained(place)
        assert processor.crop_size["height"] == 56 and processor.size["shortest_edge"] == 56
    assert not any("vision_tower" in name for name in load_file(tmp_path / "llava" / "model.safetensors"))


def test_the_tokenizer_is_the_language_models(world: Path, tmp_path: Path) -> None:
    """The official code resizes the embeddings to len(tokenizer): a token too many would be a random row."""
    source = hf.read(made.assembled(world, tmp_path / "hf"))
    official.write(source, tmp_path / "llava", max_shard_size="5GB")
    own, before = (PreTrainedTokenizerFast.from_pretrained(at) for at in (tmp_path / "llava", world / "llm"))
    assert own.get_vocab() == before.get_vocab()
    assert own.pad_token is None and own.bos_token == "<s>"
    text = "What colour is this square?\nUSER: 12 ▁ñ</s>é"
    assert own(text)["input_ids"] == [1, *before(text)["input_ids"]]  # the official code has the tokenizer begin
    # tokenizers 0.15, which the official code is pinned to, reads no other form.
    merges = json.loads((tmp_path / "llava" / "tokenizer.json").read_text())["model"]["merges"]
    assert merges and all(isinstance(pair, str) for pair in merges)
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    generation = json.loads((tmp_path / "llava" / "generation_config.json").read_text())
    assert config["vocab_size"] == len(before)
    assert generation.get("pad_token_id") is None and generation["eos_token_id"] == [before.eos_token_id]


def test_rows_that_were_there_before_stay(tmp_path: Path) -> None:
    """As Qwen's, which has more rows than tokens; and Phi-3's, where their number tells nothing."""
    tokens = len(tiny.make_tokenizer("legacy"))
    for rows in (tokens + 200, -(-(tokens + 2) // 64) * 64):
        world = made.make_parts(tmp_path / str(rows), vocab_size=rows)
        source = hf.read(made.assembled(world, world / "hf"))
        official.write(source, world / "llava", max_shard_size="5GB")
        assert json.loads((world / "llava" / "config.json").read_text())["vocab_size"] == rows
        assert len(PreTrainedTokenizerFast.from_pretrained(world / "llava")) == tokens
        same_tensors(source, official.read(world / "llava"))


def test_a_language_model_with_a_tied_head(tmp_path: Path) -> None:
    world = made.make_parts(tmp_path / "world", tie_word_embeddings=True)
    source = hf.read(made.assembled(world, tmp_path / "hf"))
    official.write(source, tmp_path / "llava", max_shard_size="5GB")
    assert "lm_head.weight" not in load_file(tmp_path / "llava" / "model.safetensors")
    same_tensors(source, official.read(tmp_path / "llava"))


def test_a_stretched_rope(tmp_path: Path) -> None:
    world = made.make_parts(tmp_path / "world", rope_parameters={**exports.ROPE, "rope_theta": 5e5})
    source = hf.read(made.assembled(world, tmp_path / "hf"))
    official.write(source, tmp_path / "llava", max_shard_size="5GB")
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["rope_theta"] == 5e5 and config["rope_scaling"]["factor"] == 8.0
    again = official.read(tmp_path / "llava").config.text_config
    assert again.rope_parameters == source.config.text_config.rope_parameters


def test_the_sentencepiece_model_comes_along(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is beside the tokenizer and has the same tokens; else it is said that there is none."""
    golden = Path(__file__).parents[1] / "model" / "sentencepiece.json"
    model = base64.b64decode(json.loads(golden.read_text())["internlm"]["model"])
    folder = made.assembled(world, tmp_path / "hf")
    (folder / "tokenizer.model").write_bytes(model)
    official.write(hf.read(folder), tmp_path / "other", max_shard_size="5GB")
    assert not (tmp_path / "other" / "tokenizer.model").exists()
    assert "no tokenizer.model is beside" in capsys.readouterr().err

    from sightline.model.llama_tokenizer import rebuilt

    own = made.make_parts(tmp_path / "own")
    (own / "llm" / "tokenizer.model").write_bytes(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (own / "llm" / name).unlink()
    tokenizer = rebuilt(own / "llm")
    tokenizer.save_pretrained(own / "llm")
    folder = tiny.make_llm(own / "llm", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    (own / "llm" / "special_tokens_map.json").unlink(missing_ok=True)
    source = hf.read(made.assembled(own, own / "hf"))
    (own / "hf" / "tokenizer.model").write_bytes(model)
    official.write(source, own / "llava", max_shard_size="5GB")
    assert (own / "llava" / "tokenizer.model").read_bytes() == model
    settings = json.loads((own / "llava" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "LlamaTokenizer"
    assert "<image>" not in {token["content"] for token in settings["added_tokens_decoder"].values()}
    assert official.read(own / "llava").prompter.tokenizer.get_vocab() == source.prompter.tokenizer.get_vocab()


def test_what_the_official_programs_do_not_know_is_refused(world: Path, tmp_path: Path) -> None:
    siglip = {"vision_tower": str(make_tower(tmp_path / "siglip", "siglip"))}
    source = hf.read(made.assembled(world, tmp_path / "hf", **siglip))
    with pytest.raises(ModelError, match=r"siglip_vision_model as vision tower.*; choose huggingface"):
        official.write(source, tmp_path / "llava", max_shard_size="5GB")
    neox = str(make_family(tmp_path / "neox", LLMS["gpt_neox"]))
    source = hf.read(made.assembled(world, tmp_path / "hf_neox", llm=neox))
    with pytest.raises(ModelError, match="gpt_neox as language model"):
        official.write(source, tmp_path / "llava", max_shard_size="5GB")
    source = hf.read(made.assembled(world, tmp_path / "plain"))
    source.config.projector_hidden_act = "relu"
    with pytest.raises(ModelError, match="2 layers with relu"):
        official.write(source, tmp_path / "llava", max_shard_size="5GB")
    assert not (tmp_path / "llava").exists()
