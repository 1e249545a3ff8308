"""One row -> its tokens, targets and images, and everything that is wrong with it or worth knowing."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from sightline.data.formats import understand
from sightline.data.sources import Rows
from sightline.data.verdict import Finding
from sightline.errors import DataError
from sightline.prompt.decoding import open_file, orientation
from sightline.prompt.images import check_image, name_of, open_image
from sightline.prompt.prompter import Prompter
from sightline.prompt.templates import TEMPLATES
from sightline.types import Conversation, Encoded, ImageRef, Message, Text

TINY = 10
"""Pixels; an image with a side of at most so many is taken for a mistake (a tracking pixel, an empty thumbnail)."""

_HEAD = 64 * 1024
_STARTS = {
    b"\xff\xd8\xff": ("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif")),
    b"\x89PNG\r\n": ("PNG", (".png", ".apng")),
    b"GIF8": ("GIF", (".gif",)),
    b"BM": ("BMP", (".bmp", ".dib")),
    b"II*\0": ("TIFF", (".tif", ".tiff")),
    b"MM\0*": ("TIFF", (".tif", ".tiff")),
    b"RIFF": ("WebP", (".webp",)),
}
_ENDINGS = {ending for _, endings in _STARTS.values() for ending in endings}


@dataclass(frozen=True)
class Source:
    """A file of rows, and how it is to be understood and used."""

    name: str
    """What reports call it."""
    rows: Rows
    images: str | None
    """The folder of its images."""
    prompter: Prompter | None
    """None: nothing is tokenised."""
    max_length: int | None = None
    form: str | None = None
    repeat: int = 1
    ratio: float = 1.0
    on_bad_row: str = "stop"
    looked_at: int = 0
    """How many rows, from the first, belong to it."""
    decode: bool = False
    """Whether all images are decoded when a row is looked at, and not only what looks damaged."""

    def conversation(self, row: int) -> Conversation:
        return self._understand(row)[0]

    def encode(self, row: int) -> Encoded:
        """A row as the model sees it, cut at max_length."""
        assert self.prompter is not None
        return self.prompter.encode(self.conversation(row).messages, max_length=self.max_length)

    def _understand(self, row: int) -> tuple[Conversation, tuple[Finding, ...]]:
        return understand(self.rows[row], self.rows.origin(row), self.images, self.form)


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a row after looking at it."""

    tokens: int = 0
    """After cutting; 0 where it could not be understood, or without a tokenizer."""
    targets: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height of each image, upright; (0, 0) where it cannot be read."""
    findings: tuple[Finding, ...] = ()
    digest: int = 0
    """64 bits of what the conversation says and shows; 0 where it could not be understood."""

    @property
    def bad(self) -> bool:
        return any(finding.bad for finding in self.findings)


def look(source: Source, row: int, watched: dict[str, int] | None = None) -> Look:
    """Find out everything about a row that can be told without decoding its images, or with it (`Source.decode`).

    Into `watched` go the folders of its images, and those files that cannot be read, with their `stamp`s: the look
    holds as long as none of them changes.
    """
    watched = {} if watched is None else watched
    origin = source.rows.origin(row)
    try:
        conversation, known = source._understand(row)
    except DataError as error:
        return Look(findings=(_finding(error, origin, "form"),))
    findings = list(known)
    sizes = tuple(_image(image, findings, watched, source.decode) for image in conversation.images)
    for number, message in enumerate(conversation.messages, 1):
        if controls := _controls(message, source.prompter):
            findings.append(Finding("control_token", f"turn {number}: {', '.join(dict.fromkeys(controls))}"))
    if source.prompter is not None and source.prompter.template.images_only and (lost := _lost(conversation)):
        findings.append(Finding("question_lost", f"the template {source.prompter.template.name} leaves out {lost}"))
    tokens, targets = 0, 0
    if source.prompter is not None and not (source.prompter.tiles is not None and (0, 0) in sizes):
        tokens, targets = _lengths(source, conversation.messages, sizes, findings)
    return Look(tokens, targets, sizes, tuple(findings), _digest(conversation))


def _lost(conversation: Conversation) -> str:
    """What a template that shows images alone leaves of a row unsaid, although the answers depend on it."""
    asked = [message for message in conversation.messages if message.role == "user"]
    if any(message.text.strip() for message in asked[1:]):
        return f"what is asked: the row has {len(asked)} questions, and their answers would be learned without them"
    if not conversation.images and asked[0].text.strip():
        return "what is asked: the row has no image, and its answer would be learned without anything"
    return ""


def stamp(path: str) -> int:
    """When a file or the list of a folder's files was last changed, in nanoseconds; -1 where there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except (OSError, ValueError):
        return -1


def _lengths(
    source: Source, messages: Sequence[Message], sizes: Sequence[tuple[int, int]], findings: list[Finding]
) -> tuple[int, int]:
    prompter, limit = source.prompter, source.max_length
    assert prompter is not None
    try:
        whole = prompter.encode(messages, sizes=sizes)
        encoded = whole if limit is None else prompter.cut(whole, limit)
    except DataError as error:
        findings.append(_finding(error, "", "other"))
        return 0, 0
    is_cut = len(encoded.ids) < len(whole.ids)
    if not encoded.num_targets:
        where = f"within max_length {limit}; raise batch.max_length or shorten the row" if is_cut else "in the row"
        findings.append(Finding("no_target", f"no target is left {where}"))
    elif is_cut:
        lost = whole.num_targets - encoded.num_targets
        findings.append(
            Finding("too_long", f"{len(whole.ids)} tokens, cut at {limit}; {lost} of {whole.num_targets} targets lost")
        )
    return len(encoded.ids), encoded.num_targets


def _image(ref: ImageRef, findings: list[Finding], watched: dict[str, int], decode: bool) -> tuple[int, int]:
    path = _path(ref)
    if path is not None and (folder := os.path.dirname(path) or ".") not in watched:
        watched[folder] = stamp(folder)  # before the look: what changes meanwhile must count as a change
    before = stamp(path) if path is not None else 0
    try:
        size = open_image(ref).size if decode else check_image(ref)
    except DataError as error:
        if path is not None:
            watched[path] = before
        findings.append(_finding(error, "", "image_unreadable"))
        return 0, 0
    findings += [Finding(kind, f"image {name_of(ref)} {what}") for kind, what in _oddities(ref, path, size)]
    return size


def _oddities(ref: ImageRef, path: str | None, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    if min(size) <= TINY:
        yield "image_tiny", f"is {size[0]} x {size[1]} px"
    if path is None:
        if not isinstance(ref.source, bytes):
            return
        head = ref.source[:_HEAD]
    else:
        try:
            with open(path, "rb") as file:
                head = file.read(_HEAD)
        except OSError:
            return  # taken away since it was checked: its folder's stamp tells
        ending = os.path.splitext(path)[1].lower()
        kind, endings = next((_STARTS[start] for start in _STARTS if head.startswith(start)), ("", ()))
        if kind and ending in _ENDINGS and ending not in endings:
            yield "image_extension", f"is a {kind}"
    if b"Exif" in head or b"tiff:Orientation" in head or not head.startswith(b"\xff\xd8"):
        try:
            with open_file(io.BytesIO(ref.source) if isinstance(ref.source, bytes) else str(path)) as picture:
                turn = orientation(picture)
        except Exception:
            return  # taken away, or changed, since it was checked
        if turn != 1:
            yield "image_turned", f"is turned upright (EXIF orientation {turn})"


def _path(ref: ImageRef) -> str | None:
    """The file of an image; None where it is none, or is not to be touched."""
    if isinstance(ref.source, bytes) or ref.source.startswith(("data:", "http://", "https://")):
        return None
    if ref.folder is not None and (os.path.isabs(ref.source) or ".." in ref.source.split("/")):
        return None
    return os.path.join(ref.folder or "", ref.source)


def _controls(message: Message, prompter: Prompter | None) -> list[str]:
    texts = [part.text for part in message.content if isinstance(part, Text)]
    find = prompter.controls_in if prompter is not None else _marks().findall
    return [control for text in texts for control in find(text)]


@cache
def _marks() -> re.Pattern[str]:
    """The control tokens that stand in any template: what can be looked for without a tokenizer."""
    strings = {string for template in TEMPLATES.values() for string in (*template.strings(), *template.stop)}
    marks = {mark for string in strings for mark in re.findall(r"<\|[^<>|]+\|>", string)} | {"<s>", "</s>"}
    return re.compile("|".join(map(re.escape, sorted(marks))))


def _digest(conversation: Conversation) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for message in conversation.messages:
        digest.update(f"\0{message.role}".encode())
        for part in message.content:
            if isinstance(part, Text):
                digest.update(b"\0t" + part.text.encode("utf-8", "surrogatepass"))
            elif isinstance(part.source, bytes):
                digest.update(b"\0b" + part.source)
            else:
                digest.update(f"\0i{part.folder}\0{part.source}".encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest(), "little") or 1


def _finding(error: DataError, origin: str, otherwise: str) -> Finding:
    kind = otherwise if error.kind == "other" else error.kind
    return Finding(kind, str(error).removeprefix(f"{origin}: "))
