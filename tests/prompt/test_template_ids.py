"""Ids and labels of each template against the table worked out by hand; which tokenizer cannot carry which template."""

from __future__ import annotations

import re

import pytest
from prompters import CONTROL, FEATURES, make_prompter, said, tokenizer_of
from template_table import SAME, TABLE
from tiny import make_tokenizer

from sightline.errors import ModelError
from sightline.prompt.prompter import Prompter, template_named
from sightline.prompt.templates import TEMPLATES
from sightline.types import IGNORE, IMAGE, ImageRef

FAMILIES = ("legacy", "gpt2", "llama3")
"""SentencePiece's BPE with bytes for what it lacks; byte-level BPE; a byte-level one with tiktoken's pattern."""

CUT = [("gpt2", "llama3_chat"), ("gpt2", "llava_llama_3")]
"""GPT-2's pattern splits two line breaks when a letter follows, so the text is cut in front of the answer."""

MESSAGES = (
    said("user", ImageRef("a.jpg"), "\nQ1"),
    said("assistant", "A1"),
    said("user", "Q2"),
    said("assistant", "A2"),
)


def by_hand(kind: str, name: str) -> tuple[list[int], list[int]]:
    """Ids of the table's text; labels where its marks are, found by the length of what stands before each of them."""
    tokenizer = tokenizer_of(kind)

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text.replace(IMAGE, IMAGE * FEATURES), add_special_tokens=False)["input_ids"]
        return found

    pieces = re.split("[⟦⟧]", TABLE[name])  # what is learnt has odd numbers
    whole = ids("".join(pieces))
    labels = [IGNORE] * len(whole)
    for number in range(1, len(pieces), 2):
        before, upto = (len(ids("".join(pieces[:end]))) for end in (number, number + 1))
        labels[before:upto] = whole[before:upto]
    return whole, labels


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", [name for name in TABLE if name not in SAME])
def test_ids_and_labels_are_those_of_the_table(kind: str, name: str) -> None:
    if (kind, name) in CUT:
        pytest.skip("the tokenizer merges over the border of the answer: test_prompter.py has this case")
    encoded = make_prompter(kind, name).encode(MESSAGES)
    ids, labels = by_hand(kind, name)
    assert encoded.ids.tolist() == ids
    assert encoded.labels.tolist() == labels
    assert 4 <= encoded.num_targets < len(ids)


def test_some_ids_written_out() -> None:
    """One row to the last token, without the table: token, and + where it is learnt."""
    prompter = make_prompter("llama3", "qwen_chat")
    encoded = prompter.encode(MESSAGES[:2])
    tokens = prompter.tokenizer.convert_ids_to_tokens(encoded.ids.tolist())
    written = [token + "+" * bool(label != IGNORE) for token, label in zip(tokens, encoded.labels, strict=True)]
    question = ["<|im_start|>", "us", "er", "Ċ", *[IMAGE] * 4, "Ċ", "Q", "1", "<|im_end|>", "Ċ"]
    assert written[: len(question)] == question
    assert "".join(written[len(question) :]) == "<|im_start|>assistantĊA+1+<|im_end|>+"


# --- what a tokenizer cannot carry ------------------------------------------------------------------------------------


def knowing(*tokens: str, kind: str = "byte", name: str) -> Prompter:
    tokenizer = make_tokenizer(kind, extra=(IMAGE, *tokens))
    return Prompter(tokenizer, template_named(name), None, FEATURES)


@pytest.mark.parametrize("kind", ["byte", "legacy"])
@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template.tokens])
def test_a_template_whose_tokens_are_missing_is_refused(kind: str, name: str) -> None:
    with pytest.raises(ModelError) as error:
        knowing(kind=kind, name=name)
    assert f"the prompt template {name} does not suit this language model" in str(error.value)
    assert f"no token {TEMPLATES[name].tokens[0]}" in str(error.value)
    knowing(*TEMPLATES[name].tokens, kind=kind, name=name)


def test_the_refusal_names_what_would_suit() -> None:
    with pytest.raises(ModelError) as error:
        knowing("<|im_start|>", "<|im_end|>", "<|eot_id|>", name="llama3_chat")
    assert "its tokenizer has no token <|start_header_id|> and no <|end_header_id|>; its tokens are those of" in str(
        error.value
    )
    assert "qwen_chat" in str(error.value) and "phi3_chat" not in str(error.value)


def test_a_template_that_ends_with_eos_needs_one() -> None:
    tokenizer = make_tokenizer("byte", extra=(IMAGE, *CONTROL))
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="ends with the tokenizer's end-of-text token, and it has none"):
        Prompter(tokenizer, template_named("vicuna"), None, FEATURES)
    Prompter(tokenizer, template_named("llama3_chat"), None, FEATURES)
