"""What is asked about a picture, what a reply must look like, and what happens to one that does not."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chat_endpoint import Answer, Asked, Server, pairs_text, says, serving
from picture_files import noise, saved, scene, turned
from PIL import Image

from sightline.data.endpoint import Endpoint, Unanswered
from sightline.data.pairs import Task, Unfit, data_uri, read_pairs, row_about, to_row
from sightline.errors import DataError

ONE = '[{"question": " What is this? ", "answer": "A cat."}]'


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda asked: says(pairs_text(2))) as running:
        yield running


@pytest.mark.parametrize(
    "text",
    [
        ONE,
        f"\n{ONE}  ",
        f"```json\n{ONE}\n```",
        f"Here you are:\n```\n{ONE}\n```\nAnything else?",
        f"<think>Is it [a cat]? ```x``` </think>\n{ONE}",
        f'{{"pairs": {ONE}}}',
        '{"question": "What is this?", "answer": "A cat."}',
        '[{"question": "What is this?", "answer": "A cat.", "level": "shallow"}]',
    ],
)
def test_replies_that_fit(text: str) -> None:
    assert read_pairs(text, 1) == [("What is this?", "A cat.")]


def test_a_fence_inside_an_answer_stays() -> None:
    pair = {"question": "What does the screen show?", "answer": "Code: ```print(1)``` and [1]."}
    assert read_pairs(f"```json\n{json.dumps([pair])}\n```", 1) == [(pair["question"], pair["answer"])]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("A cat sits on a mat.", "it is no JSON"),
        (ONE[:-4], "it is no JSON"),
        ("```json\n" + ONE[:-4] + "\n```", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ('"text"', "it is no array"),
        ('{"pairs": 3}', "it is no array"),
        ("[]", "it has 0 objects instead of 1"),
        (pairs_text(2), "it has 2 objects instead of 1"),
        ('["What?"]', "object 1 has no 'question' that is text"),
        ('[{"question": "What?"}]', "object 1 has no 'answer' that is text"),
        ('[{"question": "What?", "answer": " "}]', "object 1 has no 'answer' that is text"),
        ('[{"question": "What?", "answer": ["a"]}]', "object 1 has no 'answer' that is text"),
        ('[{"question": "<image>\\nWhat?", "answer": "A cat."}]', "the question of object 1 holds '<image>'"),
        ('[{"question": "What?", "answer": "\\ud83d"}]', "the answer of object 1 holds half a character"),
    ],
)
def test_replies_that_do_not_fit(text: str, reason: str) -> None:
    with pytest.raises(Unfit, match=f"^{reason}"):
        read_pairs(text, 1)


def test_the_row() -> None:
    assert to_row("a/b.png", [("Q1", "A1"), ("Q2", "A2")]) == {
        "id": "a/b.png",
        "image": "a/b.png",
        "conversations": [
            {"from": "human", "value": "<image>\nQ1"},
            {"from": "gpt", "value": "A1"},
            {"from": "human", "value": "Q2"},
            {"from": "gpt", "value": "A2"},
        ],
    }


def test_our_prompt_names_number_and_form() -> None:
    text = Task(n=7).text
    assert text.count("7") == 2 and "{n}" not in text
    assert '[{"question": "...", "answer": "..."}]' in text


def test_another_prompt_keeps_language_and_form() -> None:
    text = Task(n=3, prompt='Frag {n} Dinge, nicht {"so"}.\n', language="German").text
    assert text.startswith('Frag 3 Dinge, nicht {"so"}.\n\nWrite questions and answers in German.\n\nReply with JSON')


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))


@pytest.mark.parametrize(
    ("size", "sent"), [((400, 300), (100, 75)), ((30, 600), (5, 100)), ((60, 40), (60, 40)), ((900, 1), (100, 1))]
)
def test_the_picture_is_scaled_down_never_up(size: tuple[int, int], sent: tuple[int, int]) -> None:
    picture = decoded(data_uri(scene(*size), 100))
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", sent)


def test_the_picture_stays_itself() -> None:
    smooth = noise().resize((64, 48)).resize((400, 300))
    difference = np.asarray(decoded(data_uri(smooth.copy(), 1024)), dtype=int) - np.asarray(smooth, dtype=int)
    assert abs(difference).mean() < 4


def test_the_picture_is_sent_upright_and_without_metadata(server: Server, tmp_path: Path) -> None:
    exif = turned(6)
    exif[0x010F] = "A camera"
    (tmp_path / "a.jpg").write_bytes(saved(scene(60, 40), "JPEG", exif=exif))
    row_about(Endpoint(server.url, "m"), tmp_path, "a.jpg", Task(n=2), Counter())
    picture = server.asked[0].picture()
    assert picture.size == (40, 60) and not picture.getexif()
    red, green, _ = picture.getpixel((35, 5))  # turned clockwise, the green corner is at the upper right
    assert green > 150 > red


def test_a_reply_that_does_not_fit_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    replies = [says("A cat."), says(""), says(pairs_text(2))]
    server.reply = lambda asked: replies.pop(0)
    spent = Counter[str]()
    row = row_about(Endpoint(server.url, "m"), tmp_path, "a.png", Task(n=2), spent)
    assert [turn["value"] for turn in row["conversations"]] == [
        "<image>\nQuestion 0 on it?",
        "Answer 0 on it.",
        "Question 1 on it?",
        "Answer 1 on it.",
    ]
    assert spent == {"replies": 3, "prompt_tokens": 300, "completion_tokens": 30}
    first, second, third = (asked.body["messages"] for asked in server.asked)
    assert second[:2] == [*first, {"role": "assistant", "content": "A cat."}]
    assert second[2]["role"] == "user" and "it is no JSON" in second[2]["content"]
    assert third == first  # there is nothing to refer to


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says(pairs_text(3)), "asked 2 times, no reply fits: it has 3 objects instead of 2"),
        (says(None, refusal="I will not."), "it is empty; it ended with 'refusal: I will not.'"),
        (
            Answer(says(ONE[:30]).content.replace(b'"stop"', b'"length"')),
            "it is no JSON; it ended with 'length'",
        ),
    ],
)
def test_a_reply_that_never_fits(server: Server, tmp_path: Path, answer: Answer, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    server.reply = lambda asked: answer
    spent = Counter[str]()
    with pytest.raises(Unanswered) as error:
        row_about(Endpoint(server.url, "m"), tmp_path, "a.png", Task(n=2, asks=2), spent)
    assert str(error.value).endswith(reason)
    assert spent["replies"] == len(server.asked) == 2


def test_a_picture_that_is_none_is_not_sent(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")

    def refuse(asked: Asked) -> Answer:
        raise AssertionError

    server.reply = refuse
    with pytest.raises(DataError, match=r"a\.png is not an image"):
        row_about(Endpoint(server.url, "m"), tmp_path, "a.png", Task(), Counter())
    assert server.asked == []
