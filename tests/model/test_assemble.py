"""A language model and a vision tower become one model, bit for bit; what does not fit is said in a line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from assembled import PROJECTOR, projector, put_together, refusal, same, spec
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CLIPVisionModel

from sightline.recipe import load_recipe
from sightline.train.loop import train


def test_the_parts_are_those_of_the_files(world: Path) -> None:
    vlm = put_together(spec(world))
    theirs = load_file(world / "llm" / "model.safetensors")
    ours: dict[str, Any] = vlm.model.state_dict()
    rows = theirs["lm_head.weight"].shape[0]
    for name, tensor in theirs.items():
        mine = ours[name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)]
        assert torch.equal(mine[:rows] if tensor.shape[0] == rows else mine, tensor), name
    tower: dict[str, Any] = vlm.model.model.vision_tower.state_dict()
    kept = CLIPVisionModel.from_pretrained(world / "tower").state_dict()
    assert same(tower, kept) and len(kept) > 50
    assert not vlm.model.training


def test_it_speaks_as_the_language_model_alone(world: Path) -> None:
    vlm = put_together(spec(world))
    llm: Any = AutoModelForCausalLM.from_pretrained(world / "llm")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours, theirs = vlm.model(input_ids=ids).logits, llm(input_ids=ids).logits
    torch.testing.assert_close(ours[..., : theirs.shape[-1]], theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_the_mean_of_the_old(world: Path, tmp_path: Path, tied: bool) -> None:
    llm = tiny.make_llm(tmp_path / "llm", tie_word_embeddings=tied)
    vlm = put_together(spec(world, llm=llm))
    old = load_file(llm / "model.safetensors")
    count = old["model.embed_tokens.weight"].shape[0]
    tokenizer = vlm.prompter.tokenizer
    assert len(tokenizer) == count + 2 and vlm.prompter.image_token_id == count
    assert tokenizer.convert_ids_to_tokens([count, count + 1]) == ["<image>", "<pad>"]
    for layer, name in (
        (vlm.model.get_input_embeddings(), "model.embed_tokens.weight"),
        (vlm.model.get_output_embeddings(), "model.embed_tokens.weight" if tied else "lm_head.weight"),
    ):
        weight = layer.weight
        assert weight.shape[0] == -(-(count + 2) // 64) * 64
        assert torch.equal(weight[:count], old[name])
        torch.testing.assert_close(weight[count:], old[name].mean(0).expand(len(weight) - count, -1))
    assert (vlm.model.lm_head.weight is vlm.model.get_input_embeddings().weight) == tied
    text = vlm.model.config.text_config
    assert text.vocab_size == weight.shape[0] and vlm.model.config.image_token_id == count
    assert vlm.model.config.tie_word_embeddings == text.tie_word_embeddings == tied


def test_the_mean_of_half_precision_is_made_in_full(world: Path, tmp_path: Path) -> None:
    llm = tiny.make_llm(tmp_path / "llm", initializer_range=0.5)
    model: Any = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.bfloat16)
    model.save_pretrained(llm)
    vlm = put_together(spec(world, llm=llm))
    weight = vlm.model.get_input_embeddings().weight
    assert weight.dtype == torch.bfloat16
    count = vlm.prompter.image_token_id
    assert torch.equal(weight[count], weight[:count].float().mean(0).to(torch.bfloat16))


def test_a_vocabulary_with_room_is_left_alone(world: Path, tmp_path: Path) -> None:
    llm = tiny.make_llm(tmp_path / "llm", vocab_size=601)
    vlm = put_together(spec(world, llm=llm))
    assert torch.equal(
        vlm.model.get_input_embeddings().weight, load_file(llm / "model.safetensors")["model.embed_tokens.weight"]
    )
    assert vlm.model.config.text_config.vocab_size == 601


def test_tokens_that_are_there_are_not_added(world: Path, tmp_path: Path) -> None:
    llm = tiny.make_llm(tmp_path / "llm")
    tokenizer = tiny.make_tokenizer(extra=("<image>",))
    tokenizer.pad_token = "<unk>"
    tokenizer.save_pretrained(llm)
    vlm = put_together(spec(world, llm=llm))
    assert len(vlm.prompter.tokenizer) == len(tokenizer)
    assert vlm.prompter.pad_token_id == tokenizer.unk_token_id == vlm.model.config.pad_token_id


def test_the_projector_is_drawn_from_the_seed(world: Path) -> None:
    first, again, other = (projector(put_together(spec(world), seed)) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)
    assert {name: list(tensor.shape) for name, tensor in first.items()} == {
        "linear_1.weight": [64, 32],
        "linear_1.bias": [64],
        "linear_2.weight": [64, 64],
        "linear_2.bias": [64],
    }


def without(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        del weights[next(found for found in sorted(weights) if name in found)]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def wider(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 100}), encoding="utf-8")


def missing(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def shallower(folder: Path) -> None:
    """One layer fewer than the files have: transformers by itself leaves the last one out."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fewer = {"num_hidden_layers": config["num_hidden_layers"] - 1}
    (folder / "config.json").write_text(json.dumps(config | fewer), encoding="utf-8")


class Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("run-by-a-pickle",)


def pickled(folder: Path) -> None:
    weights: dict[str, Any] = dict(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save(weights | {"command": Command()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize("part", ["llm", "vision_tower"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, "no model folder"),
        (missing("config.json"), "is not a model folder: it has no config.json"),
        (missing("model.safetensors"), "model.safetensors"),
        (written("config.json", "{"), "cannot load"),
        (written("config.json", "[]"), "cannot load"),
        (written("config.json", "{}"), "cannot load"),
        (written("config.json", '{"model_type": "unheard_of"}'), "unheard_of"),
        (cut, "are damaged"),
        (without("layer"), "1 missing, such as"),
        (wider, "in the file and ["),
        (shallower, "counts fewer layers ("),
        (pickled, "holds more than weights, and nothing in it is run"),
    ],
    ids=[
        "gone",
        "no-config",
        "no-weights",
        "broken",
        "list",
        "empty",
        "unknown",
        "cut",
        "missing",
        "wider",
        "fewer",
        "pickled",
    ],
)
def test_a_part_that_is_no_model(
    world: Path,
    tmp_path: Path,
    part: str,
    change: Callable[[Path], object],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(world / ("llm" if part == "llm" else "tower"), tmp_path / "part")
    change(folder)
    message = refusal(spec(world, **{part: folder}))
    assert words in message and str(folder) in message
    assert not Path("run-by-a-pickle").exists()


@pytest.mark.parametrize(
    ("part", "file", "changes", "words"),
    [
        ("tower", "config.json", {"patch_size": 0}, "patch_size 0, no number from 1"),
        ("tower", "config.json", {"image_size": 0}, "pictures of 0 px in patches of 14 px"),
        ("tower", "preprocessor_config.json", None, "cannot load"),
        ("llm", "tokenizer_config.json", None, "no object of JSON"),
        ("llm", "config.json", {"dtype": "int3"}, "int3"),
        ("llm", "config.json", {"hidden_act": "nosuch"}, "nosuch"),
    ],
)
def test_settings_that_make_no_sense(
    world: Path, tmp_path: Path, part: str, file: str, changes: dict[str, Any] | None, words: str
) -> None:
    folder = shutil.copytree(world / part, tmp_path / part)
    now = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps([] if changes is None else now | changes), encoding="utf-8")
    assert words in refusal(spec(world, **{"llm" if part == "llm" else "vision_tower": folder}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda world: {"llm": world / "tower"}, "is 'clip_vision_model', not a language model"),
        (lambda world: {"vision_tower": world / "llm"}, "is 'llama', not a vision tower that Sightline knows"),
        (lambda world: {"llm": world / "run" / "hf"}, "is 'llava', not a language model; to go on with a whole model"),
        (lambda world: {"llm": world / "run"}, "no config.json; the model of this run is in "),
        (lambda world: {"llm": world / "world"}, "no config.json"),
        (lambda world: {"llm": world / "recipe.yaml"}, "is a file, not a model folder"),
        (lambda world: {"projector_from": ""}, "model.projector_from: an empty name"),
        (lambda world: {"vision_tower": world / "run" / "hf"}, "is a whole model (llava); name the vision tower that"),
        (lambda world: {"vision_feature_layer": 4}, "has 3 layers, so choose 1 to 3, or -1 to -4"),
        (lambda world: {"vision_feature_layer": -5}, "has 3 layers, so choose 1 to 3, or -1 to -4"),
        (lambda world: {"vision_feature_layer": 0}, "has 3 layers, so choose 1 to 3, or -1 to -4"),
    ],
)
def test_parts_that_do_not_fit(world: Path, change: Callable[[Path], dict[str, Any]], words: str) -> None:
    assert words in refusal(spec(world, **change(world)))


def test_a_tokenizer_or_an_image_processor_that_is_missing(world: Path, tmp_path: Path) -> None:
    llm = shutil.copytree(world / "llm", tmp_path / "llm")
    (llm / "tokenizer.json").unlink()
    assert "tokenizer" in refusal(spec(world, llm=llm))
    tower = shutil.copytree(world / "tower", tmp_path / "tower")
    (tower / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in refusal(spec(world, vision_tower=tower))


def test_the_tower_of_a_whole_clip(world: Path, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    tower = CLIPVisionModel.from_pretrained(world / "tower")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=100, **sizes)
    clip: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=CLIPVisionConfig(**tower.config.to_dict())))
    clip.vision_model.load_state_dict(
        {name.removeprefix("vision_model."): tensor for name, tensor in tower.state_dict().items()}
    )
    shutil.copytree(world / "tower", tmp_path / "clip")
    clip.save_pretrained(tmp_path / "clip")
    ours = put_together(spec(world, vision_tower=tmp_path / "clip")).model.model.vision_tower.state_dict()
    assert same(ours, tower.state_dict())


def test_other_layers_of_the_tower_are_other_features(world: Path) -> None:
    picture = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    tower: Any = CLIPVisionModel.from_pretrained(world / "tower")
    with torch.no_grad():
        states = tower(picture, output_hidden_states=True).hidden_states
        for layer in (-1, -2, -4, 1, 3):
            model: Any = put_together(spec(world, vision_feature_layer=layer)).model
            features = model.get_image_features(pixel_values=picture).pooler_output
            wanted = model.model.multi_modal_projector(states[layer][:, 1:])
            torch.testing.assert_close(torch.cat(tuple(features)).view(wanted.shape), wanted, rtol=1e-5, atol=1e-6)


def test_a_whole_model_to_start_from(world: Path, tmp_path: Path) -> None:
    """The second stage from the exported model of the first."""
    exported = world / "run" / "hf"
    whole = spec(world, llm=None, vision_tower=None, from_model=exported)
    vlm = put_together(whole)
    by_its_run = put_together(spec(world, llm=None, vision_tower=None, from_model=world / "run"))
    assert same(by_its_run.model.state_dict(), vlm.model.state_dict())
    learned = load_file(exported / "model.safetensors")
    assert same(projector(vlm), {name: learned[f"multi_modal_projector.{name}"] for name in PROJECTOR})
    parts = put_together(spec(world, projector_from=exported))
    assert same(vlm.model.state_dict(), parts.model.state_dict())
    assert vlm.prompter.tokenizer.get_vocab() == parts.prompter.tokenizer.get_vocab()

    changes = [f"model.from_model={exported}", "model.llm=null", "model.vision_tower=null", "tune.llm=full"]
    two, joined = (
        train(load_recipe(str(world / "recipe.yaml"), [*how, "tune.llm=full", "optim.max_steps=3"]), tmp_path / name)
        for name, how in (("two", changes), ("joined", [f"model.projector_from={exported}"]))
    )
    courses = [
        [json.loads(line)["loss"] for line in (folder.parent / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        for folder in (two, joined)
    ]
    assert courses[0] == pytest.approx(courses[1], rel=1e-6)


def test_a_whole_model_that_is_none(world: Path) -> None:
    for folder, words in (
        ("llm", "is a 'llama' model, not a LLaVA model"),
        ("world", "no config.json"),
        ("nowhere", "no model folder"),
    ):
        assert words in refusal(spec(world, llm=None, vision_tower=None, from_model=world / folder))
