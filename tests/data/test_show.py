"""`data show`: one row through every stage, the unusable ones as far as they go."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from picture_files import saved, scene, turned
from tiny import make_tokenizer, write_recipe

from sightline.cli import main


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def shown(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["data", "show", *map(str, argv)])
    said = capsys.readouterr()
    return code, said.out, said.err


def write(*rows: Any) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path("rows.jsonl").write_text("".join(line + "\n" for line in lines))
    return "rows.jsonl"


def turns(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}


def sections(text: str) -> list[str]:
    return [block.splitlines()[0].split(" (")[0] for block in text.split("\n\n")]


def test_every_stage_of_a_good_row(capsys: pytest.CaptureFixture[str]) -> None:
    Path("im").mkdir()
    Path("im/a.jpg").write_bytes(saved(scene(60, 40), "jpeg", exif=turned(6)))
    make_tokenizer().save_pretrained("tokenizer")
    row = turns("Look: <image>\nWhat is it?", "A red one.", image="a.jpg", id="7")
    flags = ("--images", "im", "--tokenizer", "tokenizer", "--template", "vicuna", "--tokens-per-image", 16)
    code, out, err = shown(capsys, write(turns("other", "row"), row), 2, *flags)
    assert (code, err) == (0, "")
    assert sections(out) == [
        *("rows.jsonl: row 2", "In the file", "Understood", "Images", "Rendered", "Tokenised", "Findings")
    ]
    assert '"value": "Look: <image>\\nWhat is it?"' in out
    assert "Understood (id '7', 1 image)\nuser: Look: <a.jpg>\nWhat is it?\nassistant: A red one.\n" in out
    # 60 x 40 turned by a quarter; the size of the file from the file.
    size = Path("im/a.jpg").stat().st_size
    facts = f"40 x 60 px, turned upright (EXIF orientation 6), JPEG (RGB), {size} bytes, 16 tokens"
    assert f"1. a.jpg: {facts}\n" in out
    assert "- <a.jpg>\n- '\\nLook: \\nWhat is it?'\n- ' '\n- 'ASSISTANT:'\n= ' '\n= 'A red one.'\n= '</s>'\n" in out
    assert "<image> x 16 tokens\nLook: \nWhat is it? ASSISTANT:⟦ A red one.</s>⟧\n" in out
    ids, labels = (line.split(": ")[1] for line in out.splitlines() if line.startswith(("ids: ", "labels: ")))
    assert "*16 " in ids and labels.startswith("-100*") and ids.endswith(labels.split(" ", 1)[1])
    assert out.endswith("Findings\nturned by EXIF: image a.jpg is turned upright (EXIF orientation 6); "
                        "nothing: it is shown upright\n")  # fmt: skip


def test_a_recipe_needs_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "world")
    code, out, _ = shown(capsys, recipe, 5, "model.template=plain")
    assert code == 0 and "Rendered (plain;" in out and "Understood (id '4', 2 images)" in out
    assert out.endswith("Findings\nnone\n")
    code, _, err = shown(capsys, recipe, 1, "--set", 2)
    assert code == 2 and "has 1 data file, counted from 1" in err


@pytest.mark.parametrize(
    ("row", "last_stage", "reason"),
    [
        ('{"conversations": [', "In the file", "JSON"),
        ('"a text"', "In the file", "expected an object"),
        (turns("<image>", "no image"), "In the file", "<image>"),
        (turns("what", "is \ud800"), "Rendered", "surrogate"),
        (turns("<image>", "gone", image="gone.png"), "Tokenised", "gone.png is missing"),
    ],
)
def test_a_bad_row_is_shown_as_far_as_it_goes(
    row: Any, last_stage: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tokenizer().save_pretrained("tokenizer")
    Path("im").mkdir()
    flags = ("--images", "im", "--tokenizer", "tokenizer", "--template", "vicuna")
    code, out, err = shown(capsys, write(row), 1, *flags)
    assert code == 2 and err.startswith("error: rows.jsonl: row 1: ") and reason in err and len(err.splitlines()) == 1
    assert sections(out)[-2:] == [last_stage, "Findings"]
    assert reason in out.split("Findings\n")[1]
    raw = row if isinstance(row, str) else ""
    assert raw in out


def test_rows_are_counted_from_one(capsys: pytest.CaptureFixture[str]) -> None:
    path = write(turns("a", "b"))
    for number in (0, 2):
        assert shown(capsys, path, number) == (2, "", f"error: row {number}: rows.jsonl has 1 row, counted from 1\n")


def test_nothing_in_a_row_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    make_tokenizer().save_pretrained("tokenizer")
    path = write(turns("\x1b[2J [red]bold[/red] \u202e", "\x9b31m"))
    code, out, _ = shown(capsys, path, 1, "--tokenizer", "tokenizer", "--template", "vicuna")
    assert code == 0 and "[red]bold[/red]" in out and r"\x1b[2J" in out and r"\x9b31m" in out
    assert all(char.isprintable() or char == "\n" for char in out)


def test_embedded_images_are_cut_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    uri = "data:image/png;base64," + base64.b64encode(saved(scene(300, 200), "png") + bytes(3000)).decode()
    image = {"type": "image_url", "image_url": {"url": uri}}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Red."},
    ]
    code, out, _ = shown(capsys, write({"messages": messages}), 1)
    assert code == 0 and f"... ({len(uri):,} characters)" in out and "300 x 200 px, PNG (RGB)" in out
    assert len(out) < 3000
