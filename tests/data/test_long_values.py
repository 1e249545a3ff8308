"""However long what a row holds is, what is said about it is short: at most about 120 characters of any value."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sightline.cli import main
from sightline.data.formats import FORMS
from sightline.data.inspect import Source, look
from sightline.data.sources import open_rows

MOST = 450
"""Characters of a message: two values, the words around them, and the name of a file."""

TURNS = [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A", "loss": True}]
PARTS = [
    {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "low"}},
    {"type": "image", "index": 0},
    {"type": "text", "text": "Q"},
]
ROWS: dict[str, dict[str, Any]] = {
    "llava": {"id": "1", "image": "a.jpg", "system": "s", "conversations": TURNS},
    "paddlemix": {"image": ["a.jpg"], "conversations": [["<image>Q", "A"]]},
    "mix": {
        "images": [{"id": 0, "url": "a.png"}],
        "conversations": [{**TURNS[0], "value": "<image>0</image>"}, TURNS[1]],
    },
    "openai": {
        "messages": [
            {"role": "user", "content": PARTS, "image": "a.jpg"},
            {"role": "assistant", "content": "A", "weight": 1},
        ],
        "images": ["a.jpg"],
    },
    "texts": {"texts": [{"user": "<image_1>Q", "assistant": "A"}], "images": [{"path": "a.jpg", "bytes": None}]},
    "query": {"query": "<img>a.jpg</img>Q", "response": "A", "history": [["Q", "A"]], "objects": {"bbox": []}},
}
LONG = {
    "text": "x" * 50_000,
    "words": "many words " * 5_000,
    "path": "folder/" * 8_000 + "a.jpg",
    "absolute": "/" + "folder/" * 8_000 + "a.jpg",
    "up": "../" * 9_000 + "a.jpg",
    "url": "https://example.org/" + "a" * 50_000 + ".jpg",
    "data": "data:image/png;base64," + "A" * 50_001,
    "base64": base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 50_000).decode(),
    "list": ["y" * 500] * 200,
    "object": {f"key {number} {'z' * 50}": number for number in range(500)},
    "word": "<image_1>" * 900 + "<video>",
    "number": 10**4000,
}


def changed(value: Any, new: Any) -> Iterator[Any]:
    """The value with another one in the place of each of its parts, and with each of its keys made long."""
    if isinstance(value, dict):
        for key in value:
            for inner in changed(value[key], new):
                yield {**value, key: inner}
            yield {**value, key: new}
            yield {(("k" * 50_000) if other == key else other): one for other, one in value.items()}
        yield {**value, "more": new, "k" * 50_000: new}
    if isinstance(value, list):
        for number in range(len(value)):
            for inner in changed(value[number], new):
                yield [*value[:number], inner, *value[number + 1 :]]
            yield [*value[:number], new, *value[number + 1 :]]


def test_every_form_is_tried_here() -> None:
    assert {FORMS[name] for name in ROWS} == set(FORMS.values())


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("kind", LONG)
def test_what_is_said_of_long_values_is_short(form: str, kind: str, tmp_path: Path) -> None:
    rows = list(changed(copy.deepcopy(ROWS[form]), LONG[kind]))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for named in (None, form):
        source = Source("rows", open_rows(path), str(tmp_path), None, form=named)
        said = [finding.reason for number in range(len(rows)) for finding in look(source, number).findings]
        too_long = [f"{len(one)}: {one[:200]} ... {one[-60:]}" for one in said if len(one) > MOST]
        assert said and too_long == []


@pytest.mark.parametrize("form", ROWS)
def test_what_conversion_says_is_short(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, row in enumerate(changed(copy.deepcopy(ROWS[form]), LONG["object"])):
        path, out = tmp_path / f"{number}.jsonl", tmp_path / f"{number}.parquet"
        path.write_text(json.dumps(row) + "\n")
        main(["data", "convert", str(path), str(out), "--to", "parquet", "--images", str(tmp_path)])
        assert len(capsys.readouterr().err) < 2 * MOST
