"""Parquet and Arrow files and folders of them are rows by number; the layouts are those that `datasets` 5.2 writes."""

from __future__ import annotations

import builtins
import json
import pickle
import random
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sightline.data.formats import to_conversation
from sightline.data.tables import Table, is_table, open_table
from sightline.errors import DataError, MissingExtra
from sightline.types import ImageRef


def rows(start: int, end: int) -> list[dict[str, Any]]:
    return [
        {
            "id": str(number),
            "image": {"bytes": f"picture {number}".encode(), "path": None},
            "conversations": [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": f"A{number}"}],
        }
        for number in range(start, end)
    ]


def parquet(path: Path, content: list[dict[str, Any]], group: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(content), path, row_group_size=group)
    return path


def arrow(path: Path, content: list[dict[str, Any]], *, stream: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(content)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        for batch in table.to_batches(30):
            writer.write(batch)
    return path


def saved(folder: Path, *files: list[dict[str, Any]], **more: Any) -> Path:
    """A folder as `save_to_disk` leaves it."""
    names = [f"data-{number:05}-of-{len(files):05}.arrow" for number in range(len(files))]
    for name, content in zip(names, files, strict=True):
        arrow(folder / name, content)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": "train", **more}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.fixture(params=["parquet", "folder", "pattern", "stream", "file", "saved", "dict"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Table:
    """The same 100 rows in every layout."""
    both = rows(0, 70), rows(70, 100)
    match request.param:
        case "parquet":
            path = parquet(tmp_path / "x.parquet", rows(0, 100))
        case "folder" | "pattern":
            parquet(tmp_path / "data" / "train-00000-of-00002.parquet", both[0])
            parquet(tmp_path / "data" / "train-00001-of-00002.parquet", both[1])
            (tmp_path / "README.md").write_text("a data card")
            path = tmp_path if request.param == "folder" else tmp_path / "data" / "train-*.parquet"
        case "stream" | "file":
            path = arrow(tmp_path / "x.arrow", rows(0, 100), stream=request.param == "stream")
        case "saved":
            path = saved(tmp_path / "set", *both)
        case _:
            saved(tmp_path / "set" / "train", *both)
            (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')
            path = tmp_path / "set"
    assert is_table(path)
    return open_table(path)


def test_all_rows_by_number_in_any_order(table: Table) -> None:
    expected = rows(0, 100)
    assert len(table) == 100
    assert list(table) == expected
    order = list(range(100))
    random.Random(0).shuffle(order)
    assert [table[number] for number in order] == [expected[number] for number in order]
    with pytest.raises(IndexError):
        table[100]


def test_a_row_is_a_conversation(table: Table) -> None:
    found = to_conversation(table[80], table.origin(80), None)
    assert found.id == "80" and found.images == (ImageRef(b"picture 80"),)
    assert found.messages[1].text == "A80"


def test_workers_open_the_files_themselves(table: Table) -> None:
    table[3]
    copy = pickle.loads(pickle.dumps(table))
    assert len(pickle.dumps(table)) < 2000
    assert copy[99] == table[99] and copy.origin(99) == table.origin(99) and copy.fingerprint == table.fingerprint


def test_rows_are_called_by_their_file(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", rows(0, 70), rows(70, 100))
    table = open_table(folder)
    assert table.origin(69) == f"{folder}/data-00000-of-00002.arrow: row 70"
    assert table.origin(70) == f"{folder}/data-00001-of-00002.arrow: row 1"


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", rows(0, 10))
    before = open_table(path).fingerprint
    assert open_table(path).fingerprint == before
    parquet(path, rows(1, 11))
    assert open_table(path).fingerprint != before


def test_null_columns_are_absent_keys(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", [{"id": "a", "image": "x.jpg"}, {"id": None, "image": None}])
    assert list(open_table(path)) == [{"id": "a", "image": "x.jpg"}, {}]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as error:
        open_table(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_splits_are_never_mixed(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows(0, 1))
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows(1, 2))
    said = refused(tmp_path)
    assert f"{tmp_path}/data/train*.parquet" in said and f"{tmp_path}/data/test*.parquet" in said
    assert len(open_table(tmp_path / "data" / "train*.parquet")) == 1

    for split in ("train", "validation"):
        saved(tmp_path / "set" / split, rows(0, 1))
    (tmp_path / "set" / "dataset_dict.json").write_text("{}")
    assert f"{tmp_path}/set/train" in refused(tmp_path / "set")

    for split in ("train", "test"):
        parquet(tmp_path / "hub" / split / "0000.parquet", rows(0, 1))
    assert f"{tmp_path}/hub/test or {tmp_path}/hub/train" in refused(tmp_path / "hub")


def test_what_is_no_table(tmp_path: Path) -> None:
    assert not is_table(tmp_path / "x.json") and not is_table(tmp_path / "none")
    assert "missing" in refused(tmp_path / "none.parquet")
    assert "no .parquet or .arrow files" in refused(tmp_path)
    assert "no file is called" in refused(tmp_path / "x*.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and then nothing")
    assert "damaged or was cut off" in refused(tmp_path / "x.parquet")
    (tmp_path / "y.arrow").write_bytes(b"")
    assert str(tmp_path / "y.arrow") in refused(tmp_path / "y.arrow")
    pq.write_table(pa.table({"id": pa.array([], pa.string())}), tmp_path / "z.parquet")
    assert "holds no rows" in refused(tmp_path / "z.parquet")


def test_a_folder_without_tables_is_asked_what_else_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no data set that `save_to_disk` wrote$"):
        open_table(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.JPG").touch()
    with pytest.raises(DataError, match="it holds pictures: `sightline data synthesize` has a model write rows about"):
        open_table(tmp_path)
    monkeypatch.setattr(Path, "rglob", MagicMock(side_effect=PermissionError(13, "Permission denied", "x")))
    with pytest.raises(DataError, match=r"cannot be looked through: .*Permission denied: 'x'"):
        open_table(tmp_path)
    monkeypatch.undo()
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(DataError, match=f"name a file of rows, such as {tmp_path}/rows.jsonl"):
        open_table(tmp_path)


def test_damage_inside_is_told_with_its_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", rows(0, 100))
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\xff" * 1996
    path.write_bytes(content)
    table = open_table(path)
    with pytest.raises(DataError) as error:
        table[0]
    assert str(error.value).startswith(f"{path}: row 1: ")


def test_saved_folders_that_cannot_be_read_as_they_are(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", rows(0, 1), _indices_files=[{"filename": "indices.arrow"}])
    assert "flatten_indices" in refused(folder)
    folder = saved(tmp_path / "gone", rows(0, 1))
    (folder / "data-00000-of-00001.arrow").unlink()
    assert "is missing" in refused(folder)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../set/data-00000-of-00001.arrow"}]}))
    assert "is missing" in refused(folder)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "x.parquet", rows(0, 1))
    imported = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'sightline-vlm\[data\]'"):
        open_table(path)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**31 - 1], pa.int32()).cast(pa.date32()),
        pa.array([2**62], pa.int64()).cast(pa.timestamp("s")),
        pa.array([1], pa.int64()).cast(pa.timestamp("s", tz="No/Where")),
        pa.array([2**62], pa.int64()).cast(pa.duration("s")),
    ],
    ids=["date", "time", "zone", "duration"],
)
@pytest.mark.parametrize("kind", [".parquet", ".arrow"])
def test_what_python_has_no_value_for_is_a_bad_row(tmp_path: Path, column: pa.Array, kind: str) -> None:
    table, path = pa.table({"x": column}), tmp_path / f"x{kind}"
    try:
        if kind == ".parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
    except pa.ArrowInvalid:
        pytest.skip("the format has no place for it")
    with pytest.raises(DataError, match="row 1: cannot be read") as error:
        open_table(path)[0]
    assert len(str(error.value)) < 400
