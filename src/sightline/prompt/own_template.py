"""A tokenizer's own chat template -> a Template that writes the same, or the reason why there is none (`auto`).

Conversations with marked contents are rendered by the tokenizer; what stands around the marks are the strings of a
Template. Then both write many conversations, and any difference refuses: a template that changes what people wrote, or
that writes the past in another way than it was asked, would teach the model prompts that it never meets again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from sightline.errors import DataError, ModelError, shown
from sightline.prompt.chat_template import Unrendered, Write, chat_template
from sightline.prompt.render import render, to_text
from sightline.prompt.templates import TEMPLATES, Template
from sightline.types import Message, Role, Text

AUTO = "auto"


class _Unfit(Exception):
    """Why a chat template cannot be written as a Template."""


def own_template(tokenizer: Any, name: str = "this tokenizer") -> Template:
    """The tokenizer's chat template as a Template, called auto.

    Raises ModelError with the reason, and the name of the known template that comes closest, if any does.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"template auto: {name} has no chat template of its own; name one (vicuna, ...: docs/templates.md)"
        )
    try:
        if "strftime_now" in str(tokenizer.chat_template):
            raise _Unfit("it writes today's date, so that tomorrow's prompts would be others")
        with chat_template(tokenizer) as theirs:
            template = _derive(tokenizer, theirs)
            _compare(template, tokenizer, theirs)
        return template
    except (_Unfit, Unrendered) as error:
        near = written_alike(tokenizer)
        hint = f"; {near[0]} is the nearest that is known" if near else ""
        raise ModelError(f"template auto: the chat template of {name} cannot be used: {error}{hint}") from None


def written_alike(tokenizer: Any) -> list[str]:
    """The names of the known templates that write ordinary questions and answers as the tokenizer's does."""
    messages = _said(("user", "a"), ("assistant", "b"), ("user", "c"))
    try:
        with chat_template(tokenizer) as write:
            theirs = write(messages)
    except Unrendered:
        return []
    return [name for name, template in TEMPLATES.items() if _ours(template, tokenizer, messages) == theirs]


def _derive(tokenizer: Any, theirs: Write) -> Template:
    asked = _said(("user", "Q1"), ("assistant", "A1"), ("user", "Q2"))
    head, middle, between, tail = _around(theirs(asked), ("Q1", "A1", "Q2"))
    opened = _around(theirs(asked[:1]), ("Q1",))
    closed = _around(theirs(asked[:2]), ("Q1", "A1"))
    if opened != [head, tail]:
        raise _Unfit(f"a first question ends in {shown(opened[-1])}, a later one in {shown(tail)}")
    if not middle.startswith(tail):
        raise _Unfit(f"it asks for an answer by {shown(tail)}, but writes given answers behind {shown(middle)}")
    before_end, end = _end(_common(between, closed[-1]), tokenizer)
    between = between.removeprefix(before_end + end)
    asks = _common(head[::-1], between[::-1])[::-1]
    told = head.removesuffix(asks)
    bos = tokenizer.bos_token or ""
    begin = bos if bos and told.startswith(bos) else ""
    template = Template(
        AUTO,
        begin=begin,
        system=None,
        user=asks + "{}" + tail,
        opening="",
        answer=middle.removeprefix(tail) + "{}" + before_end,
        end=end,
        separator=between.removesuffix(asks),
    )
    return _with_system(template, theirs, told.removeprefix(begin), asks, tail)


def _with_system(template: Template, theirs: Write, default: str, asks: str, tail: str) -> Template:
    """The same with a place for the system prompt, and the prompt that is written where none is given."""
    try:
        written = theirs(_said(("system", "S1"), ("user", "Q1")))
    except Unrendered:
        if default:
            return replace(template, begin=template.begin + default)
        return template
    before, behind, after = _around(written, ("S1", "Q1"))
    if after != tail or not before.startswith(template.begin):
        raise _Unfit("behind a system prompt it writes a question in another way")
    before = before.removeprefix(template.begin)
    own_turn = behind.endswith(asks)
    closing = behind.removesuffix(asks) if own_turn else behind
    if default and not (default.startswith(before) and default.endswith(closing) and default != before + closing):
        raise _Unfit("it writes a system prompt of its own, which another one does not replace")
    return replace(
        template,
        system=before + "{}" + closing,
        default_system=default[len(before) : len(default) - len(closing)],
        user_after_system=None if own_turn else "{}" + tail,
    )


def _end(text: str, tokenizer: Any) -> tuple[str, str]:
    """What stands behind every answer, cut in what is said before the token that ends it, and that token."""
    known = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    places = sorted((text.index(token), -len(token), token) for token in known if token and token in text)
    if not places:
        raise _Unfit("no token ends an answer, so that the model could not learn to stop")
    place, _, token = places[0]
    return text[:place], token


def _common(one: str, other: str) -> str:
    """What both begin with."""
    alike = (number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(alike, min(len(one), len(other)))]


def _around(text: str, contents: Sequence[str]) -> list[str]:
    """What stands before, between and behind the marked contents."""
    pieces: list[str] = []
    for content in contents:
        mark = _mark(content)
        if text.count(mark) > 1 or (mark not in text and any(mark in piece for piece in pieces)):
            raise _Unfit(f"it writes {_NAMES[content[0]]} more than once, or in another order")
        if mark not in text:
            raise _Unfit(f"it leaves out {_NAMES[content[0]]}, or changes it")
        piece, _, text = text.partition(mark)
        pieces.append(piece)
    if any("{" in piece for piece in (*pieces, text)):
        raise _Unfit("there are braces around what people write")
    return [*pieces, text]


_NAMES = {"Q": "a question", "A": "an answer", "S": "the system prompt"}


def _mark(content: str) -> str:
    return f"mark{content}mark"


def _said(*messages: tuple[Role, str], around: str = "") -> list[Message]:
    return [Message(role, (Text(around + _mark(content) + around),)) for role, content in messages]


def _compare(template: Template, tokenizer: Any, theirs: Write) -> None:
    """Raise _Unfit where the two write any of many conversations differently."""
    systems = (False,) if template.system is None else (False, True)
    for around, turns, system, answered in product(("", "\n  ", "  \n"), (1, 2, 3), systems, (False, True)):
        messages = _said(("system", "S1"), around=around) if system else []
        for turn in range(turns):
            messages += _said(("user", f"Q{turn}"), ("assistant", f"A{turn}"), around=around)
        messages = messages if answered else messages[:-1]
        ours, written = _ours(template, tokenizer, messages), theirs(messages)
        # Behind the last answer they may go on, with a line break for instance: nobody reads it.
        if not (written.startswith(ours) if answered else written == ours):
            raise _Unfit(_difference(ours, written, around))


def _difference(ours: str, theirs: str, around: str) -> str:
    if around:
        return "it takes away white space around what people write"
    place = len(_common(ours, theirs))
    return (
        f"the same message is written differently at different places: {theirs[max(0, place - 20) : place + 30]!r} "
        f"instead of {ours[max(0, place - 20) : place + 30]!r}"
    )


def _ours(template: Template, tokenizer: Any, messages: Sequence[Message]) -> str:
    try:
        return to_text(render(template, messages, bos=tokenizer.bos_token or "", eos=tokenizer.eos_token or ""))
    except DataError as error:
        raise _Unfit(str(error)) from None
