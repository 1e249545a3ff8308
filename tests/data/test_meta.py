"""A meta file of InternVL stands for its sets; what is wrong with it is named by set and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sightline.data.meta import MetaEntry, is_meta, meta_entries
from sightline.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "coco").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"conversations": []}\n')
    return tmp_path


def meta(folder: Path, content: Any) -> Path:
    path = folder / "meta.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_sets_in_order_with_paths_from_beside_the_file(folder: Path) -> None:
    # The keys are those of InternVL's documentation, where `length` is once a number and once a sentence.
    path = meta(
        folder,
        {
            "first": {
                "root": "coco/",
                "annotation": "a.jsonl",
                "data_augment": False,
                "max_dynamic_patch": 12,
                "repeat_time": 0.3,
                "length": 102025,
            },
            "second": {
                "root": "",
                "annotation": str(folder / "b.jsonl"),
                "repeat_time": 2,
                "length": "number of samples",
            },
            "third": {"media_root": "coco", "annotation": "b.jsonl"},
        },
    )
    assert is_meta(path)
    assert meta_entries(path) == (
        MetaEntry("first", str(folder / "a.jsonl"), str(folder / "coco"), 0.3, 102025),
        MetaEntry("second", str(folder / "b.jsonl"), None, 2.0, None),
        MetaEntry("third", str(folder / "b.jsonl"), str(folder / "coco"), 1.0, None),
    )


def test_paths_seen_from_here_come_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "a.jsonl").write_text("{}")
    path = meta(folder / "deep", {"x": {"annotation": "a.jsonl"}})
    monkeypatch.chdir(folder)
    assert meta_entries(path)[0].path == "a.jsonl"


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ({"x": {"annotation": "a.jsonl"}}, True),
        ({"x": {"annotation": "a.jsonl"}, "y": {"root": "forgot the rows"}}, True),
        ("\ufeff \n" + json.dumps({"x": {"annotation": "a.jsonl"}}), True),
        ([{"x": {"annotation": "a.jsonl"}}], False),
        ({"conversations": [], "image": "a.jpg"}, False),
        ('{"a": {"annotation": 1}}\n{"a": {"annotation": 1}}', False),
        ({}, False),
        ("", False),
        ("{broken", False),
    ],
)
def test_what_is_a_meta_file(folder: Path, content: Any, answer: bool) -> None:
    assert is_meta(meta(folder, content)) is answer


def test_no_file_no_meta_file(folder: Path) -> None:
    assert not is_meta(folder) and not is_meta(folder / "none.json")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"root": "coco"}, "no 'annotation', the file of rows"),
        ({"annotation": 3}, "no 'annotation', the file of rows"),
        ("a.jsonl", "no 'annotation', the file of rows"),
        ({"annotation": "a.jsonl", "root": 3}, "'root' is int, not a folder"),
        ({"annotation": "a.jsonl", "repeat_time": 0}, "'repeat_time' is 0; write a number above 0"),
        ({"annotation": "a.jsonl", "repeat_time": "2"}, "'repeat_time' is '2'; write a number above 0"),
        ({"annotation": "a.jsonl", "repeat_time": True}, "'repeat_time' is True; write a number above 0"),
        ({"annotation": "a.jsonl", "repeat_time": 1.5}, "'repeat_time' is 1.5; above 1 it must be whole"),
        ({"annotation": "a.jsonl", "root": "nowhere"}, "'root' nowhere does not exist, seen from here or from "),
        ({"annotation": "x" * 300}, f"'annotation' {'x' * 100} does not exist, seen from here or from "),
        ({"annotation": "no.jsonl"}, "'annotation' no.jsonl does not exist, seen from here or from "),
    ],
)
def test_what_is_refused(folder: Path, entry: Any, message: str) -> None:
    path = meta(folder, {"good": {"annotation": "a.jsonl"}, "the set": entry})
    with pytest.raises(DataError) as error:
        meta_entries(path)
    said = str(error.value).removeprefix(f"{path}: the set: ")
    assert said == message + (str(folder) if message.endswith("from ") else "")
