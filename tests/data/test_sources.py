"""Rows of good files come back as written; of damaged ones the byte and the row are named, counted here by hand."""

from __future__ import annotations

import json
import mmap
import pickle
import random
import re
from pathlib import Path
from typing import Any

import pytest

from sightline.data import sources
from sightline.data.sources import open_rows
from sightline.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"id": "1", "text": "plain"},
    {"id": "2", "text": 'äöü 图片 🙂 \u2028 \\ " \n', "deep": {"list": [1, [2.5, None, True], {}]}},
    {},
    {"id": 4, "text": "]},{[", "empty": []},
]


@pytest.fixture(params=[sources._WINDOW, 1, 7, 50], autouse=True)
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays are read a window at a time; where the windows end must not matter."""
    monkeypatch.setattr(sources, "_WINDOW", request.param)


def write(folder: Path, content: str | bytes, name: str = "rows.json") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_rows(path: Path) -> sources.JsonRows:
    rows = open_rows(path)
    assert isinstance(rows, sources.JsonRows)
    return rows


def said(folder: Path, content: str | bytes, name: str = "rows.json") -> str:
    """The message about a file or its first bad row, without its path."""
    path = write(folder, content, name)
    with pytest.raises(DataError) as error:
        list(open_rows(path))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


def lines(rows: list[dict[str, Any]], ascii_only: bool = False) -> str:
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, ensure_ascii=False),
        json.dumps(ROWS, ensure_ascii=False, indent=4),
        json.dumps(ROWS, ensure_ascii=False, separators=(",", ":")),
        "\n\t  " + json.dumps(ROWS, indent="\t").replace("\n", "\r\n") + " \r\n\n",
        "\ufeff" + json.dumps(ROWS, ensure_ascii=False),
        "\ufeff\n" + json.dumps(ROWS),
        " " * 10_000 + json.dumps(ROWS),
        lines(ROWS),
        lines(ROWS, ascii_only=True),
        lines(ROWS).removesuffix("\n"),
        "\n \n" + lines(ROWS).replace("\n", "\n\n"),
        lines(ROWS).replace("\n", "\r\n"),
        "\ufeff" + lines(ROWS),
    ],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_rows_come_back_as_they_were_written(content: str, name: str, tmp_path: Path) -> None:
    rows = open_rows(write(tmp_path, content, name))
    assert len(rows) == len(ROWS)
    assert list(rows) == ROWS
    assert [rows[number] for number in (3, 0, 2, 1)] == [ROWS[number] for number in (3, 0, 2, 1)]


def test_a_single_row(tmp_path: Path) -> None:
    assert list(open_rows(write(tmp_path, '[{"a": 1}]'))) == [{"a": 1}]
    assert list(open_rows(write(tmp_path, '{"a": 1}'))) == [{"a": 1}]


def test_spans_are_bytes(tmp_path: Path) -> None:
    content = json.dumps(ROWS, ensure_ascii=False, indent=1).encode()
    rows = json_rows(write(tmp_path, content))
    assert [json.loads(content[start:end]) for start, end in rows.spans] == ROWS


def test_rows_are_counted_from_one_in_messages(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(ROWS))
    assert open_rows(path).origin(0) == f"{path}: row 1"


def test_rows_travel_to_other_processes(tmp_path: Path) -> None:
    rows = open_rows(write(tmp_path, json.dumps(ROWS, ensure_ascii=False)))
    packed = pickle.dumps(rows)
    assert list(pickle.loads(packed)) == ROWS
    assert "图片".encode() not in packed and b"plain" not in packed


def test_the_places_of_rows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = write(tmp_path, json.dumps(ROWS, ensure_ascii=False)), tmp_path / "cache"
    assert list(open_rows(path, cache)) == ROWS
    (kept,) = cache.iterdir()
    real = sources._find
    monkeypatch.setattr(sources, "_find", lambda *_: pytest.fail("the file is searched again"))
    assert list(open_rows(path, cache)) == ROWS
    assert list(open_rows(path.rename(tmp_path / "moved"), cache)) == ROWS
    monkeypatch.setattr(sources, "_find", real)
    kept.write_bytes(kept.read_bytes()[:140])
    assert list(open_rows(tmp_path / "moved", cache)) == ROWS
    assert list(open_rows(write(tmp_path, json.dumps(ROWS[::-1])), cache)) == ROWS[::-1]


def test_rows_are_not_held_in_memory(tmp_path: Path) -> None:
    rows = json_rows(write(tmp_path, json.dumps([{"text": "x" * 1000}] * 500)))
    assert isinstance(rows.content, mmap.mmap)
    assert rows.spans.nbytes == 500 * 16
    assert len(pickle.dumps(rows)) < 500 * 16 + 1000


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_rows(tmp_path / "a.json")
    assert str(error.value) == f"data file {tmp_path / 'a.json'} is missing"
    with pytest.raises(DataError) as error:
        open_rows("/dev/null")
    assert str(error.value) == "data file /dev/null is not a file"


@pytest.mark.parametrize("content", ["", " \n\t\n", "\ufeff", "\ufeff \n", " " * 10_000])
def test_an_empty_file(content: str, tmp_path: Path) -> None:
    assert said(tmp_path, content) == "the file is empty"


@pytest.mark.parametrize("content", ["[]", " [ \n ] "])
def test_a_file_without_rows(content: str, tmp_path: Path) -> None:
    assert said(tmp_path, content) == "the file holds no rows"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}, {"a" 2}]', "broken JSON (a colon is missing) at line 1 (byte 16), in row 2"),
        ('[{"ä": 1}, {"🙂" 2}]', "broken JSON (a colon is missing) at line 1 (byte 20), in row 2"),
        ('\ufeff[{"a": 1}, {"a" 2}]', "broken JSON (a colon is missing) at line 1 (byte 19), in row 2"),
        ('[{"a": 1}, {"a": x}]', "broken JSON (what is no value of JSON) at line 1 (byte 17), in row 2"),
        ('[{"a": 1} {"a": 2}]', "broken JSON (a comma is missing) at line 1 (byte 10), in row 2"),
        ('[{"a": 1},]', "broken JSON (a comma too many) at line 1 (byte 10), in row 2"),
        ('[\n{"a": 1,\n},\n{}]', "broken JSON (a comma too many) at line 3 (byte 11), in row 1"),
        ('[\n{"a": 1}\n// more\n]', "broken JSON (a comment, which JSON has none of) at line 3 (byte 11), in row 2"),
        ("[\n# rows\n{}]", "broken JSON (a comment, which JSON has none of) at line 2 (byte 2), in row 1"),
        ('[{"a": 1, /* b */ "b": 2}]', "broken JSON (a comment, which JSON has none of) at line 1 (byte 10), in row 1"),
        ('[{"a": None}]', "broken JSON (None, which JSON calls null) at line 1 (byte 7), in row 1"),
        ('[{"a": True}]', "broken JSON (True, which JSON calls true) at line 1 (byte 7), in row 1"),
        ("[{a: 1}]", "broken JSON (a key without double quotes) at line 1 (byte 2), in row 1"),
        ('[{"a": "x\ny"}]', "broken JSON (a line break inside of a text) at line 1 (byte 9), in row 1"),
        ("[{'a': 1}]", "broken JSON (single quotes, where JSON has double ones) at line 1 (byte 2), in row 1"),
        ('[{"a": 1}] x', "there is more text after the array at line 1 (byte 11), in row 2"),
        ('[{"a": 1}]\n[{"a": 2}]', "there is more text after the array at line 2 (byte 11), in row 2"),
        ("[] []", "there is more text after the array at line 1 (byte 3), in row 1"),
    ],
)
def test_an_array_that_is_broken(content: str, message: str, tmp_path: Path) -> None:
    assert said(tmp_path, content) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a" 2}\n', "row 2: broken JSON (a colon is missing) at byte 14"),
        ('{"a": 1}\n\n{"ä": "🙂", "a" 2}\n', "row 2: broken JSON (a colon is missing) at byte 29"),
        ('\ufeff{"ä" 1}\n', "row 1: broken JSON (a colon is missing) at byte 9"),
        ('{"a": 1}\n{"a": "b', "row 2: broken JSON (a text that does not end) at byte 15"),
        ('{"a": 1}\n{"a": 1,', "row 2: broken JSON (it breaks off) at byte 17"),
        ('{"a": 1}, \n{"a": 2}', "row 1: broken JSON (a comma behind the row) at byte 8"),
        ('{"a": 1,}\n{"a": 2}', "row 1: broken JSON (a comma too many) at byte 8"),
        ('{"a": 1,\n{"a": 2}', "row 1: broken JSON (it breaks off) at byte 8"),
        ('{"a": 1\n{"a": 2}\n{}', "row 1: broken JSON (it breaks off) at byte 7"),
        ("hello\nworld", "no JSON rows: the file begins with 'hello'"),
    ],
)
def test_lines_that_are_broken(content: str, message: str, tmp_path: Path) -> None:
    assert said(tmp_path, content, "rows.jsonl") == message


def test_a_broken_line_leaves_the_others(tmp_path: Path) -> None:
    rows = open_rows(write(tmp_path, '{"a": 1}\n{"a" 2}\n\n{"a": 3}\n', "rows.jsonl"))
    assert (len(rows), rows[0], rows[2]) == (3, {"a": 1}, {"a": 3})
    with pytest.raises(DataError) as error:
        rows[1]
    assert error.value.kind == "broken_json"


@pytest.mark.parametrize("row", ['{"n": ' + "9" * 5000 + "}", "[" * 100_000 + "]" * 100_000], ids=["number", "deep"])
def test_json_that_python_refuses(row: str, tmp_path: Path) -> None:
    assert re.match(r"JSON that cannot be read \(.*\) at line 1 \(byte 4\), in row 2", said(tmp_path, f"[{{}},{row}]"))
    assert re.match(r"row 2: JSON that cannot be read \(.*\) at byte 3", said(tmp_path, f"{{}}\n{row}\n"))


def test_a_file_that_breaks_off_anywhere(tmp_path: Path) -> None:
    for ensure_ascii in (True, False):
        whole = json.dumps(ROWS, ensure_ascii=ensure_ascii, indent=1).encode()
        starts = [start for start, _ in json_rows(write(tmp_path, whole)).spans]
        for length in range(1, len(whole)):
            message = said(tmp_path, whole[:length])
            if length == 1 or message.endswith("is not UTF-8; the file is damaged or was cut off"):
                continue
            byte, row = re.findall(r"\(byte (\d+)\), in row (\d+)", message)[0]
            assert int(byte) <= length
            # The row that was being read: the last that has begun, or the one that should follow it.
            begun = sum(start < length for start in starts)
            assert int(row) in (begun, begun + 1)


def test_an_object_is_no_list_of_rows(tmp_path: Path) -> None:
    content = json.dumps({"images": [1], "annotations": ROWS}, indent=1)
    expected = "the file is one object (with 'images', 'annotations'); expected an array of rows, or one object a line"
    assert said(tmp_path, content) == expected
    assert said(tmp_path, "\ufeff\n" + content) == expected


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    for text in ('[{"a": "', '[\n{"ä": 1}, {"b": "'):
        content = text.encode() + b"\xff" + b'"}]'
        byte = len(text.encode())
        assert said(tmp_path, content) == f"byte {byte} is not UTF-8; the file is damaged or was cut off"
    assert said(tmp_path, b'{"a": 1}\n{"a": "\xe4"}\n') == "row 2: byte 16 is not UTF-8"
    assert "is UTF-16; save it as UTF-8" in said(tmp_path, json.dumps(ROWS).encode("utf-16"))


@pytest.mark.parametrize(
    ("content", "kind"), [("[{}, 3]", "int"), ('{}\n"text"', "str"), ("{}\n[1, 2]\n", "list"), ("{}\nnull", "NoneType")]
)
def test_a_row_that_is_no_object(content: str, kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    rows = open_rows(path)
    assert rows[0] == {}
    with pytest.raises(DataError) as error:
        rows[1]
    assert str(error.value) == f"{path}: row 2: expected an object {{...}}, found {kind}"


def test_random_files(tmp_path: Path) -> None:
    rng = random.Random(2)
    letters = 'aä图🙂"\\[]{},: \n\t\u2028'

    def value(depth: int) -> Any:
        kind = rng.randrange(6 if depth < 3 else 4)
        if kind < 2:
            return "".join(rng.choices(letters, k=rng.randint(0, 9)))
        if kind < 4:
            return rng.choice([0, -1.5, 1e30, True, None])
        if kind == 4:
            return [value(depth + 1) for _ in range(rng.randint(0, 3))]
        return {str(value(3)): value(depth + 1) for _ in range(rng.randint(0, 3))}

    for _ in range(40):
        rows = [{"v": value(0)} for _ in range(rng.randint(1, 6))]
        indent = rng.choice([None, 0, 3])
        array = json.dumps(rows, ensure_ascii=rng.random() < 0.5, indent=indent)
        assert list(open_rows(write(tmp_path, array))) == rows
        assert list(open_rows(write(tmp_path, lines(rows)))) == rows
