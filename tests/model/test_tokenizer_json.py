"""tokenizer.json as other programs read it: pairs as one string, and who puts the first token before a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import exports
import pytest
import tiny
from tokenizers import Tokenizer, processors
from transformers import AutoProcessor, AutoTokenizer

from sightline.model.load import load
from sightline.model.save import save, write_tokenizer
from sightline.model.tokenizer_json import begin_with, plain_merges
from sightline.types import ask

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


MESSAGES = [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]


@pytest.mark.parametrize(("case", "begins"), [("llama", 1), ("byte", 1), ("llama3_chat", 1), ("chatml", 0)])
def test_a_prompt_begins_once_whoever_tokenises_it(tmp_path: Path, case: str, begins: int) -> None:
    """As llava-hf/llava-1.5-7b-hf has it: its tokenizer puts <s> before every text, and its chat template does not."""
    vlm = exports.make_case(tmp_path, case)
    processor = AutoProcessor.from_pretrained(save(vlm, tmp_path / "hub"))
    prompt = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    truth = vlm.prompter.encode([ask(TEXT)]).ids.tolist()
    assert not prompt.startswith("<s>") and truth.count(1) == begins
    jinja = "{{ bos_token }}" * begins + (tmp_path / "hub" / "chat_template.jinja").read_text(encoding="utf-8")
    before = processor.apply_chat_template(MESSAGES, add_generation_prompt=True, chat_template=jinja)
    ways = {
        "in one step": processor.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=True),
        "in two": processor(text=prompt)["input_ids"],
        "vLLM's generate": [processor.tokenizer(prompt, add_special_tokens=True)["input_ids"]],
        "by hand": [processor.tokenizer(vlm.prompter.tokenizer.decode(truth[begins:]))["input_ids"]],
        # Its chat adds nothing: docs/deploy.md puts the token before the template.
        "vLLM's chat": [processor.tokenizer(before, add_special_tokens=False)["input_ids"]],
    }
    for way, ids in ways.items():
        assert list(ids[0]) == truth, way
    settings = json.loads((tmp_path / "hub" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["add_bos_token"] is bool(begins)
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert not settings.keys() & {"backend", "is_local", "local_files_only"}
    again = load(tmp_path / "hub", device="cpu").prompter
    assert again.template == vlm.prompter.template and again.encode([ask(TEXT)]).ids.tolist() == truth


def test_a_chat_template_of_its_own_begins_as_it_did(tmp_path: Path) -> None:
    """`template: auto` is the language model's, which writes its first token or not, and stays as it is."""
    llm = tiny.make_llm(tmp_path / "llm", num_hidden_layers=1)
    own = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + '> ' + m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant> ' }}{% endif %}"
    )
    (llm / "chat_template.jinja").write_text(own, encoding="utf-8")
    hub = save(exports.built(tmp_path, "auto"), tmp_path / "hub")
    processor, prompter = AutoProcessor.from_pretrained(hub), load(hub, device="cpu").prompter
    prompt = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    truth = prompter.encode([ask(TEXT)]).ids.tolist()
    assert prompt.startswith("<s>") and truth.count(1) == 1
    assert processor.tokenizer(prompt)["input_ids"] == truth == processor(text=prompt)["input_ids"][0]


def test_where_the_first_token_changes_the_next_one_the_template_writes_it(tmp_path: Path) -> None:
    """A space before the first word of a text: none in a prompt that begins with <s>, as this model has learned it."""
    vlm = exports.make_case(tmp_path, "first")
    processor = AutoProcessor.from_pretrained(save(vlm, tmp_path / "hub"))
    prompt = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    truth = vlm.prompter.encode([ask(TEXT)]).ids.tolist()
    assert prompt.startswith("<s>") and truth.count(1) == 1
    assert processor.tokenizer(prompt)["input_ids"] == truth == processor(text=prompt)["input_ids"][0]
    assert processor.tokenizer(prompt.removeprefix("<s>"))["input_ids"][0] != truth[1]


def test_a_folder_of_others_whose_tokenizer_begins(tmp_path: Path) -> None:
    """A chat template that has no name here and leaves the first token to the tokenizer, as the llava-hf models' do."""
    hub = save(exports.make_case(tmp_path, "byte"), tmp_path / "hub")
    own = "{% for m in messages %}{{ m['role'] + '> ' + m['content'] }}{{ eos_token }}{% endfor %}"
    own += "{% if add_generation_prompt %}{{ 'assistant> ' }}{% endif %}"
    for name in ("chat_template.jinja", "chat_template.json"):
        (hub / name).unlink()
    settings = json.loads((hub / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"chat_template": own, "prompt_template": None}
    (hub / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    prompter = load(hub, device="cpu").prompter
    assert prompter.tokenizer.decode(prompter.encode([ask("Hi")]).ids) == "<s>user> Hi</s>assistant> "


def test_for_programs_with_templates_of_their_own_the_tokenizer_begins(tmp_path: Path) -> None:
    vlm = exports.make_case(tmp_path, "legacy")
    (tmp_path / "own").mkdir()
    write_tokenizer(vlm.prompter, tmp_path / "own", begins=True)
    assert AutoTokenizer.from_pretrained(tmp_path / "own")(TEXT)["input_ids"][0] == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "llm")(TEXT)["input_ids"][0] != 1
