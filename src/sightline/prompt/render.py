"""The one renderer: messages in a template become segments, some of which are targets; or a Jinja chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

from sightline.errors import DataError
from sightline.prompt.templates import BOS, EOS, ROUND, Template
from sightline.types import IMAGE, Message, Part, Segment, Text


def render(
    template: Template,
    messages: Sequence[Message],
    *,
    bos: str = "",
    eos: str = "",
    guard: Callable[[str], str] = lambda text: text,
) -> list[Segment]:
    """Turn messages into segments; the answer stays open when the last message is the user's.

    `guard` is applied to what people wrote, never to the template's own strings. Raises DataError when the roles do not
    follow one another as (system) user assistant user assistant ..., or the template has no place for a system prompt.
    """
    segments: list[Segment] = []
    behind, turn = "", 0

    def write(frame: str, content: Sequence[Part] = (), target: bool = False) -> None:
        before, after = _halves(frame, bos, eos, target)
        segments.extend((*before, *(Segment(part, target) for part in _guarded(content, guard)), *after))

    write(template.begin)
    for message in _in_turn(messages):
        match message.role:
            case "system":
                write(_system(template), message.content)
            case "user":
                if not behind and template.default_system:
                    write(_system(template), (Text(template.default_system),))
                    behind = "system"
                if behind == "assistant":
                    write(template.separator)
                shared = template.user_after_system if behind == "system" else None
                turn += 1
                asked = message.images if template.images_only else _asked(message, template)
                write((template.user if shared is None else shared).replace(ROUND, str(turn)), asked)
                write(template.opening)
            case "assistant":
                write(template.answer, message.content, target=True)
                write(template.end, target=True)
        behind = message.role
    return segments


def _asked(message: Message, template: Template) -> Sequence[Part]:
    """What a user's message shows and says, its one image in front of the words."""
    images = message.images
    if template.image_place == "kept" or len(images) != 1:
        return message.content
    words = "".join(part.text for part in message.content if isinstance(part, Text)).strip()
    return (*images, Text(f"\n{words}")) if words else images


def _system(template: Template) -> str:
    if template.system is None:
        raise DataError(f"the prompt template {template.name} has no place for a system prompt")
    return template.system


@cache
def _halves(frame: str, bos: str, eos: str, target: bool) -> tuple[tuple[Segment, ...], ...]:
    """What stands before and behind the message, each of it one segment or none; the same for every message."""
    before, _, after = frame.replace(BOS, bos).replace(EOS, eos).partition("{}")
    return tuple((Segment(Text(half), target),) if half else () for half in (before, after))


def _guarded(content: Sequence[Part], guard: Callable[[str], str]) -> list[Part]:
    joined: list[Part] = []
    for part in content:
        if part == Text(""):
            continue
        if isinstance(part, Text) and joined and isinstance(joined[-1], Text):
            # Guarded apart, the two halves of a control token would pass.
            joined[-1] = Text(joined[-1].text + part.text)
        else:
            joined.append(part)
    return [Text(guard(part.text)) if isinstance(part, Text) else part for part in joined]


def _in_turn(messages: Sequence[Message]) -> Iterator[Message]:
    expected: tuple[str, ...] = ("system", "user")
    for position, message in enumerate(messages):
        if message.role not in expected:
            wanted = " or ".join(expected)
            raise DataError(f"message {position + 1} is the {message.role}'s, expected the {wanted}'s")
        yield message
        expected = ("assistant",) if message.role == "user" else ("user",)


def to_text(segments: Sequence[Segment]) -> str:
    """The rendered prompt as one string, with `<image>` for each image."""
    return "".join(part.content.text if isinstance(part.content, Text) else IMAGE for part in segments)


def _marked(start: str, stop: str) -> str:
    """Jinja for the contents of a message with marked images; those in front get a line each."""
    return (
        f"{{% set ns = namespace(front=true) %}}{{% for piece in message['content'].split('{stop}') %}}{{{{ piece }}}}"
        f"{{% set ns.front = ns.front and piece.startswith('{start}') %}}{{% if not loop.last %}}{{{{ '{stop}' }}}}"
        "{% if ns.front and not loop.nextitem.startswith('\\n') %}{{ '\\n' }}{% endif %}{% endif %}{% endfor %}"
    )


_ONE_IMAGE = (
    "{% if message['content'] is string %}{% set pieces = message['content'].split('" + IMAGE + "') %}"
    "{% set one = pieces | length == 2 %}{% set words = pieces | join('') | trim %}{% else %}"
    "{% set texts = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | list %}"
    "{% set one = message['content'] | length == texts | length + 1 %}{% set words = texts | join('') | trim %}"
    "{% endif %}"
)
"""Jinja that finds out whether a message shows exactly one image, and what it says."""


def to_jinja(template: Template, *, bos: str = "", eos: str = "", marks: tuple[str, str] | None = None) -> str:
    """Write the template as a Jinja chat template, for programs that load an exported model.

    Contents may be strings or lists of parts; the one image of a message, and several in front of it, get a line each,
    as in LLaVA's data. With `marks`, contents are strings in which a program has put a text for each image that begins
    and ends so; there an image stays in its place, so whoever asks puts it in front.
    """

    def quoted(text: str) -> str:
        text = text.replace(BOS, bos).replace(EOS, eos)
        text = "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
        return text.replace(ROUND, "' ~ (loop.index + 1 - (messages[0]['role'] == 'system')|int) // 2 ~ '")

    def framed(frame: str, content: str) -> str:
        before, _, after = frame.partition("{}")
        return f"{{{{ {quoted(before)} }}}}{content}{{{{ {quoted(after)} }}}}"

    def contents(string: str, text: str, image: str) -> str:
        part = "{% if part['type'] == 'text' %}" + text + "{% else %}" + image + "{% endif %}"
        loop = "{% for part in message['content'] %}" + part + "{% endfor %}"
        return "{% if message['content'] is string %}" + string + "{% else %}" + loop + "{% endif %}"

    string, text, image = "{{ message['content'] }}", "{{ part['text'] }}", "{{ '" + IMAGE + "' }}"
    said = contents(string, text, image)
    if marks is not None:
        said = asked = string
        if not template.images_only:
            asked = _marked(*marks)
    elif template.images_only:
        places = "{% for _ in message['content'].split('" + IMAGE + "')[1:] %}" + image + "{% endfor %}"
        asked = contents(places, "", image)
    else:
        line = image + "{% if ns.front %}{{ '\\n' }}{% endif %}"
        asked = contents(string, "{% set ns.front = false %}" + text, line)
        asked = "{% set ns = namespace(front=true) %}" + asked
        if template.image_place == "front":
            words = image + "{% if words %}{{ '\\n' ~ words }}{% endif %}"
            asked = _ONE_IMAGE + "{% if one %}" + words + "{% else %}" + asked + "{% endif %}"
    told, default = "{{ raise_exception('There is no place for a system prompt.') }}", ""
    if template.system is not None:
        told = framed(template.system, said)
        if template.default_system:
            default = framed(template.system, "{{ " + quoted(template.default_system) + " }}")
    user = framed(template.user, asked)
    if template.user_after_system is not None:
        first = "loop.first or" if template.default_system else "not loop.first and"
        shared = f"{{% if {first} loop.previtem['role'] == 'system' %}}"
        user = shared + framed(template.user_after_system, asked) + "{% else %}" + user + "{% endif %}"
    return (
        f"{{{{ {quoted(template.begin)} }}}}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}"
        + told
        + "{% elif message['role'] == 'user' %}{% if loop.first %}"
        + default
        + "{% elif loop.previtem['role'] == 'assistant' %}"
        + f"{{{{ {quoted(template.separator)} }}}}"
        + "{% endif %}"
        + user
        + f"{{% if not loop.last or add_generation_prompt %}}{{{{ {quoted(template.opening)} }}}}{{% endif %}}"
        + "{% else %}"
        + framed(template.answer, said)
        + f"{{{{ {quoted(template.end)} }}}}"
        + "{% endif %}{% endfor %}"
    )
