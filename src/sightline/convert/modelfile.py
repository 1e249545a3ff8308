"""A prompt template -> Ollama's Modelfile: where the weights lie, the template in Go's language, what ends an answer.

Ollama itself writes the token that begins a text and the marks of pictures.
"""

from __future__ import annotations

from sightline.errors import ModelError
from sightline.prompt.prompter import Prompter
from sightline.prompt.templates import BOS, EOS, ROUND, Template


def modelfile(prompter: Prompter, files: list[str]) -> str:
    """The file's text; `files` lie beside it. Raises ModelError for a template that Go's language cannot write."""
    template, tokenizer = prompter.template, prompter.tokenizer
    text = go_template(template, bos=tokenizer.bos_token or "", eos=tokenizer.eos_token or "")
    lines = [*(f"FROM ./{file}" for file in files), f'TEMPLATE """{text}"""']
    if template.default_system:
        lines.append(f'SYSTEM """{template.default_system}"""')
    ids, strings = prompter.stop
    stops = [*tokenizer.convert_ids_to_tokens(list(ids)), *strings]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    return "\n".join(lines) + "\n"


def go_template(template: Template, *, bos: str, eos: str) -> str:
    """The template in Go's text/template, for Ollama's list of messages."""

    def halves(frame: str | None) -> tuple[str, str]:
        before, _, after = (frame or "{}").replace(BOS, bos).replace(EOS, eos).partition("{}")
        return before, after

    def framed(frame: str | None) -> str:
        before, after = halves(frame)
        return f"{before}{{{{ .Content }}}}{after}"

    strings = (*template.strings(), template.default_system)
    if any(ROUND in string for string in strings):
        raise ModelError(f"the prompt template {template.name} counts its turns, which Ollama's templates cannot")
    if any('"""' in string or "{{" in string for string in strings):
        raise ModelError(f'the prompt template {template.name} holds {{{{ or """, which a Modelfile cannot')
    user = framed(template.user)
    if template.user_after_system is not None:
        user = f'{{{{ if eq $behind "system" }}}}{framed(template.user_after_system)}{{{{ else }}}}{user}{{{{ end }}}}'
    if separator := halves(template.separator)[0]:
        user = f'{{{{ if eq $behind "assistant" }}}}{separator}{{{{ end }}}}{user}'
    begin = template.begin.replace(BOS, bos).removeprefix(bos)
    answer, opening = halves(template.answer)[0], halves(template.opening)[0]
    end = halves(template.answer)[1] + halves(template.end)[0]
    return (
        f'{{{{ $behind := "" }}}}{halves(begin)[0]}{{{{ range .Messages }}}}'
        f'{{{{ if eq .Role "system" }}}}{framed(template.system)}'
        f'{{{{ else if eq .Role "user" }}}}{user}{opening}'
        f"{{{{ else }}}}{answer}{{{{ .Content }}}}{end}{{{{ end }}}}"
        "{{ $behind = .Role }}{{ end }}"
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
