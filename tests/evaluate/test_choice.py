"""Prompts, the circular rule and the files of `sightline mmbench`, with a model that says what the test wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_model import FakeModel, base64_png, png
from openpyxl import load_workbook

from sightline.errors import DataError
from sightline.evaluate import choice
from sightline.evaluate.choice import evaluate_choices, score_choices, to_question
from sightline.evaluate.choice_rows import Choice
from sightline.types import Message

Tsv = Callable[..., Path]


def made(index: int, answer: str | None = "A", **fields: Any) -> Choice:
    options = {"A": "cat", "B": "dog", "C": "cow", "D": "fly"}
    return Choice(
        **{
            "number": 1,
            "index": index,
            "question": "What?",
            "hint": "",
            "options": options,
            "image": b"",
            "answer": answer,
            **fields,
        }
    )


def test_the_prompt_of_llava_in_english() -> None:
    (message,) = to_question(made(7, hint="It barks.", options={"A": "cat", "B": "dog"}, image=b"bytes")).messages
    assert message.text == (
        "<image>\nIt barks.\nWhat?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
    )
    assert message.images[0].source == b"bytes"


def test_the_prompt_of_llava_in_chinese() -> None:
    (message,) = to_question(made(7, options={"A": "猫", "B": "dog"})).messages
    assert message.text == "<image>\nWhat?\nA. 猫\nB. dog\n请直接回答选项字母。"


def test_circular_and_vanilla_as_vlmevalkit() -> None:
    # VLMEvalKit's mcq_circular_eval and mcq_vanilla_eval (exact matching), run on 20 circles of 4 rows of which circles
    # 3, 7 and 11 fail, in 11 rows: 0.85 and 0.8625.
    rows = [made(group + turn * 1_000_000, "ABCD"[turn]) for group in range(20) for turn in range(4)]
    wrong = {(3, 0), (3, 1), (3, 2), (3, 3), (7, 0), (7, 1), (7, 2), (7, 3), (11, 1), (11, 2), (11, 3)}
    answers = ["Z" if (row.index % 1_000_000, row.index // 1_000_000) in wrong else row.answer or "" for row in rows]
    score = score_choices(rows, answers)
    assert score.name == "circular"
    assert score.value == 0.85
    assert score.overall.total == 20
    assert score.vanilla is not None and score.vanilla.value == 0.8625
    assert score.parsed == pytest.approx(69 / 80)
    assert 0.13 < score.half_width < 0.16


def test_one_wrong_row_spoils_its_circle_and_no_other() -> None:
    rows = [made(1), made(1_000_001), made(2), made(1_000_002)]
    score = score_choices(rows, ["A", "B", "A", "A"])
    assert (score.value, score.vanilla and score.vanilla.value, score.parsed) == (0.5, 0.75, 1.0)


def test_a_file_without_circles_scores_each_row() -> None:
    score = score_choices([made(1), made(2), made(3), made(999_999)], ["A", "A", "no idea", "B"])
    assert (score.name, score.value, score.parsed) == ("accuracy", 0.5, 0.75)


def test_a_circle_counts_in_the_category_of_its_first_row() -> None:
    rows = [made(1_000_001, category="other"), made(1, category="logic_reasoning"), made(2, category="food_clothes")]
    assert score_choices(rows, ["A", "A", "B"]).table == {
        "Food & Clothes": choice.Share(0, 1),
        "LR": choice.Share(1, 1),
    }


def test_l2_category_comes_before_category() -> None:
    first = made(1, category="ocr", l2_category="finegrained_perception (instance-level)")
    second = made(2, category="x", l2_category="")
    assert list(score_choices([first, second], ["A", "A"]).table) == ["(none)", "FP-S"]
    assert score_choices([made(1)], ["A"]).table == {}


def test_two_names_of_one_category_are_one_line() -> None:
    rows = [
        made(1, category="logic_reasoning"),
        made(2, category="LR"),
        made(3, category=""),
        made(4, category="(none)"),
    ]
    assert score_choices(rows, ["A", "B", "A", "A"]).table == {
        "LR": choice.Share(1, 2),
        "(none)": choice.Share(2, 2),
    }


def test_a_row_without_answer_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="row 1 has no answer"):
        score_choices([made(1, None)], ["A"])


def test_results_are_written_as_xtuner_writes_them(model: FakeModel, tsv: Tsv, tmp_path: Path) -> None:
    coarse = {"l2-category": "coarse_perception", "split": "dev"}
    path = tsv(
        {"A": "=1+1", "B": "None", "question": "How\nmany?", "category": "ocr", **coarse},
        {"index": 1_000_001, "image": "1", "A": "None", "B": "=1+1", "answer": "B", **coarse},
        {"image": base64_png("blue"), "l2-category": "logic_reasoning", "split": "dev"},
        more=("l2-category", "split"),
    )
    model.says = lambda messages: "A\x07 " if messages[0].images[0].source == png("red") else "A"
    score = evaluate_choices(model.vlm, path, tmp_path / "out", model_name="m", batch_size=2)
    assert score.value == 0.5 and score.table["CP"].value == 0.0 and score.table["LR"].value == 1.0

    (folder,) = (tmp_path / "out").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == [
        "answers.jsonl",
        "args.json",
        "mmbench_result.json",
        "mmbench_result.xlsx",
    ]
    sheet = list(load_workbook(folder / "mmbench_result.xlsx").active.iter_rows(values_only=True))  # type: ignore[union-attr]
    assert sheet == [
        ("question", "A", "B", "prediction", "category", "l2-category", "index", "split", "answer"),
        ("How\nmany?", "=1+1", "None", "A\\x07", "ocr", "coarse_perception", 1, "dev", "A"),
        ("What is it?", "None", "=1+1", "A\\x07", "kind", "coarse_perception", 1_000_001, "dev", "B"),
        ("What is it?", "cat", "dog", "A", "kind", "logic_reasoning", 3, "dev", "A"),
    ]
    cells = load_workbook(folder / "mmbench_result.xlsx").active
    assert cells is not None and cells["B2"].data_type == "s"

    result = json.loads((folder / "mmbench_result.json").read_text())
    details = result.pop("details")
    assert result == {"Average": 0.5, "CP": 0.0, "LR": 1.0}
    assert details["vanilla"] == pytest.approx(2 / 3)
    assert (details["parsed"], details["rows"], details["questions"]) == (1.0, 3, {"Average": 2, "CP": 1, "LR": 1})
    settings = json.loads((folder / "args.json").read_text())
    assert (settings["model_name_or_path"], settings["max_new_tokens"], settings["device"]) == ("m", 100, "cpu")
    assert "torch" in settings["versions"]


def test_the_model_is_asked_in_batches_and_in_order(model: FakeModel, tsv: Tsv, tmp_path: Path) -> None:
    path = tsv(*({"question": f"Question {number}"} for number in range(20)))
    model.says = lambda messages: "B" if "Question 3\n" in messages[0].text else "A"
    score = evaluate_choices(model.vlm, path, tmp_path, model_name="m", batch_size=2, max_new_tokens=5, stop=["."])
    assert score.value == 0.95
    assert [len(call["conversations"]) for call in model.calls] == [8, 8, 4]
    settings = [(call["batch_size"], call["max_new_tokens"], call["stop"]) for call in model.calls]
    assert settings == [(2, 5, ["."])] * 3


class Killed(Exception):
    pass


def cut_off_after(number: int) -> Callable[[Sequence[Message]], str]:
    seen = iter(range(number))

    def says(messages: Sequence[Message]) -> str:
        if next(seen, None) is None:
            raise Killed
        return "A"

    return says


def test_a_run_that_was_cut_off_goes_on(model: FakeModel, tsv: Tsv, tmp_path: Path) -> None:
    path = tsv(*({"question": f"Question {number}"} for number in range(20)))
    model.says = cut_off_after(18)
    with pytest.raises(Killed):
        evaluate_choices(model.vlm, path, tmp_path / "out", model_name="m", batch_size=2)
    (folder,) = (tmp_path / "out").iterdir()
    with (folder / "answers.jsonl").open("a") as file:
        file.write('{"n": 16, "id": "17", "ans')

    model.calls.clear()
    model.says = lambda messages: "B"
    score = evaluate_choices(model.vlm, path, tmp_path / "out", model_name="m", batch_size=4)
    assert len(model.asked) == 4
    assert score.value == 16 / 20
    assert list((tmp_path / "out").iterdir()) == [folder]
    entries = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [entry["n"] for entry in entries] == list(range(20))

    evaluate_choices(model.vlm, path, tmp_path / "out", model_name="m")
    assert len(list((tmp_path / "out").iterdir())) == 2, "a run that was finished is not touched again"


@pytest.mark.parametrize("change", ["weights", "data", "tokens", "template"])
def test_answers_to_something_else_are_not_taken(model: FakeModel, tsv: Tsv, tmp_path: Path, change: str) -> None:
    rows: list[dict[str, Any]] = [{"question": f"Question {number}"} for number in range(20)]
    model.says = cut_off_after(18)
    with pytest.raises(Killed):
        evaluate_choices(model.vlm, tsv(*rows), tmp_path / "out", model_name="m", batch_size=2)

    model.calls.clear()
    model.says = lambda messages: "A"
    if change == "weights":
        with torch.no_grad():
            model.vlm.model.weight += 1e-3
    elif change == "data":
        rows[19]["image"] = base64_png("blue")
    elif change == "template":
        model.vlm.prompter.template = "another"
    tokens = 50 if change == "tokens" else 100
    evaluate_choices(model.vlm, tsv(*rows), tmp_path / "out", model_name="m", max_new_tokens=tokens)
    assert len(model.asked) == 20
