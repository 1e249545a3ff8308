"""What a YAML file may hold that no recipe should: foreign tags, aliases without end, lists that hide a base's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sightline import cli, devices
from sightline.errors import RecipeError
from sightline.recipe import load_recipe
from sightline.recipe_sections import DEVICES
from sightline.recipes import read_recipe, shipped

REST = "data: [{path: x.json}]\nbatch: {global_batch: 8}\noptim: {lr: 1e-3}\n"


def write(folder: Path, text: str, name: str = "r.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def wrong(path: str, *overrides: str) -> str:
    """The error, files by their names alone."""
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value).replace(f"{Path(path).parent}/", "")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert wrong(str(tmp_path / "gone.yaml")) == "gone.yaml: cannot be read: No such file or directory"
    (tmp_path / "latin.yaml").write_bytes("# für\n".encode("latin-1"))
    assert wrong(str(tmp_path / "latin.yaml")) == "latin.yaml: is not a text in UTF-8 (byte 3)"
    (tmp_path / "folder.yaml").mkdir()
    assert wrong(str(tmp_path / "folder.yaml")) == "folder.yaml: cannot be read: Is a directory"


@pytest.mark.parametrize("value", ["!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!!timestamp 2024-01-01"])
def test_a_tag_that_json_does_not_know_is_refused(tmp_path: Path, value: str) -> None:
    """They used to arrive as the text of a Python object: "b'hi'"."""
    path = write(tmp_path, f"model: {{llm: a, vision_tower: {value}}}\n{REST}")
    assert "is not YAML: could not determine a constructor for the tag" in wrong(path)


@pytest.mark.parametrize("value", ["!!int many", "!!float x", "!!bool perhaps", "!!int ''"])
def test_a_tag_that_its_value_does_not_fit(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, f"model: {{llm: a, vision_tower: b, projector_depth: {value}}}\n{REST}")
    assert wrong(path).startswith("r.yaml: is not YAML: ")
    good = write(tmp_path, f"model: {{llm: a, vision_tower: b}}\n{REST}", "good.yaml")
    assert wrong(good, f"optim.lr={value}") == f"command line: {value!r} is not YAML"


def test_aliases_without_end_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    assert "has more than 100,000 values, or its aliases unfold to that many" in wrong(
        write(tmp_path, "\n".join(lines))
    )


def test_a_list_is_the_files_that_wrote_it(tmp_path: Path) -> None:
    """It replaces that of the base as a whole: what is wrong with it is not the base's error."""
    path = write(tmp_path, "base: finetune\nmodel: {llm: a, vision_tower: b}\ndata: [{path: x}]\noptim: {betas: [0.9]}")
    assert wrong(path) == "r.yaml: optim.betas.1: missing"


def test_a_pair_of_three(tmp_path: Path) -> None:
    path = write(tmp_path, f"model: {{llm: a, vision_tower: b, next: true, grid_pinpoints: [[1, 2, 3]]}}\n{REST}")
    assert wrong(path) == "r.yaml: model.grid_pinpoints.0: must have 2 entries, not 3"


@pytest.mark.parametrize("name", ["foo", "cuda:", "cuda:x", "gpu", "", "CUDA", "auto:1"])
def test_a_device_that_there_is_nowhere(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f"model: {{llm: a, vision_tower: b}}\n{REST}engine: {{device: '{name}'}}\n")
    assert wrong(path).startswith(f"r.yaml: engine.device: there is no device {name!r}; use auto, cpu, cuda, ")


def test_devices_are_those_that_are_chosen_from(tmp_path: Path) -> None:
    assert sorted(DEVICES) == sorted(devices.TYPES)
    path = write(tmp_path, f"model: {{llm: a, vision_tower: b}}\n{REST}")
    for name in ("auto", *devices.TYPES, "cuda:1"):
        assert load_recipe(path, [f"engine.device={name}"]).engine.device == name


def test_a_seed_that_no_generator_takes(tmp_path: Path) -> None:
    path = write(tmp_path, f"model: {{llm: a, vision_tower: b}}\n{REST}")
    assert load_recipe(path, [f"run.seed={2**64 - 1}"]).run.seed == 2**64 - 1
    assert wrong(path, f"run.seed={2**64}").startswith("command line: run.seed: must be less than 18446744073709551616")


def test_a_copy_of_what_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe")
    assert cli.main(["copy-cfg", str(tmp_path / "r.yaml"), str(tmp_path / "out")]) == 2
    assert "r.yaml: is not a text in UTF-8" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_copy_finds_the_base_beside_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, f"model: {{llm: a, vision_tower: b}}\n{REST}", "mine.yaml")
    original = write(tmp_path, "# Mine.\nbase: mine.yaml\noptim: {lr: 2e-3}\n")
    assert cli.main(["copy-cfg", original, str(tmp_path / "deep" / "out")]) == 0
    assert load_recipe(str(tmp_path / "deep" / "out" / "r_copy.yaml")) == load_recipe(original)


def test_an_unknown_set_of_data_is_an_error_of_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path, f"model: {{llm: a, vision_tower: b}}\n{REST.replace('path: x.json', 'use: llava_v15_mix66k')}"
    )
    assert cli.main(["recipe", "check", path]) == 2
    assert "llava_v15_mix665k" in capsys.readouterr().err


def many_keys(number: int) -> str:
    return "".join(f"key{at}: 1\n" for at in range(number))


def test_a_file_of_many_keys_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(many_keys(300_000))
    with pytest.raises(RecipeError, match="is no recipe: it has more than 256 KB"):
        read_recipe(str(tmp_path / "r.yaml"))


def test_no_more_errors_are_told_than_a_person_reads(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(many_keys(3000) + "key1: 2\n" * 100 + f"model: {{llm: [{'x' * 50_000}]}}\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(str(tmp_path / "r.yaml"))
    lines = str(error.value).splitlines()
    assert len(lines) <= 71 and lines[-1].startswith("and 2,9") and lines[-1].endswith(" more errors")
    assert max(map(len, lines)) < 1000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "llava_vicuna_7b_v15_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune_copy.py",
            "XTuner's, which is a program",
        ),
        ("work/config.py", "`sightline list-cfg` lists the recipes here"),
        ("paddlemix/config/llava/pretrain.json", "paddlemix_llava_v1_5_pretrain and paddlemix_llava_v1_6_pretrain"),
        ("lora_sft_argument_stage2.json", "paddlemix_llava_v1_5_lora_sft and"),
        ("sft_argument.json", "paddlemix_llava_v1_5_sft and"),
    ],
)
def test_a_configuration_of_another_program_is_called_one(name: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(name)
    message = str(error.value)
    assert said in message and "\n" not in message
    for word in re.findall(r"[\w.]*llava_[\w.]+", message.partition(": ")[2]):
        assert word in shipped(), "the names that it gives are recipes"
