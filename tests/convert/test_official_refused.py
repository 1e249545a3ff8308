"""Official folders that are not whole, or not what they seem: one line that says what is wrong, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import official_files as made
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from sightline import cli


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts, and a folder of each kind."""
    parts = made.make_parts(tmp_path_factory.mktemp("world"))
    made.write_v15(parts, parts / "llava-v1.5-7b")
    made.write_v16(parts, parts / "llava-v1.6-7b")
    made.write_projector(parts, parts / "llava-v1.5-7b-pretrain")
    made.write_lora(parts, parts / "llava-v1.5-7b-lora")
    return parts


class Code:
    """What a pickle would run."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.place}",)


def changed(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    made.write_json(folder, {key: value for key, value in (config | fields).items() if value != "-"})


def without(pattern: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return remove


def with_fields(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder, **fields)


def cut(name: str) -> Callable[[Path], None]:
    def halve(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return halve


def of_another_model(folder: Path) -> None:
    file = folder / "pytorch_model-00001-of-00002.bin"
    tensors = torch.load(file, weights_only=True)
    torch.save({name: tensor[:5].clone() for name, tensor in tensors.items()}, file)


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "layers.1.mlp.up" not in name}, folder / "model.safetensors")


def without_a_projector(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "mm_projector" not in name}, folder / "model.safetensors")


def with_code(folder: Path) -> None:
    torch.save({"model.mm_projector.0.weight": Code(folder.parent / "ran")}, folder / "mm_projector.bin")


def for_another_base(folder: Path) -> None:
    wider = tiny.make_llm(folder.parent / "wider", kind="legacy", intermediate_size=128)
    changed(folder, _name_or_path=str(wider))
    if (folder / "adapter_config.json").is_file():
        config = json.loads((folder / "adapter_config.json").read_text())
        made.write_json(folder, config | {"base_model_name_or_path": str(wider)}, "adapter_config.json")


V15, V16, PROJECTOR, LORA = "llava-v1.5-7b", "llava-v1.6-7b", "llava-v1.5-7b-pretrain", "llava-v1.5-7b-lora"
CASES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "shard missing": (V15, without("*-00002-of-*.bin"), "pytorch_model-00002-of-00002.bin"),
    "shard cut": (V15, cut("pytorch_model-00002-of-00002.bin"), "pytorch_model-00002-of-00002.bin"),
    "safetensors cut": (V16, cut("model.safetensors"), "model.safetensors is damaged"),
    "shard of another model": (V15, of_another_model, "of another shape, such as"),
    "tensor missing": (V16, without_a_tensor, "1 missing, such as language_model.model.layers.1.mlp.up_proj.weight"),
    "no projector": (V16, without_a_projector, "no projector"),
    "index damaged": (V15, cut("pytorch_model.bin.index.json"), "index.json is damaged"),
    "config without a tower": (V15, with_fields(mm_vision_tower="-"), "names no vision tower"),
    "config damaged": (V15, cut("config.json"), "config.json is damaged"),
    "another width": (V15, with_fields(intermediate_size=128), "of another shape"),
    "another vocabulary": (V15, with_fields(vocab_size=900), "2 of another shape, such as language_model.lm_head"),
    "no tokenizer": (V15, without("tokenizer*"), "has no tokenizer"),
    "tower gone": (V15, with_fields(mm_vision_tower="/gone/clip"), "--vision-tower"),
    "tower of another width": (
        V15,
        with_fields(mm_vision_tower="{parts}/wide_tower"),
        "32 features (mm_hidden_size), not of 48",
    ),
    "a layer too deep": (V15, with_fields(mm_vision_select_layer=-9), "has 3 layers"),
    "no such layer": (V15, with_fields(mm_vision_select_layer="last"), "mm_vision_select_layer is 'last'"),
    "tokens around pictures": (V15, with_fields(mm_use_im_start_end=True), "mm_use_im_start_end"),
    "a resampler": (V15, with_fields(mm_resampler_type="qformer"), "resampler"),
    "another projector": (V15, with_fields(mm_projector_type="identity"), "'identity'"),
    "a deeper projector": (V15, with_fields(mm_projector_type="mlp3x_gelu"), "a projector of 3 layers"),
    "other tiles": (V16, with_fields(image_aspect_ratio="anyres_max_9"), "'anyres_max_9'"),
    "tiles laid flat": (V16, with_fields(mm_patch_merge_type="flat"), "'flat'"),
    "grids unread": (V16, with_fields(image_grid_pinpoints="(1x1),...,(6x6)"), "image_grid_pinpoints"),
    "grids of no tiles": (V16, with_fields(image_grid_pinpoints=[[57, 112]]), "whole tiles"),
    "another language model": (V15, with_fields(model_type="llava_mpt", architectures=None), "'llava_mpt'"),
    "a rope of words": (V15, with_fields(rope_scaling="linear"), "config.json is damaged"),
    "a width of words": (V15, with_fields(hidden_size="wide"), "no number from 1"),
    "layers without end": (V15, with_fields(num_hidden_layers=10**7), "--raise-limit layers=10000000"),
    "a projector of thousands": (V15, with_fields(mm_projector_type=f"mlp{'9' * 5000}x_gelu"), "'mlp999"),
    "classes that are none": (V15, with_fields(model_type="x", architectures=[["x"]]), "LLaVA of a 'x'"),
    "one class, a number": (V15, with_fields(model_type="x", architectures=5), "LLaVA of a 'x'"),
    "grids nested without end": (V16, with_fields(image_grid_pinpoints="-" * 10**5 + "1"), "image_grid_pinpoints"),
    "endless grids": (V16, with_fields(image_grid_pinpoints=[[56, float("inf")]]), "image_grid_pinpoints"),
    "code": (PROJECTOR, with_code, "no projector"),
    "projector cut": (PROJECTOR, cut("mm_projector.bin"), "mm_projector.bin"),
    "base gone": (PROJECTOR, with_fields(_name_or_path="/gone/vicuna"), "--llm"),
    "base not named": (PROJECTOR, with_fields(_name_or_path="-"), "--llm"),
    "projector for another base": (PROJECTOR, for_another_base, "of another shape"),
    "adapters for another base": (LORA, for_another_base, "does not belong to this base model"),
    "adapters cut": (LORA, cut("adapter_model.safetensors"), "adapter_model.safetensors is damaged"),
    "adapters without their config": (LORA, without("config.json"), "no config.json"),
    "adapters without the projector": (LORA, without("non_lora*"), "half a LoRA folder"),
    "adapters without weights": (LORA, without("adapter_model*"), "half an adapter"),
    "only a config": (V15, without("*.bin*"), "has no weights"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    kind, damage, reason = CASES[case]
    folder = shutil.copytree(world / kind, tmp_path / kind)
    damage(folder)
    if "wide_tower" in (text := (folder / "config.json").read_text() if (folder / "config.json").is_file() else ""):
        make_wide_tower(world / "wide_tower")
        (folder / "config.json").write_text(text.replace("{parts}", str(world)))
    before = sorted(path.name for path in tmp_path.iterdir())
    assert cli.main(["convert", str(folder), str(tmp_path / "out" / "mine")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and reason in said[0], said
    assert len(said[0]) < 700
    assert not list((tmp_path / "out").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*before, "out"})


def make_wide_tower(folder: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 48, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=56, patch_size=14)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)


def test_a_template_that_nothing_tells(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(world / V15, tmp_path / "mine")
    changed(folder, _name_or_path="")
    assert cli.main(["convert", str(folder), str(tmp_path / "out")]) == 2
    assert "--prompt-template" in capsys.readouterr().err
    assert cli.main(["convert", str(folder), str(tmp_path / "out"), "--prompt-template", "vicuna"]) == 0


def test_a_language_model_too_many(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", str(world / V15), str(tmp_path / "out"), "--llm", str(world / "llm")]
    assert cli.main(words) == 2
    assert "has a language model of its own" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["official", "huggingface"])
def test_through_the_command(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str) -> None:
    for kind in (V15, V16, PROJECTOR, LORA):
        out = tmp_path / f"{kind}-{to}"
        assert cli.main(["convert", str(world / kind), str(out), "--to", to]) == 0
        proof = json.loads((out / "conversion.json").read_text())
        assert proof["largest_difference"] == 0
    taken = capsys.readouterr()
    assert taken.err
    assert cli.main(["convert", str(world / V15), str(tmp_path / f"{V15}-{to}"), "--to", to]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_disk_that_is_full(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sightline.convert.official.write_tower", full)
    assert cli.main(["convert", str(world / V15), str(tmp_path / "out" / "mine"), "--to", "official"]) == 2
    assert "no space left" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
