"""Chat templates as data, and the one renderer: messages -> segments, some of which are targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from sightline.errors import DataError
from sightline.types import IMAGE, Message, Part, Segment, Text

BOS, EOS = "{bos}", "{eos}"
"""Stand for the tokenizer's own tokens in a template's strings."""


@dataclass(frozen=True, slots=True)
class Template:
    """How a conversation is written for a language model; `{}` is the place of the message."""

    name: str
    user: str
    """What surrounds a user's message."""
    opening: str
    """What stands between a user's message and the answer; never a target."""
    answer: str
    """What surrounds an answer; a target as a whole, with `end`. A space before the answer belongs here."""
    end: str
    """What the model says when the answer is over."""
    separator: str = ""
    """What stands between an answer and the next user's message."""
    system: str = "{}"
    default_system: str = ""
    begin: str = BOS
    images_only: bool = False
    """Whether the words of the user are left out (LLaVA's captioning stage)."""
    stop: tuple[str, ...] = ()
    """Further strings that end an answer."""

    def strings(self) -> tuple[str, ...]:
        return (self.begin, self.system, self.user, self.opening, self.answer, self.end, self.separator)


def _chatml(name: str, begin: str, stop: tuple[str, ...] = ()) -> Template:
    return Template(
        name=name,
        begin=begin,
        system="<|im_start|>system\n{}<|im_end|>\n",
        user="<|im_start|>user\n{}<|im_end|>\n",
        opening="<|im_start|>assistant\n",
        answer="{}",
        end="<|im_end|>",
        separator="\n",
        stop=stop,
    )


TEMPLATES = {
    template.name: template
    for template in (
        # LLaVA-1.5's conversation "v1" (haotian-liu/LLaVA, conversation.py) with its system prompt; no space after </s>
        Template(
            name="vicuna",
            system="{} ",
            default_system="A chat between a curious user and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the user's questions.",
            user="USER: {} ",
            opening="ASSISTANT:",
            answer=" {}",
            end=EOS,
        ),
        # LLaVA's conversation "plain": the picture, then the caption, then a newline.
        Template(name="plain", user="{}", opening="", answer="{}", end="\n", images_only=True),
        Template(
            name="llama3_chat",
            system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
            user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
            opening="<|start_header_id|>assistant<|end_header_id|>\n\n",
            answer="{}",
            end="<|eot_id|>",
        ),
        Template(
            name="phi3_chat",
            system="<|system|>\n{}<|end|>\n",
            user="<|user|>\n{}<|end|>\n",
            opening="<|assistant|>\n",
            answer="{}",
            end="<|end|>",
            separator="\n",
        ),
        _chatml("internlm2_chat", begin=BOS),
        _chatml("chatml", begin=""),
        _chatml("qwen_chat", begin="", stop=("<|endoftext|>",)),
    )
}


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
    follow one another as (system) user assistant user assistant ...
    """
    segments: list[Segment] = []

    def write(frame: str, content: Sequence[Part] = (), target: bool = False) -> None:
        before, after = _halves(frame, bos, eos, target)
        segments.extend((*before, *(Segment(part, target) for part in _guarded(content, guard)), *after))

    write(template.begin)
    for position, message in enumerate(_in_turn(messages)):
        match message.role:
            case "system":
                write(template.system, message.content)
            case "user":
                if position == 0 and template.default_system:
                    write(template.system, (Text(template.default_system),))
                if position and messages[position - 1].role == "assistant":
                    write(template.separator)
                write(template.user, message.images if template.images_only else message.content)
                write(template.opening)
            case "assistant":
                write(template.answer, message.content, target=True)
                write(template.end, target=True)
    return segments


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


def to_jinja(template: Template, *, bos: str = "", eos: str = "") -> str:
    """Write the template as a Jinja chat template, for programs that load an exported model.

    Contents may be strings or lists of parts; an image in front of a message gets its own line, as in LLaVA's data.
    """

    def quoted(text: str) -> str:
        text = text.replace(BOS, bos).replace(EOS, eos)
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"

    def framed(frame: str, content: str) -> str:
        before, _, after = frame.partition("{}")
        return f"{{{{ {quoted(before)} }}}}{content}{{{{ {quoted(after)} }}}}"

    def contents(string: str, text: str, image: str) -> str:
        part = "{% if part['type'] == 'text' %}" + text + "{% else %}" + image + "{% endif %}"
        loop = "{% for part in message['content'] %}" + part + "{% endfor %}"
        return "{% if message['content'] is string %}" + string + "{% else %}" + loop + "{% endif %}"

    string, text, image = "{{ message['content'] }}", "{{ part['text'] }}", "{{ '" + IMAGE + "' }}"
    said = contents(string, text, image)
    if template.images_only:
        places = "{% for _ in message['content'].split('" + IMAGE + "')[1:] %}" + image + "{% endfor %}"
        asked = contents(places, "", image)
    else:
        line = image + "{% if ns.front %}{{ '\\n' }}{% endif %}"
        asked = contents(string, "{% set ns.front = false %}" + text, line)
        asked = "{% set ns = namespace(front=true) %}" + asked
    default = (
        framed(template.system, "{{ " + quoted(template.default_system) + " }}") if template.default_system else ""
    )
    return (
        f"{{{{ {quoted(template.begin)} }}}}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}"
        + framed(template.system, said)
        + "{% elif message['role'] == 'user' %}{% if loop.first %}"
        + default
        + "{% elif loop.previtem['role'] == 'assistant' %}"
        + f"{{{{ {quoted(template.separator)} }}}}"
        + "{% endif %}"
        + framed(template.user, asked)
        + f"{{% if not loop.last or add_generation_prompt %}}{{{{ {quoted(template.opening)} }}}}{{% endif %}}"
        + "{% else %}"
        + framed(template.answer, said)
        + f"{{{{ {quoted(template.end)} }}}}"
        + "{% endif %}{% endfor %}"
    )
