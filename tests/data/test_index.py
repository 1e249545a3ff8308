"""Every row and every image is looked at before the run; what is wrong stops it, or is listed and left out."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from prompters import FEATURES, make_prompter
from rich.console import Console
from tiny import make_data

from sightline.data.dataset import Dataset, list_of_bad_rows, open_dataset
from sightline.errors import DataError
from sightline.recipe import DataRecipe
from sightline.types import IGNORE

ROWS = 24


@pytest.fixture
def good(tmp_path: Path) -> DataRecipe:
    path, images = make_data(tmp_path, rows=ROWS)
    return DataRecipe(path=str(path), images=str(images))


def opened(*entries: DataRecipe, max_length: int = 512, console: Console | None = None) -> Dataset:
    return open_dataset(entries, make_prompter(), max_length, console or Console(quiet=True))


def changed(entry: DataRecipe, changes: dict[int, dict[str, Any] | None], name: str, **more: Any) -> DataRecipe:
    """A copy of a file in which some rows (counted from 1) are other ones."""
    rows = json.loads(Path(str(entry.path)).read_text())
    for number, row in changes.items():
        rows[number - 1] = row
    path = Path(str(entry.path)).with_name(name)
    path.write_text(json.dumps(rows))
    return entry.model_copy(update={"path": str(path), **more})


def said(*entries: DataRecipe, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        opened(*entries, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def one_turn(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}


def bad_rows(entry: DataRecipe, name: str, **more: Any) -> DataRecipe:
    """A file with a bad row of every sort that needs more than the file itself to be found."""
    images = Path(str(entry.images))
    whole = (images / "0_0.jpg").read_bytes()
    (images / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "text.jpg").write_text("hello")
    changes: dict[int, dict[str, Any] | None] = {
        2: {"id": "no conversations"},
        3: one_turn("<image>", "x", image="half.jpg"),
        5: one_turn("<image>", "x", image="text.jpg"),
        7: one_turn("<image>", "x", image="../data.json"),
        11: one_turn("<image><image>", "x", image="0_0.jpg"),
        13: one_turn("Q " * 600, "x"),
        17: one_turn("<image>" + "Q " * 600 + "<image>", "x", image=["0_0.jpg", "0_0.jpg"]),
        19: None,
        23: one_turn("\ud800", "x"),
    }
    return changed(entry, changes, name, **more)


REASONS = {
    2: "no 'conversations' in the row (it has: 'id')",
    3: "image half.jpg cannot be decoded (",
    5: "image text.jpg is not an image of a known format; save it as JPEG or PNG",
    7: "image ../data.json leads out of its folder ",
    11: "1 image but 2 <image> in the conversations; they must agree",
    13: "no target is left within max_length 512; raise batch.max_length or shorten the row",
    17: "max_length 512 cuts an image: ",
    19: "expected an object {...}, found NoneType",
    23: "a text holds half a surrogate pair",
}


KINDS_OF_REASONS = [
    *("form", "image_unreadable", "image_unreadable", "image_outside", "image_count", "no_target", "image_cut"),
    *("form", "other"),
]


def test_every_sample_is_counted(good: DataRecipe) -> None:
    dataset = opened(good)
    rows = json.loads(Path(str(good.path)).read_text())
    assert len(dataset) == len(rows) == ROWS
    assert dataset.bad_rows == ()
    for number, row in enumerate(rows):
        encoded = dataset.encode(number)
        assert dataset.tokens[number] == len(encoded.ids)
        assert dataset.targets[number] == (encoded.labels[1:] != IGNORE).sum() > 0
        images = row.get("image", [])
        assert dataset.images[number] == (1 if isinstance(images, str) else len(images)) == len(encoded.images)
        assert (encoded.ids == dataset.prompter.image_token_id).sum() == dataset.images[number] * FEATURES
        assert dataset.conversation(number).id == row["id"]
        assert dataset.origin(number) == dataset.conversation(number).origin == f"{good.path}: row {number + 1}"


def test_facts(good: DataRecipe) -> None:
    dataset = opened(good)
    facts = dataset.facts()
    images = [row.get("image", []) for row in json.loads(Path(str(good.path)).read_text())]
    assert (facts["rows"], facts["bad_rows"]) == (ROWS, 0)
    assert facts["text_only_rows"] == sum(not image for image in images) == 4
    assert facts["images"] == sum(1 if isinstance(image, str) else len(image) for image in images)
    assert (facts["tokens"], facts["longest"]) == (sum(dataset.tokens), max(dataset.tokens))
    assert sum(count for _, count in dataset.length_histogram()) == ROWS
    assert dataset.length_histogram()[-1][0] == max(dataset.tokens)


def test_several_files_are_read_in_order(good: DataRecipe) -> None:
    text = changed(
        good, {number: one_turn(f"Q{number}", "A") for number in range(1, ROWS + 1)}, "text.json", images=None
    )
    dataset = opened(good.model_copy(update={"head": 3}), text, good.model_copy(update={"head": 2}))
    assert dataset.where.tolist() == [[0, 0], [0, 1], [0, 2], *([1, n] for n in range(ROWS)), [2, 0], [2, 1]]
    assert dataset.conversation(4).messages[0].text == "Q2"
    assert dataset.origin(4) == f"{text.path}: row 2"


@pytest.mark.parametrize(("head", "expected"), [(1, 1), (5, 5), (ROWS, ROWS), (1000, ROWS), (None, ROWS)])
def test_head(head: int | None, expected: int, good: DataRecipe) -> None:
    assert len(opened(good.model_copy(update={"head": head}))) == expected


def test_rows_behind_head_are_not_looked_at(good: DataRecipe) -> None:
    assert len(opened(bad_rows(good, "bad.json", head=1))) == 1


def test_bad_rows_stop_the_run_and_the_first_is_named(good: DataRecipe) -> None:
    bad = bad_rows(good, "bad.json")
    assert said(bad) == (
        f"{bad.path}: row 2: {REASONS[2]} (and {len(REASONS) - 1} more bad rows); "
        "`on_bad_row: skip` leaves such rows out"
    )


@pytest.mark.parametrize("number", REASONS)
def test_each_bad_row_says_why(number: int, good: DataRecipe) -> None:
    bad = bad_rows(good, "bad.json")
    row = json.loads(Path(str(bad.path)).read_text())[number - 1]
    single = changed(good, {number: row}, "single.json")
    message = said(single)
    assert message.startswith(f"{single.path}: row {number}: {REASONS[number]}")
    assert message.endswith("; `on_bad_row: skip` leaves such rows out")
    assert "more bad rows" not in message


def test_bad_rows_are_listed_and_left_out(good: DataRecipe) -> None:
    bad = bad_rows(good, "bad.json", on_bad_row="skip")
    dataset = opened(bad)
    assert [row.origin for row in dataset.bad_rows] == [f"{bad.path}: row {number}" for number in REASONS]
    for row, reason in zip(dataset.bad_rows, REASONS.values(), strict=True):
        assert row.reason.startswith(reason)
    assert [number + 1 for _, number in dataset.where.tolist()] == [n for n in range(1, ROWS + 1) if n not in REASONS]
    assert (dataset.facts()["rows"], dataset.facts()["bad_rows"]) == (ROWS - len(REASONS), len(REASONS))
    listed = [json.loads(line) for line in list_of_bad_rows(dataset.bad_rows).splitlines()]
    assert [(line["file"], line["row"]) for line in listed] == [(bad.path, number) for number in REASONS]
    assert [line["kind"] for line in listed] == KINDS_OF_REASONS
    assert [line["reason"] for line in listed] == [row.reason for row in dataset.bad_rows]
    assert listed[1]["remedy"] == "replace the file, or drop the row"


@pytest.mark.parametrize(("first", "second"), [("skip", "stop"), ("stop", "skip")])
def test_each_file_decides_about_its_own_rows(
    first: Literal["skip", "stop"], second: Literal["skip", "stop"], good: DataRecipe
) -> None:
    one = bad_rows(good, "one.json", on_bad_row=first)
    other = bad_rows(good, "other.json", on_bad_row=second)
    stopping = one if first == "stop" else other
    assert said(one, other).startswith(f"{stopping.path}: row 2: ")
    assert f"(and {len(REASONS) - 1} more bad rows)" in said(one, other)
    assert len(opened(one.model_copy(update={"on_bad_row": "skip"}), good)) == 2 * ROWS - len(REASONS)


def test_nothing_usable(good: DataRecipe) -> None:
    bad = changed(good, {number: {} for number in range(1, ROWS + 1)}, "bad.json", on_bad_row="skip")
    assert said(bad) == f"no usable rows in {bad.path}"


def test_a_folder_or_a_file_that_is_missing(good: DataRecipe) -> None:
    away = good.model_copy(update={"images": "nowhere/images"})
    assert said(away) == f"the folder of images nowhere/images of {good.path} is missing"
    assert said(good.model_copy(update={"path": "a.json"})) == "data file a.json is missing"
    file = good.model_copy(update={"images": good.path})
    assert "the folder of images" in said(file)


def test_max_length_counts_image_tokens_and_cuts(good: DataRecipe) -> None:
    longest = int(opened(good).tokens.max())
    dataset = opened(good, max_length=longest - 1)
    assert dataset.tokens.max() == longest - 1
    assert len(dataset.encode(int(np.argmax(dataset.tokens))).ids) == longest - 1


def test_the_fingerprint_changes_with_what_is_seen(good: DataRecipe) -> None:
    first = opened(good).fingerprint
    assert opened(good).fingerprint == first
    others = {
        opened(good.model_copy(update={"head": 5})).fingerprint,
        opened(good, good).fingerprint,
        opened(changed(good, {3: one_turn("Q", "A")}, "other.json")).fingerprint,
        opened(good, max_length=60).fingerprint,
    }
    assert len(others | {first}) == 5


def test_a_dataset_travels_to_workers(good: DataRecipe) -> None:
    dataset = pickle.loads(pickle.dumps(opened(good)))
    assert dataset.encode(4).ids.tolist() == opened(good).encode(4).ids.tolist()


def test_progress_is_for_terminals_only(good: DataRecipe) -> None:
    pipe, terminal = io.StringIO(), io.StringIO()
    for file, is_terminal in ((pipe, False), (terminal, True)):
        console = Console(file=file, force_terminal=is_terminal)
        open_dataset((good,), make_prompter(), 512, console, cache=None)
    assert pipe.getvalue() == ""
    assert "Checking data.json" in terminal.getvalue()
