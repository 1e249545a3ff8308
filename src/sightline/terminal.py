"""What people and models wrote -> text that cannot steer a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line, control characters as escapes: nothing that a row holds can steer the terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """The same, with its line breaks kept."""
    return "\n".join(map(printable, text.split("\n")))
