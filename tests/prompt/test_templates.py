"""Each template against a string written down from its source; the exported Jinja template against the renderer."""

from __future__ import annotations

import random
from typing import Any

import pytest
from prompters import said, tokenizer_of

from sightline import recipe
from sightline.errors import DataError
from sightline.prompt.templates import TEMPLATES, render, to_jinja, to_text
from sightline.types import IMAGE, ImageRef, Message, Text, ask

IMAGES = (ImageRef("a.jpg"), ImageRef("b.jpg"))
TWO_TURNS = (
    said("user", IMAGES[0], "\nQ1"),
    said("assistant", "A1"),
    said("user", "Q2"),
    said("assistant", "A2"),
)

CHATML = (
    "<|im_start|>user\n<image>\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>"
)
GOLDEN = {
    # haotian-liu/LLaVA, llava/conversation.py, conv_vicuna_v1 (`v1`, SeparatorStyle.TWO); its tokenizer adds <s>.
    "vicuna": "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
    "USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>",
    # The same file, conv_llava_plain; train.py's preprocess_plain leaves <image> alone of the user's words.
    "plain": "<s><image>A1\nA2\n",
    # InternLM/xtuner, xtuner/utils/templates.py, llama3_chat; begin_of_text is the tokenizer's <s> here.
    "llama3_chat": "<s><|start_header_id|>user<|end_header_id|>\n\n<image>\nQ1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA2<|eot_id|>",
    # The same file, phi3_chat: SUFFIX <|end|>, SEP a line break.
    "phi3_chat": "<s><|user|>\n<image>\nQ1<|end|>\n<|assistant|>\nA1<|end|>\n"
    "<|user|>\nQ2<|end|>\n<|assistant|>\nA2<|end|>",
    # The same file, internlm2_chat and qwen_chat: SUFFIX <|im_end|>, SEP a line break; Qwen's tokenizer has no BOS.
    "internlm2_chat": "<s>" + CHATML,
    "chatml": CHATML,
    "qwen_chat": CHATML,
}

CHATML_SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
# The same sources, SYSTEM; LLaVA's is the system prompt of the conversation, followed by a space.
SYSTEM = {
    "vicuna": "<s>Be brief. USER: Q ASSISTANT:",
    "plain": "<s>Be brief.",
    "llama3_chat": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "phi3_chat": "<s><|system|>\nBe brief.<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\n",
    "internlm2_chat": "<s>" + CHATML_SYSTEM,
    "chatml": CHATML_SYSTEM,
    "qwen_chat": CHATML_SYSTEM,
}


def rendered(name: str, *messages: Message) -> str:
    return to_text(render(TEMPLATES[name], messages, bos="<s>", eos="</s>"))


def test_the_names_are_those_of_the_recipe() -> None:
    assert sorted(TEMPLATES) == sorted(recipe.TEMPLATES)
    assert all(template.name == name for name, template in TEMPLATES.items())


@pytest.mark.parametrize("name", TEMPLATES)
def test_two_turns_with_an_image(name: str) -> None:
    assert rendered(name, *TWO_TURNS) == GOLDEN[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_message_of_ones_own_and_an_open_answer(name: str) -> None:
    assert rendered(name, said("system", "Be brief."), said("user", "Q")) == SYSTEM[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_open_answer_ends_where_the_answer_begins(name: str) -> None:
    segments = render(TEMPLATES[name], TWO_TURNS, bos="<s>", eos="</s>")
    after_first = to_text(segments).index("A1") - len(TEMPLATES[name].answer.partition("{}")[0])
    assert rendered(name, *TWO_TURNS[:1]) == to_text(segments)[:after_first]
    assert rendered(name, *TWO_TURNS).startswith(rendered(name, *TWO_TURNS[:3]))


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("vicuna", " A1</s>", " A2</s>"),
        ("llama3_chat", "A1<|eot_id|>", "A2<|eot_id|>"),
        ("phi3_chat", "A1<|end|>", "A2<|end|>"),
        ("chatml", "A1<|im_end|>", "A2<|im_end|>"),
    ],
)
def test_answers_and_what_ends_them_are_targets(name: str, first: str, second: str) -> None:
    runs = [""]
    for segment in render(TEMPLATES[name], TWO_TURNS, bos="<s>", eos="</s>"):
        if segment.target:
            runs[-1] += to_text([segment])
        elif runs[-1]:
            runs.append("")
    assert runs == [first, second]


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
    assert jinja(name, [as_string(message) for message in TWO_TURNS]) == GOLDEN[name]
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
