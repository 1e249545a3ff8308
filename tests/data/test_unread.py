"""Nothing in a row is passed over in silence: it is understood, refused, or told once a file."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from picture_files import saved, scene
from rich.console import Console

from sightline.data.formats import FORMS, read_row, understand
from sightline.data.forms.keys import KEYS, PLAIN
from sightline.data.forms.places import place, written_out
from sightline.data.index import open_index
from sightline.errors import DataError
from sightline.recipe import DataRecipe
from sightline.types import Conversation, ImageRef

Row = dict[str, Any]


def llava(question: str, answer: str = "A box.", **more: Any) -> Row:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}


def openai(question: Row, answer: Row | None = None, **more: Any) -> Row:
    return {
        "messages": [{"role": "user", **question}, {"role": "assistant", "content": "A.", **(answer or {})}],
        **more,
    }


def understood(row: Row) -> Conversation:
    return understand(row, "rows.json: row 1", "images")[0]


def texts(row: Row) -> list[str]:
    return [message.text for message in understood(row).messages]


def names(row: Row) -> list[Any]:
    return [image.source for image in understood(row).images]


def refused(row: Row) -> tuple[str, str]:
    with pytest.raises(DataError) as error:
        understood(row)
    return error.value.kind, str(error.value).removeprefix("rows.json: row 1: ")


def told(row: Row) -> list[str]:
    return [finding.reason for finding in understand(row, "rows.json: row 1", "images")[1]]


@pytest.mark.parametrize(
    ("row", "question", "images"),
    [
        # Qwen-VL and ms-swift 1: the file's name in the text.
        (llava("Picture 1:<img>a.jpg</img>\nWhat?"), "Picture 1:<image>\nWhat?", ["a.jpg"]),
        ({"query": "<img>a.jpg</img><img>b.jpg</img>Q", "response": "A"}, "<image><image>Q", ["a.jpg", "b.jpg"]),
        # GLM-4V and Ollama: a key of the turn.
        (openai({"content": "Q", "image": "a.jpg"}), "<image>\nQ", ["a.jpg"]),
        (openai({"content": "Q", "images": ["a.jpg", "b.jpg"]}), "<image>\n<image>\nQ", ["a.jpg", "b.jpg"]),
        (openai({"content": "Q <image>?", "images": ["a.jpg"]}), "Q <image>?", ["a.jpg"]),
        # Version 1 of LLaMA-Factory: parts with `value`.
        (
            openai({"content": [{"type": "image_url", "value": "a.jpg"}, {"type": "text", "value": "Q"}]}),
            "<image>Q",
            ["a.jpg"],
        ),
        # Numbered places, from 1 or from 0, in any order and more than once.
        (llava("<image_2> or <image_1>?", image=["a", "b"]), "<image> or <image>?", ["b", "a"]),
        (llava("<image0> <image1> <image0>", image=["a", "b"]), "<image> <image> <image>", ["a", "b", "a"]),
        (llava("<image 1> Q", image="a"), "<image> Q", ["a"]),
        # Words of models.
        (llava("<ImageHere>Q", image="a"), "<image>Q", ["a"]),
        (llava("<|image|><|image|>Q", image=["a", "b"]), "<image><image>Q", ["a", "b"]),
        (llava("<|vision_start|><|image_pad|><|vision_end|>Q", image="a"), "<image>Q", ["a"]),
        (llava("<IMG_CONTEXT>\nQ", image="a"), "<image>\nQ", ["a"]),
    ],
)
def test_images_in_other_words_are_understood(row: Row, question: str, images: list[str]) -> None:
    assert texts(row)[0] == question and names(row) == images
    # And converted: the same, said in our words.
    turns, _ = place(read_row(row))
    assert written_out(turns[0]) == question


def test_base64_without_data_is_an_image() -> None:
    for kind, mode in (("png", "png"), ("jpeg", "jpeg")):
        content = base64.b64encode(saved(scene(), mode)).decode()
        broken_up = "\n".join(content[at : at + 76] for at in range(0, len(content), 76))
        for text in (content, broken_up):
            assert understood(llava("<image>Q", image=text)).images == (
                ImageRef(f"data:image/{kind};base64,{content}"),
            )
    # A path may begin so.
    assert names(llava("<image>Q", image="Qk/" + "a" * 90 + ".jpg")) == ["Qk/" + "a" * 90 + ".jpg"]


@pytest.mark.parametrize("key", ["system", "system_prompt", "system_message"])
def test_the_system_prompt_by_its_names(key: str) -> None:
    assert texts(llava("Q", **{key: "One word."}))[0] == "One word."
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
    assert refused({"messages": turns, key: "t"})[1] == f"{key!r} stands beside a system turn; keep one of them"
    assert "keep one of them" in refused(llava("Q", system="s", system_message="t", system_prompt="u"))[1]


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        (llava("<image_1>\nQ"), "image_word", "'<image_1>' in a question, which looks like the place of an image"),
        (llava("<image_1> <image_3>", image=["a", "b"]), "image_word", "'<image_1>', '<image_3>' in a question"),
        (llava("<ImageHere>", image=["a", "b"]), "image_word", "the row has 2 images; write <image> for each image"),
        (llava("Draw", "<image>", image="a"), "image_in_answer", "turn 2: an image in an answer; only questions"),
        (llava("Draw", "<img>a.jpg</img>"), "image_in_answer", "turn 2: an image in an answer; only questions"),
        (openai({"content": "Q"}, {"image": "a.jpg"}), "image_in_answer", "turn 2: an image in an answer"),
        (llava("Q", system="<image>s", image="a"), "image_in_answer", "turn 1: an image in a system prompt"),
        (llava("Q", img="a.jpg"), "image_key", "'img' holds an image and is not read; did you mean 'image'?"),
        (llava("Q", Image="a.jpg"), "image_key", "'Image' holds an image and is not read; did you mean 'image'?"),
        (llava("Q", image_paths=["a"]), "image_key", "did you mean 'images'?"),
        (llava("Q", image_1={"bytes": b"\xff\xd8\xff"}), "image_key", "'image_1' holds an image and is not read"),
        (llava("Q", url="http://x/a.jpg"), "image_key", "'url' holds an image and is not read; did you mean 'image'?"),
        (llava("Find <ref-object>", "<bbox>", objects={"ref": ["x"]}), "form", "'<ref-object>' stands for an entry"),
        (llava("<video>\nQ"), "form", "a text begins with '<video>'; only images are understood"),
        ({"conversations": None, "image": "a.jpg"}, "form", "'conversations' is null"),
        ({"image": "a.jpg", "texts": None}, "form", "no 'conversations' in the row (it has: 'image')"),
        (
            openai({"content": [{"type": "text", "txt": "Q"}]}),
            "form",
            "a part of type 'text' has no 'text' (it has: 'txt')",
        ),
        (
            openai({"content": "<image><image>Q", "image": "a.jpg"}),
            "image_count",
            "turn 1 has 1 image under a key of its own, but 2 <image>",
        ),
    ],
)
def test_what_is_refused(row: Row, kind: str, reason: str) -> None:
    found, said = refused(row)
    assert found == kind and reason in said and len(said) < 300


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("loss", False), ("weight", 0), ("weight", 0.5), ("loss_weight", 0.0), ("loss_scale", 2), ("train", False)),
        *(("loss", "last"), ("loss_mask", [0, 1]), ("mask", True), ("ignore", 1), ("train_detail", [{"train": False}])),
    ],
)
def test_whatever_chooses_among_answers_is_refused(key: str, value: Any) -> None:
    row = openai({"content": "Q"}, {key: value})
    assert refused(row)[1] == f"turn 2 has {key!r}: {value!r}, but all answers are learned"
    # A question is not learned anyway.
    assert told(openai({"content": "Q", key: value})) == []


@pytest.mark.parametrize(
    "more",
    [{"loss": True}, {"weight": 1}, {"loss_weight": 1.0}, {"loss": "all"}, {"mask": False}, {"mask": "a.png"}],
)
def test_what_chooses_all_answers_is_taken(more: Row) -> None:
    assert texts(openai({"content": "Q"}, more))[1] == "A."


def test_a_row_that_is_worth_more_than_others_is_refused() -> None:
    assert refused(llava("Q", weight=3))[1] == "the row has 'weight': 3, but all rows are learned alike"
    assert told(llava("Q", weight=1.0)) == []


@pytest.mark.parametrize(
    ("row", "reasons"),
    [
        (llava("Q", sistem="s"), ["'sistem' is not read; did you mean 'system'?"]),
        (llava("Q", rejected="No.", reward=3), ["'rejected' is not read", "'reward' is not read"]),
        (llava("<image>Q", image="a", depth_image="b.png"), ["'depth_image' is not read; did you mean 'image'?"]),
        (openai({"content": "Q", "name": "Ann", "thought": "t"}), ["'thought' of a turn is not read"]),
        (
            openai({"content": [{"type": "text", "text": "Q", "cache_control": {"type": "ephemeral"}}]}),
            ["'cache_control' of an image or a text is not read"],
        ),
        ({"texts": [{"user": "Q", "assistant": "A", "human": "R"}]}, ["'human' of a turn is not read"]),
        (
            llava("Q", **{f"key {n}": n for n in range(30)}),
            [f"'key {n}' is not read" for n in range(8)] + ["further keys are not read"],
        ),
        (llava("Q", "Write <image_1>."), ["'<image_1>', in an answer"]),
        (llava("<image>Q <image_1>", image="a"), ["'<image_1>', beside images that have their places"]),
        (llava("Q", empty="", none=None, nothing=[], at_all={}), []),
        ({"texts": [{"user": "Q", "assistant": "A", "source": "s"}], "id": 3, "width": 4}, []),
    ],
)
def test_what_is_told(row: Row, reasons: list[str]) -> None:
    assert told(row) == reasons


def test_every_form_says_which_keys_it_reads() -> None:
    assert set(KEYS) == {read.__name__ for read in FORMS.values()}
    page = (Path(__file__).parents[2] / "docs" / "data-forms.md").read_text("utf-8")
    assert [key for key in PLAIN if f"`{key}`" not in page] == []


def test_a_key_is_told_once_a_file_with_its_rows(tmp_path: Path) -> None:
    rows = [llava("Q", id=n, **({"sistem": "s"} if n % 2 else {"other": 1})) for n in range(2100)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for _ in range(2):  # looked at, then read from the cache
        index = open_index([DataRecipe(path=str(tmp_path / "rows.json"))], None, None, Console(quiet=True), tmp_path)
        found = [(row, one.reason, one.rows) for _, row, one in index.findings() if one.kind == "key"]
        assert found == [
            (0, "'other' is not read", 1050),
            (1, "'sistem' is not read; did you mean 'system'?", 1050),
        ]
        assert not index.bad.any()
