"""What can be found in a row of data: kinds of findings, which of them make the row unusable, what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of finding."""

    title: str
    """What it is called in reports."""
    remedy: str
    bad: bool = True
    """Whether the row cannot be used as it is; the other findings are worth knowing."""
    once: bool = False
    """Whether it lies in how a file is written: each reason is told once, with the number of its rows."""


KINDS: dict[str, Kind] = {
    "broken_json": Kind("broken JSON", "repair the row, or fetch the file again"),
    "form": Kind("not understood", "write the row in one of the known forms"),
    "role": Kind("unknown role", "use human/gpt, user/assistant or system"),
    "order": Kind("turns do not alternate", "let user and assistant speak in turn, the assistant last"),
    "empty_answer": Kind("empty answer", "write an answer, or drop the turn"),
    "image_count": Kind("more or fewer <image> than images", "write one <image> for each image"),
    "image_word": Kind("place of an image in other words", "write <image> where an image belongs"),
    "image_key": Kind("image under a key that is not read", "call the key image, or images", once=True),
    "image_in_answer": Kind("image in an answer", "let a question show it, or drop the row"),
    "image_missing": Kind("image missing", "put the file in its place, or correct the path"),
    "image_outside": Kind("path leaves the folder of images", "write the path relative to the folder"),
    "image_unreadable": Kind("image cannot be read", "replace the file, or drop the row"),
    "image_bomb": Kind("image too large", "scale it down"),
    "question_lost": Kind(
        "question that the template leaves out", "use the template of a chat, or captions of one image"
    ),
    "no_target": Kind("nothing left to learn", "raise batch.max_length, or shorten the row"),
    "image_cut": Kind("an image beyond max_length", "raise batch.max_length, or use fewer images"),
    "too_long": Kind("cut at max_length", "raise batch.max_length, or shorten the row", bad=False),
    "image_in_front": Kind("images without <image>, put in front", "write <image> where they belong", bad=False),
    "image_word_read": Kind("word for an image in the text", "nothing, if it is meant: it is read as text", bad=False),
    "key": Kind("key that is not read", "nothing, if the row can do without; or rename it", bad=False, once=True),
    "assistant_first": Kind("begins with the assistant", "nothing: it is read from the first question on", bad=False),
    "image_extension": Kind("extension that lies", "rename the file after what it is", bad=False),
    "image_turned": Kind("turned by EXIF", "nothing: it is shown upright", bad=False),
    "image_tiny": Kind("tiny image", "check that it is the right file", bad=False),
    "control_token": Kind("control token in the text", "nothing: it is read as plain text", bad=False),
    "duplicate": Kind("the same row again", "drop it, unless it is meant", bad=False),
    "other": Kind("cannot be used", "see the reason"),
}
"""Key of a kind -> the kind. A `DataError` carries such a key as its `kind`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found in one row."""

    kind: str
    """A key of KINDS."""
    reason: str
    """One line, without file and row."""
    rows: int = 1
    """In how many rows of the file it was found, where it is told once."""

    @property
    def bad(self) -> bool:
        return KINDS[self.kind].bad
