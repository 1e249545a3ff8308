"""A YAML mix of LLaVA-NeXT stands for its sets, with as many rows of each as its own loader takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sightline.cli import main
from sightline.data.index import open_index
from sightline.data.mixes import is_mix, mix_entries
from sightline.errors import DataError
from sightline.recipe import DataRecipe

QUIET = Console(quiet=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("one", 8), ("two", 7)):
        turns = [[{"from": "human", "value": f"{name} {n}?"}, {"from": "gpt", "value": "So."}] for n in range(count)]
        (tmp_path / f"{name}.json").write_text(json.dumps([{"conversations": each} for each in turns]))
    return tmp_path


def mix(folder: Path, *sets: Any) -> Path:
    path = folder / "mix.yaml"
    path.write_text(json.dumps({"datasets": sets}))  # which is YAML
    return path


@pytest.mark.parametrize(
    ("strategy", "rows"),
    [
        # As its train.py cuts them: ceil() of percent, [:n], [-n:].
        ("all", [1, 2, 3, 4, 5, 6, 7]),
        ("first:50%", [1, 2, 3, 4]),
        ("first:2", [1, 2]),
        ("first:99", [1, 2, 3, 4, 5, 6, 7]),
        ("end:2", [6, 7]),
        ("end:10%", [7]),
    ],
)
def test_the_rows_of_a_strategy(strategy: str, rows: list[int], folder: Path) -> None:
    path = mix(folder, {"json_path": "two.json", "sampling_strategy": strategy})
    assert is_mix(path)
    index = open_index([DataRecipe(path=str(path))], None, None, QUIET, folder / "cache")
    origins = [index.origin(*index.where[line].tolist()) for line in index.samples(0)]
    assert origins == [f"{folder / 'two.json'}: row {number}" for number in rows]
    (source,) = index.sources
    first = source.conversation(0)
    assert first.origin == origins[0] and first.messages[0].text == f"two {rows[0] - 1}?"


def test_what_is_drawn_is_drawn_by_the_seed(folder: Path) -> None:
    entries = [DataRecipe(path=str(mix(folder, {"json_path": "one.json", "sampling_strategy": "random:3"})))]
    index = open_index(entries, None, None, QUIET, None)
    assert [len(index.samples(seed)) for seed in range(3)] == [3, 3, 3]
    assert len({tuple(index.samples(seed)) for seed in range(9)}) > 1


def test_the_command_takes_a_mix(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mix(folder, {"json_path": "one.json", "sampling_strategy": "first:50%"}, {"json_path": "two.json"})
    assert main(["data", "check", str(path), "--images", str(folder)]) == 0
    assert "all" in (said := capsys.readouterr().out) and re.search(r"^all +11 +0 +11 +0$", said, re.MULTILINE)
    assert main(["data", "convert", str(path), str(folder / "out.json"), "--to", "llava"]) == 2
    assert "convert its sets one by one" in capsys.readouterr().err
    assert not is_mix(folder / "one.json") and not is_mix(folder / "none.yaml")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"json_path": "none.json"}, "set 2: 'json_path' none.json does not exist"),
        ({"json_path": "{a,b}.json"}, "is a pattern; list its files one by one"),
        ({"sampling_strategy": "all"}, "set 2: no 'json_path'"),
        (
            {"json_path": "one.json", "sampling_strategy": "last:3"},
            "'sampling_strategy' is 'last:3'; write all, first:N",
        ),
        ({"json_path": "one.json", "sampling_strategy": 3}, "'sampling_strategy' is 3; write all, first:N"),
        ({"json_path": "one.json", "sampling_strategy": "first:0"}, "'sampling_strategy' is 'first:0'"),
        ({"json_path": "one.json", "weight": 2}, "set 2: 'weight': not read; known: json_path, sampling_strategy"),
    ],
)
def test_what_is_wrong_with_a_mix(entry: Any, message: str, folder: Path) -> None:
    path = mix(folder, {"json_path": "one.json"}, entry)
    with pytest.raises(DataError) as error:
        mix_entries(path)
    assert message in str(error.value) and len(str(error.value)) < 300
