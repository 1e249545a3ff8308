"""Every form is seen from the row and understood as the program that it comes from understands it.

The rows have the shapes of those programs' documentation, named at each test; their words are made up here.
"""

from __future__ import annotations

from typing import Any

import pytest

from sightline.data.formats import FORMS, form_of, to_conversation, understand
from sightline.types import Conversation, ImageRef, Message, Text

ORIGIN = "train.json: row 3"
PNG = b"\x89PNG\r\n\x1a\nnot looked into here"


def understood(row: dict[str, Any], folder: str | None = "images", form: str | None = None) -> Conversation:
    return to_conversation(row, ORIGIN, folder, form)


def image(path: str) -> ImageRef:
    return ImageRef(path, "images")


def user(*parts: str | ImageRef) -> Message:
    return Message("user", tuple(Text(part) if isinstance(part, str) else part for part in parts))


def assistant(text: str) -> Message:
    return Message("assistant", (Text(text),))


# PaddleMIX, paddlemix/examples/llava/README.md: a list of [user, assistant] pairs, one picture.
PADDLEMIX = {"image": "book.jpg", "conversations": [["<image>\nWhich kind?", "A novel"], ["Old?", "No"]]}
# PaddleMIX DataCopilot, SCHEMA.MIX: pictures with numbers, which the texts name.
MIX = {
    "id": 3,
    "images": [{"id": 0, "url": "a.png"}, {"id": 1, "url": "b.png", "width": 4}],
    "conversations": [
        {"from": "user", "value": "<image>1</image>\nand <image>0</image>, <image>1</image>?"},
        {"from": "assistant", "value": "Twice b."},
    ],
}
# OpenAI, API reference of chat completions: a content of parts.
OPENAI = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Is "},
                {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "low"}},
                {"type": "text", "text": " like "},
                {"type": "image_url", "image_url": "b.jpg"},
                {"type": "text", "text": "?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
    ]
}
# ms-swift, Custom-dataset.md, and LLaMA-Factory, data/README.md: <image> in the text, the paths beside.
MESSAGES = {
    "messages": [
        {"role": "user", "content": "<image>Which? <image>"},
        {"role": "assistant", "content": "The first."},
    ],
    "images": ["a.jpg", "b.jpg"],
}
# LLaMA-Factory, data/README.md: ShareGPT turns, with a system prompt in a column of its own.
SHAREGPT = {
    "conversations": [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A"}],
    "system": "Be kind.",
    "tools": "",
    "images": ["a.jpg"],
}
# InternVL, docs/get_started/chat_data_format: its example of several images writes the answers under `text`.
INTERNVL = {
    "id": 0,
    "image": ["1.jpg", "2.jpg", "3.jpg"],
    "width_list": [1, 2, 3],
    "conversations": [
        {"from": "human", "value": "<image>\nQ <image>\nQ"},
        {"from": "gpt", "text": "A"},
        {"from": "human", "value": "<image>\nQ"},
        {"from": "gpt", "text": "B"},
    ],
}
# The Cauldron and FineVision on the hub: a column of images, a column of questions and answers without <image>.
TEXTS = {
    "images": [{"bytes": PNG, "path": None}],
    "texts": [{"user": "Q?", "assistant": "A.", "source": "s"}, {"user": "R?", "assistant": "B.", "source": None}],
}
# HuggingFaceH4/llava-instruct-mix-vsft on the hub: parts that name the images by number.
PARTS = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Q", "index": None},
                {"type": "image", "text": None, "index": 0},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A", "index": None}]},
    ],
    "images": [{"bytes": PNG, "path": "a.png"}],
}
# ms-swift, Custom-dataset.md: query and response with a history; LLaVA-OneVision-Data on the hub: an image column.
QUERY = {"system": "s", "query": "<image>Q2", "response": "A2", "history": [["Q1", "A1"]], "images": ["a.jpg"]}
COLUMNS = {
    "id": "7",
    "image": {"bytes": PNG, "path": None},
    "conversations": [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}],
    "data_source": "x",
}

SYSTEM = Message("system", (Text("Be brief."),))


@pytest.mark.parametrize(
    ("row", "form", "messages"),
    [
        (
            PADDLEMIX,
            "paddlemix",
            [user(image("book.jpg"), "\nWhich kind?"), assistant("A novel"), user("Old?"), assistant("No")],
        ),
        (
            MIX,
            "mix",
            [
                user(image("b.png"), "\nand ", image("a.png"), ", ", image("b.png"), "?"),
                assistant("Twice b."),
            ],
        ),
        (OPENAI, "openai", [SYSTEM, user("Is ", image("a.jpg"), " like ", image("b.jpg"), "?"), assistant("No.")]),
        (MESSAGES, "openai", [user(image("a.jpg"), "Which? ", image("b.jpg")), assistant("The first.")]),
        (
            SHAREGPT,
            "llava",
            [Message("system", (Text("Be kind."),)), user(image("a.jpg"), "Q"), assistant("A")],
        ),
        (
            INTERNVL,
            "llava",
            [
                user(image("1.jpg"), "\nQ ", image("2.jpg"), "\nQ"),
                assistant("A"),
                user(image("3.jpg"), "\nQ"),
                assistant("B"),
            ],
        ),
        (TEXTS, "texts", [user(ImageRef(PNG), "\nQ?"), assistant("A."), user("R?"), assistant("B.")]),
        (PARTS, "openai", [user("Q", ImageRef(PNG)), assistant("A")]),
        (
            QUERY,
            "query",
            [Message("system", (Text("s"),)), user("Q1"), assistant("A1"), user(image("a.jpg"), "Q2"), assistant("A2")],
        ),
        (COLUMNS, "llava", [user(ImageRef(PNG), "\nQ"), assistant("A")]),
    ],
)
def test_the_form_is_seen_and_understood(row: dict[str, Any], form: str, messages: list[Message]) -> None:
    assert form_of(row) == form
    assert understood(row).messages == tuple(messages)
    assert understood(row, form=form) == understood(row)


def test_every_form_is_tried_here() -> None:
    rows = [PADDLEMIX, MIX, OPENAI, SHAREGPT, TEXTS, QUERY]
    assert {FORMS[form_of(row)] for row in rows} == set(FORMS.values())


@pytest.mark.parametrize("name", ["llava", "sharegpt4v", "internvl", "sharegpt"])
def test_forms_of_one_shape_have_their_names(name: str) -> None:
    assert understood(SHAREGPT, form=name) == understood(SHAREGPT)


def test_images_without_a_place_go_in_front() -> None:
    # PaddleMIX and InternVL both write `<image>\n` before the first question.
    row = {"image": ["a.jpg", "b.jpg"], "conversations": [["Q", "A"], ["R", "B"]]}
    conversation, findings = understand(row, ORIGIN, "images")
    assert conversation.messages[0] == user(image("a.jpg"), "\n", image("b.jpg"), "\nQ")
    assert conversation.messages[2] == user("R")
    (finding,) = findings
    assert finding.kind == "image_in_front" and not finding.bad
    assert finding.reason == "2 images without <image>, put in front of the first user turn"
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    conversation, _ = understand({"image": "a.jpg", "conversations": turns}, ORIGIN, "images")
    assert [message.text for message in conversation.messages] == ["s", "<image>\nQ", "A"]


@pytest.mark.parametrize("row", [MESSAGES, MIX, OPENAI, PADDLEMIX, PARTS])
def test_nothing_is_found_in_rows_as_they_should_be(row: dict[str, Any]) -> None:
    assert understand(row, ORIGIN, "images")[1] == ()


def test_a_place_without_an_image_of_its_own_takes_one_from_beside() -> None:
    # TRL, docs of the SFT trainer: {"type": "image"} in the parts, the pictures in a column.
    content = [{"type": "image"}, {"type": "text", "text": "Q"}, {"type": "image"}]
    row = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}],
        "images": ["a", "b"],
    }
    assert understood(row).messages[0] == user(image("a"), "Q", image("b"))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image", "image": "data:image/png;base64,AAAA"},
        {"type": "image", "url": "data:image/png;base64,AAAA"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
        {"image": "data:image/png;base64,AAAA"},
    ],
)
def test_data_uris_need_no_folder(part: dict[str, Any]) -> None:
    row = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "A"}]}
    assert understood(row, folder=None).images == (ImageRef("data:image/png;base64,AAAA"),)


def test_texts_side_by_side_are_one() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": ""}, {"text": "b"}, "c"]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A"}]}
    assert understood(row).messages[0] == user("abc")


def test_numbers_of_images_may_come_in_any_order() -> None:
    content = [{"type": "image", "index": 1}, {"type": "image", "index": 0}, {"type": "image", "index": 1}]
    row = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}],
        "images": ["a", "b"],
    }
    assert understood(row).images == (image("b"), image("a"), image("b"))


def test_places_as_xtuner_1_writes_them() -> None:
    # Its docs of multimodal fine-tuning: the images first, <IMG_CONTEXT> in the text where they belong.
    content = [
        {"type": "image_url", "image_url": {"url": "a.jpg", "image_wh": [3, 4]}},
        {"type": "image_url", "image_url": {"url": "b.jpg", "image_wh": [3, 4]}},
        {"type": "text", "text": "<IMG_CONTEXT>\nis it like <IMG_CONTEXT>?"},
    ]
    row = {"id": 0, "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "No."}]}
    assert understood(row).messages[0] == user(image("a.jpg"), "\nis it like ", image("b.jpg"), "?")


def test_a_form_that_is_named_is_the_one_that_is_read() -> None:
    both = {
        "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "conversations": [["R", "B"]],
    }
    assert understood(both, form="openai").messages == (user("Q"), assistant("A"))
    assert understood(both, form="paddlemix").messages == (user("R"), assistant("B"))


def test_a_conversation_that_begins_with_the_assistant_is_read_from_the_first_question_on() -> None:
    """As official LLaVA's preprocess_v1 ("skip the first one if it is not from human") and XTuner's encode_fn do."""
    turns = [("gpt", "and so on"), ("human", "Why?"), ("gpt", "Because.")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    conversation, findings = understand(row, "rows.json: row 1", None)
    assert [(message.role, message.text) for message in conversation.messages] == [
        ("user", "Why?"),
        ("assistant", "Because."),
    ]
    assert [finding.kind for finding in findings] == ["assistant_first"] and not findings[0].bad
