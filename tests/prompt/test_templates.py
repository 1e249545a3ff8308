"""Each template against a string written down from its source; the exported Jinja template against the renderer."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
from prompters import said, tokenizer_of
from template_table import SAME, TABLE, WITH_SYSTEM

from sightline import recipe
from sightline.errors import DataError
from sightline.prompt.render import render, to_jinja, to_text
from sightline.prompt.templates import TEMPLATES, Template
from sightline.types import IMAGE, ImageRef, Message, Segment, Text, ask, interleave

IMAGES = (ImageRef("a.jpg"), ImageRef("b.jpg"))
TWO_TURNS = (
    said("user", IMAGES[0], "\nQ1"),
    said("assistant", "A1"),
    said("user", "Q2"),
    said("assistant", "A2"),
)


def _plain(name: str) -> str:
    return TABLE[name].replace("⟦", "").replace("⟧", "")


def segments_of(name: str) -> list[Segment]:
    return render(TEMPLATES[name], TWO_TURNS, bos="<s>", eos="</s>")


def rendered(name: str, *messages: Message) -> str:
    return to_text(render(TEMPLATES[name], messages, bos="<s>", eos="</s>"))


def test_the_names_are_those_of_the_recipe() -> None:
    assert sorted(["auto", *TEMPLATES]) == sorted(recipe.TEMPLATES)
    assert all(template.name == name for name, template in TEMPLATES.items())


def test_every_template_has_its_row_in_the_table() -> None:
    assert sorted(TEMPLATES) == sorted(TABLE) == sorted(WITH_SYSTEM)


@pytest.mark.parametrize("name", TABLE)
def test_two_turns_with_an_image(name: str) -> None:
    assert rendered(name, *TWO_TURNS) == _plain(name)


@pytest.mark.parametrize("name", TABLE)
def test_answers_and_what_ends_them_are_targets(name: str) -> None:
    marked = ""
    for target, segments in groupby(segments_of(name), lambda segment: segment.target):
        text = to_text(list(segments))
        marked += f"⟦{text}⟧" if target else text
    # Two answers with nothing between them are one run of targets.
    assert marked == TABLE[name].replace("⟧⟦", "")


@pytest.mark.parametrize("name", WITH_SYSTEM)
def test_a_system_message_of_ones_own_and_an_open_answer(name: str) -> None:
    assert rendered(name, said("system", "Be brief."), said("user", "Q")) == WITH_SYSTEM[name]


@pytest.mark.parametrize(("alias", "name"), SAME.items())
def test_another_name_is_the_same_template(alias: str, name: str) -> None:
    assert replace(TEMPLATES[alias], name=name) == TEMPLATES[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_open_answer_ends_where_the_answer_begins(name: str) -> None:
    segments = render(TEMPLATES[name], TWO_TURNS, bos="<s>", eos="</s>")
    after_first = to_text(segments).index("A1") - len(TEMPLATES[name].answer.partition("{}")[0])
    assert rendered(name, *TWO_TURNS[:1]) == to_text(segments)[:after_first]
    assert rendered(name, *TWO_TURNS).startswith(rendered(name, *TWO_TURNS[:3]))


def test_plain_keeps_the_image_and_the_caption_alone() -> None:
    segments = render(TEMPLATES["plain"], TWO_TURNS[:2], bos="<s>", eos="</s>")
    assert [(to_text([segment]), segment.target) for segment in segments] == [
        ("<s>", False),
        ("<image>", False),
        ("A1", True),
        ("\n", True),
    ]


def test_what_people_wrote_is_never_read_as_a_template() -> None:
    text = "{} {bos} {eos} {0} %s {{ x }} {% if %} \\n"
    assert f"USER: {text} ASSISTANT: {text}</s>" in rendered("vicuna", said("user", text), said("assistant", text))


def test_a_guard_sees_what_people_wrote_and_nothing_else() -> None:
    seen: list[str] = []

    def guard(text: str) -> str:
        seen.append(text)
        return text.upper()

    messages = [said("system", "s"), said("user", "a", "b", IMAGES[0], "c"), said("assistant", "d")]
    text = to_text(render(replace(TEMPLATES["vicuna"], image_place="kept"), messages, guard=guard))
    assert seen == ["s", "ab", "c", "d"]
    assert text == "S USER: AB<image>C ASSISTANT: D"


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (["assistant"], "message 1 is the assistant's, expected the system or user's"),
        (["user", "user"], "message 2 is the user's, expected the assistant's"),
        (["user", "assistant", "assistant"], "message 3 is the assistant's, expected the user's"),
        (["user", "system"], "message 2 is the system's, expected the assistant's"),
        (["system", "system"], "message 2 is the system's, expected the user's"),
        (["system", "assistant"], "message 2 is the assistant's, expected the user's"),
        (["user", "tool"], "message 2 is the tool's, expected the assistant's"),
    ],
)
def test_roles_out_of_order_are_refused(roles: list[str], message: str) -> None:
    with pytest.raises(DataError) as error:
        rendered("chatml", *(said(role, "x") for role in roles))
    assert str(error.value) == message


# --- the place of images ----------------------------------------------------------------------------------------------


def official(text: str) -> str:
    """A user's words as LLaVA rewrites them before it trains on them.

    `preprocess_multimodal` of llava/train/train.py (haotian-liu/LLaVA, v1.2.2); XTuner's `llava_map_fn` does the same.
    """
    if IMAGE not in text:
        return text
    return f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()


def in_words(text: str) -> Message:
    return Message("user", interleave(text, IMAGES[: text.count(IMAGE)]))


PLACES = {
    "What is it?\n<image>": "<image>\nWhat is it?",
    "<image>\nWhat is it?": "<image>\nWhat is it?",
    "<image>What is it?": "<image>\nWhat is it?",
    " \n<image>  What is it? \n": "<image>\nWhat is it?",
    "Is <image> red?": "<image>\nIs  red?",
    "<image>": "<image>",
    " <image>\n": "<image>",
    " What? ": " What? ",
}


@pytest.mark.parametrize("text", PLACES)
def test_the_one_image_of_a_question_stands_in_front(text: str) -> None:
    assert official(text) == PLACES[text]
    template = Template("bare", user="{}", opening="", answer="{}", end="", begin="", system=None)
    assert to_text(render(template, [in_words(text)])) == PLACES[text]
    assert to_text(render(replace(template, image_place="kept"), [in_words(text)])) == text


@pytest.mark.parametrize("name", [name for name in TEMPLATES if not TEMPLATES[name].images_only])
def test_exports_put_it_there_too(name: str) -> None:
    for text in (*PLACES, "<image> and <image>", "so <image><image>\n"):
        for template in (TEMPLATES[name], replace(TEMPLATES[name], image_place="kept")):
            message = in_words(text)
            expected = to_text(render(template, [message], bos="<s>", eos="</s>"))
            assert jinja(template, [as_string(message)]) == expected
            if template.image_place == "front" and text.count(IMAGE) < 2:
                assert jinja(template, [as_parts(message)]) == expected


# --- the exported template -------------------------------------------------------------------------------------------


def jinja(name: str | Template, messages: list[dict[str, Any]]) -> str:
    """transformers' own rendering of the exported template."""
    template = TEMPLATES[name] if isinstance(name, str) else name
    text: str = tokenizer_of("byte").apply_chat_template(
        messages,
        chat_template=to_jinja(template, bos="<s>", eos="</s>"),
        tokenize=False,
        add_generation_prompt=messages[-1]["role"] == "user",
    )
    return text


def as_string(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.text}


def as_parts(message: Message) -> dict[str, Any]:
    parts = [{"type": "text", "text": p.text} if isinstance(p, Text) else {"type": "image"} for p in message.content]
    return {"role": message.role, "content": parts}


def conversations(seed: int) -> list[list[Message]]:
    """Random ones, with white space at the ends, quotes, braces and other scripts; some with system, some open."""
    rng = random.Random(seed)
    pieces = ["What?", " ", "\n", "it's", '"so"', "\\n", "{{ x }}", "{% raw %}", "图片", "🙂", "a\tb", "<b>&amp;", ""]

    def text() -> str:
        return "".join(rng.choices(pieces, k=rng.randint(1, 5)))

    result = []
    for _ in range(12):
        messages = [said("system", text())] if rng.random() < 0.5 else []
        for _ in range(rng.randint(1, 3)):
            messages += [said("user", text()), said("assistant", text())]
        result.append(messages[:-1] if rng.random() < 0.5 else messages)
    return result


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("seed", range(3))
def test_jinja_writes_what_the_renderer_writes(name: str, seed: int) -> None:
    for messages in conversations(seed):
        expected = rendered(name, *messages)
        assert jinja(name, [as_string(message) for message in messages]) == expected
        assert jinja(name, [as_parts(message) for message in messages]) == expected


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])
def test_jinja_puts_images_in_front_on_lines_of_their_own(name: str) -> None:
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare."}]
    assert jinja(name, [{"role": "user", "content": parts}]) == rendered(name, ask("Compare.", IMAGES))
    assert "<image>\n<image>\nCompare." in jinja(name, [{"role": "user", "content": parts}])


@pytest.mark.parametrize("name", TEMPLATES)
def test_jinja_reads_strings_with_images_as_data_files_write_them(name: str) -> None:
    assert jinja(name, [as_string(message) for message in TWO_TURNS]) == _plain(name)
    two = said("user", IMAGES[0], " and ", IMAGES[1])
    assert jinja(name, [as_string(two)]) == rendered(name, two)


@pytest.mark.parametrize("name", TEMPLATES)
def test_jinja_keeps_images_between_texts_where_they_are(name: str) -> None:
    message = said("user", "Is ", IMAGES[0], " like ", IMAGES[1], "?")
    assert jinja(name, [as_parts(message)]) == rendered(name, message)


@pytest.mark.parametrize("name", TEMPLATES)
def test_jinja_has_a_place_for_an_image_in_every_message(name: str) -> None:
    """A processor counts the places: it must find one for each image, whoever shows it."""
    messages = [said("system", "see ", IMAGES[0]), said("user", "Q ", IMAGES[0]), said("assistant", "so ", IMAGES[1])]
    assert jinja(name, [as_parts(message) for message in messages]) == rendered(name, *messages)
    assert rendered(name, *messages).count(IMAGE) == 3


def test_jinja_of_plain_has_no_words_of_the_user() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "Describe."}]
    assert jinja("plain", [{"role": "user", "content": parts}]) == "<s><image>" == rendered("plain", *TWO_TURNS[:1])
