"""The demo's data: same seed, same bytes; nothing of evaluation in training; answers that the pixels confirm."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.demo.questions import DESCRIBE, ONE, TWO, ask_one, ask_two, choice_prompt, in_words, with_options
from sightline.demo.scenes import COLOURS, EXTENT, PLACES, SIZES, Scene, Thing, box_of, caption, draw_scene, paint
from sightline.demo.world import HINT, QUICK, World, draw_world
from sightline.errors import UserError

SIDE = 1_000_000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return draw_world(tmp_path_factory.mktemp("world"), seed=3, quick=True)


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def choices_of(world: World) -> list[dict[str, str]]:
    csv.field_size_limit(10**8)
    with world.mmbench.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def things_in(sentence: str) -> list[tuple[str, str, str]]:
    """Colour, shape, place of everything that a caption names."""
    found = re.findall(r"[Aa] (\w+) (\w+) in the ((?:north|south)(?:east|west))(?=[,.]| and)", sentence)
    return [(colour, shape, place) for colour, shape, place in found]


def test_the_same_seed_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    draw_world(tmp_path / "again", seed=3, quick=True)
    draw_world(tmp_path / "other", seed=4, quick=True)
    assert digest(tmp_path / "again") == digest(world.folder)
    assert digest(tmp_path / "other")["finetune_open.json"] != digest(world.folder)["finetune_open.json"]


def test_a_folder_with_files_is_left_alone(world: World) -> None:
    with pytest.raises(UserError, match="not empty"):
        draw_world(world.folder, seed=3, quick=True)


def test_every_image_of_a_row_exists_and_has_its_place(world: World) -> None:
    for path in (world.pretrain, *world.finetune, world.heldout):
        rows = rows_of(path)
        assert len(rows) == world.counts[path.name]
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            image = row.get("image", [])
            images = image if isinstance(image, list) else [image]
            assert sum(turn["value"].count("<image>") for turn in row["conversations"]) == len(images)
            assert all((world.images / name).is_file() for name in images)
            turns = [turn["from"] for turn in row["conversations"]]
            assert turns and turns == ["human", "gpt"] * (len(turns) // 2)


def test_finetuning_data_have_all_sorts_of_rows(world: World) -> None:
    rows = [row for path in world.finetune for row in rows_of(path)]
    number = [len(row["image"]) if isinstance(row.get("image"), list) else int("image" in row) for row in rows]
    share = {sort: number.count(sort) / len(rows) for sort in (0, 1, 2)}
    assert 0.02 < share[0] < 0.07 and 0.05 < share[2] < 0.2
    turns = [turn["value"] for row in rows for turn in row["conversations"]]
    assert max(len(row["conversations"]) for row in rows) == 16
    letters = [answer for answer in turns if answer in list("ABCD")]
    # A quarter of the questions have two options, a quarter three, half four - where there are so many: not of shapes
    # and numbers, a seventh. So D is right in 6/7 * 1/2 * 1/4 of them, C in 1/4 * 1/3 + 1/2 * 1/4 to 3/4 * 1/3.
    found = {letter: letters.count(letter) / len(letters) for letter in "ABCD"}
    assert 0.07 < found["D"] < 0.13 and 0.18 < found["C"] < 0.27
    assert found["A"] == pytest.approx(found["B"], abs=0.06)
    assert any(re.fullmatch(r"\w+ \[0\.\d\d, 0\.\d\d, 0\.\d\d, 0\.\d\d\]", turn) for turn in turns)


def test_pictures_differ_in_size_form_and_format(world: World) -> None:
    sizes, formats = set(), set()
    for path in (world.images / "pretrain").iterdir():
        with Image.open(path) as picture:
            sizes.add(picture.size)
            formats.add(picture.format)
    assert formats == {"PNG", "JPEG"}
    assert sizes == {size for form in SIZES.values() for size in form}
    assert all(48 <= side <= 112 for size in sizes for side in size)


def test_no_held_out_combination_is_in_training(world: World) -> None:
    """Read from the captions alone, not from the function that keeps them apart."""
    trained = {frozenset(things_in(row["conversations"][1]["value"])) for row in rows_of(world.pretrain)}
    assert all(trained)
    asked = [row for row in rows_of(world.heldout) if row["category"] == "describe"]
    held_out = {frozenset(things_in(row["conversations"][1]["value"])) for row in asked}
    assert held_out and not trained & held_out
    rng = np.random.default_rng(0)
    kept = {scene.things for scene in (draw_scene(rng, held_out=True) for _ in range(2000))}
    for _ in range(2000):
        assert draw_scene(rng).things not in kept


def test_held_out_pictures_are_their_own(world: World) -> None:
    rows = rows_of(world.heldout)
    assert all(str(name).startswith("heldout/") for row in rows for name in np.atleast_1d(row["image"]))
    assert {row["category"] for row in rows} == {*ONE, *TWO}
    assert all(len(row["conversations"]) == 2 for row in rows)


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("size", range(4))
def test_boxes_lie_around_the_pixels(form: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    width, height = SIZES[form][size]
    monkeypatch.setitem(SIZES, form, ((width, height),))
    side = max(width, height)
    rng = np.random.default_rng(size)
    for place in range(len(PLACES)):
        thing = Thing(place, "blue", "square")
        dark = np.asarray(paint(Scene((thing,), form), rng).convert("L")) < 140
        ys, xs = np.nonzero(dark)
        shift_x, shift_y = (side - width) / 2, (side - height) / 2
        pixels = [xs.min() + shift_x, ys.min() + shift_y, xs.max() + 1 + shift_x, ys.max() + 1 + shift_y]
        box = json.loads(box_of(thing))
        assert np.abs(np.array(box) * side - pixels).max() <= 1.01, (PLACES[place], box, pixels)
        assert dark.sum() == len(set(xs)) * len(set(ys))


def test_box_by_hand() -> None:
    # Centres at 0.3 and 0.7 of the padded square, 0.15 to each side.
    assert EXTENT == 0.3
    assert box_of(Thing(3, "red", "circle")) == "[0.55, 0.55, 0.85, 0.85]"
    assert box_of(Thing(0, "red", "circle")) == "[0.15, 0.15, 0.45, 0.45]"
    assert box_of(Thing(1, "red", "circle")) == "[0.55, 0.15, 0.85, 0.45]"


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_colours_are_where_they_should_be(shape: str) -> None:
    rng = np.random.default_rng(1)
    for place, colour in enumerate(COLOURS):
        picture = np.asarray(paint(Scene((Thing(place, colour, shape),), "square"), rng)).astype(int)
        row, column = divmod(place, 2)
        y, x = round((0.3 + 0.4 * row) * len(picture)), round((0.3 + 0.4 * column) * len(picture))
        assert np.abs(picture[y, x] - COLOURS[colour]).max() <= 26
        assert min(picture[0, 0]) > 180


SCENE = Scene((Thing(0, "red", "circle"), Thing(1, "blue", "circle"), Thing(3, "red", "square")), "square")


def test_answers_by_hand() -> None:
    told = "A red circle in the northwest, a blue circle in the northeast and a red square in the southeast."
    assert caption(SCENE) == told
    expected = {
        "What is in the northwest?": "red circle",
        "What is in the northeast?": "blue circle",
        "What colour is the square?": "red",
        "Which shape is blue?": "circle",
        "How many shapes are there?": "3",
        "Where is the square?": "southeast",
        "Where is the square? Give its box too.": "southeast [0.55, 0.55, 0.85, 0.85]",
    }
    rng = np.random.default_rng(0)
    asked = {(q.question, q.answer) for _ in range(300) for kind in ONE if (q := ask_one(kind, SCENE, rng))}
    assert asked >= set(expected.items())
    questions = [question for question, _ in asked]
    assert len(questions) == len(set(questions))
    assert "What colour is the circle?" not in questions and "Which shape is red?" not in questions
    assert "Where is the circle?" not in questions


def test_answers_about_two_pictures_by_hand() -> None:
    other = Scene((Thing(2, "green", "triangle"),), "tall")
    rng = np.random.default_rng(0)
    asked = {(q.question, q.answer) for _ in range(100) for kind in TWO if (q := ask_two(kind, (SCENE, other), rng))}
    assert asked == {
        ("What colour is the square in the first picture?", "red"),
        ("What colour is the triangle in the second picture?", "green"),
        ("How many shapes are in the first picture?", "3"),
        ("How many shapes are in the second picture?", "1"),
    }


def test_wrong_options_are_wrong() -> None:
    rng = np.random.default_rng(2)
    for _ in range(400):
        scene = draw_scene(rng)
        for kind in ONE:
            asked = ask_one(kind, scene, rng)
            if asked is not None and asked.others:
                assert asked.answer not in asked.others
                options, right = with_options(asked, rng, number=4)
                assert options[right] == asked.answer and len(set(options)) == len(options) <= 4


def test_words_tell_the_whole_scene() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        told = in_words(SCENE, rng)
        assert all(thing.name in told.lower() and PLACES[thing.place] in told for thing in SCENE.things)


def test_a_guess_without_looking_is_worth_little() -> None:
    """The best constant answer to each kind of question, over many scenes."""
    rng = np.random.default_rng(5)
    limits = {"describe": 0.02, "what": 0.15, "colour": 0.35, "shape": 0.45, "count": 0.6, "where": 0.35, "box": 0.35}
    for kind, limit in limits.items():
        answers: dict[str, int] = defaultdict(int)
        for _ in range(1500):
            asked = ask_one(kind, draw_scene(rng), rng)
            if asked is not None:
                answers[asked.answer] += 1
        assert max(answers.values()) / sum(answers.values()) < limit, kind


def test_mmbench_circles(world: World) -> None:
    rows = choices_of(world)
    names = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image", "split"]
    assert list(rows[0]) == names
    circles = defaultdict(list)
    for row in rows:
        circles[int(row["index"]) % SIDE].append(row)
    assert len(circles) == QUICK.circles and len(rows) == world.counts["mmbench.tsv"]
    for index, circle in circles.items():
        first = circle[0]
        options = [first[letter] for letter in "ABCD" if first[letter]]
        assert len(options) in (2, 3, 4)
        assert [int(row["index"]) for row in circle] == [index + shift * SIDE for shift in range(len(options))]
        with Image.open(io.BytesIO(base64.b64decode(first["image"]))) as picture:
            assert picture.format in ("PNG", "JPEG")
        truth = first[first["answer"]]
        for shift, row in enumerate(circle):
            assert [row[letter] for letter in "ABCD" if row[letter]] == options[shift:] + options[:shift]
            assert row[row["answer"]] == truth
            assert (row["question"], row["hint"], row["split"]) == (first["question"], first["hint"], "dev")
            assert shift == 0 or row["image"] == str(index)
    assert {row["answer"] for row in rows} == set("ABCD")


def test_training_asks_choices_as_mmbench_does() -> None:
    # The prompt that LLaVA-1.5 gets for MMBench: hint, question, a line per option, the instruction.
    assert choice_prompt("What is it?", ["a cat", "a dog"], "Hint: it barks.") == (
        "Hint: it barks.\nWhat is it?\nA. a cat\nB. a dog\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_no_answer_gives_another_one_away(world: World) -> None:
    """A model that can copy from its own earlier answers does not learn to look; letters it may learn so."""
    for row in [row for path in world.finetune for row in rows_of(path)]:
        said = [turn["value"].removeprefix("<image>\n").removeprefix(f"{HINT}\n") for turn in row["conversations"][::2]]
        told = [text.startswith(f"{before}\n") for before, text in pairwise(said)]
        questions = [text.splitlines()[0] for text, known in zip(said, [False, *told], strict=True) if not known]
        if not isinstance(row.get("image"), str):
            continue
        assert len(questions) == 1 or not set(questions) & set(DESCRIBE)
        assert len(set(questions)) == len(questions)
        assert sum(not words.startswith("How many") for words in questions) <= 3
