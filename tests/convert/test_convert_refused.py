"""What is damaged, ambiguous or of another model ends `convert` in one line, and leaves nothing behind."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from runs import contents
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sightline import cli
from sightline.model.assemble import assemble, make_prompter
from sightline.model.save import save
from sightline.recipe import ModelRecipe, load_recipe
from sightline.train.loop import train

LORA = {"r": 4, "alpha": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a run with adapters, the run, and the same model in many files (`sharded`)."""
    folder = tmp_path_factory.mktemp("world")
    tune = {"llm": "lora", "llm_lora": LORA, "vision_tower": "lora", "vision_lora": LORA}
    recipe = tiny.write_recipe(folder, tune=tune, optim={"lr": 0.01, "max_steps": 2})
    train(load_recipe(str(recipe), []), folder / "run")
    assert cli.main(["convert", str(folder / "run"), str(folder / "sharded"), "--max-shard-size", "60KB"]) == 0
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out"


def convert(*words: str | Path) -> int:
    return cli.main(["convert", *map(str, words)])


def refusal(capsys: pytest.CaptureFixture[str], out: Path, *words: str | Path) -> str:
    """The one line that a conversion to `out` ends in; nothing is left of it."""
    capsys.readouterr()
    code = convert(*words, out)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(said) == 1
    assert not out.parent.exists() or list(out.parent.iterdir()) == []
    return said[0]


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "in"))


def changed_config(world: Path, tmp_path: Path, **changes: Any) -> Path:
    folder = copied(world / "run" / "hf", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"projector_hidden_act": "none"}, "describes no model that can be built"),
        ({"projector_depth": "two"}, "projector_depth 'two', no number from 1 to 4"),
        ({"vision_feature_layer": 7}, "has 3 layers, and vision_feature_layer is 7"),
        ({"image_token_index": 5}, "<image> is 5 in config.json"),
    ],
)
def test_a_configuration_that_does_not_fit(
    world: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(capsys, out, changed_config(world, tmp_path, **changes))


@pytest.mark.parametrize("content", [b"[]", b"5", b"null", b"[" * 100_000, b"\xff\x00", b""])
def test_a_configuration_that_is_none(
    world: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    folder = copied(world / "run" / "hf", tmp_path)
    (folder / "config.json").write_bytes(content)
    assert f"{folder / 'config.json'} is damaged" in refusal(capsys, out, folder)


def test_the_index_says_whose_a_tensor_is(world: Path, tmp_path: Path, out: Path) -> None:
    folder = copied(world / "sharded", tmp_path)
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    theirs = load_file(second)
    old = {name: tensor + 1 for name, tensor in theirs.items()}
    save_file(load_file(first) | old, first)
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    save_file(load_file(last) | old, last)
    assert convert(folder, out) == 0
    found, wanted = (load_file(place / "model.safetensors") for place in (out, world / "run" / "hf"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_files_of_two_models(world: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(world / "sharded", tmp_path)
    (folder / "model.safetensors.index.json").unlink()
    first = sorted(folder.glob("model-*.safetensors"))[0]
    save_file(load_file(first), folder / "model_old.safetensors")
    assert "keep the files of one model" in refusal(capsys, out, folder)


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/passwd", 5, None])
def test_an_index_that_names_no_files(
    world: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], place: Any
) -> None:
    folder = copied(world / "sharded", tmp_path)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"][min(table["weight_map"])] = place
    index.write_text(json.dumps(table))
    said = refusal(capsys, out, folder)
    assert f"{index} is damaged" in said or "is missing" in said


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("flags", [[], ["--no-verify"]])
def test_numbers_that_are_none(
    world: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], number: float, flags: list[str]
) -> None:
    """In the last layer of the vision tower, which no logits depend on."""
    folder = copied(world / "run" / "hf", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_tower.vision_model.encoder.layers.2.mlp.fc2.bias"][3] = number
    save_file(tensors, folder / "model.safetensors")
    assert "layers.2.mlp.fc2.bias has entries that are not finite" in refusal(capsys, out, *flags, folder)


def test_a_number_format_that_is_too_small(
    world: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(world / "run" / "hf", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_tower.vision_model.encoder.layers.2.mlp.fc2.bias"][3] = 1e6
    save_file(tensors, folder / "model.safetensors")
    assert "too large for float16" in refusal(capsys, out, "--dtype", "float16", folder)


@pytest.mark.parametrize("kind", ["pair", "part", "strange", "more", "shape"])
def test_what_was_learned_is_whole(
    world: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder = copied(world / "run" / "learned", tmp_path)
    tensors = load_file(folder / "weights.safetensors")
    pair = "model.language_model.layers.1.self_attn.q_proj.lora_"
    match kind:
        case "pair":
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(pair)}
        case "part":
            tensors = {name: tensor for name, tensor in tensors.items() if ".vision_tower." not in name}
        case "strange":
            tensors["strange"] = torch.zeros(1)
        case "more":
            tensors["lm_head.weight"] = torch.zeros(448, 64)
        case "shape":
            name = "model.multi_modal_projector.linear_1.bias"
            tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, folder / "weights.safetensors")
    said = refusal(capsys, out, folder)
    assert ("is [63], expected [64]" if kind == "shape" else "holds other tensors than this recipe tunes") in said


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may become larger than 100 kB: writing stops in the middle."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("to", ["huggingface", "official", "xtuner", "gguf"])
@pytest.mark.usefixtures("small_files")
def test_writing_stops_in_the_middle(world: Path, out: Path, capsys: pytest.CaptureFixture[str], to: str) -> None:
    assert "cannot write" in refusal(capsys, out, "--to", to, world / "run" / "hf")


def test_a_link_to_nowhere_and_a_file(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(tmp_path / "nowhere")
    file.write_text("mine")
    for place, what in ((link, "which is not there"), (file, "is a file")):
        assert convert(world / "run" / "hf", place) == 2
        assert what in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"link", "file"} and file.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--llm", "x", "IN"], "leave out --llm"),
        (["--quantize", "q8_0", "IN"], "--quantize is for --to gguf"),
        (["--mend-clip", "IN"], "--mend-clip is for --to gguf"),
        (["--is-clip", "IN"], "--is-clip is for convert merge"),
        (["IN", "--cfg-options", "a.b=1", "--no-verify"], "--cfg-options is for convert pth_to_hf"),
        (["--to", "gguf", "merge", "LLM", "LLM"], "writes a model of the same kind"),
        (["--llm", "x", "pth_to_hf", "RECIPE", "RUN"], "the recipe names them"),
        (["--prompt-template", "plain", "RUN/learned"], "whose recipe names its template"),
    ],
)
def test_flags_that_would_do_nothing(
    world: Path, out: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    places = {"IN": "run/hf", "LLM": "llm", "RECIPE": "recipe.yaml", "RUN": "run", "RUN/learned": "run/learned"}
    assert reason in refusal(capsys, out, *(world / places[word] if word in places else word for word in words))


@pytest.fixture(scope="module")
def adapter(world: Path) -> Path:
    base = AutoModelForCausalLM.from_pretrained(world / "llm")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"]))
    model.save_pretrained(world / "adapter")
    return world / "adapter"


@pytest.mark.parametrize(
    "changes",
    [{"lora_alpha": float("nan")}, {"alpha_pattern": [1]}, {"alpha_pattern": {"(": 1}}, {"alpha_pattern": {"q": "x"}}],
)
def test_settings_of_an_adapter(
    world: Path, adapter: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    folder = copied(adapter, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    assert "adapter_config.json is damaged" in refusal(capsys, out, "merge", world / "llm", folder)


def test_numbers_of_an_adapter(
    world: Path, adapter: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(adapter, tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: tensor.to(torch.int64) for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    assert "no fractions" in refusal(capsys, out, "merge", world / "llm", folder)
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    assert "not finite" in refusal(capsys, out, "--no-verify", "merge", world / "llm", folder)


def test_a_language_model_that_lacks_a_tensor(
    world: Path, adapter: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(world / "llm", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "1 missing, such as model.norm.weight" in refusal(capsys, out, "merge", folder, adapter)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the hub, as huggingface_hub lays it out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub: Path, name: str, folder: Path) -> None:
    place = hub / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / "0123")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123")


def test_a_model_in_the_cache_of_the_hub(world: Path, hub: Path, tmp_path: Path, out: Path) -> None:
    cached(hub, "somebody/mine", world / "run" / "hf")
    assert convert("somebody/mine", out) == convert(world / "run" / "hf", tmp_path / "same") == 0
    assert contents(out) == contents(tmp_path / "same")
    parts = ModelRecipe(llm=str(world / "llm"), vision_tower=str(world / "tower"), template="llava_v0")
    save(assemble(parts, make_prompter(parts)), tmp_path / "v0")
    assert convert(tmp_path / "v0", tmp_path / "official", "--to", "official") == 0
    for noted in ("chat_template.jinja", "chat_template.json"):
        (tmp_path / "official" / noted).unlink()
    settings = json.loads((tmp_path / "official" / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in settings.items() if name not in ("chat_template", "prompt_template")}
    (tmp_path / "official" / "tokenizer_config.json").write_text(json.dumps(kept))
    cached(hub, "somebody/llava-v1.5-tiny", tmp_path / "official")
    assert convert("somebody/llava-v1.5-tiny", tmp_path / "again") == 0
    written = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert written["prompt_template"] == "vicuna"  # by its name on the hub, as the official programs choose


@pytest.mark.parametrize("name", ["liuhaotian/llava-v1.5-7b", "liuhaotian/llava-v1.5-7b/"])
def test_a_model_that_cannot_be_fetched(hub: Path, out: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    said = refusal(capsys, out, name)
    assert "no folder liuhaotian/llava-v1.5-7b here" in said and "HF_HUB_OFFLINE" in said
    assert "no model folder a/b/c" in refusal(capsys, out, "a/b/c")
