"""One row of a data file -> a terminal's view of every stage: raw, understood, its images, rendered, tokenised."""

from __future__ import annotations

import io
import json
from typing import Any

from rich.console import Console
from rich.text import Text as Line

from sightline.data.inspect import Source, look
from sightline.data.sources import JsonRows, Rows
from sightline.data.verdict import KINDS, Finding
from sightline.errors import DataError, UserError, shown
from sightline.page.numbers import counted
from sightline.prompt.decoding import open_file, orientation, orientation_behind
from sightline.prompt.images import check_image, hold_image, name_of
from sightline.prompt.paint import folded, marks_for, printable_paint
from sightline.prompt.prompter import Prompter
from sightline.terminal import printable, printable_lines
from sightline.types import Conversation, Encoded, ImageRef, Text

LONG = 1000
"""Characters of a string of the raw row that are printed."""


def show(source: Source, number: int, console: Console) -> None:
    """Print row `number` (counted from 1) as far as it can be understood, then what was found in it.

    Raises DataError when the row cannot be used, UserError when there is none of this number.
    """
    rows = source.rows
    if not 1 <= number <= len(rows):
        raise UserError(f"row {number}: {rows.path} has {counted(len(rows), 'row')}, counted from 1")
    console.print(Line(printable(rows.origin(number - 1)), style="bold"), soft_wrap=True)
    findings = look(source, number - 1).findings
    print_raw(rows, number - 1, console)
    try:
        conversation = source.conversation(number - 1)
        print_conversation(conversation, console)
        if conversation.images:
            print_images(conversation, source.prompter, console)
        if source.prompter is not None:
            print_segments(conversation, source.prompter, console)
            print_tokens(source.encode(number - 1), source.prompter, console)
    except DataError:
        pass  # `look` has met the same error; it stands among the findings
    print_findings(findings, console)
    bad = [finding for finding in findings if finding.bad]
    if bad:
        raise DataError(f"{rows.origin(number - 1)}: {bad[0].reason}", bad[0].kind)


def print_raw(rows: Rows, number: int, console: Console) -> None:
    """The row as it stands in the file, readable or not; strings that go on and on, such as images, are cut."""
    _title(console, "In the file")
    try:
        text = json.dumps(_cut(rows[number]), ensure_ascii=False, indent=2)
    except DataError:
        if not isinstance(rows, JsonRows):
            return
        start, end = rows.spans[number].tolist()
        text = _cut(rows.content[start:end].decode("utf-8", "backslashreplace"))
    console.print(Line(printable_lines(text)), soft_wrap=True)


def print_conversation(conversation: Conversation, console: Console) -> None:
    """Who says what, and where the images are."""
    _title(console, f"Understood (id {shown(conversation.id)}, {counted(len(conversation.images), 'image')})")
    for message in conversation.messages:
        line = Line(f"{message.role}: ", style="bold")
        for part in message.content:
            if isinstance(part, Text):
                line.append(
                    printable_lines(part.text), style="bold green" if message.role == "assistant" else "not bold"
                )
            else:
                line.append(f"<{printable(name_of(part))}>", style="black on cyan")
        console.print(line, soft_wrap=True)


def print_images(conversation: Conversation, prompter: Prompter | None, console: Console) -> None:
    """Size, format, orientation and tokens of each image, or what is wrong with it."""
    _title(console, "Images")
    for number, image in enumerate(conversation.images, 1):
        try:
            facts = _image_facts(image)
            if prompter is not None:
                facts += f", {prompter.image_tokens(*check_image(image))} tokens"
            line = Line(f"{number}. {printable(name_of(image))}: {facts}")
        except DataError as error:
            line = Line(f"{number}. {printable(str(error))}", style="red")
        console.print(line, soft_wrap=True)


def _image_facts(image: ImageRef) -> str:
    width, height = check_image(image)
    held = hold_image(image).source
    assert isinstance(held, bytes)
    with open_file(io.BytesIO(held)) as picture:
        behind = orientation_behind(held) if picture.format == "PNG" else None
        turn = behind or orientation(picture)
        turned = f", turned upright (EXIF orientation {turn})" if turn != 1 else ""
        return f"{width} x {height} px{turned}, {picture.format} ({picture.mode}), {len(held):,} bytes"


def print_segments(conversation: Conversation, prompter: Prompter, console: Console) -> None:
    """The pieces that the template makes of it, a line each; targets stand out."""
    _title(console, f"Rendered ({prompter.template.name}; = learned, - not)")
    for segment in prompter.render(conversation.messages):
        content = segment.content
        shown = f"<{name_of(content)}>" if isinstance(content, ImageRef) else repr(content.text)
        mark, style = ("= ", "bold green") if segment.target else ("- ", "dim")
        console.print(Line(mark + printable(shown), style=style), soft_wrap=True)


def print_tokens(encoded: Encoded, prompter: Prompter, console: Console) -> None:
    """The tokens as text and as numbers; those of an image are folded."""
    _title(console, f"Tokenised ({counted(len(encoded.ids), 'token')}, {counted(encoded.num_targets, 'target')})")
    console.print(printable_paint(prompter.explain(encoded, marks=marks_for(console))), soft_wrap=True)
    console.print(Line(f"ids: {folded(encoded.ids)}"), soft_wrap=True)
    console.print(Line(f"labels: {folded(encoded.labels)}"), soft_wrap=True)


def print_findings(findings: tuple[Finding, ...], console: Console) -> None:
    """What was found in the row, each with what to do."""
    _title(console, "Findings")
    for finding in findings:
        kind = KINDS[finding.kind]
        line = Line.assemble(
            (kind.title, "red" if kind.bad else "yellow"), f": {printable(finding.reason)}; {kind.remedy}"
        )
        console.print(line, soft_wrap=True)
    if not findings:
        console.print(Line("none", style="green"))


def _title(console: Console, title: str) -> None:
    console.print()
    console.print(Line(printable(title), style="bold underline"), soft_wrap=True)


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONG:
        return f"{value[:LONG]}... ({len(value):,} characters)"
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, dict):
        return {str(key): _cut(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
