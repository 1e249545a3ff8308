"""A file that cannot be rows is one error, which says what it is or where its mistake stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.convert.tensors import in_file
from sightline.data.sources import open_rows
from sightline.errors import DataError, ModelError
from sightline.model.foreign import open_config
from sightline.prompt.images import check_image
from sightline.types import ImageRef

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1030421\n"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "rows.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def said(folder: Path, content: str | bytes) -> str:
    """What is said when the file is opened, without its path."""
    path = write(folder, content)
    with pytest.raises(DataError) as error:
        open_rows(path)
    return str(error.value).removeprefix(str(path)).lstrip(": ")


@pytest.mark.parametrize("indent", [None, 1])
def test_rows_that_are_the_values_of_an_object(indent: int | None, tmp_path: Path) -> None:
    """As ScienceQA's problems.json and MathVista's testmini.json have them."""
    rows = {f"{number:06}": {"conversations": [], "image": "a.jpg"} for number in range(400)}
    assert said(tmp_path, json.dumps(rows, indent=indent)) == (
        "one object with 400 keys ('000000', '000001', '000002' and 397 more), whose values look like rows; "
        "write them as an array, [{...}, ...]"
    )
    assert "whose values look like rows" in said(tmp_path, json.dumps({"a": {"messages": []}}, indent=indent))
    assert list(open_rows(write(tmp_path, '{"a": {"b": 1}}'))) == [{"a": {"b": 1}}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # One object over several lines, with the mistakes that tutorials have.
        ('{\n  "a": {\n    "b": 1\n  },\n}\n', "broken JSON (a comma too many) at line 5 (byte 27)"),
        ('{\n  // my sets\n  "a": 1\n}\n', "broken JSON (a comment, which JSON has none of) at line 2 (byte 4)"),
        ('{\n  "a": 1\n  "b": 2\n}\n', "broken JSON (a comma is missing) at line 3 (byte 13)"),
        ('{\n  "a": 1,\n', "broken JSON (it breaks off) at line 3 (byte 12)"),
        (
            '{\n "a": 1\n}\n{\n "a": 2\n}\n',
            "objects over several lines, one behind the other; write an array of rows, or one object a line",
        ),
        # What a failed download or another program leaves.
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "is a pointer of git-lfs, not the data: ",
        ),
        ("<!DOCTYPE html>\n<html>\n", "is a page of the web or XML, not JSON: fetch the data again"),
        (b"PK\x03\x04....\n\n", "is a zip archive; unpack it"),
        (b"\x1f\x8b\x08\n", "is compressed by gzip; unpack it"),
        (b"PAR1\n", "is a Parquet file; call it .parquet"),
        (b"\xff\xd8\xff\xe0 a picture\n\x00\n", "no JSON rows: the file begins with "),
        ("a,b\n1,2\n", "no JSON rows: the file begins with 'a,b'"),
        ("x" * 5000, f"no JSON rows: the file begins with '{'x' * 40}'"),
        ('{"a": "你好，世界"}\n{}\n'.encode("gbk"), "byte 7 is not UTF-8 (GBK?); save it as UTF-8"),
        ('[{"a": "你好，世界"}]'.encode("gbk"), "byte 8 is not UTF-8 (GBK?); save it as UTF-8"),
        ('[{"a": "café"}]'.encode("latin-1"), "byte 11 is not UTF-8; the file is damaged or was cut off"),
    ],
)
def test_a_file_that_is_no_rows_is_one_error(content: str | bytes, message: str, tmp_path: Path) -> None:
    message_of_file = said(tmp_path, content)
    assert message_of_file.startswith(message) and len(message_of_file) < 300


def test_large_models_and_images_that_git_did_not_fetch(tmp_path: Path) -> None:
    """A clone without git-lfs has a pointer in the place of each large file."""
    (tmp_path / "a.jpg").write_text(POINTER)
    with pytest.raises(DataError, match=r"image a\.jpg is a pointer of git-lfs, not the image: `git lfs pull`"):
        check_image(ImageRef("a.jpg", str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_text(POINTER)
    for read in (lambda: open_config(tmp_path), lambda: in_file(tmp_path / "model.safetensors")):
        with pytest.raises(ModelError, match=r"model\.safetensors is a pointer of git-lfs, not the file itself"):
            read()
