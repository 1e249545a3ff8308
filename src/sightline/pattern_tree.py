"""A regular expression -> a tree of the sets of characters that it takes, one behind another, chosen from or repeated.

Read is what Python, Oniguruma and fancy-regex have in common. A bit stands for each character of a sample: ASCII, some
others, those of the pattern. What is not known exactly counts as any character.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

DEEPEST = 60
"""Groups in groups; each takes some frames of Python's own stack."""

_OTHERS = "éßΩЖאم中あ한เ०٣²Ⅷ\u0301\u00a0\u2028\u200d\u00ad€…\U0001f600\ue000"
"""One or two of each script and kind beyond ASCII."""
_PLAIN = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b", "0": "\0"}
_KNOWN = {"w": re.compile(r"\w"), "d": re.compile(r"\d"), "s": re.compile(r"\s"), "h": re.compile("[0-9a-fA-F \t]")}

_COUNT = re.compile(r"[*+?]|\{(?=[\d,]*\d)(\d*)(,?)(\d*)\}")
_GROUP = re.compile(r"\?(?:<?[=!]|P?<\w*>|'\w*'|[>|]|[a-zA-Z^-]*:|[a-zA-Z^-]+(?=\)))")
_SIMPLE_SET = re.compile(r"(\^?)(\]?(?:\\.|[^]\\[])*)\]", re.DOTALL)
_OTHER_SET = re.compile(r"\^?\]?(?:\\.|[^]\\])*\]", re.DOTALL)
_MEMBER = re.compile(r"\\[xu]\{?[0-9a-fA-F]{2,8}\}?|\\[pP](?:\{[^}]*\}|\w)|\\.|.", re.DOTALL)


class TooDeep(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Chars:
    bits: int


@dataclass(frozen=True, slots=True)
class Row:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Node
    least: int
    most: int | None
    """None: for ever."""


Node = Chars | Row | Choice | Repeat
_NOTHING = Row(())


def read_pattern(text: str) -> list[Node]:
    """The tree, and one of each group that looks ahead or behind: it takes no characters where it stands."""
    reader = _Reader(text)
    parts = [reader.choice()]
    while reader.at < len(text):  # a bracket too many: whoever compiles it will say so
        reader.at += 1
        parts.append(reader.choice())
    return [Row(tuple(parts)), *reader.aside]


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0
        self.aside: list[Node] = []
        chars = dict.fromkeys([*map(chr, range(128)), *_OTHERS, *text])
        self.sample = [*dict.fromkeys(each for char in chars for each in (char, *char.lower(), *char.upper()))]
        self.bit = {char: 1 << at for at, char in enumerate(self.sample)}
        self.all = (1 << len(self.sample)) - 1
        self.folds = re.search(r"\(\?[a-z]*i", text) is not None

    def choice(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise TooDeep
        parts = [self.row()]
        while self.take("|"):
            parts.append(self.row())
        self.depth -= 1
        return parts[0] if len(parts) == 1 else _one_of(parts)

    def row(self) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.repeated(self.piece()))
        return parts[0] if len(parts) == 1 else Row(tuple(parts))

    def repeated(self, node: Node) -> Node:
        times = 0
        while found := _COUNT.match(self.text, self.at):
            low, comma, high = found.groups()
            self.at = found.end()
            if low is None:
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[0]]
            else:
                least, most = _number(low), _number(high) if high else None if comma else _number(low)
            if self.text[self.at : self.at + 1] in ("?", "+"):  # lazy, possessive
                self.at += 1
            node, times = Repeat(node, least, most), times + 1
            if times > DEEPEST:
                raise TooDeep
        return node

    def piece(self) -> Node:
        char = self.text[self.at]
        self.at += 1
        if char == "(":
            return self.group()
        if char == "[":
            return Chars(self.folded(self.set()))
        if char == "\\" and self.text[self.at : self.at + 1] in ("b", "B", "A", "z", "Z", "G", "K"):
            self.at += 1
            return _NOTHING
        if char in "^$":
            return _NOTHING
        found = _MEMBER.match(self.text, self.at - 1)
        assert found is not None
        self.at = found.end()
        return Chars(self.all if char == "." else self.folded(self.member(found[0])))

    def group(self) -> Node:
        if self.text.startswith("?#", self.at):
            end = self.text.find(")", self.at)
            self.at = len(self.text) if end < 0 else end + 1
            return _NOTHING
        found = _GROUP.match(self.text, self.at)
        self.at = found.end() if found else self.at
        node = self.choice()
        self.take(")")
        if found is None or found[0][-1] not in "=!":
            return node
        self.aside.append(node)
        return _NOTHING

    def take(self, char: str) -> bool:
        there = self.text.startswith(char, self.at)
        self.at += there
        return there

    def set(self) -> int:
        """The characters of a set, from behind its bracket on."""
        found = _SIMPLE_SET.match(self.text, self.at)
        if found is None or "&&" in found[2]:
            # Sets in sets, which Python does not have: whatever they hold.
            self.at = self.end_of_set()
            return self.all
        self.at = found.end()
        members, bits = _MEMBER.findall(found[2]), 0
        while members:
            first = members.pop(0)
            if len(members) > 1 and members[0] == "-" and len(first) == len(members[1]) == 1:
                last = members[1]
                bits |= self.where(first <= char <= last for char in self.sample)
                del members[:2]
            elif len(members) > 1 and members[0] == "-":
                return self.all  # from or to an escape
            else:
                bits |= self.member(first)
        return bits ^ self.all if found[1] else bits

    def end_of_set(self) -> int:
        depth = 1
        for found in re.compile(r"\\.|[][]", re.DOTALL).finditer(self.text, self.at):
            depth += {"[": 1, "]": -1}.get(found[0], 0)
            if not depth:
                return found.end()
        other = _OTHER_SET.match(self.text, self.at)
        return other.end() if other else len(self.text)

    def member(self, text: str) -> int:
        """The characters that one, or an escape, stands for."""
        if text[0] != "\\" or len(text) == 1:
            return self.bit[text]
        kind = text[1]
        if kind in "pP":
            return self.category(text[2:].strip("{}"), kind == "P")
        if kind.lower() in _KNOWN:
            known = _KNOWN[kind.lower()]
            return self.where(known.fullmatch(char) for char in self.sample) ^ (self.all if kind.isupper() else 0)
        if kind in "xuUkgNRX" or kind in "123456789":
            return self.all  # one that the sample may not hold, or what a group has found
        return self.bit[_PLAIN.get(kind, kind)]

    def category(self, name: str, turned: bool) -> int:
        if not re.fullmatch(r"\^?[LMNPSZC][a-z]?", name):
            return self.all  # a script or a property
        bits = self.where(unicodedata.category(char).startswith(name.lstrip("^")) for char in self.sample)
        return bits ^ self.all if turned != name.startswith("^") else bits

    def folded(self, bits: int) -> int:
        if not self.folds:
            return bits
        chars = {char.lower() for char, bit in self.bit.items() if bits & bit}
        return bits | self.where(char.lower() in chars for char in self.sample)

    @staticmethod
    def where(truths: Iterable[object]) -> int:
        return sum(1 << at for at, truth in enumerate(truths) if truth)


def _one_of(parts: list[Node]) -> Node:
    bits = 0
    for part in parts:
        if not isinstance(part, Chars) or part.bits & bits:
            return Choice(tuple(parts))
        bits |= part.bits
    return Chars(bits)


def _number(digits: str) -> int:
    return int(digits[:9] or "0")
