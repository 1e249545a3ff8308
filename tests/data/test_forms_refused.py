"""What is wrong with a row of any form is told with its kind, its turn and its key; LLaVA's own is in test_formats."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.data.formats import FORMS, understand
from sightline.errors import DataError

ORIGIN = "train.json: row 3"
MIX = {
    "id": 3,
    "images": [{"id": 0, "url": "a.png"}],
    "conversations": [
        {"from": "user", "value": "<image>1</image>\nand <image>0</image>?"},
        {"from": "assistant", "value": "A"},
    ],
}


def refused(row: dict[str, Any], form: str | None = None) -> tuple[str, str]:
    """Kind and message, without the row that it begins with."""
    with pytest.raises(DataError) as error:
        understand(row, ORIGIN, "images", form)
    assert str(error.value).startswith(f"{ORIGIN}: ")
    return error.value.kind, str(error.value).removeprefix(f"{ORIGIN}: ")


def asking(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}], **more}


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"conversations": [["Q"]]}, "form", "pair 1 is not a list of two texts, [user, assistant]"),
        ({"conversations": [["Q", "A"], ["Q", None]]}, "form", "pair 2 is not a list of two texts, [user, assistant]"),
        ({"conversations": [["Q", "A"], "Q"]}, "form", "pair 2 is not a list of two texts, [user, assistant]"),
        ({"conversations": [["Q", ""]]}, "empty_answer", "turn 2: the answer is empty"),
        ({"texts": [{"user": "Q"}]}, "form", "pair 1 has no text under 'user' and 'assistant'"),
        ({"texts": ["Q"]}, "form", "pair 1 is not an object with 'user' and 'assistant'"),
        ({"query": "Q", "response": None}, "form", "'query' and 'response': expected two texts"),
        ({"query": "Q", "response": "A", "history": [["Q"]]}, "form", "pair 1 of 'history': expected two texts"),
        ({"query": "Q", "response": "A", "history": "Q"}, "form", "'history' is not a list of [query, response]"),
        ({**MIX, "images": [{"id": 0, "url": "a"}, {"id": "0"}]}, "form", "two of 'images' have the id '0'"),
        (asking(None), "form", "turn 1: 'content' is NoneType, not text or a list of parts"),
        (asking([3]), "form", "turn 1: a part is int, neither text nor an object"),
        (asking([{"type": "video"}]), "form", "turn 1: a part is of type 'video'; known: text, image_url, image"),
        (asking([{"type": "text"}]), "form", "turn 1: a part of type 'text' has no 'text'"),
        (asking([{"type": "image_url", "image_url": {}}]), "form", "'image_url' is neither a path nor a list of paths"),
        (asking([{"type": "image"}]), "image_count", "0 images but 1 <image> in the conversations; they must agree"),
        (
            asking([{"type": "image", "image": "a"}, {"type": "text", "text": "<image>"}]),
            "image_count",
            "<image> in a text beside images that are parts of a turn; write all images in one way",
        ),
        (
            asking([{"type": "image", "image": "a"}], images=["a"]),
            "image_count",
            "a list of images beside images that are parts of a turn; write all images in one way",
        ),
        (asking([{"type": "image", "index": 1}], images=["a"]), "image_count", "turn 1: a part shows image 1 of 1"),
        (
            asking([{"type": "image", "index": 1}], images=["a", "b"]),
            "image_count",
            "the turns show only some of the row's 2 images",
        ),
        (asking("Q", images=["a"], image="b"), "form", "the row has 'image' and 'images'; keep one of them"),
        (asking("Q", system=3), "form", "'system' is int, not text"),
        (
            {"system": "s", "messages": [{"role": "system", "content": "t"}]},
            "form",
            "'system' stands beside a system turn; keep one of them",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role", "turn 1: unknown 'role' 'tool'; known: human, "),
        ({"messages": ["Q"]}, "form", "turn 1 is not an object with 'role' and 'content'"),
        ({"messages": [{"role": "user"}]}, "form", "turn 1 is not an object with 'role' and 'content'"),
        (
            MIX,
            "image_count",
            "the texts name the images '0', '1', the row has '0'",
        ),
        (asking("Q", videos=["a.mp4"]), "form", "the row has 'videos'; only images are understood"),
        (
            asking("Q", conversations=[["Q", "A"]]),
            "form",
            f"the row has 'conversations' and 'messages'; name its form ({', '.join(FORMS)})",
        ),
    ],
)
def test_what_is_refused(row: dict[str, Any], kind: str, message: str) -> None:
    found = refused(row)
    assert found[0] == kind
    assert found[1].startswith(message) if message.endswith(", ") else found[1] == message


def test_a_form_that_is_named_does_not_fit() -> None:
    pairs = {"conversations": [["Q", "A"]]}
    assert refused(pairs, "llava") == ("form", "turn 1 is not an object with 'from' and 'value'")
    content = [
        {"type": "image", "image": "a"},
        {"type": "image", "image": "b"},
        {"type": "text", "text": "<IMG_CONTEXT>"},
    ]
    assert refused(asking(content)) == (
        "image_count",
        "2 images but 1 <image> in the conversations; they must agree",
    )
