"""Names of models that lead nowhere, and folders that transformers stumbles over: one line, and no look at the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.errors import DataError, ModelError
from sightline.model import reading as module
from sightline.model.reading import reading


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "llama").mkdir(parents=True)
    (tmp_path / "models" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name", ["./llama", "../llama", "/models/llama", "~/llama", "llama", "models/lama", "models/a/b", "a/b/c", ""]
)
def test_what_looks_like_a_folder_is_not_looked_for_elsewhere(name: str) -> None:
    with pytest.raises(ModelError, match=f"^no model folder {name or repr(name)}"), reading(name):
        pytest.fail("it was looked for")


def test_a_file_is_no_folder() -> None:
    with (
        pytest.raises(ModelError, match=r"^models/notes\.txt is a file, not a model folder$"),
        reading("models/notes.txt"),
    ):
        pytest.fail("it was read")


@pytest.mark.parametrize("name", ["lmsys/vicuna-7b-v1.5", "models/llama", "models/fetched"])
def test_what_is_there_or_may_be_on_the_hub_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = {"models/fetched": "/cache/config.json"}
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda name, file: cached.get(name))
    monkeypatch.setattr(module, "check_at_hand", lambda name: None)  # tests/model/test_hub.py
    with reading(name):
        done = True
    assert done


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("nosuch"), "cannot load models/llama: KeyError: 'nosuch'"),
        (AttributeError("'list' object has no attribute 'get'"), "cannot load models/llama: AttributeError: 'list'"),
        (ZeroDivisionError("modulo by zero"), "cannot load models/llama: ZeroDivisionError: modulo by zero"),
        (Exception("Model missing. at line 1"), "cannot load models/llama: Model missing. at line 1"),
        (ValueError("two\nlines"), "cannot load models/llama: two lines"),
    ],
)
def test_whatever_goes_wrong_is_one_line(error: Exception, said: str) -> None:
    Path("models/llama/config.json").touch()
    with pytest.raises(ModelError) as refused, reading("models/llama"):
        raise error
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


def test_what_is_said_already_stays_as_it_is() -> None:
    with pytest.raises(DataError, match=r"^row 5$"), reading("models/llama"):
        raise DataError("row 5")


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize(
    "content", ['{"weight_map": {"a": "../other/x.safetensors"}}', '{"weight_map": {"a": "/etc/x"}}', "[]", "[" * 10**5]
)
def test_an_index_names_files_of_its_folder_alone(name: str, content: str) -> None:
    """transformers takes any path."""
    Path("models/llama", name).write_text(content)
    with pytest.raises(ModelError) as refused, reading("models/llama"):
        pytest.fail("it was read")
    said = f"models/llama/{name} is damaged (its weight_map names no files of this folder); copy it again"
    assert str(refused.value) == said


def test_an_index_of_its_own_files_is_read() -> None:
    Path("models/llama/model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
    with reading("models/llama"):
        pass
