"""`sightline assemble` and `sightline llamafy`, as they are typed; and a recipe with an InternLM2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import llama_like
import pytest
import tiny
import torch
from assembled import projector, put_together, same, spec
from safetensors.torch import load_file
from test_llamafy import IDS, original
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from sightline.cli import main
from sightline.errors import ModelError
from sightline.model import llm
from sightline.model.load import load
from sightline.recipe import load_recipe
from sightline.train.loop import train


def test_a_model_without_training(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["assemble", "--llm", str(world / "llm"), "--vision-tower", str(world / "tower"), "--out", str(out)]
    assert main([*words, "--projector-from", str(world / "run"), "--template", "vicuna"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out)
    assert "projector: 4 tensors from" in said.err and "tokens of a picture: 16" in said.err
    _, report = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    assert type(AutoProcessor.from_pretrained(out)).__name__ == "LlavaProcessor"
    assert same(projector(load(out, device="cpu")), projector(put_together(spec(world, projector_from=world / "run"))))
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_the_number_format_is_the_language_models(world: Path, tmp_path: Path, dtype: str | None) -> None:
    folder = tiny.make_llm(tmp_path / "llm")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    words = ["assemble", "--llm", str(folder), "--vision-tower", str(world / "tower"), "--out", str(tmp_path / "out")]
    assert main([*words, *(["--dtype", dtype] if dtype else [])]) == 0
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert kinds == {torch.float16 if dtype else torch.bfloat16}


def test_a_new_projector_is_drawn_from_the_seed(world: Path, tmp_path: Path) -> None:
    words = ["assemble", "--llm", str(world / "llm"), "--vision-tower", str(world / "tower"), "--projector-depth", "1"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([*words, "--out", str(tmp_path / name), "--seed", seed]) == 0
    a, b, c = (projector(load(tmp_path / name, device="cpu")) for name in "abc")
    assert same(a, b) and not same(a, c) and len(a) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--llm", "/nowhere"], "no model folder /nowhere"),
        (["--vision-tower", "LLM"], "not a vision tower"),
        (["--projector-from", "LLM"], "holds no projector"),
        (["--vision-feature-layer", "9"], "has 3 layers"),
        (["--out", "/proc/nowhere/out"], "cannot write"),
        (["--out", "FILE"], "is there already"),
        (["--out", "FILE/below"], "no folder that you may write to"),
    ],
)
def test_what_cannot_be_assembled(
    world: Path, tmp_path: Path, change: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    values = {"LLM": str(world / "llm"), "FILE": str(tmp_path / "file")}
    typed = ["assemble", "--llm", str(world / "llm"), "--vision-tower", str(world / "tower")]
    for name, value in values.items():
        change = [word.replace(name, value) for word in change]
    code = main([*typed, "--out", str(tmp_path / "out"), *change])
    assert code == 2 and not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_a_name_that_is_empty(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["assemble", "--llm", "", "--vision-tower", str(world / "tower"), "--out", str(tmp_path / "out")])
    assert "argument --llm: the name is empty" in capsys.readouterr().err


def test_a_link_to_another_disk_stays_one(world: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    out = tmp_path / "out"
    out.symlink_to(tmp_path / "disk")
    typed = ["assemble", "--llm", str(world / "llm"), "--vision-tower", str(world / "tower"), "--out", str(out)]
    assert main(typed) == 0
    assert out.is_symlink() and (tmp_path / "disk" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]


DAMAGED: dict[str, tuple[str, str]] = {
    "missing": ("model-00002-of-00003.safetensors", "1 files of its weights are missing (model-00002-of-00003.safe"),
    "{": ("model.safetensors.index.json", "index.json is damaged"),
    "[]": ("model.safetensors.index.json", "index.json is damaged"),
    '{"weight_map": {"a": 5}}': ("model.safetensors.index.json", "index.json is damaged"),
    "null": ("config.json", "is something else (see its config.json)"),
    '{"added_tokens_decoder": []}': ("tokenizer_config.json", "cannot load"),
    "{}": ("tokenizer.json", "cannot load"),
}


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_internlm2(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    original(tmp_path / "in", "internlm2", files=3)
    file, words = DAMAGED[text]
    (tmp_path / "in" / file).unlink(missing_ok=True)
    if text != "missing":
        (tmp_path / "in" / file).write_text(text, encoding="utf-8")
    assert main(["llamafy", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_cache_that_cannot_be_written(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original(tmp_path / "in", "internlm2")
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="by the environment variable SIGHTLINE_CACHE"):
        put_together(spec(world, llm=tmp_path / "in"))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_an_internlm2_of_the_hub_is_fetched_whole(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its index is JSON and comes along with the configuration: that is no reason to leave out the weights."""
    original(tmp_path / "hub", "internlm2", files=2, form=form)

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        (tmp_path / "cache").mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for file in (tmp_path / "hub").glob(pattern):
                shutil.copy(file, tmp_path / "cache")
        return str(tmp_path / "cache")

    monkeypatch.setattr(llm, "snapshot_download", fetch)
    folder = llm.fetched("internlm/internlm2-7b", weights=True)
    assert {file.name for file in folder.iterdir()} == {file.name for file in (tmp_path / "hub").iterdir()}


def test_llamafy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = original(tmp_path / "in", "internlm2")
    assert main(["llamafy", str(tmp_path / "in"), str(tmp_path / "out"), "--max-shard-size", "0.05MB"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    wanted = llama_like.internlm2_logits(tensors, IDS, llama_like.config("internlm2"), 10000.0)
    torch.testing.assert_close(model(IDS[None]).logits[0], wanted, rtol=1e-5, atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) > 400


def test_llamafy_says_where_the_window_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import families

    settings = {"model_type": "phi3", "vocab_size": 560, "pad_token_id": 0, **families.WINDOW}
    families.make_family(tmp_path / "in", settings)
    assert main(["llamafy", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "equal up to 9 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["nowhere", "out"], "no model folder nowhere"),
        (["llm", "out"], "is 'llama'; InternLM, InternLM2 and Phi-3 become Llamas"),
        (["llm", "llm"], "is there already"),
    ],
)
def test_what_becomes_no_llama(
    world: Path, typed: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    assert main(["llamafy", *typed]) == 2
    assert words in capsys.readouterr().err


def test_a_recipe_with_an_internlm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained as it lies there; in the end the model is a Llama of its weights, and the cache holds one copy."""
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    recipe = tiny.write_recipe(tmp_path)
    tensors = original(tmp_path / "internlm2", "internlm2", max_position_embeddings=512)
    changes = [f"model.llm={tmp_path / 'internlm2'}", "tune.llm=frozen", "optim.max_steps=2"]
    finished = train(load_recipe(str(recipe), changes), tmp_path / "run")
    config = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["model_type"] == "llama"
    vlm = load(finished, device="cpu")
    wanted = llama_like.internlm2_logits(tensors, IDS, llama_like.config("internlm2"), 10000.0)
    with torch.no_grad():
        ours = vlm.model(input_ids=IDS[None]).logits[0, :, : llama_like.VOCABULARY]
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    kept = sorted(folder.name for folder in (tmp_path / "cache" / "llamafied").iterdir())
    assert len(kept) == 2 and kept[1].endswith("-tokenizer") != kept[0].endswith("-tokenizer")
    train(load_recipe(str(recipe), changes), tmp_path / "again")
    assert sorted(folder.name for folder in (tmp_path / "cache" / "llamafied").iterdir()) == kept
