"""Rows in LLaVA's form are understood; whatever is wrong with a row is refused with file, row, key and kind."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.data.formats import to_conversation
from sightline.errors import DataError
from sightline.types import Conversation, ImageRef, Message, Text

ORIGIN = "data.json: row 7"


def turn(who: Any, value: Any) -> dict[str, Any]:
    return {"from": who, "value": value}


def row(*values: str, **more: Any) -> dict[str, Any]:
    """A row in which human and gpt take turns."""
    turns = [turn("gpt" if number % 2 else "human", value) for number, value in enumerate(values)]
    return {"id": "a", "conversations": turns, **more}


def understood(row: dict[str, Any], folder: str | None = "images") -> Conversation:
    return to_conversation(row, ORIGIN, folder)


def refused(row: dict[str, Any], folder: str | None = "images") -> str:
    """The message, without the row that it begins with."""
    with pytest.raises(DataError) as error:
        to_conversation(row, ORIGIN, folder)
    message = str(error.value)
    assert message.startswith(f"{ORIGIN}: ") and message.count(ORIGIN) == 1 and "\n" not in message
    return message.removeprefix(f"{ORIGIN}: ")


def image(path: str) -> ImageRef:
    return ImageRef(path, "images")


def test_one_picture_as_llava_writes_it() -> None:
    # From the README of the data set liuhaotian/LLaVA-Instruct-150K: id, image, conversations of from and value.
    found = understood(
        row("<image>\nWhat is it?", "A cat.", image="coco/train2017/000000033471.jpg", id="000000033471")
    )
    assert found == Conversation(
        messages=(
            Message("user", (image("coco/train2017/000000033471.jpg"), Text("\nWhat is it?"))),
            Message("assistant", (Text("A cat."),)),
        ),
        id="000000033471",
        origin=ORIGIN,
    )


@pytest.mark.parametrize("absent", [{}, {"image": None}, {"image": []}, {"image": ""}, {"images": []}])
def test_text_alone(absent: dict[str, Any]) -> None:
    found = understood(row("Hi", "Hello", **absent), folder=None)
    assert found.messages == (Message("user", (Text("Hi"),)), Message("assistant", (Text("Hello"),)))
    assert found.images == ()


def test_images_take_their_places_in_order() -> None:
    paths = ["1.png", "2.png", "3.png", "1.png"]
    found = understood(row("Is <image> like <image>?", "No.", "And\n<image>", "Yes.", "<image>?", "No.", image=paths))
    assert found.messages[0].content == (Text("Is "), image("1.png"), Text(" like "), image("2.png"), Text("?"))
    assert found.messages[2].content == (Text("And\n"), image("3.png"))
    assert found.messages[4].content == (image("1.png"), Text("?"))
    assert found.images == tuple(map(image, paths))
    assert [message.text for message in found.messages[:3]] == ["Is <image> like <image>?", "No.", "And\n<image>"]


def test_an_image_may_come_in_a_later_turn_or_alone() -> None:
    found = understood(row("Hi", "Hello", "<image>", "A cat.", image="a.jpg"))
    assert found.messages[2].content == (image("a.jpg"),)
    assert understood(row("<image><image>", "Cats.", image=["a.jpg", "b.jpg"])).images == (
        image("a.jpg"),
        image("b.jpg"),
    )


@pytest.mark.parametrize(("asks", "answers"), [("human", "gpt"), ("user", "assistant"), ("human", "assistant")])
def test_names_of_the_speakers(asks: str, answers: str) -> None:
    found = understood({"conversations": [turn("system", "Be brief."), turn(asks, "Q"), turn(answers, "A")]})
    assert [(message.role, message.text) for message in found.messages] == [
        ("system", "Be brief."),
        ("user", "Q"),
        ("assistant", "A"),
    ]


def test_what_is_written_stays_as_it_is() -> None:
    values = (" \n Q {}  ", "\tA </s>\n\n", "<Images> <images/> < image >", "图片 🙂 \u2028")
    assert tuple(message.text for message in understood(row(*values)).messages) == values


def test_ids_are_text_or_absent() -> None:
    turns = row("Q", "A")["conversations"]
    assert [understood({"conversations": turns, **more}).id for more in ({"id": 7}, {"id": "x"}, {})] == ["7", "x", ""]
    assert understood({"conversation": turns}).messages == understood({"conversations": turns}).messages
    assert understood({"conversations": turns}).origin == ORIGIN


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "no 'conversations' in the row (it has: nothing)"),
        ({"id": 1, "texts": None}, "no 'conversations' in the row (it has: 'id')"),
        ({"id": 1, "messages": []}, "'messages' is not a list of turns, or is empty"),
        ({"conversations": []}, "'conversations' is not a list of turns, or is empty"),
        ({"conversations": {}}, "'conversations' is not a list of turns, or is empty"),
        ({"conversations": "Q"}, "'conversations' is not a list of turns, or is empty"),
        ({"conversations": ["Q", "A"]}, "turn 1 is not an object with 'from' and 'value'"),
        ({"conversations": [turn("human", "Q"), {"from": "gpt"}]}, "turn 2 is not an object with 'from' and 'value'"),
        ({"conversations": [turn("human", "Q"), None]}, "turn 2 is not an object with 'from' and 'value'"),
        (
            {"conversations": [turn("human", "Q"), turn("bot", "A")]},
            "turn 2: unknown 'from' 'bot'; known: human, user, gpt, assistant, system",
        ),
        ({"conversations": [turn(["human"], "Q")]}, "turn 1: unknown 'from' ['human']; known: human, user, gpt, "),
        ({"conversations": [turn(None, "Q")]}, "turn 1: unknown 'from' None; known: human, user, gpt, "),
        ({"conversations": [turn("human", 3)]}, "turn 1: 'value' is int, not text"),
        ({"conversations": [turn("human", "Q"), turn("gpt", None)]}, "turn 2: 'value' is NoneType, not text"),
        (row("Q"), "the conversation does not end with an answer"),
        (row("Q", "A", "Q"), "the conversation does not end with an answer"),
        ({"conversations": [turn("system", "s")]}, "the conversation does not end with an answer"),
        ({"conversations": [turn("gpt", "A")]}, "turn 1 is the assistant's, expected the user's: turns must alternate"),
        (
            {"conversations": [turn("human", "Q"), turn("human", "Q"), turn("gpt", "A")]},
            "turn 2 is the user's, expected the assistant's: turns must alternate",
        ),
        (
            {"conversations": [turn("system", "s"), turn("human", "Q"), turn("system", "A")]},
            "turn 3 is the system's, expected the assistant's: turns must alternate",
        ),
        (row("Q", "", "Q", "A"), "turn 2: the answer is empty"),
        (
            {"conversations": [turn("system", "s"), turn("human", "Q"), turn("gpt", " \n")]},
            "turn 3: the answer is empty",
        ),
        (row("<image>\nQ", "A"), "0 images but 1 <image> in the conversations; they must agree"),
        (row("<image><image>", "A", image="a.jpg"), "1 image but 2 <image> in the conversations; they must agree"),
        (row("<image>", "A", image=["a", "b"]), "2 images but 1 <image> in the conversations; they must agree"),
        (row("<image>", "A", image=3), "'image' is neither a path nor a list of paths"),
        (row("<image>", "A", image=""), "0 images but 1 <image> in the conversations; they must agree"),
        (row("<image>", "A", image={"path": 3}), "'image' is neither a path nor a list of paths"),
        (row("<image>", "A", image={"height": 3}), "'image' is neither a path nor a list of paths"),
        (row("<image>", "A", image="a", images=["a"]), "the row has 'image' and 'images'; keep one of them"),
        (row("<image>", "A", image=["a", None]), "'image' is neither a path nor a list of paths"),
        (row("<image>", "A", image=[["a"]]), "'image' is neither a path nor a list of paths"),
    ],
)
def test_what_is_refused(bad: dict[str, Any], message: str) -> None:
    found = refused(bad)
    assert found.startswith(message) if message.endswith(", ") else found == message


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ({}, "form"),
        ({"conversations": [turn("bot", "Q"), turn("gpt", "A")]}, "role"),
        (row("Q"), "order"),
        (row("Q", " "), "empty_answer"),
        (row("<image>", "A"), "image_count"),
        (row("<image>", "A", image="https://example.org/a.jpg"), "image_missing"),
        (row("Q", "A", videos=["a.mp4"]), "form"),
    ],
)
def test_kinds_of_what_is_refused(bad: dict[str, Any], kind: str) -> None:
    with pytest.raises(DataError) as error:
        to_conversation(bad, ORIGIN, "images")
    assert error.value.kind == kind


@pytest.mark.parametrize("folder", ["images", None])
def test_urls_of_rows_are_never_fetched(folder: str | None) -> None:
    said = refused(row("<image>", "A", image="https://example.org/a.jpg"), folder=folder)
    assert "https://example.org/a.jpg" in said and "--download" in said


def test_absolute_paths_into_the_folder_are_paths_of_it() -> None:
    for path in ("/data/images/x/a b.jpg", "file:///data/images/x/a%20b.jpg"):
        assert understood(row("<image>", "A", image=path), "/data/images").images == (
            ImageRef("x/a b.jpg", "/data/images"),
        )
    odd = understood(row("<image>", "A", image="/data/images/..odd.jpg"), "/data/images")
    assert odd.images == (ImageRef("..odd.jpg", "/data/images"),)
    # Opening these refuses them, as leading out of the folder.
    for path in ("/data/other/a.jpg", "/data/images2/a.jpg", "../a.jpg"):
        assert understood(row("<image>", "A", image=path), "/data/images").images == (ImageRef(path, "/data/images"),)


@pytest.mark.parametrize(("key", "value"), [("loss", False), ("weight", 0)])
def test_answers_that_are_not_to_be_learned_are_no_secret(key: str, value: Any) -> None:
    turns = [turn("human", "Q"), {**turn("gpt", "A"), key: value}]
    assert refused({"conversations": turns}) == f"turn 2 has {key!r}: {value}, but all answers are learned"
    assert understood({"conversations": [turn("human", "Q"), {**turn("gpt", "A"), key: 1}]}).messages[1].text == "A"


def test_an_image_needs_a_folder() -> None:
    message = "the row has an image, but no folder of images is given (--images, --image-folder, or data.N.images)"
    assert refused(row("<image>", "A", image="a.jpg"), folder=None) == message
