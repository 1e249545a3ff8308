"""Everything that one row can have is told by its kind, all of it at once."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prompters import FEATURES, make_prompter

from sightline.data.inspect import Look, Source, look, stamp
from sightline.data.sources import open_rows
from sightline.data.verdict import KINDS

LONG = 512


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (60, 40), "red").save(folder / "good.jpg")
    Image.new("RGB", (60, 10), "red").save(folder / "tiny.png")
    Image.new("RGB", (60, 11), "red").save(folder / "small.png")
    Image.new("RGB", (60, 40), "red").save(folder / "lie.jpg", "PNG")
    Image.new("RGB", (60, 40), "red").save(folder / "noending", "PNG")
    (folder / "text.png").write_text("no picture")
    (folder / "half.jpg").write_bytes((folder / "good.jpg").read_bytes()[:300])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "red").save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (60, 40), "red").save(folder / "turned.png", exif=exif)
    exif[0x0112] = 1
    Image.new("RGB", (60, 40), "red").save(folder / "upright.jpg", exif=exif)
    return folder


def row(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}


def source_of(images: Path, *rows: Any, **settings: Any) -> Source:
    path = images.parent / "rows.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows))
    given = {"prompter": make_prompter(), "max_length": LONG, "looked_at": len(rows)} | settings
    return Source(str(path), open_rows(path), str(images), **given)


def looked(images: Path, one: Any, **settings: Any) -> Look:
    return look(source_of(images, one, **settings), 0)


def kinds(images: Path, one: Any, **settings: Any) -> list[str]:
    return [finding.kind for finding in looked(images, one, **settings).findings]


def test_a_good_row(images: Path) -> None:
    seen = looked(images, row("<image>\nWhat?", "Red.", image="good.jpg"))
    encoded = source_of(images, row("<image>\nWhat?", "Red.", image="good.jpg")).encode(0)
    assert (seen.tokens, seen.targets) == (len(encoded.ids), encoded.num_targets)
    assert (seen.sizes, seen.findings, seen.bad) == (((60, 40),), (), False)
    assert seen.tokens > FEATURES


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        ('{"conversations": [', ["broken_json"]),
        ('"text"', ["form"]),
        ({"id": 1}, ["form"]),
        ({"conversations": [{"from": "robot", "value": "x"}]}, ["role"]),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, ["order"]),
        ({"conversations": [{"from": "human", "value": "x"}]}, ["order"]),
        (row("Q", " "), ["empty_answer"]),
        (row("Q", "A", image="good.jpg"), ["image_in_front"]),
        (row("<image><image>", "A", image="good.jpg"), ["image_count"]),
        (row("<image>", "A", image=["good.jpg", "good.jpg"]), ["image_count"]),
        (row("<image>", "A", image="nowhere.jpg"), ["image_missing"]),
        (row("<image>", "A", image="."), ["image_missing"]),
        (row("<image>", "A", image="https://example.com/a.jpg"), ["image_missing"]),
        (row("<image>", "A", image="../rows.jsonl"), ["image_outside"]),
        (row("<image>", "A", image="/etc/hostname"), ["image_outside"]),
        (row("<image>", "A", image="text.png"), ["image_unreadable"]),
        (row("<image>", "A", image="half.jpg"), ["image_unreadable"]),
        (row("<image>", "A", image="tiny.png"), ["image_tiny"]),
        (row("<image>", "A", image="small.png"), []),
        (row("<image>", "A", image="lie.jpg"), ["image_extension"]),
        (row("<image>", "A", image="noending"), []),
        (row("<image>", "A", image="turned.jpg"), ["image_turned"]),
        (row("<image>", "A", image="turned.png"), ["image_turned"]),
        (row("<image>", "A", image="upright.jpg"), []),
        (row("Say </s> or <|im_end|>", "A </s>"), ["control_token", "control_token"]),
        (row("Q", "word " * 600), ["too_long"]),
        (row("word " * 600, "A"), ["no_target"]),
        (row("<image>" + "word " * 600 + "<image>", "A", image=["good.jpg"] * 2), ["image_cut"]),
        (row("\ud800", "A"), ["other"]),
        (row("</s>" * 200 + "<image><image>", "A", image=["nowhere.jpg", "tiny.png"]),
         ["image_missing", "image_tiny", "control_token", "image_cut"]),
    ],
)  # fmt: skip
def test_each_kind(one: Any, expected: list[str], images: Path) -> None:
    assert kinds(images, one) == expected
    assert looked(images, one).bad == any(KINDS[kind].bad for kind in expected)


def test_a_bomb(images: Path) -> None:
    Image.new("1", (1, 1)).save(images / "bomb.png")
    data = bytearray((images / "bomb.png").read_bytes())
    data[16:24] = (40_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (images / "bomb.png").write_bytes(data)
    assert kinds(images, row("<image>", "A", image="bomb.png")) == ["image_bomb"]


def test_sizes_are_upright_and_of_every_image(images: Path) -> None:
    one = row("<image><image><image>", "A", image=["turned.jpg", "nowhere.jpg", "tiny.png"])
    assert looked(images, one).sizes == ((40, 60), (0, 0), (60, 10))


def test_no_reason_repeats_file_and_row(images: Path) -> None:
    for one in ("{", {"id": 1}, row("<image>", "A", image="half.jpg"), row("Q" * 9000, "A")):
        for finding in looked(images, one).findings:
            assert "rows.jsonl" not in finding.reason and "\n" not in finding.reason


def test_lengths_are_those_of_what_is_cut(images: Path) -> None:
    one = row("Q", "word " * 600)
    seen = looked(images, one)
    whole = looked(images, one, max_length=None)
    assert (seen.tokens, whole.findings) == (LONG, ())
    lost = f"{whole.targets - seen.targets} of {whole.targets} targets lost"
    assert [finding.reason for finding in seen.findings] == [f"{whole.tokens} tokens, cut at {LONG}; {lost}"]


def test_without_a_tokenizer_everything_else_is_checked(images: Path) -> None:
    one = row("<|im_end|><image>" + "word " * 600, "A", image="tiny.png")
    seen = looked(images, one, prompter=None)
    assert (seen.tokens, seen.targets, seen.sizes) == (0, 0, ((60, 10),))
    assert [finding.kind for finding in seen.findings] == ["image_tiny", "control_token"]


def test_the_digest_is_of_what_is_said_and_shown(images: Path) -> None:
    first = looked(images, row("<image>Q", "A", image="good.jpg", id="1")).digest
    assert first == looked(images, {"messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "good.jpg"}},
                                     {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"}]}).digest  # fmt: skip
    others = [row("<image>Q", "B", image="good.jpg"), row("Q<image>", "A", image="good.jpg"),
              row("<image>Q", "A", image="tiny.png"), row("Q", "A")]  # fmt: skip
    assert len({first, *(looked(images, other).digest for other in others)}) == 5
    assert looked(images, {"id": 1}).digest == 0


def test_what_a_look_depends_on_is_watched(images: Path) -> None:
    watched: dict[str, int] = {}
    (images / "deep").mkdir()
    one = row("<image><image><image>", "A", image=["good.jpg", "deep/nowhere.jpg", "half.jpg"])
    look(source_of(images, one), 0, watched)
    paths = {str(images), str(images / "deep"), str(images / "deep/nowhere.jpg"), str(images / "half.jpg")}
    assert set(watched) == paths
    assert all(stamp(path) == then for path, then in watched.items())
    (images / "deep" / "nowhere.jpg").write_bytes(b"")
    assert stamp(str(images / "deep/nowhere.jpg")) != watched[str(images / "deep/nowhere.jpg")] == -1


def test_images_inside_of_rows(images: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 60)).save(file, "PNG")
    source = source_of(images, {"id": 1})
    rows = [row("<image>", "A", image={"bytes": file.getvalue(), "path": None}), row("<image>", "A", image=b"x")]
    table: Any = type("Table", (list,), {"origin": lambda self, number: f"t: row {number + 1}"})(rows)
    seen = look(replace(source, rows=table), 0)
    assert (seen.sizes, [finding.kind for finding in seen.findings]) == (((8, 60),), ["image_tiny"])
    assert [finding.kind for finding in look(replace(source, rows=table), 1).findings] == ["image_unreadable"]
