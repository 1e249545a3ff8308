"""A usable row -> what a report shows of it: its pictures, and its text in pieces that are painted differently."""

from __future__ import annotations

from sightline.data.checked import GoodRow, Paint
from sightline.prompt.paint import GREEN
from sightline.prompt.prompter import Prompter
from sightline.types import IMAGE, Conversation, Encoded, Text

PAINTS: dict[str, Paint] = {GREEN: "target", "dim": "text"}
"""How `Prompter.explain` paints -> what it means; all else is an image."""


def good_row(conversation: Conversation, prompter: Prompter | None, encoded: Encoded | None) -> GoodRow:
    """A row as the model sees it or, without a prompter, as it was understood."""
    if prompter is None or encoded is None:
        return GoodRow(conversation.origin, conversation.images, _as_understood(conversation), 0, 0)
    text = prompter.explain(encoded)
    pieces = tuple((text.plain[span.start : span.end], PAINTS.get(str(span.style), "image")) for span in text.spans)
    return GoodRow(conversation.origin, conversation.images, pieces, len(encoded.ids), encoded.num_targets)


def _as_understood(conversation: Conversation) -> tuple[tuple[str, Paint], ...]:
    pieces: list[tuple[str, Paint]] = []
    for message in conversation.messages:
        said: Paint = "target" if message.role == "assistant" else "text"
        pieces.append((f"{message.role}: ", "role"))
        pieces += [(part.text, said) if isinstance(part, Text) else (IMAGE, "image") for part in message.content]
        pieces.append(("\n", "text"))
    return tuple(pieces)
