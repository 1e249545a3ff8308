"""Rows go from any form to any other and back without a loss; what a form cannot hold is an error, never left out."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from picture_files import noise, saved, scene

from sightline.cli import main
from sightline.data.convert import convert
from sightline.data.formats import read_row
from sightline.data.forms.places import place
from sightline.data.forms.reading import Turn
from sightline.data.image_files import ImageFiles
from sightline.data.sources import open_rows
from sightline.errors import DataError, UserError

JPEG, PNG = saved(scene(), "JPEG"), saved(noise(20, 10), "PNG")
NAMES = {"llava": "x.json", "openai": "x.json", "paddlemix": "x.json", "jsonl": "x.jsonl", "parquet": "x.parquet"}

PLAIN: list[dict[str, Any]] = [
    {
        "id": "one",
        "image": "a.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nQ {} "},
            {"from": "gpt", "value": "\tA </s>\n图片 🙂 \u2028"},
        ],
        "meta": {"width": 3, "tags": ["x", None, 1.5], "big": 2**70},
    },
    {
        "image": ["a.jpg", "deep/b.png", "a.jpg"],
        "conversations": [
            {"from": "human", "value": "no picture yet"},
            {"from": "gpt", "value": "right"},
            {"from": "human", "value": "Is <image> like <image>? <image>"},
            {"from": "gpt", "value": "No."},
        ],
        "id": 7,
    },
    {"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "words alone"}], "source": None},
]
"""What every form can hold."""
TOLD: list[dict[str, Any]] = [
    {
        "image": "a.jpg",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image><image>"},
            {"from": "gpt", "value": "A"},
        ],
    }
]
TOLD[0]["image"] = ["a.jpg", "deep/b.png"]
"""What pairs cannot hold."""


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def conversations(path: Path) -> list[tuple[Turn, ...]]:
    return [place(read_row(row))[0] for row in open_rows(path)]


def to(target: str, source: Path, name: str = "", **how: Any) -> Path:
    out = source.parent / f"{name or target}-{NAMES[target]}"
    convert(source, out, target, **how)
    return out


@pytest.mark.parametrize(("first", "second"), list(permutations(NAMES, 2)))
def test_round_trips_between_all_forms(tmp_path: Path, first: str, second: str) -> None:
    rows = PLAIN if "paddlemix" in (first, second) else PLAIN + TOLD
    source = written(tmp_path / "source.json", rows)
    there = to(first, source)
    across = to(second, there)
    back = to("llava", across, "back")
    assert conversations(there) == conversations(across) == conversations(source)
    assert json.loads(back.read_text()) == rows


@pytest.mark.parametrize("form", NAMES)
def test_a_second_time_gives_the_same_file(tmp_path: Path, form: str) -> None:
    source = written(tmp_path / "source.json", PLAIN)
    assert to(form, to(form, source), "again").read_bytes() == to(form, source, "anew").read_bytes()


def test_how_the_forms_look(tmp_path: Path) -> None:
    # Written down from the documentation of the programs that read them, see test_forms.py.
    row = {
        "id": "a",
        "image": "a.jpg",
        "conversations": [{"from": "human", "value": "Q <image>"}, {"from": "gpt", "value": "A"}],
    }
    source = written(tmp_path / "source.json", [row])
    assert json.loads(to("openai", source).read_text()) == [
        {
            "id": "a",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Q "},
                        {"type": "image_url", "image_url": {"url": "a.jpg"}},
                    ],
                },
                {"role": "assistant", "content": "A"},
            ],
        }
    ]
    assert json.loads(to("paddlemix", source).read_text()) == [
        {"id": "a", "image": "a.jpg", "conversations": [["Q <image>", "A"]]}
    ]
    assert to("jsonl", source).read_text() == json.dumps(row) + "\n"
    assert pq.read_table(to("parquet", source)).to_pylist() == [
        {
            "id": "a",
            "messages": [{"role": "user", "content": "Q <image>"}, {"role": "assistant", "content": "A"}],
            "images": [{"bytes": None, "path": "a.jpg"}],
            "extra_json": None,
        }
    ]


def test_files_become_bytes_and_files_again(tmp_path: Path, images: Path) -> None:
    source = written(tmp_path / "source.json", PLAIN + TOLD)
    table = to("parquet", source, images=str(images))
    row = pq.read_table(table).to_pylist()[1]
    assert row["images"][1] == {"bytes": PNG, "path": "deep/b.png"}
    out = tmp_path / "out"
    back = to("llava", table, "back", files=ImageFiles(out, None, fetches=False))
    assert json.loads(back.read_text()) == PLAIN + TOLD
    assert (out / "a.jpg").read_bytes() == JPEG and (out / "deep" / "b.png").read_bytes() == PNG
    assert len([path for path in out.rglob("*") if path.is_file()]) == 2


def test_images_without_a_place_are_written_with_one(tmp_path: Path) -> None:
    source = written(tmp_path / "source.json", [{"image": "a.jpg", "conversations": [["Q", "A"]]}])
    done = convert(source, tmp_path / "out.json", "llava")
    assert done.in_front == 1
    assert json.loads((tmp_path / "out.json").read_text())[0]["conversations"][0]["value"] == "<image>\nQ"


def test_half_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "\ud83d"}, {"from": "gpt", "value": "A"}]}]
    source = written(tmp_path / "source.json", rows)
    assert json.loads(to("jsonl", source).read_text()) == rows[0]
    with pytest.raises(DataError, match=r"row 1: the row cannot be written to a Parquet file"):
        to("parquet", source)


def asking(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A", **more}]}


def pixels(**more: Any) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": "a.jpg", **more}}]


@pytest.mark.parametrize(
    ("row", "target", "reason", "key"),
    [
        (TOLD[0], "paddlemix", "turn 1 is the system's, which pairs of [user, assistant] cannot hold", None),
        (asking("Q", name="x"), "paddlemix", "turn 2: 'name' has no place in pairs of [user, assistant]", "name"),
        (
            asking("Q", name="x"),
            "parquet",
            "turn 2: 'name' has no place in a Parquet file; --drop name leaves it out",
            "name",
        ),
        (
            asking(pixels(detail="low")),
            "llava",
            "'detail' of an image has no place in other forms; --drop detail leaves it out",
            "detail",
        ),
        ({"messages": asking("Q")["messages"][:1]}, "paddlemix", "the last question has no answer, which pairs", None),
        (
            {"messages": asking("Q")["messages"][::-1]},
            "paddlemix",
            "turn 1 is the assistant's: pairs hold user and assistant in turn",
            None,
        ),
        ({**asking("Q"), "query": "Q"} | {"response": "A"}, "llava", "the row has 'messages' and 'query'; name", None),
    ],
)
def test_what_a_form_cannot_hold(
    tmp_path: Path, row: dict[str, Any], target: str, reason: str, key: str | None
) -> None:
    source = written(tmp_path / "source.json", [asking("fine"), row])
    with pytest.raises(DataError) as error:
        to(target, source)
    assert str(error.value).startswith(f"{source}: row 2: {reason}")
    assert [path.name for path in tmp_path.iterdir()] == ["source.json"]
    if key is not None:
        assert len(conversations(to(target, source, drop=frozenset([key])))) == 2


def test_turns_keep_their_own_keys_where_there_is_room(tmp_path: Path) -> None:
    source = written(tmp_path / "source.json", [asking("Q", name="x")])
    there = to("llava", source)
    assert json.loads(there.read_text())[0]["conversations"][1] == {"from": "gpt", "value": "A", "name": "x"}
    assert json.loads(to("openai", there).read_text()) == [asking("Q", name="x")]


def test_keys_in_the_way(tmp_path: Path) -> None:
    row = {"messages": asking("Q")["messages"], "conversations": [["Q", "A"]]}
    with pytest.raises(DataError, match="the row's own 'conversations' is in the way; --drop conversations leaves it"):
        to("llava", written(tmp_path / "source.json", [row]), form="openai")
    with pytest.raises(DataError, match=r"the row has .* name its form|is in the way"):
        to("openai", written(tmp_path / "source.json", [row]), form="paddlemix", name="other")


def test_bytes_have_no_place_in_json(tmp_path: Path, images: Path) -> None:
    table = to("parquet", written(tmp_path / "source.json", PLAIN), images=str(images))
    with pytest.raises(DataError, match=r"row 1: the row holds the bytes of an image, JSON cannot; --images-out"):
        to("llava", table)


def test_rows_that_are_skipped_are_listed(tmp_path: Path) -> None:
    bad = {"image": 3, "conversations": [["Q", "A"]]}
    source = written(tmp_path / "source.json", [TOLD[0], *PLAIN, bad])
    out = tmp_path / "out.json"
    done = convert(source, out, "paddlemix", skip=True)
    assert (done.rows, done.left_out) == (3, 2) and len(json.loads(out.read_text())) == 3
    listed = [json.loads(line) for line in (tmp_path / "out.json.bad.jsonl").read_text().splitlines()]
    assert {entry["row"]: entry["reason"] for entry in listed} == {
        f"{source}: row 1": "turn 1 is the system's, which pairs of [user, assistant] cannot hold",
        f"{source}: row 5": "'image' is neither a path nor a list of paths",
    }
    with pytest.raises(DataError, match="no row could be written"):
        convert(written(tmp_path / "none.json", [bad]), tmp_path / "none-out.json", "llava", skip=True)
    assert not (tmp_path / "none-out.json").exists()


def test_the_file_appears_when_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = written(tmp_path / "source.json", PLAIN), tmp_path / "out.json"
    seen: list[bool] = []

    def looked(turns: Any, images: Any) -> dict[str, Any]:
        seen.append(out.exists())
        raise KeyboardInterrupt

    monkeypatch.setitem(__import__("sightline.data.convert").data.convert._WRITES, "llava", looked)
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, "llava")
    assert seen == [False] and sorted(path.name for path in tmp_path.iterdir()) == ["source.json"]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    source, out = written(tmp_path / "source.json", PLAIN), tmp_path / "out.json"
    out.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        convert(source, out, "llava")
    assert out.read_text() == "mine"


def test_the_list_of_rows_left_out_is_not_written_over_either(tmp_path: Path) -> None:
    source = written(tmp_path / "in.json", [*PLAIN, {"conversations": 3}])
    out, bad = tmp_path / "out.jsonl", tmp_path / "out.jsonl.bad.jsonl"
    bad.write_text("of an earlier conversion")
    with pytest.raises(UserError, match=r"out\.jsonl\.bad\.jsonl is there already"):
        convert(source, out, "jsonl", skip=True)
    assert bad.read_text() == "of an earlier conversion" and not out.exists()


def test_the_command(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path / "source.json", PLAIN)
    table, out = tmp_path / "x.parquet", tmp_path / "x.jsonl"

    def run(*argv: object) -> tuple[int, str]:
        code = main(["data", "convert", *map(str, argv)])
        said = capsys.readouterr()
        return code, said.out + said.err

    assert run(source, table, "--to", "parquet", "--images", images) == (0, f"{table}: 3 rows\n")
    code, said = run(table, out, "--to", "jsonl", "--images-out", tmp_path / "out")
    assert (code, said) == (0, f"{out}: 3 rows\nimages written to {tmp_path / 'out'}: 2\n")
    assert [json.loads(line) for line in out.read_text().splitlines()] == PLAIN
    for argv, part in (
        ((source, tmp_path / "y.txt", "--to", "llava"), "writes a file called *.json or *.jsonl"),
        ((source, tmp_path / "y.json", "--to", "jsonl"), "writes a file called *.jsonl"),
        ((source, tmp_path / "y.json", "--to", "llava", "--images", images), "--images is only of use"),
        ((source, tmp_path / "y.parquet", "--to", "parquet", "--images", tmp_path / "no"), "no is missing"),
        ((source, source, "--to", "openai"), "is there already"),
        ((tmp_path / "no.json", tmp_path / "y.json", "--to", "openai"), "no.json is missing"),
        ((source, tmp_path / "y.json", "--to", "llava", "--form", "paddlemix"), "row 1: pair 1 is not a list"),
    ):
        code, said = run(*argv)
        assert code == 2 and part in said and said.count("\n") == 1, said
    assert not list(tmp_path.glob("y*"))


def test_a_meta_file_has_no_rows(tmp_path: Path) -> None:
    meta = tmp_path / "meta.json"
    meta.write_text('{"x": {"annotation": "a.jsonl"}}')
    with pytest.raises(UserError, match="lists sets and has no rows"):
        convert(meta, tmp_path / "out.json", "llava")


def test_more_rows_than_go_at_a_time(tmp_path: Path) -> None:
    rows = [PLAIN[number % 3] | {"number": number} for number in range(300)]
    back = to("jsonl", to("parquet", written(tmp_path / "many.json", rows)), "back")
    assert [json.loads(line) for line in back.read_text().splitlines()] == rows
