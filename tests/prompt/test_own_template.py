"""Chat templates of real models -> `auto`, which writes what they write; or the reason why one is refused."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from prompters import FEATURES, said, tokenizer_of

from sightline.errors import DataError, ModelError
from sightline.prompt.own_template import own_template
from sightline.prompt.prompter import Prompter, template_named
from sightline.prompt.render import render, to_jinja, to_text
from sightline.prompt.templates import TEMPLATES
from sightline.types import IGNORE, Message

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN25 = (  # writes a system prompt of its own unless there is another
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA2 = (  # the system prompt inside the first question
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = '<<SYS>>\n' + "
    "messages[0]['content'] + '\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + "
    "m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (  # no place for a system prompt
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% else %}{{ raise_exception('No.') }}{% endif %}"
    "{% endfor %}"
)
VICUNA = to_jinja(TEMPLATES["vicuna"], bos="<s>", eos="</s>")
GEMMA = to_jinja(TEMPLATES["gemma"], bos="<s>", eos="</s>")
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + "
    "'<|eot_id|>' %}{{ bos_token + c if loop.first else c }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
USABLE = {
    "chatml": CHATML,
    "phi3": PHI3,
    "qwen2.5": QWEN25,
    "llama2": LLAMA2,
    "mistral": MISTRAL,
    "vicuna": VICUNA,
    "gemma": GEMMA,
    "llama3": LLAMA3,
}
KINDS = ("legacy", "gpt2", "llama3")


def tokenizer(chat_template: str | None, kind: str = "llama3") -> Any:
    own = copy.deepcopy(tokenizer_of(kind))
    own.chat_template = chat_template
    return own


def theirs(own: Any, messages: list[Message]) -> str:
    text: str = own.apply_chat_template(
        [{"role": message.role, "content": message.text} for message in messages],
        tokenize=False,
        add_generation_prompt=messages[-1].role == "user",
    )
    return text


def conversations(seed: int, *, system: bool) -> list[list[Message]]:
    rng = random.Random(seed)
    pieces = ["What?", " ", "\n", "it's", "{{ x }}", "图片", "🙂", "<b>", "mark", "user"]

    def text() -> str:
        return "".join(rng.choices(pieces, k=rng.randint(1, 5)))

    found = []
    for _ in range(10):
        messages = [said("system", text())] if system and rng.random() < 0.5 else []
        for _ in range(rng.randint(1, 4)):
            messages += [said("user", text()), said("assistant", text())]
        found.append(messages[:-1] if rng.random() < 0.5 else messages)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", USABLE)
def test_auto_writes_what_the_chat_template_writes(name: str, kind: str) -> None:
    own = tokenizer(USABLE[name], kind)
    template = own_template(own)
    for messages in conversations(3, system=name != "mistral"):
        ours = to_text(render(template, messages, bos="<s>", eos="</s>"))
        expected = theirs(own, messages)
        # What stands behind the last answer (a line break, in ChatML) is nobody's.
        assert expected.startswith(ours) if messages[-1].role == "assistant" else expected == ours


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "learnt"),
    [
        ("chatml", ["Yes.<|im_end|>", "No.<|im_end|>"]),
        ("phi3", ["Yes.<|end|>", "No.<|end|>"]),
        ("qwen2.5", ["Yes.<|im_end|>", "No.<|im_end|>"]),
        ("llama2", [" Yes. </s>", " No. </s>"]),
        ("mistral", ["Yes.</s>", "No.</s>"]),
        ("vicuna", [" Yes.</s>", " No.</s>"]),
        ("gemma", ["Yes.<end_of_turn>", "No.<end_of_turn>"]),
        ("llama3", ["Yes.<|eot_id|>", "No.<|eot_id|>"]),
    ],
)
def test_answers_and_what_ends_them_are_learnt_and_nothing_else(name: str, learnt: list[str], kind: str) -> None:
    own = tokenizer(USABLE[name], kind)
    prompter = Prompter(own, template_named("auto", tokenizer=own), None, FEATURES)
    messages = [said("user", "One?"), said("assistant", "Yes."), said("user", "Two?"), said("assistant", "No.")]
    segments = prompter.render(messages)
    runs, before = list[str](), False
    for segment in segments:
        if segment.target:
            runs += [""] if not before else []
            runs[-1] += to_text([segment])
        before = segment.target
    assert runs == learnt
    encoded = prompter.encode(messages)
    assert own.decode(encoded.ids[encoded.labels != IGNORE]).replace(" ", "") == "".join(learnt).replace(" ", "")
    assert prompter.encode(messages[:1]).ids.tolist() == encoded.ids[: len(prompter.encode(messages[:1]).ids)].tolist()


@pytest.mark.parametrize("name", USABLE)
def test_the_export_is_read_as_the_same_template_again(name: str) -> None:
    template = own_template(tokenizer(USABLE[name]))
    again = own_template(tokenizer(to_jinja(template, bos="<s>", eos="</s>")))
    for messages in conversations(4, system=name != "mistral"):
        assert to_text(render(again, messages, bos="<s>")) == to_text(render(template, messages, bos="<s>"))


def test_a_system_prompt_of_its_own_can_be_replaced_and_left_out() -> None:
    own = tokenizer(QWEN25)
    assert own_template(own).default_system == "You are Qwen."
    other = template_named("auto", "Be brief.", tokenizer=own)
    assert to_text(render(other, [said("user", "Q")])).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert to_text(render(template_named("auto", "", tokenizer=own), [said("user", "Q")])).count("system") == 0


def test_where_there_is_no_place_for_a_system_prompt() -> None:
    own = tokenizer(MISTRAL)
    with pytest.raises(ModelError, match="no place for a system prompt"):
        template_named("auto", "Be brief.", tokenizer=own)
    template = template_named("auto", "", tokenizer=own)
    with pytest.raises(DataError, match="no place for a system prompt"):
        render(template, [said("system", "s"), said("user", "Q")])
    export = tokenizer(to_jinja(template, bos="<s>", eos="</s>"))
    with pytest.raises(ModelError, match="no place"):
        template_named("auto", "Be brief.", tokenizer=export)


@pytest.mark.parametrize(
    ("chat_template", "reason"),
    [
        (None, "has no chat template of its own"),
        (CHATML.replace("m['content']", "m['content'] | trim"), "takes away white space around"),
        (CHATML.replace("m['content']", "m['content'].lstrip('\\n')"), "takes away white space around"),
        (CHATML.replace("m['content']", "m['content'] | upper"), "leaves out a question, or changes it"),
        (CHATML.replace("m['content']", "m['content'] + m['content']"), "writes a question more than once"),
        (CHATML.replace("in messages", "in messages | reverse"), "more than once, or in another order"),
        (CHATML.replace("in messages", "in messages[-1:]"), "leaves out a question"),
        ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}", "no token ends an answer"),
        (CHATML + "{{ strftime_now('%d') }}", "today's date"),
        ("{{ nothing.here }}", "it does not render"),
        ("{% for %}", "it does not render"),
        ("{{ 1 / 0 }}", "it does not render: division by zero"),
        ("{% for i in range(10**9) %}x{% endfor %}", "it does not render: Range too big"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "it does not render: maximum recursion"),
        # Qwen3: the last answer gets an empty thought in front, the earlier ones do not.
        (
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + ('<think>\n\n</think>\n\n' if loop.last and "
            "m['role'] == 'assistant' else '') + m['content'] + '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
            "the same message is written differently at different places",
        ),
        # Mistral's later ones: the system prompt in the last question.
        (
            "{{ bos_token }}{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}{{ '[INST] ' + "
            "(messages[0]['content'] + '\n\n' if loop.last and messages[0]['role'] == 'system' else '') + m['content'] "
            "+ ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
            "written differently at different places",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(chat_template: str | None, reason: str) -> None:
    with pytest.raises(ModelError) as error:
        own_template(tokenizer(chat_template), "some/model")
    assert reason in str(error.value) and "some/model" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_refusal_names_the_nearest_template_that_is_known() -> None:
    with pytest.raises(ModelError, match="llama3_chat is the nearest that is known"):
        own_template(tokenizer(LLAMA3.replace("m['content']", "m['content'] | trim")))
