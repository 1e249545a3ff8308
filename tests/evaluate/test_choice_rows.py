"""A TSV is read as it is written, and what is wrong with it is found before anything is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_model import base64_png, png

from sightline.errors import DataError
from sightline.evaluate.choice import INSTRUCTION, score_choices, to_question
from sightline.evaluate.choice_rows import read_choices, refuse

Tsv = Callable[..., Path]


def first_problem(path: Path) -> str:
    with pytest.raises(DataError) as error:
        refuse(path, read_choices(path)[1])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_cells_stay_the_strings_that_they_are(tsv: Tsv) -> None:
    rows, bad = read_choices(tsv({"A": "None", "B": "NA", "C": "nan", "D": "007", "hint": "null"}))
    assert bad == []
    assert rows[0].options == {"A": "None", "B": "NA", "C": "nan", "D": "007"}
    assert rows[0].hint == "null"


def test_an_empty_option_does_not_exist(tsv: Tsv) -> None:
    rows, _ = read_choices(tsv({"C": "", "D": "cow"}))
    assert rows[0].options == {"A": "cat", "B": "dog", "D": "cow"}


def test_the_first_option_may_be_the_empty_one(tsv: Tsv) -> None:
    """As in a row of AI2D's test set; the prompt shows the letters that there are, and the answer is one of them."""
    rows, bad = read_choices(tsv({"A": "", "B": "dog", "C": "cow", "answer": "C"}))
    assert bad == [] and rows[0].options == {"B": "dog", "C": "cow"} and rows[0].answer == "C"
    (message,) = to_question(rows[0]).messages
    assert message.text.endswith(f"What is it?\nB. dog\nC. cow\n{INSTRUCTION}")
    assert [score_choices(rows, [said]).overall.right for said in ("C", "the cow", "B")] == [1, 1, 0]


def test_quotes_line_breaks_and_a_byte_order_mark(tsv: Tsv) -> None:
    path = tsv({"question": 'He says "no"\nand\tleaves'}, {})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n")
    rows, _ = read_choices(path)
    assert [(row.number, row.question) for row in rows] == [(1, 'He says "no"\nand\tleaves'), (2, "What is it?")]


def test_empty_lines_before_the_names_are_none(tsv: Tsv) -> None:
    path = tsv({}, {})
    path.write_bytes(b"\n\n" + path.read_bytes())
    assert [row.index for row in read_choices(path)[0]] == [1, 2]


def test_columns_that_a_file_may_lack(tsv: Tsv) -> None:
    rows, _ = read_choices(tsv({}, without=("hint", "answer", "category", "C", "D")))
    assert (rows[0].answer, rows[0].category, rows[0].l2_category, rows[0].split) == (None, None, None, None)
    row = {"l2-category": "AR", "split": "dev", "E": "fly", "answer": "E"}
    rows, _ = read_choices(tsv(row, more=("l2-category", "split", "E")))
    assert (rows[0].answer, rows[0].category, rows[0].l2_category, rows[0].split) == ("E", "kind", "AR", "dev")


def test_an_answer_column_without_answers_is_a_test_split(tsv: Tsv) -> None:
    rows, bad = read_choices(tsv({"answer": ""}, {"answer": ""}))
    assert bad == [] and rows[0].answer is None


def test_images_are_followed_through_references(tsv: Tsv) -> None:
    first = {"index": 5, "image": base64_png("blue")}
    rows, bad = read_choices(tsv(first, {"index": 1000005, "image": "5"}, {"index": 2000005, "image": "1000005"}))
    assert bad == []
    assert [row.image for row in rows] == [png("blue")] * 3
    assert rows[0].image is rows[2].image


def test_cells_larger_than_the_csv_module_likes(tsv: Tsv) -> None:
    rows, _ = read_choices(tsv({"question": "x" * 200_000}))
    assert len(rows[0].question) == 200_000


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"A": ""}, "there is only option B; two are needed"),
        ({"A": "", "B": " "}, "there is no option; two are needed"),
        ({"answer": "C"}, "the answer 'C' is not among the options A, B"),
        ({"answer": "dog"}, "the answer 'dog' is not among the options A, B"),
        ({"answer": ""}, "the answer is empty, while other rows have one"),
        ({"image": ""}, "the image is empty"),
        ({"image": "!!!!"}, "neither base64 nor the index of a row"),
        ({"image": "99"}, "the image refers to index 99, which no row has"),
        ({"image": "2"}, "the image refers to itself: 2 -> 2"),
        ({"image": "aGVsbG8gd29ybGQsIHRoaXMgaXMgbm8gaW1hZ2U="}, "not an image"),
        ({"image": base64_png()[:60]}, "image"),
        ({"question": "What is in <image>?"}, "the text holds <image>"),
        ({"question": ""}, "the question is empty"),
        ({"question": " \t"}, "the question is empty"),
    ],
)
def test_a_bad_row_is_named(tsv: Tsv, row: dict[str, Any], reason: str) -> None:
    path = tsv({}, row, {})
    message = first_problem(path)
    assert message.startswith(f"{path}: row 2: ")
    assert reason in message
    assert [choice.number for choice in read_choices(path)[0]] == [1, 3]


def test_all_bad_rows_are_named_at_once(tsv: Tsv) -> None:
    assert "(also rows that cannot be used: 3, 4)" in first_problem(tsv({}, {"A": ""}, {"image": ""}, {"answer": "Z"}))


def test_a_cycle_of_references_ends(tsv: Tsv) -> None:
    assert "refers to itself: 1 -> 2 -> 1" in first_problem(tsv({"image": "2"}, {"image": "1"}))


@pytest.mark.parametrize(
    ("rows", "settings", "reason"),
    [
        ([], {}, "the file holds no rows"),
        ([{}], {"without": ("A", "image")}, "no column 'image', 'A' (there are: 'index', 'question'"),
        ([{}], {"more": ("A",)}, "a column name comes twice"),
        ([{}, {"index": 1}], {}, "row 2: the index 1 is already that of row 1"),
        ([{}, {"index": "two"}], {}, "row 2: the index 'two' is not a whole number"),
        ([{}, {"index": "1" * 16}], {}, f"row 2: the index '{'1' * 16}' is not a whole number of at most 15 digits"),
        ([{"index": "1" * 5000}], {}, "row 1: the index '1111"),
    ],
)
def test_a_bad_file_is_refused(tsv: Tsv, rows: list[dict[str, Any]], settings: dict[str, Any], reason: str) -> None:
    path = tsv(*rows, **settings)
    message = first_problem(path)
    assert message.startswith(str(path)) and reason in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"index,question,A,image\n1,what,cat,xyz\n", "no column 'index'"),
        (b"index\tquestion\tA\timage\n1\twhat\n", "row 1: 2 cells, but 4 columns"),
        (b'index\tquestion\tA\timage\n1\t"what\tcat\tx\n2\twhat\tcat\tx\n', "row 1: broken quotes"),
        (b"index\tquestion\tA\timage\n1\twh\xe9t\tcat\tx\n", "not UTF-8 (invalid continuation byte); save it as UTF-8"),
        ("index\tquestion\tA\timage\n1\twhat\tcat\tx\n".encode("utf-16"), "not UTF-8"),
        (b'index\tquestion\tA\timage\n1\t"Hi" she said\tcat\tx\n', "a cell that begins with a quotation mark"),
        (b"\n\n", "the file is empty"),
    ],
)
def test_a_file_that_is_no_tsv_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "broken.tsv"
    path.write_bytes(content)
    assert reason in first_problem(path)


def test_a_refusal_is_short_whatever_the_cells_hold(tsv: Tsv, tmp_path: Path) -> None:
    path = tsv({}, {"answer": "A" * 10_000})
    assert len(first_problem(path)) < 300 + len(str(path))
    headless = tmp_path / "headless.tsv"
    headless.write_text(path.read_text().split("\n", 1)[1].replace(base64_png(), "iVBOR" * 10_000, 1))
    assert "column" in first_problem(headless) and len(first_problem(headless)) < 800 + len(str(headless))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data file .*nowhere\.tsv is missing"):
        read_choices(tmp_path / "nowhere.tsv")
    with pytest.raises(DataError, match="is not a file"):
        read_choices(tmp_path)
