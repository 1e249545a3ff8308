"""A folder that is a model loads as it is; one that is none is named in a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prompters import seen
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from sightline.errors import MissingExtra, ModelError
from sightline.model.assemble import assemble, make_prompter
from sightline.model.load import VLM, load, load_parts, positions
from sightline.model.save import save
from sightline.model.vision import tokens_per_image
from sightline.recipe import ModelRecipe
from sightline.types import ImageRef, ask

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny.make_data(folder, rows=2)
    llm, tower = tiny.make_llm(folder / "llm", num_hidden_layers=1), tiny.make_tower(folder / "tower")
    spec = ModelRecipe(llm=str(llm), vision_tower=str(tower))
    torch.manual_seed(0)
    vlm = assemble(spec, make_prompter(spec))
    save(vlm, folder / "sharded", max_shard_size="150KB")
    return save(vlm, folder / "saved")


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def settings(name: str, **values: Any) -> Change:
    def rewrite(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        for key, value in values.items():
            (content["text_config"] if key == "text" else content).update(value if key == "text" else {key: value})
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return rewrite


def cut(name: str, to: float = 0.5) -> Change:
    def shorten(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * to)])

    return shorten


Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"
BROKEN: dict[str, tuple[Change, str]] = {
    "gone": (shutil.rmtree, "no model folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "is not a model folder: it has no config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    "no image processor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "image processor"),
    "config cut": (cut("config.json"), "not a valid JSON file"),
    "config empty": (cut("config.json", 0), "not a valid JSON file"),
    "tokenizer cut": (cut("tokenizer.json"), "cannot load"),
    "processor cut": (cut("preprocessor_config.json"), "cannot load"),
    "weights cut": (cut("model.safetensors"), "the weights in"),
    "weights cut a little": (cut("model.safetensors", 0.99), "are damaged"),
    "weights empty": (cut("model.safetensors", 0), "are damaged"),
    "no such class": (settings("config.json", model_type="unheard_of"), "unheard_of"),
    "another model": (settings("config.json", model_type="vipllava"), "'vipllava' model, not a LLaVA model"),
    "wrong type": (settings("config.json", text={"hidden_size": "wide"}), "hidden_size"),
    "missing": (weights(lambda tensors: tensors.pop(Q_PROJ)), "1 missing, such as model.language_model.layers.0"),
    "unexpected": (weights(lambda tensors: tensors.update(extra=torch.zeros(1))), "1 unexpected, such as extra"),
    "no projector": (
        weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if "projector" in name]),
        "4 missing, such as model.multi_modal_projector.linear_1.bias",
    ),
    "another shape": (
        weights(lambda tensors: tensors.update({Q_PROJ: torch.zeros(64, 32)})),
        "q_proj.weight, [64, 32] in the file and [64, 64] in the model",
    ),
    "two layers": (settings("config.json", text={"num_hidden_layers": 2}), "9 missing"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_model_is_named(saved: Path, tmp_path: Path, kind: str) -> None:
    change, words = BROKEN[kind]
    folder = shutil.copytree(saved, tmp_path / "model")
    change(folder)
    with pytest.raises(ModelError) as error:
        load(folder, device="cpu")
    message = str(error.value)
    assert words in message and str(folder) in message and "\n" not in message


@pytest.mark.parametrize("change", ["missing", "cut"])
def test_a_shard_that_is_missing_or_cut(saved: Path, tmp_path: Path, change: str) -> None:
    folder = shutil.copytree(saved.parent / "sharded", tmp_path / "model")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    if change == "cut":
        cut(shard.name)(folder)
    else:
        shard.unlink()
    with pytest.raises(ModelError) as error:
        load(folder, device="cpu")
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_run_is_its_finished_model(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"it has no config\.json; this run is not finished: .*sightline convert"):
        load(tmp_path / "run", device="cpu")
    shutil.copytree(saved, tmp_path / "run" / "hf")
    capsys.readouterr()
    vlm, wanted = load(tmp_path / "run", device="cpu"), load(saved, device="cpu")
    assert capsys.readouterr().err == f"{tmp_path / 'run'} is a run; its model is {tmp_path / 'run' / 'hf'}\n"
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*map(_tensors, (vlm, wanted)), strict=True))
    assert vlm.prompter.template == wanted.prompter.template


def _tensors(vlm: VLM) -> list[torch.Tensor]:
    return list(vlm.model.state_dict().values())


PLAIN = {"max_position_embeddings": 4096}
STRETCHED: dict[str, tuple[dict[str, Any], int | None]] = {
    "plain": (PLAIN, 4096),
    "Vicuna-16k": (PLAIN | {"rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
    "Llama-3.1": (
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        131072,
    ),
    "Qwen2.5 with YaRN": (
        {
            "max_position_embeddings": 32768,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
        131072,
    ),
    "Phi-3-128k": (
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 4096,
            },
        },
        131072,
    ),
    "InternLM2": (PLAIN | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, None),
}
"""What stands in their config.json, and how long a text may be: as their model cards say; a dynamic rope has no end."""


@pytest.mark.parametrize("kind", STRETCHED)
def test_positions_of_stretched_models(tmp_path: Path, kind: str) -> None:
    written, wanted = STRETCHED[kind]
    sizes = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(sizes | written), encoding="utf-8")
    assert positions(AutoConfig.from_pretrained(tmp_path)) == wanted


def test_positions_of_other_kinds() -> None:
    assert positions(AutoConfig.for_model("gpt2")) == 1024  # under a name of its own
    assert positions(AutoConfig.for_model("bloom")) is None  # ALiBi has no positions
    assert positions(AutoConfig.for_model("gemma3_text")) == 131072  # a rope for each kind of layer


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/at/all", "/nowhere", "~/nowhere"])
def test_names_that_are_no_folders(name: str) -> None:
    with pytest.raises(ModelError) as error:
        load(name, device="cpu")
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_file_is_no_folder(saved: Path) -> None:
    with pytest.raises(ModelError, match="is a file, not a model folder"):
        load(saved / "model.safetensors", device="cpu")


def test_the_parts_of_another_kind_of_model(saved: Path) -> None:
    for name, kind in (("llm", "llama"), ("tower", "clip_vision_model")):
        with pytest.raises(ModelError, match=f"is a '{kind}' model, not a LLaVA model"):
            load_parts(saved.parent / name)


def test_an_unknown_template(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"^unknown prompt template 'vicuno'; nearest: vicuna, "):
        load(saved, device="cpu", template="vicuno")


@pytest.mark.parametrize("bits", [4, 8])
def test_bits_need_a_package(saved: Path, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra, match=rf"--bits {bits} needs the package 'bitsandbytes'"):
        load(saved, device="cpu", bits=bits)


def test_what_a_model_is(saved: Path) -> None:
    vlm = load(saved, device="cpu")
    assert not vlm.model.training and vlm.device == torch.device("cpu")
    assert {parameter.dtype for parameter in vlm.model.parameters()} == {torch.float32}
    assert vlm.prompter.tokens_per_image == 16 and vlm.prompter.template.name == "vicuna"
    assert load(saved, device="cpu", template="plain").prompter.template.name == "plain"
    assert load(saved, device="cpu", dtype="bf16").model.dtype == torch.bfloat16


def test_the_vision_tower_makes_as_many_features_as_are_counted(saved: Path) -> None:
    vlm = load(saved, device="cpu")
    picture = ImageRef(str(saved.parent / "images" / "0_0.jpg"))
    model: Any = vlm.model
    for strategy, count in (("default", 16), ("full", 17)):
        model.config.vision_feature_select_strategy = strategy
        assert tokens_per_image(model.config) == count
        pixels = seen(vlm.prompter, [picture])
        features = model.get_image_features(pixel_values=pixels, vision_feature_select_strategy=strategy).pooler_output
        assert torch.cat(tuple(features)).shape[-2:] == (count, 64)


def test_pixels_do_not_depend_on_torchvision(saved: Path) -> None:
    prompter = load(saved, device="cpu").prompter
    assert type(prompter.image_processor).__name__.endswith("Pil")
    encoded = prompter.encode([ask("?", [ImageRef(str(saved.parent / "images" / "0_0.jpg"))])])
    assert int((encoded.ids == prompter.image_token_id).sum()) == 16
