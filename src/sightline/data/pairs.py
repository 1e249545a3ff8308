"""A picture -> questions and answers about it, asked of an endpoint and checked -> a LLaVA row."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sightline.data.endpoint import Endpoint, Unanswered, complete
from sightline.data.sources import Row
from sightline.errors import shown
from sightline.prompt.images import open_image
from sightline.types import IMAGE, ImageRef

PROMPT = """\
Study this picture and write {n} questions about it, each with its answer. They will teach another model to see.

Go from the surface into the depth. Begin with what anybody notices at once: what is there, how many, which colours. \
Go on to what takes a second look: where things are, how they belong together, what they are made of, what is \
happening. End with what takes thought: what something is for, which mood or attitude shows, what has led to this \
scene or may follow from it.

Every answer must follow from the picture alone; do not ask for what it cannot prove, such as a name, a date or what \
somebody thinks. Answer in full sentences, correct, and in as much detail as the picture gives."""

FORMAT = """\
Reply with JSON alone, an array of exactly {n} objects in the order of the questions:
[{"question": "...", "answer": "..."}]"""

_JPEG_QUALITY = 90


class Unfit(Exception):
    """A reply is not what was asked for; the message says in which way."""


@dataclass(frozen=True)
class Task:
    """What is asked about each picture."""

    n: int = 5
    """Questions to a picture."""
    prompt: str = PROMPT
    """What to ask; `{n}` stands for the number, the form of the reply is added."""
    language: str | None = None
    max_side: int = 1024
    """Pixels; larger pictures are scaled down."""
    asks: int = 3
    """So often a picture is asked about until a reply fits."""

    @property
    def text(self) -> str:
        """What is sent with each picture."""
        language = f"Write questions and answers in {self.language}." if self.language else ""
        return "\n\n".join(filter(None, [self.prompt.strip().replace("{n}", str(self.n)), language, self.form]))

    @property
    def form(self) -> str:
        return FORMAT.replace("{n}", str(self.n))


def row_about(endpoint: Endpoint, folder: Path, name: str, task: Task, spent: Counter[str]) -> Row:
    """Ask about the picture `name` of a folder, until a reply fits, and count in `spent` what it costs.

    Raises DataError for a picture that cannot be read, Unanswered when no reply comes or none fits.
    """
    picture = {"url": data_uri(open_image(ImageRef(name, str(folder))), task.max_side)}
    content = [{"type": "text", "text": task.text}, {"type": "image_url", "image_url": picture}]
    question = {"role": "user", "content": content}
    messages: list[dict[str, Any]] = [question]
    for _ in range(task.asks):
        reply = complete(endpoint, messages, spent)
        try:
            return to_row(name, read_pairs(reply.text, task.n))
        except Unfit as error:
            reason = str(error)
        messages = [question]
        if reply.text.strip():  # some endpoints refuse an empty turn
            again = f"I cannot use this reply: {reason}. Write it again.\n\n{task.form}"
            messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": again}]
    if reply.finish != "stop":
        reason += f"; it ended with {shown(reply.finish)}"
    raise Unanswered(f"asked {task.asks} times, no reply fits: {reason}")


def data_uri(picture: Image.Image, max_side: int) -> str:
    """The picture as a JPEG of at most `max_side` pixels a side, without what the file says about camera and place."""
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def read_pairs(text: str, n: int) -> list[tuple[str, str]]:
    """The n questions and answers of a reply. Raises Unfit."""
    found = _json(text)
    if isinstance(found, dict):  # {"pairs": [...]}, as endpoints that only speak in objects write it; or a single pair
        found = next(iter(found.values())) if len(found) == 1 else [found]
    if not isinstance(found, list):
        raise Unfit("it is no array of questions and answers")
    if len(found) != n:
        raise Unfit(f"it has {len(found)} objects instead of {n}")
    return [(_field(pair, number, "question"), _field(pair, number, "answer")) for number, pair in enumerate(found, 1)]


def to_row(name: str, pairs: list[tuple[str, str]]) -> Row:
    """A row in LLaVA's form, the picture before the first question."""
    turns = []
    for question, answer in pairs:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    turns[0]["value"] = f"{IMAGE}\n{turns[0]['value']}"
    return {"id": name, "image": name, "conversations": turns}


def _json(text: str) -> Any:
    said = text.rpartition("</think>")[2].strip()  # what precedes it, a reasoning model says to itself
    fenced = re.search(r"```[a-zA-Z]*\s(.*)```", said, re.DOTALL)
    for candidate in (said, fenced[1] if fenced else ""):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    raise Unfit("it is no JSON" if said else "it is empty")


def _field(pair: Any, number: int, name: str) -> str:
    value = pair.get(name) if isinstance(pair, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise Unfit(f"object {number} has no {shown(name)} that is text")
    if IMAGE in value:
        raise Unfit(f"the {name} of object {number} holds {shown(IMAGE)}, which stands for a picture")
    if not _is_unicode(value):
        raise Unfit(f"the {name} of object {number} holds half a character")
    return value.strip()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
