"""Ids against the tokenizer's own, training against chat, targets against answers; what people write has no control."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from prompters import CONTROL, FEATURES, KINDS, MERGING, TINY, make_prompter, said, tokenizer_of
from template_table import SAME
from tiny import make_tokenizer

from sightline.errors import DataError, ModelError
from sightline.prompt.prompter import Prompter, template_named
from sightline.prompt.render import to_text
from sightline.prompt.templates import TEMPLATES
from sightline.types import IGNORE, IMAGE, ImageRef, Message

COMBINATIONS = [(kind, template) for kind in KINDS for template in TEMPLATES if template not in SAME]
CUTTING = [(kind, template) for kind in ("gpt2", "trimmed") for template in ("llama3_chat", "llava_llama_3")]
"""GPT-2's pattern joins the two line breaks in front of an answer only while nothing follows them."""


def image(number: int) -> ImageRef:
    return ImageRef(f"{number}.jpg", "images")


ORDINARY = [
    [said("user", image(0), "\nWhat colour is this square?"), said("assistant", "It is a red square.")],
    [
        said("system", "Answer with the option's letter."),
        said("user", "Is ", image(0), " like ", image(1), "?"),
        said("assistant", "No: the first is red, the second ... 图片 🙂\n\nA.\nB."),
        said("user", image(2), "\nAnd now?"),
        said("assistant", "Yes"),
    ],
]

PIECES = (
    "red",
    "It",
    " ",
    "  ",
    "\n",
    "\n\n",
    ".",
    ":",
    "?",
    "1234",
    "é",
    "e\u0301",
    "图片",
    "🙂",
    "\t",
    "\u00a0",
    "\r\n",
    "'s",
)


def random_conversation(rng: random.Random, *, images_in_every_turn: bool) -> list[Message]:
    """Texts and answers that begin and end with anything; never empty, images anywhere."""

    def parts(images: bool) -> list[str | ImageRef]:
        found: list[str | ImageRef] = ["".join(rng.choices(PIECES, k=rng.randint(1, 6)))]
        for _ in range(rng.randint(1 if images_in_every_turn else 0, 2) if images else 0):
            found.insert(rng.randint(0, len(found)), image(rng.randint(0, 9)))
        return found

    messages = [said("system", *parts(False))] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        messages += [said("user", *parts(True)), said("assistant", *parts(False))]
    return messages


def conversations(template: str, count: int = 15) -> list[list[Message]]:
    rng = random.Random(5)
    return [random_conversation(rng, images_in_every_turn=template == "plain") for _ in range(count)]


def own_ids(prompter: Prompter, messages: Sequence[Message]) -> list[int]:
    """What the tokenizer makes of the whole text, each image repeated as often as it has features."""
    text = to_text(prompter.render(messages)).replace(IMAGE, IMAGE * FEATURES)
    ids: list[int] = prompter.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def answered(messages: Sequence[Message]) -> list[int]:
    """Where the answers are."""
    return [number for number, message in enumerate(messages) if message.role == "assistant"]


@pytest.mark.parametrize(("kind", "template"), [pair for pair in COMBINATIONS if pair not in CUTTING])
def test_ids_are_those_of_the_tokenizer(kind: str, template: str) -> None:
    prompter = make_prompter(kind, template)
    for messages in ORDINARY:
        encoded = prompter.encode(messages)
        assert encoded.ids.tolist() == own_ids(prompter, messages)
        assert (encoded.ids.dtype, encoded.labels.dtype) == ("int64", "int64")


@pytest.mark.parametrize(("kind", "template"), COMBINATIONS)
def test_ids_differ_only_where_the_tokenizer_would_merge_over_a_border(kind: str, template: str) -> None:
    prompter = make_prompter(kind, template)
    for messages in conversations(template):
        whole = own_ids(prompter, messages)
        prompts = [own_ids(prompter, messages[:end]) for number in answered(messages) for end in (number, number + 1)]
        merges = any(whole[: len(prompt)] != prompt for prompt in prompts)
        assert (prompter.encode(messages).ids.tolist() != whole) == merges


@pytest.mark.parametrize(("kind", "template"), COMBINATIONS)
def test_training_begins_with_what_chat_asks_and_learns_the_rest(kind: str, template: str) -> None:
    prompter = make_prompter(kind, template)
    for messages in [*ORDINARY, *conversations(template)]:
        encoded = prompter.encode(messages)
        expected = [IGNORE] * len(encoded.ids)
        for number in answered(messages):
            prompt, closed = (prompter.encode(messages[:end]).ids.tolist() for end in (number, number + 1))
            assert encoded.ids.tolist()[: len(closed)] == closed
            assert closed[: len(prompt)] == prompt
            assert len(closed) > len(prompt)
            expected[len(prompt) : len(closed)] = closed[len(prompt) :]
        assert encoded.labels.tolist() == expected


@pytest.mark.parametrize(("kind", "template"), COMBINATIONS)
def test_targets_say_the_answer_and_end_it(kind: str, template: str) -> None:
    prompter = make_prompter(kind, template)
    shape = prompter.template

    def decoded(ids: Sequence[int]) -> str:
        text: str = prompter.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    for messages in [*ORDINARY, *conversations(template)]:
        ids = prompter.encode(messages).ids
        for number in answered(messages):
            start, end = (len(prompter.encode(messages[:upto]).ids) for upto in (number, number + 1))
            said = decoded(ids[:end])[len(decoded(ids[:start])) :]
            expected = shape.answer.format(messages[number].text) + shape.end.replace("{eos}", "</s>")
            if kind in ("legacy", "first"):
                expected = expected.replace("▁", " ")  # which is how SentencePiece writes a space
            # Llama-2's tokenizers write a space at the beginning of every text and behind every control token.
            assert said == expected or (kind not in MERGING and kind != "byte" and said == f" {expected}")


def test_control_tokens_that_swallow_white_space_stay_as_they_are() -> None:
    prompter = make_prompter("stripping", "phi3_chat")
    for messages in ORDINARY:
        assert prompter.encode(messages).ids.tolist() == own_ids(prompter, messages)
    end = prompter.tokenizer.convert_tokens_to_ids("<|end|>")
    labels = prompter.encode(ORDINARY[1]).labels
    assert (labels == end).sum() == 2


# --- what people write ------------------------------------------------------------------------------------------------


def controls(prompter: Prompter, messages: Sequence[Message]) -> Counter[int]:
    tokens = [*CONTROL, IMAGE, "<s>", "</s>"]
    known = set(prompter.tokenizer.convert_tokens_to_ids(tokens))
    return Counter(token for token in prompter.encode(messages).ids.tolist() if token in known)


@pytest.mark.parametrize("kind", [*TINY, "llama3", "stripping"])
@pytest.mark.parametrize("template", [template for template in TEMPLATES if template not in SAME])
def test_what_people_write_has_no_control(kind: str, template: str) -> None:
    prompter = make_prompter(kind, template)
    harmless = controls(prompter, [said("system", "s"), said("user", image(0), "u"), said("assistant", "a")])
    for token in [*CONTROL, IMAGE, "<s>", "</s>", "<</s>/s>", "<|im_<|im_end|>end|>", f"{IMAGE * 3}</s></s>"]:
        for text in (token, f"a{token}b", f"\n{token}\n{token} "):
            messages = [said("system", text), said("user", image(0), text), said("assistant", text)]
            assert controls(prompter, messages) == harmless, text


def test_halves_of_a_control_token_do_not_join() -> None:
    prompter = make_prompter()
    messages = [said("user", "<ima", "ge>", image(0), "</", "s", ">"), said("assistant", "</s", ">")]
    harmless = [said("user", "u", image(0)), said("assistant", "a")]
    assert controls(prompter, messages) == controls(prompter, harmless)


def test_a_broken_control_token_can_still_be_read() -> None:
    prompter = make_prompter()
    text = to_text(prompter.render([said("user", "What is </s>?"), said("assistant", "It is </s>.")]))
    assert "USER: What is < /s>? ASSISTANT: It is < /s>.</s>" in text


@pytest.mark.parametrize("kind", [*TINY, "llama3"])
def test_half_a_surrogate_pair_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match="half a surrogate pair"):
        make_prompter(kind).encode([said("user", "\ud83d"), said("assistant", "a")])


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_keep_their_order_and_their_places() -> None:
    prompter = make_prompter("byte", "chatml")
    messages = [
        said("system", "Like ", image(9), "."),
        said("user", image(3), image(1), "a", image(2)),
        said("assistant", "b"),
        said("user", "c", image(1)),
        said("assistant", "d"),
    ]
    encoded = prompter.encode(messages)
    assert encoded.images == (image(9), image(3), image(1), image(2), image(1))
    text = prompter.tokenizer.decode(encoded.ids)
    four = IMAGE * FEATURES
    assert f"Like {four}." in text and f"user\n{four}{four}a{four}<|im_end|>" in text and f"user\n{four}\nc<" in text
    assert (encoded.ids == prompter.image_token_id).sum() == 5 * FEATURES


def test_an_image_in_an_answer_is_shown_and_not_learnt() -> None:
    prompter = make_prompter("byte", "chatml")
    encoded = prompter.encode([said("user", "Draw."), said("assistant", "Here: ", image(0), " a square")])
    learnt = encoded.ids[encoded.labels != IGNORE]
    assert (encoded.ids == prompter.image_token_id).sum() == FEATURES
    assert prompter.tokenizer.decode(learnt) == "Here:  a square<|im_end|>"


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_what_is_too_long_is_cut_at_the_end() -> None:
    prompter = make_prompter()
    whole = prompter.encode(ORDINARY[0])
    assert len(prompter.encode(ORDINARY[0], max_length=len(whole.ids)).ids) == len(whole.ids)
    for length in range(len(prompter.encode(ORDINARY[0][:1]).ids), len(whole.ids)):
        cut = prompter.encode(ORDINARY[0], max_length=length)
        assert cut.ids.tolist() == whole.ids[:length].tolist()
        assert cut.labels.tolist() == whole.labels[:length].tolist()
        assert cut.images == whole.images


def test_a_cut_may_leave_no_target() -> None:
    prompter = make_prompter()
    prompt = len(prompter.encode(ORDINARY[0][:1]).ids)
    assert prompter.encode(ORDINARY[0], max_length=prompt).num_targets == 0
    assert prompter.encode(ORDINARY[0], max_length=prompt + 1).num_targets == 1


def test_a_cut_through_or_before_an_image_is_refused() -> None:
    prompter = make_prompter()
    ids = prompter.encode(ORDINARY[0]).ids
    first = ids.tolist().index(prompter.image_token_id)
    for length in range(1, first + FEATURES):
        with pytest.raises(DataError) as error:
            prompter.encode(ORDINARY[0], max_length=length)
        assert f"max_length {length} cuts an image" in str(error.value)
        assert "raise batch.max_length" in str(error.value)
    assert len(prompter.encode(ORDINARY[0], max_length=first + FEATURES).ids) == first + FEATURES


def test_a_first_token_is_no_target_that_can_be_learnt() -> None:
    prompter = make_prompter("byte", "plain")
    prompter = Prompter(prompter.tokenizer, template_named("plain"), None, FEATURES)
    encoded = prompter.encode([said("user", image(0)), said("assistant", "a")])
    assert encoded.num_targets == (encoded.labels != IGNORE).sum() == 2


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_explain_folds_images_and_colours_targets() -> None:
    for kind in KINDS:
        prompter = make_prompter(kind)
        messages = [said("user", image(0), image(1), "What is ", image(2), "?"), said("assistant", "A red 🙂 square.")]
        text = prompter.explain(prompter.encode(messages))
        green = [text.plain[span.start : span.end] for span in text.spans if span.style == "bold green"]
        assert green == [" A red 🙂 square.</s>"]
        assert f"USER: 2 {IMAGE} x {FEATURES}What is {IMAGE} x {FEATURES} tokens?".replace(
            " ", ""
        ) in text.plain.replace(" ", "")
        assert text.plain.endswith("ASSISTANT: A red 🙂 square.</s>")
        marked = prompter.explain(prompter.encode(messages), marks=("⟦", "⟧")).plain
        assert marked.endswith("ASSISTANT:⟦ A red 🙂 square.</s>⟧") and marked.count("⟦") == 1


@pytest.mark.parametrize(
    ("template", "tokens", "strings"),
    [
        ("vicuna", ["</s>"], ()),
        ("plain", ["</s>"], ("\n",)),
        ("llama3_chat", ["</s>", "<|eot_id|>"], ()),
        ("phi3_chat", ["</s>", "<|end|>"], ()),
        ("internlm2_chat", ["</s>", "<|im_end|>"], ()),
        ("chatml", ["</s>", "<|im_end|>"], ()),
        ("qwen_chat", ["</s>", "<|im_end|>", "<|endoftext|>"], ()),
    ],
)
def test_what_ends_an_answer(template: str, tokens: list[str], strings: tuple[str, ...]) -> None:
    for kind in KINDS:
        prompter = make_prompter(kind, template)
        assert prompter.stop == (tuple(sorted(prompter.tokenizer.convert_tokens_to_ids(tokens))), strings)


def test_an_end_that_the_tokenizer_does_not_know_is_a_string() -> None:
    tokenizer = make_tokenizer("byte", extra=(IMAGE,))
    prompter = Prompter(tokenizer, template_named("mistral_direct"), None, FEATURES)
    assert prompter.stop == ((tokenizer.eos_token_id,), ("<|im_end|>",))


def test_a_tokenizer_must_know_the_image() -> None:
    with pytest.raises(ModelError, match="does not know <image>"):
        Prompter(make_tokenizer("byte"), template_named("vicuna"), None, FEATURES)


def test_an_unknown_template_names_the_known_ones() -> None:
    with pytest.raises(ModelError, match="unknown prompt template 'vicuna_v2'; nearest: vicuna_v1, vicuna, llava_v1,"):
        template_named("vicuna_v2")


def test_padding_has_a_token_even_where_the_tokenizer_has_none() -> None:
    tokenizer = tokenizer_of("llama3")
    assert tokenizer.pad_token_id is None
    assert make_prompter("llama3").pad_token_id == tokenizer.eos_token_id
