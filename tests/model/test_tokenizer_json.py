"""tokenizer.json as other programs read it: pairs as one string, and who puts the first token before a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import exports
import pytest
import tiny
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from sightline.model.save import save, write_tokenizer
from sightline.model.tokenizer_json import begin_with, plain_merges

TEXT = "What is red?"


def content_of(processor: Any) -> dict[str, Any]:
    tokenizer = tiny.make_tokenizer().backend_tokenizer
    tokenizer.post_processor = processor
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


def template() -> Any:
    return processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])


PROCESSORS = {
    "none": processors.TemplateProcessing("$A", "$A $B", []),
    "llama 2": template(),
    "llama 3": processors.Sequence([processors.ByteLevel(trim_offsets=False), template()]),
    "qwen": processors.ByteLevel(trim_offsets=False),
    "with an end": processors.TemplateProcessing("$A </s>", "$A $B </s>", [("</s>", 2)]),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_text_begins_as_it_should_and_only_then(kind: str) -> None:
    content = content_of(PROCESSORS[kind])
    bare = Tokenizer.from_str(json.dumps(content)).encode(TEXT, add_special_tokens=False).ids
    for token, number, expected in ((None, None, bare), ("<s>", 1, [1, *bare]), (None, None, bare)):
        begin_with(content, token, number)
        assert Tokenizer.from_str(json.dumps(content)).encode(TEXT).ids == expected
    once = json.dumps(content)
    begin_with(content, None, None)
    assert json.dumps(content) == once


def test_byte_level_is_kept() -> None:
    content = content_of(PROCESSORS["llama 3"])
    begin_with(content, None, None)
    assert content["post_processor"]["type"] == "ByteLevel"


def test_pairs_are_one_string_where_no_part_has_a_space() -> None:
    content: dict[str, Any] = {"model": {"merges": [["▁", "a"], "e r"]}}
    plain_merges(content)
    assert content["model"]["merges"] == ["▁ a", "e r"]
    spaced: dict[str, Any] = {"model": {"merges": [[" ", "a"], ["e", "r"]]}}
    plain_merges(spaced)
    assert spaced["model"]["merges"] == [[" ", "a"], ["e", "r"]]
    unigram: dict[str, Any] = {"model": {"type": "Unigram"}}
    plain_merges(unigram)
    assert unigram == {"model": {"type": "Unigram"}}


def test_a_rendered_prompt_begins_once(tmp_path: Path) -> None:
    """In two steps, as many programs do it: the template rendered, and then given to the tokenizer."""
    vlm = exports.make_case(tmp_path, "llama")
    assert AutoTokenizer.from_pretrained(tmp_path / "llm")(TEXT)["input_ids"][0] == 1
    tokenizer = AutoTokenizer.from_pretrained(save(vlm, tmp_path / "hub"))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": TEXT}], tokenize=False)
    assert prompt.startswith("<s>")
    assert tokenizer(prompt)["input_ids"].count(1) == 1
    settings = json.loads((tmp_path / "hub" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert not settings.keys() & {"backend", "is_local", "local_files_only"}


def test_for_programs_with_templates_of_their_own_the_tokenizer_begins(tmp_path: Path) -> None:
    vlm = exports.make_case(tmp_path, "legacy")
    (tmp_path / "own").mkdir()
    write_tokenizer(vlm.prompter, tmp_path / "own", begins=True)
    assert AutoTokenizer.from_pretrained(tmp_path / "own")(TEXT)["input_ids"][0] == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "llm")(TEXT)["input_ids"][0] != 1
