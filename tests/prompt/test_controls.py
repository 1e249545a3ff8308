"""Marks of templates in what people write; what is cut; the short way to the tokenizer against the long one."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from prompters import KINDS, make_prompter, said
from tiny import make_tokenizer
from tokenizers import AddedToken

from sightline.errors import DataError
from sightline.prompt.prompter import Prompter, template_named
from sightline.prompt.render import to_text
from sightline.types import IMAGE, ImageRef


def unknowing(template: str) -> Prompter:
    """A prompter whose tokenizer knows no control token of the template."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    return replace(make_prompter(template=template), tokenizer=tokenizer)


@pytest.mark.parametrize("template", ["mistral_direct", "zephyr", "default"])
def test_a_templates_marks_are_broken_up_even_if_the_tokenizer_does_not_know_them(template: str) -> None:
    prompter = unknowing(template)
    harmless = to_text(prompter.render([said("user", "a"), said("assistant", "b")]))
    mark = prompter.template.user.partition("{}")[0].split(">")[0] + ">"
    attack = to_text(prompter.render([said("user", f"a{mark}"), said("assistant", f"{mark}b")]))
    assert attack.count(mark) == harmless.count(mark) > 0
    assert attack.replace("< " + mark[1:], "") == harmless


def test_which_control_tokens_stand_in_a_text() -> None:
    assert make_prompter().controls_in("a </s> <|im_end|><image> <b> < /s>") == ["</s>", "<|im_end|>", IMAGE]
    assert unknowing("mistral_direct").controls_in("<|im_end|> <|eot_id|> </s>") == ["<|im_end|>", "</s>"]
    assert unknowing("vicuna").controls_in("USER: <|im_end|>") == []


def test_encoding_and_cutting_are_two_steps_of_one() -> None:
    prompter = make_prompter()
    messages = [said("user", ImageRef("a.jpg"), "What?"), said("assistant", "Red. " * 20)]
    whole = prompter.encode(messages)
    for length in (len(whole.ids), len(whole.ids) - 1, len(whole.ids) - 30):
        cut, at_once = prompter.cut(whole, length), prompter.encode(messages, max_length=length)
        assert cut.ids.tolist() == at_once.ids.tolist() == whole.ids[:length].tolist()
        assert cut.labels.tolist() == at_once.labels.tolist() == whole.labels[:length].tolist()
        assert cut.images == whole.images
    first_image = int((whole.ids == prompter.image_token_id).argmax())
    for length in (first_image, first_image + 1):
        with pytest.raises(DataError, match="cuts an image") as error:
            prompter.cut(whole, length)
        assert error.value.kind == "image_cut"


@pytest.mark.parametrize("kind", [*KINDS, "stripping"])
def test_the_short_way_gives_what_transformers_gives(kind: str) -> None:
    prompter = make_prompter(kind)
    texts = ["", " ", "a", " What is  this?\n\n", "<image>\nQ", "</s> x", "äöü 图🙂\t", "<|im_end|>\n a </s></s>"]
    for text in texts:
        assert prompter._ids(text) == prompter.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_tokenizer_that_pads_or_cuts_for_others_does_not_here() -> None:
    prompter = make_prompter("llama3")
    expected = prompter._ids("What colour is this square?")
    backend = prompter.tokenizer.backend_tokenizer
    try:
        backend.enable_truncation(3)
        backend.enable_padding(length=50)
        assert prompter._ids("What colour is this square?") == expected
    finally:
        backend.no_truncation()
        backend.no_padding()


@pytest.mark.parametrize("kind", [*KINDS, "stripping"])
def test_the_known_beginning_is_the_same_as_a_new_one(kind: str) -> None:
    messages = [said("user", ImageRef("a"), "\nWhat?", ImageRef("b"), " and"), said("assistant", "Red.")]
    prompter = make_prompter(kind)
    first, second = prompter.encode(messages), prompter.encode(messages)
    assert prompter._beginnings
    assert (
        first.ids.tolist() == second.ids.tolist() == pickle.loads(pickle.dumps(prompter)).encode(messages).ids.tolist()
    )
    text = to_text(prompter.render(messages))
    other = replace(prompter, template=template_named("vicuna", "Hello."))
    assert other.encode(messages).ids.tolist() != first.ids.tolist()
    if kind not in ("legacy", "first", "stripping"):  # Llama-2's begin a text with a space of their own
        whole = prompter.tokenizer(text, add_special_tokens=False)["input_ids"]
        folded = [token for token in first.ids.tolist() if token != prompter.image_token_id]
        assert folded == [token for token in whole if token != prompter.image_token_id]
