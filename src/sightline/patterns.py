"""A regular expression that a stranger wrote -> why a text could keep an engine that backtracks busy for ages."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator

from sightline.pattern_tree import Chars, Choice, Node, Repeat, Row, TooDeep, read_pattern

LONGEST = 20_000
"""Characters; the patterns by which tokenizers split have a few hundred."""

_STEPS = 200_000
"""Of the search for two ways through a repeated group; it has the square of the group's characters as places."""
_COPIES = 8
"""What may be repeated more often counts as what may be repeated for ever."""
_MANY = 100
"""Characters; what takes as many of a kind counts as a repeat without end."""
_LOOP, _HEAVY = 4, 16
"""Four repeats of the same characters, one behind the other, take the fourth power of a text's length. What may be
there or not weighs a quarter of a repeat."""


class _Slow(Exception):
    pass


def slow(pattern: str) -> str | None:
    """Why a pattern can take time that grows exponentially, or by a high power, with a text; None where it cannot.

    It errs on the side of caution, and is not asked whether the pattern is one.
    """
    if len(pattern) > LONGEST:
        return f"it has {len(pattern):,} characters"
    try:
        for tree in read_pattern(pattern):
            for loop in _loops(tree):
                if _Places(loop).are_ambiguous():
                    return "a group that is repeated can take one text in several ways"
            _Chains(tree)
    except TooDeep:
        return "its groups are nested too deeply"
    except _Slow as reason:
        return str(reason)
    return None


def _loops(node: Node) -> Iterator[Node]:
    """What is repeated for ever, or often, and is itself no part of something that is."""
    match node:
        case Repeat(part, _, most):
            if most is None or most > _COPIES:
                yield part
            else:
                yield from _loops(part)
        case Row(parts) | Choice(parts):
            for part in parts:
                yield from _loops(part)


class _Places:
    """The characters of a group that is repeated, and which may follow which (Glushkov's automaton)."""

    def __init__(self, loop: Node) -> None:
        self.bits: list[int] = []
        self.after: list[set[int]] = []
        self.twice = False
        """Whether one place may follow another in two ways, as in (a+)+."""
        self.left = _STEPS
        _, first, last = self._enter(loop)
        self._join(last, first)

    def are_ambiguous(self) -> bool:
        """Whether two ways lead from one place to one place by the same text: then n rounds have 2**n ways."""
        if self.twice:
            return True
        apart = {pair for after in self.after for pair in self._pairs(after, after)}
        todo = list(apart)
        while todo:
            one, other = todo.pop()
            if self.after[one] & self.after[other]:
                return True
            new = set(self._pairs(self.after[one], self.after[other])) - apart
            apart |= new
            todo.extend(new)
        return False

    def _pairs(self, some: set[int], others: set[int]) -> Iterator[tuple[int, int]]:
        """Two different places that a character leads to, one each."""
        self._spend(len(some) * len(others))
        for one in some:
            for other in others:
                if one != other and self.bits[one] & self.bits[other]:
                    yield min(one, other), max(one, other)

    def _enter(self, node: Node) -> tuple[bool, set[int], set[int]]:
        """Whether it may be empty, its first and its last places."""
        match node:
            case Chars(bits):
                self._spend(10)
                self.bits.append(bits)
                self.after.append(set())
                here = {len(self.bits) - 1}
                return False, here, here
            case Choice(parts):
                entered = [self._enter(part) for part in parts]
                empty = any(each[0] for each in entered)
                return empty, set().union(*(each[1] for each in entered)), set().union(*(each[2] for each in entered))
            case Row(parts):
                return self._row(self._enter(part) for part in parts)
            case Repeat(part, least, most):
                if most is None or most > _COPIES:
                    empty, first, last = self._enter(part)
                    self._join(last, first)
                    return empty or not least, first, last
                copies = (self._enter(part) for _ in range(most))
                return self._row((one[0] or at >= least, one[1], one[2]) for at, one in enumerate(copies))
        raise AssertionError(node)

    def _row(self, parts: Iterator[tuple[bool, set[int], set[int]]]) -> tuple[bool, set[int], set[int]]:
        all_empty, first, last = True, set[int](), set[int]()
        for empty, begins, ends in parts:
            self._join(last, begins)
            first = first | begins if all_empty else first
            last = last | ends if empty else ends
            all_empty &= empty
        return all_empty, first, last

    def _join(self, last: set[int], first: set[int]) -> None:
        self._spend(len(last) * len(first))
        for place in last:
            self.twice |= bool(self.after[place] & first)
            self.after[place] |= first

    def _spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise _Slow("a group that is repeated is too large to be judged")


class _Chains:
    """Repeats one behind the other that can all take one character, and how heavy they are together."""

    def __init__(self, tree: Node) -> None:
        self.left = _STEPS
        self._behind(tree, {_NONE})

    def _behind(self, node: Node, chains: set[_Chain]) -> set[_Chain]:
        """The chains that may go on behind a node: their weight, and what all of their repeats take."""
        self.left -= len(chains)
        if self.left < 0:
            raise _Slow("its repeats are nested too intricately to be judged")
        match node:
            case Chars(bits):
                return {chain for chain in chains if chain[1] & bits} | {_NONE}
            case Row(parts):
                for part in parts:
                    chains = self._behind(part, chains)
                return chains
            case Choice(parts):
                return _few(set().union(*(self._behind(part, chains) for part in parts)))
            case Repeat(part, least, most):
                found = chains if not least else set()
                weight = _LOOP if most is None or most > _MANY else 1 if (least, most) == (0, 1) else 0
                if isinstance(part, Chars) and most != least:
                    return _few(found | _longer(chains, weight or 1, part.bits))
                if weight:
                    found = found | _longer(chains, weight, _taken(part))
                for _ in range(min(3 if most is None else most, _HEAVY)):
                    chains = self._behind(part, chains)
                    found = _few(found | chains)
                return found
        raise AssertionError(node)


_Chain = tuple[int, int]
_NONE: _Chain = (0, -1)


def _longer(chains: set[_Chain], weight: int, bits: int) -> set[_Chain]:
    longer = {(before + weight, common & bits) for before, common in chains if common & bits}
    if max(longer, default=_NONE)[0] >= _HEAVY:
        raise _Slow("many repeats, one behind the other, take the same characters")
    return longer | {_NONE, (weight, bits)}


def _few(chains: set[_Chain]) -> set[_Chain]:
    return set(sorted(chains, reverse=True)[:32]) | {_NONE}


def _taken(node: Node) -> int:
    """All characters that a node may take."""
    match node:
        case Chars(bits):
            return bits
        case Row(parts) | Choice(parts):
            return functools.reduce(operator.or_, map(_taken, parts), 0)
        case Repeat(part):
            return _taken(part)
    raise AssertionError(node)
