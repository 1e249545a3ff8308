"""`sightline preprocess refcoco`: XTuner's file, rows to train on, pickles that may hold nothing but plain values."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sightline.cli import main
from sightline.data.formats import to_conversation
from sightline.data.refcoco import IDENTIFY, REFER, arguments, draw_rows, llava_box, load_plain_pickle, xtuner_box
from sightline.errors import DataError
from sightline.types import ImageRef


def ref(ann: int, image: int, *phrases: str, split: str = "train") -> dict[str, Any]:
    return {"ann_id": ann, "image_id": image, "split": split, "sentences": [{"raw": phrase} for phrase in phrases]}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Annotations and pictures in the folders that users have; returns the folder above."""
    refs = {
        ("refcoco", "unc"): [ref(1, 9, "the left dog", "dog", "dog"), ref(2, 9, "dog"), ref(3, 9, "cat", split="val")],
        ("refcoco+", "unc"): [ref(1, 9, "dog")],
        ("refcocog", "umd"): [ref(2, 581857, "a Dog, sitting")],
    }
    boxes = [
        {"id": 1, "bbox": [50, 20, 100, 40]},
        {"id": 2, "bbox": [58.0, 0.0, 142.0, 99.5]},
        {"id": 3, "bbox": [0] * 4},
    ]
    for (name, split), content in refs.items():
        folder = tmp_path / "refcoco_annotations" / name
        folder.mkdir(parents=True)
        (folder / f"refs({split}).p").write_bytes(pickle.dumps(content, protocol=2))
        (folder / "instances.json").write_text(json.dumps({"images": [], "annotations": boxes, "categories": []}))
    pictures = tmp_path / "llava_images" / "coco" / "train2017"
    pictures.mkdir(parents=True)
    Image.new("RGB", (200, 100)).save(pictures / "000000000009.jpg")
    Image.new("RGB", (200, 300)).save(pictures / "000000581857.jpg")
    return tmp_path


def run(coco: Path, *more: str) -> int:
    paths = ["--ann-path", coco / "refcoco_annotations", "--image-path", coco / "llava_images" / "coco" / "train2017"]
    return main(["preprocess", "refcoco", *map(str, paths), "--save-path", str(coco / "out"), *more])


# Worked out by hand from XTuner's convert_refcoco.py: the first of the records with one id stays, `val` is left out.
RECORDS = [
    ("refcoco-unc-000000000009-the_left_dog", "the left dog", "000000000009", [50, 20, 100, 40], 100, 200),
    ("refcoco-unc-000000000009-dog", "dog", "000000000009", [50, 20, 100, 40], 100, 200),
    ("refcoco+-unc-000000000009-dog", "dog", "000000000009", [50, 20, 100, 40], 100, 200),
    ("refcocog-umd-000000581857-a_Dog,_sitting", "a Dog, sitting", "000000581857", [58.0, 0.0, 142.0, 99.5], 300, 200),
]


def test_xtuners_file(coco: Path) -> None:
    assert run(coco) == 0
    assert json.loads((coco / "out" / "train.json").read_text()) == [
        {"id": key, "image": f"coco/train2017/{image}.jpg", "sents": phrase, "bbox": box, "height": h, "width": w}
        for key, phrase, image, box, h, w in RECORDS
    ]


def test_rows_are_all_pairs_of_a_record_and_a_prompt(coco: Path) -> None:
    assert run(coco) == 0
    for file, prompts in (("refer.jsonl", REFER), ("identify.jsonl", IDENTIFY)):
        rows = [json.loads(line) for line in (coco / "out" / file).read_text().splitlines()]
        assert Counter(row["id"] for row in rows) == {record[0]: 7 for record in RECORDS}
        for row in rows:
            conversation = to_conversation(row, "row", coco / "llava_images", "llava")
            question, answer = conversation.messages
            box, phrase = "{<25><20><75><60>}", "the left dog"
            if row["id"] == RECORDS[0][0]:
                given, expected = (phrase, box) if prompts is REFER else (box, phrase)
                assert answer.text == expected
                assert question.text in {f"<image>\n{prompt.format(given)}" for prompt in prompts}
            assert isinstance(conversation.images[0], ImageRef) and (coco / "llava_images" / row["image"]).exists()


def test_the_prompts_are_xtuners() -> None:
    assert [prompt.format("it") for prompt in REFER] == [
        "[refer] it",
        "[refer] give me the location of it",
        "[refer] where is it ?",
        "[refer] from this image, tell me the location of it",
        "[refer] the location of it is",
        "[refer] could you tell me the location for it ?",
        "[refer] where can I locate the it ?",
    ]
    assert [prompt.format("it") for prompt in IDENTIFY] == [
        "[identify] it",
        "[identify] what object is in this location it",
        "[identify] identify the object present at this location it",
        "[identify] what is it in it",
        "[identify] describe this object in it",
        "[identify] this it is",
        "[identify] the object in it is",
    ]


def test_boxes() -> None:
    record = {"bbox": [50, 20, 100, 40], "width": 200, "height": 100}
    assert xtuner_box(record) == "{<25><20><75><60>}"
    assert llava_box(record) == "[0.25, 0.35, 0.75, 0.55]"  # 50 pixels of padding above and below
    # XTuner cuts, it does not round: 100 * (58 / 200) is 28.999999999999996.
    assert xtuner_box({"bbox": [58, 0, 142, 99.9], "width": 200, "height": 100}) == "{<28><0><100><99>}"


def test_a_draw_repeats_nothing_and_is_repeatable() -> None:
    records = [
        {"id": str(n), "image": "i", "sents": f"s{n}", "bbox": [0, 0, 1, 1], "height": 2, "width": 2} for n in range(99)
    ]

    def draw(seed: int) -> list[str]:
        rows = draw_rows(records, False, 500, "xtuner", random.Random(seed))
        return [row["conversations"][0]["value"] for row in rows]

    assert len(set(draw(1))) == 500 and draw(1) == draw(1) != draw(2)


def test_llavas_way_of_writing(coco: Path) -> None:
    assert run(coco, "--boxes", "llava", "--rows", "3") == 0
    rows = [json.loads(line) for line in (coco / "out" / "identify.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    ask = "<image>\nPlease provide a short description for this region: ["
    assert all(row["conversations"][0]["value"].startswith(ask) for row in rows)


def test_only_the_records(coco: Path) -> None:
    assert run(coco, "--rows", "0") == 0
    assert [path.name for path in (coco / "out").iterdir()] == ["train.json"]


def test_a_phrase_without_a_word_makes_no_row(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refs = coco / "refcoco_annotations" / "refcoco+" / "refs(unc).p"
    refs.write_bytes(pickle.dumps([ref(1, 9, "dog", " "), ref(2, 9, "")], protocol=2))
    assert run(coco) == 0
    assert [record["sents"] for record in json.loads((coco / "out" / "train.json").read_text())].count(" ") == 1
    for name in ("refer.jsonl", "identify.jsonl"):
        rows = [json.loads(line) for line in (coco / "out" / name).read_text().splitlines()]
        assert rows and all(to_conversation(row, "row", coco / "llava_images") for row in rows)
        assert not any(row["id"].startswith("refcoco+-unc-000000000009-_") for row in rows)
    assert "2 of them have no word, and make no rows" in capsys.readouterr().err


class Evil:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, print])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, function: Any) -> None:
    (tmp_path / "refs.p").write_bytes(pickle.dumps([{"split": Evil(function, f"touch {tmp_path}/evil")}]))
    with pytest.raises(DataError, match=r"refs\.p is not a pickle of plain values: it asks for \w+\.\w+"):
        load_plain_pickle(tmp_path / "refs.p")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02]", b"garbage", b"cos\nsystem\n.", b"}(U\x01aU\x01bub."])
def test_a_pickle_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(DataError, match="is not a pickle of plain values"):
        load_plain_pickle(tmp_path / "refs.p")


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(b"(lp0\n(dp1\nS'raw'\np2\nS'caf\\xc3\\xa9'\np3\nsS'id'\nL7L\nsa.")
    assert load_plain_pickle(tmp_path / "refs.p") == [{"raw": "café", "id": 7}]


def test_missing_pictures_are_counted(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (coco / "llava_images/coco/train2017/000000000009.jpg").unlink()
    assert run(coco) == 2
    assert "train2017 lacks 1 of the pictures, such as 000000000009.jpg" in capsys.readouterr().err
    assert not (coco / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("refcoco+/refs(unc).p", None, "refs(unc).p cannot be read: No such file"),
        ("refcocog/instances.json", None, "instances.json cannot be read"),
        ("refcocog/instances.json", b"{}", "refcocog: not RefCOCO's annotations (KeyError: 'annotations')"),
        ("refcoco/instances.json", b"[", "refcoco: not RefCOCO's annotations (JSONDecodeError"),
        ("refcoco/refs(unc).p", pickle.dumps([1, 2]), "refcoco: not RefCOCO's annotations (TypeError"),
        ("refcoco/refs(unc).p", pickle.dumps([ref(77, 9, "dog")]), "refcoco: not RefCOCO's annotations (KeyError: 77"),
    ],
)
def test_foreign_annotations(
    coco: Path, file: str, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = coco / "refcoco_annotations" / file
    path.unlink() if content is None else path.write_bytes(content)
    assert run(coco) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (coco / "out").write_text("a file")
    assert run(coco) == 2
    assert "out cannot be written: File exists" in capsys.readouterr().err


def test_rows_must_not_be_negative(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(coco, "--rows", "-1") == 2
    assert "--rows -1: must be 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_box_is_of_numbers(coco: Path, capsys: pytest.CaptureFixture[str], number: str) -> None:
    file = coco / "refcoco_annotations" / "refcoco" / "instances.json"
    file.write_text(file.read_text().replace("[50, 20", f"[{number}, 20"))
    assert run(coco) == 2
    assert "not RefCOCO's annotations (ValueError: a box has a number that is none)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train.json", "refer.jsonl", "identify.jsonl"])
def test_what_is_there_is_not_written_over(coco: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (coco / "out").mkdir()
    (coco / "out" / name).write_text("mine")
    assert run(coco) == 2
    said = f"error: {coco / 'out' / name} is there already; remove it, or choose another --save-path\n"
    assert capsys.readouterr().err == said
    assert [(file.name, file.read_text()) for file in (coco / "out").iterdir()] == [(name, "mine")]


def test_the_results_go_where_the_recipe_looks_for_them() -> None:
    parser = argparse.ArgumentParser()
    arguments(parser)
    assert parser.parse_args([]).save_path == "data/llava_data/RefCOCOJson"
