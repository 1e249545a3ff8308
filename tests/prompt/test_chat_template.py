"""Chat templates of strangers: bounded in time, memory and length, and what they stumble over is one line."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import tiny
from transformers import PreTrainedTokenizerFast

from sightline.errors import ModelError
from sightline.limits import Limits, limits, use
from sightline.model.load import recognise_template
from sightline.prompt.chat_template import Unrendered, chat_template
from sightline.prompt.own_template import own_template
from sightline.types import ImageRef, ask

DOUBLED = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3
BOMBS = {
    LOOPS: "seconds",
    "{% set x = 7 ** 99999999 %}{{ x }}": "seconds",
    "{{ 'x' * 4000000000 }}": "MB of memory",
    "{{ '%1000000000d' % 1 }}": "MB of memory",
    "{{ 'x' | center(4000000000) }}": "MB of memory",
    DOUBLED: "MB of memory",
    "{{ 'x' * 3000000 }}": "characters",
}
BROKEN = {
    "{{ oops": "unexpected end of template",
    "{{ messages.nothing.at_all }}": "has no attribute 'nothing'",
    "{{ raise_exception('\x1b]0;x\x07no\nway') }}": "no",
    "{% if %}": "",
    "{{ messages[7]['content'] }}": "",
}


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    made = tiny.make_tokenizer()
    made.chat_template = template
    return made


@pytest.fixture
def tight() -> Iterator[None]:
    """Bounds that are met soon."""
    use(Limits(template_seconds=30, template_megabytes=256))
    yield
    use(Limits())


@pytest.mark.parametrize("template", BOMBS)
def test_a_bomb_is_stopped(template: str, tight: None) -> None:
    use(limits().model_copy(update={"template_seconds": 1 if BOMBS[template] == "seconds" else 100}))
    begun = time.monotonic()
    with chat_template(tokenizer(template)) as write, pytest.raises(Unrendered) as error:
        write([ask("a")])
    assert BOMBS[template] in str(error.value) and "--raise-limit template_" in str(error.value)
    assert time.monotonic() - begun < 100, "they would take years"


@pytest.mark.parametrize("template", [*BROKEN, "{{ 'x' * 4000000000 }}"])
@pytest.mark.parametrize("reader", [own_template, recognise_template])
def test_what_fails_is_one_printable_line(reader: object, template: str, tight: None) -> None:
    with pytest.raises(ModelError) as error:
        reader(tokenizer(template), "some/model")  # type: ignore[operator]
    said = str(error.value)
    assert said.isprintable() and "some/model" in said and BROKEN.get(template, "memory") in said


def test_the_sandbox_holds() -> None:
    way_out = tokenizer("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with chat_template(way_out) as write, pytest.raises(Unrendered, match="unsafe"):
        write([ask("a")])


def test_it_is_transformers_own_rendering() -> None:
    said = "{% generation %}{{ m.role | upper }}{{ m.content | tojson }}{% endgeneration %}"
    template = f"{{{{ bos_token }}}}{{% for m in messages %}}{said}{{% endfor %}}"
    made = tokenizer(template)
    with chat_template(made) as write:
        found = [write([ask(text)]) for text in ("a", 'quote " and 中文', "x" * 100_000)]
    wanted = [
        made.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
        for text in ("a", 'quote " and 中文', "x" * 100_000)
    ]
    assert found == wanted


LLAVA_HF = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Walks over parts and ends no answer, as that of llava-1.5-7b-hf."""


def test_a_template_that_walks_over_parts(capsys: pytest.CaptureFixture[str]) -> None:
    made = tokenizer(LLAVA_HF)
    with chat_template(made) as write:
        assert write([ask("What?", [ImageRef("a.jpg")])]) == "USER: <image>\n\nWhat? ASSISTANT:"
    found = recognise_template(made, "llava-hf/llava-1.5-7b-hf")
    assert (found.name, found.default_system, found.end) == ("vicuna", "", "{eos}")
    assert "leaves out what ends an answer; it is read as vicuna" in capsys.readouterr().err


def test_parts_with_ends_are_read_as_they_are() -> None:
    end = "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add"
    ended = LLAVA_HF.replace("{% endfor %}{% if add", end)
    found = own_template(tokenizer(ended), "some/model")
    assert (found.name, found.user, found.end) == ("auto", "USER: {} ASSISTANT:", "</s>")
