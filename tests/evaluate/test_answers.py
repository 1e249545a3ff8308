"""Every assistant turn of a LLaVA JSON file becomes a question, and only the exact answer counts."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pytest
from fake_model import FakeModel, png
from PIL import Image

from sightline.errors import DataError
from sightline.evaluate import answers
from sightline.evaluate.answers import evaluate_answers, read_questions
from sightline.evaluate.task import Share

TURNS = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "x"}]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png("red", (8, 6)))
    (tmp_path / "pictures" / "b.png").write_bytes(png("blue", (5, 7)))
    return write(
        tmp_path,
        [
            {
                "id": "one",
                "image": "a.png",
                "category": "colour",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat colour?"},
                    {"from": "gpt", "value": "red"},
                    {"from": "human", "value": "Sure?"},
                    {"from": "gpt", "value": "yes"},
                ],
            },
            {
                "image": ["a.png", "b.png"],
                "conversations": [
                    {"from": "human", "value": "<image>\n<image>\nThe same?"},
                    {"from": "gpt", "value": "no"},
                ],
            },
            {"id": "text", "conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]},
        ],
    )


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(rows))
    return path


def test_every_assistant_turn_is_asked_after_the_true_history(data: Path) -> None:
    questions = read_questions(data, data.parent / "pictures")
    assert [(question.id, question.truth) for question in questions] == [
        ("one/1", "red"),
        ("one/2", "yes"),
        ("row 2/1", "no"),
        ("text/1", "2"),
    ]
    assert [message.text for message in questions[1].messages] == ["<image>\nWhat colour?", "red", "Sure?"]
    assert [message.role for message in questions[1].messages] == ["user", "assistant", "user"]
    assert len(read_questions(data, data.parent / "pictures", limit=2)) == 2


def test_only_the_exact_answer_counts(model: FakeModel, data: Path) -> None:
    said = {"What colour?": " red\n", "Sure?": "Yes", "The same?": "no", "1 + 1?": "It is 2"}
    model.says = lambda messages: said[messages[-1].text.removeprefix("<image>\n").removeprefix("<image>\n")]
    result = evaluate_answers(model.vlm, data, data.parent / "pictures", batch_size=2, max_new_tokens=9)
    assert result.score.value == 0.5
    assert result.score.table == {"all": Share(1, 2), "colour": Share(1, 2)}
    assert [(row.id, row.question, row.answer, row.truth, row.right) for row in result.answers] == [
        ("one/1", "What colour?", "red", "red", True),
        ("one/2", "Sure?", "Yes", "yes", False),
        ("row 2/1", "The same?", "no", "no", True),
        ("text/1", "1 + 1?", "It is 2", "2", False),
    ]
    assert [image.source for image in result.answers[2].images] == ["a.png", "b.png"]
    assert model.calls[0]["max_new_tokens"] == 9


def test_blank_images_are_grey_and_of_the_same_size(model: FakeModel, data: Path) -> None:
    evaluate_answers(model.vlm, data, data.parent / "pictures", blank_images=True)
    first, second = model.asked[2][0].images
    for image, size in ((first, (8, 6)), (second, (5, 7))):
        assert isinstance(image.source, bytes)
        picture = Image.open(io.BytesIO(image.source))
        assert picture.size == size
        assert picture.getcolors() == [(size[0] * size[1], (127, 127, 127))]
    assert model.asked[2][0].text == "<image>\n<image>\nThe same?"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "c.png", "conversations": TURNS}, "missing"),
        ({"image": "../data.json", "conversations": TURNS}, "leads out of its folder"),
        ({"conversations": TURNS}, "0 images but 1 <image>"),
        ({"conversations": []}, "conversations"),
    ],
)
def test_a_bad_row_is_named_before_loading(model: FakeModel, data: Path, row: dict[str, Any], reason: str) -> None:
    path = write(data.parent, [{"image": "a.png", "conversations": TURNS}, row])
    with pytest.raises(DataError, match=f"data.json: row 2: .*{reason}"):
        answers.run(parse(*words_for(path, data.parent)))
    assert model.loaded == []


def words_for(data: Path, folder: Path) -> tuple[str, ...]:
    pictures, out = str(folder / "pictures"), str(folder / "out")
    return ("m", "--data-path", str(data), "--image-folder", pictures, "--work-dir", out)


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    answers.arguments(parser)
    return parser.parse_args(list(words))


def test_the_command_writes_each_answer(
    model: FakeModel, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.says = lambda messages: "red"
    words = words_for(data, tmp_path)
    answers.run(parse(*words))
    (folder,) = (tmp_path / "out").iterdir()
    result = json.loads((folder / "answers_result.json").read_text())
    assert (result["Average"], result["colour"], result["all"]) == (0.25, 0.5, 0.0)
    assert result["details"]["questions"] == {"Average": 4, "all": 2, "colour": 2}
    assert result["answers"][0] == {
        "id": "one/1",
        "category": "colour",
        "question": "What colour?",
        "answer": "red",
        "truth": "red",
        "right": True,
        "images": ["a.png"],
    }
    assert "25.0" in capsys.readouterr().out
    answers.run(parse(*words, "--blank-images", "--limit", "1"))
    assert model.asked[-1][0].images[0].source != "a.png"
    assert len(model.asked) == 5


def test_blank_and_real_images_never_share_answers(model: FakeModel, data: Path, tmp_path: Path) -> None:
    def fails(messages: object) -> str:
        raise KeyboardInterrupt

    model.says = fails
    words = words_for(data, tmp_path)
    for more in ((), ("--blank-images",)):
        with pytest.raises(KeyboardInterrupt):
            answers.run(parse(*words, *more))
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("category", "line"), [(None, "all"), ("Average", "Average (category)"), (5, "5"), ([1], "[1]")]
)
def test_categories_that_are_no_plain_name(model: FakeModel, tmp_path: Path, category: object, line: str) -> None:
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "A"}]
    right, wrong = turns, [turns[0], {"from": "gpt", "value": "B"}]
    path = write(tmp_path, [{"conversations": right, "category": category}, {"conversations": wrong, "category": "x"}])
    answers.run(parse("m", "--data-path", str(path), "--work-dir", str(tmp_path / "out")))
    (folder,) = (tmp_path / "out").iterdir()
    result = json.loads((folder / "answers_result.json").read_text())
    assert (result["Average"], result[line], result["x"], len(result["answers"])) == (0.5, 1.0, 0.0, 2)


def test_a_question_beyond_the_context_is_named(model: FakeModel, data: Path, tmp_path: Path) -> None:
    model.limit = 64 + 4  # 64 are the answer's; with its history, the second turn of the first row has five words
    with pytest.raises(DataError, match=r"data.json: row 1: the question takes 5 tokens and its answer up to 64"):
        answers.run(parse(*words_for(data, tmp_path)))
    with pytest.raises(DataError, match=r"data.json: row 1: the question takes"):
        evaluate_answers(model.vlm, data, data.parent / "pictures")
    assert model.asked == [] and not (tmp_path / "out").exists()


def test_images_without_a_folder_name_the_flag(model: FakeModel, data: Path) -> None:
    with pytest.raises(DataError, match=r"data.json: row 1: .*--image-folder"):
        answers.run(parse("m", "--data-path", str(data)))
