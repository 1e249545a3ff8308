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
from sightline.prompt.templates import TEMPLATES
from sightline.types import IMAGE, ImageRef, Message, Segment, Text, ask

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
    text = to_text(render(TEMPLATES["vicuna"], messages, guard=guard))
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


# --- the exported template -------------------------------------------------------------------------------------------


def jinja(name: str, messages: list[dict[str, Any]]) -> str:
    """transformers' own rendering of the exported template."""
    text: str = tokenizer_of("byte").apply_chat_template(
        messages,
        chat_template=to_jinja(TEMPLATES[name], bos="<s>", eos="</s>"),
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
