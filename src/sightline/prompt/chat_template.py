"""A tokenizer's own chat template -> what it writes: a stranger's program, run in Jinja's sandbox and within bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

from sightline.child import Failed, in_child
from sightline.errors import ModelError
from sightline.limits import limits, remedy
from sightline.terminal import printable
from sightline.types import Message, Text

Write = Callable[[Sequence[Message]], str]


class Unrendered(ModelError):
    """A chat template has not written these messages; the text says why. It may write others."""


@contextmanager
def chat_template(tokenizer: Any) -> Iterator[Write]:
    """Yield what writes messages as the tokenizer's chat template does, asking for an answer behind a question.

    What is yielded raises Unrendered where the template fails, or takes more than the limits allow.
    """
    import transformers.utils.chat_template_utils  # noqa: F401 - before the fork, which would import it each time

    def render(messages: list[dict[str, Any]]) -> str:
        asked = messages[-1]["role"] == "user"
        written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked)
        if not isinstance(written, str):
            raise TypeError(f"it gives a {type(written).__name__}, no text")
        return written

    in_parts: bool | None = None
    most = limits()
    with in_child(
        render,
        seconds=most.template_seconds,
        megabytes=most.template_megabytes,
        characters=most.template_characters,
    ) as ask:

        def write(messages: Sequence[Message]) -> str:
            nonlocal in_parts
            try:
                if in_parts is None:
                    in_parts = _takes_parts(ask)
                written: str = ask([_plain(message, in_parts) for message in messages])
            except Failed as error:
                name = f"template_{error.bound}"
                more = f" ({remedy(name, 10 * getattr(most, name))})" if error.bound else ""
                said = printable(shorten(str(error), 200, placeholder=" ..."))
                raise Unrendered(f"it does not render: {said}{more}") from None
            return written

        yield write


def _plain(message: Message, in_parts: bool) -> dict[str, Any]:
    content: Any = message.text
    if in_parts:
        images = [{"type": "image"} for _ in message.images]
        content = [
            *images,
            *({"type": "text", "text": part.text} for part in message.content if isinstance(part, Text)),
        ]
    return {"role": message.role, "content": content}


def _takes_parts(ask: Callable[[Any], Any]) -> bool:
    """Whether a template walks over lists of parts, as the llava-hf models' do, and finds nothing in a string."""
    probe = Message("user", (Text("probe"),))
    for in_parts in (False, True):
        try:
            if "probe" in ask([_plain(probe, in_parts)]):
                return in_parts
        except Failed as error:
            if error.bound:
                raise
    return False
