"""A model's answer to a multiple-choice question -> the letter of the option that it names, or None.

A letter counts where it is said as a letter: alone, at the start or the end, in brackets, or after words like "the
answer is". The article in "A red square", the letters of "CAT" and the C of an option "Vitamin C" are none. Without a
letter, the text of exactly one option counts. What can be read in two ways, or denies something, is not understood.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

_AROUND = " \t\r\n.,;:!?\"'`*()[]{}<>$#。、\u200b\ufeff"
_LETTER = re.compile(
    r"(?<![A-Za-z0-9_+#-])(?<!\b[A-Z]\.)([A-Z])(?![A-Za-z0-9_+#-])(?!['\u2019][a-z])(?!\.[A-Z]\b)", re.ASCII
)
"""One that is no part of a word, "X-ray", "C++", "I'm" or "U.S."."""
_WORD_NEXT = re.compile(r" +(?!(?:is|because|since|as|and|or|due)\b)[A-Za-z]{2}")
"""After "A" or "I": they are an article and a pronoun here. Not so in "A is right", "A or B"."""
_SAID = re.compile(
    r"(?:\b(?:answer|option|choice|letter|choose|select|pick)|答案|选项|选择|选)"
    r"(?: +(?:is|would be|should be)\b|应该是|应为|是|为)?[\s:\"'`*(\[{$]*"
    r"(?:(?:option|choice|letter) +)?[\s\"'`*(\[{$]*$",
    re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(
    r"(?:(?:\b(?:not|never|wrong|incorrect)|n['\u2019]t)\s+(?:\w+\s+){0,2}|[不别].{0,3})$", re.IGNORECASE
)
_REFUSED_BEFORE = re.compile(
    r"(?:\b(?:not|rather than|instead of)|n['\u2019]t)(?: +be)?(?: +(?:option|choice|letter))?[\s\"'`*(\[{]*$",
    re.IGNORECASE,
)
"""Before a letter that an answer sets apart from its own: "C, not D"."""
_FIRST = re.compile(r"[\s\"'`*(\[{]*([A-Z])[.)\]]+\s+(?=[A-Za-z]{2})")
"""A letter with which an answer begins, and a sentence behind it."""
_FAILURES = ("failed to obtain answer via api",)
"""What evaluation toolkits write down as the answer of an endpoint that gave none."""
_NAMED_BEFORE = re.compile(r"\b(?:option|choice|letter)[\s\"'*(]*$", re.IGNORECASE)
_ITEM = re.compile(r"(?<![A-Za-z0-9])([A-Z])(?:\s*[.:,)\]}*\u2013\u2014-]+\s*|[^\S\n]*\n\s*)(?=\S)")
_HEAD = re.compile(r"[\s\"'`*(\[{]*" + _ITEM.pattern)
_DENIES = re.compile(
    r"\b(?:no|not|never|neither|nor|none|cannot|wrong|incorrect)\b|n['\u2019]t\b|[不没非错]", re.IGNORECASE
)
_SHORT = 40
"""Characters of an answer that is surely no long explanation in which the text of an option turns up by chance."""
_NEAR = 160
"""Characters before a letter that are looked at: with all of them, an endless "A A A" would take minutes."""
_LONGEST = 20_000
"""Characters of an answer; of a longer one, which no question asks for, the middle is left out."""
_ARTICLE = re.compile(r"^(?:an?|the)\s+(?=\S)")


def option_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter among `options` (letter -> text) that an answer names, or None where it names none or several."""
    if len(answer) > _LONGEST:
        answer = f"{answer[: _LONGEST // 2]}\n{answer[-_LONGEST // 2 :]}"
    text = unicodedata.normalize("NFKC", answer).strip()
    bare = text.strip(_AROUND)
    if bare in options:
        return bare
    if text.casefold().startswith(_FAILURES):
        return None
    keys = {letter: _key(option) for letter, option in options.items()}
    for same in (
        [letter for letter, option in options.items() if option.strip() == answer.strip()],
        [letter for letter, key in keys.items() if key == _key(text)],
    ):
        if same:
            return same[0] if len(same) == 1 else None

    head = _HEAD.match(text)
    if head and _listed(text, keys) == {head[1]}:
        return head[1]
    named, rest = _options_in(text, keys)
    denies = bool(_DENIES.search(rest))
    shown = _hide(text, options)
    letters = [found for found in _LETTER.finditer(shown) if found[1] in options and not _is_word(shown, found)]
    return _of_letters(shown, letters, denies) if letters else _of_texts(text, keys, named, denies)


def _of_letters(text: str, letters: list[re.Match[str]], denies: bool) -> str | None:
    said = [found for found in letters if _is_said(_before(text, found))]
    if said:
        # "A looks good at first. The answer is B": what was weighed before does not count, what follows does.
        letters = [found for found in letters if found.start() >= said[0].start()]
        letters = [found for found in letters if not _REFUSED_BEFORE.search(_before(text, found))]
    elif (first := _FIRST.match(text)) and not denies and len({found[1] for found in _ITEM.finditer(text)}) == 1:
        # "A. But B is also fine": the letter that was given, and a remark.
        letters = [found for found in letters if found.start() == first.start(1)]
    elif (denies and not _HEAD.match(text)) or not any(_stands_out(text, found) for found in letters):
        return None
    distinct = {found[1] for found in letters}
    return distinct.pop() if len(distinct) == 1 else None


def _of_texts(text: str, keys: Mapping[str, str], named: list[str], denies: bool) -> str | None:
    if len(named) != 1:
        return None
    if _key(re.split(r"[.,;:\n。]", text, maxsplit=1)[0]) == keys[named[0]]:
        return named[0]
    too_long = len(text) > max(_SHORT, 2 * sum(map(len, keys.values())))
    return None if denies or too_long else named[0]


def _before(text: str, found: re.Match[str]) -> str:
    return text[max(0, found.start() - _NEAR) : found.start()]


def _is_word(text: str, found: re.Match[str]) -> bool:
    named = _NAMED_BEFORE.search(_before(text, found))
    return found[1] in "AI" and named is None and _WORD_NEXT.match(text, found.end()) is not None


def _is_said(before: str) -> bool:
    said = _SAID.search(before)
    return said is not None and not _DENIED_BEFORE.search(before[: said.start()])


def _stands_out(text: str, found: re.Match[str]) -> bool:
    before, after = text[: found.start()], text[found.end() :]
    at_an_end = not before.strip(_AROUND + "-") or not after.strip(_AROUND)
    return at_an_end or before[-1] in "([{*\"'`$" or bool(re.match(r" (?:is|because)\b", after))


def _options_in(text: str, keys: Mapping[str, str]) -> tuple[list[str], str]:
    """The options whose texts occur as whole words, longer ones first, and what is left of the answer without them."""
    rest = " ".join(text.casefold().split())
    named = []
    for key in sorted(keys.values(), key=len, reverse=True):
        if key in ("", "a", "an", "the", "i"):
            continue
        rest, times = _words(key).subn(" ", rest)
        if times:
            named += [other for other, same in keys.items() if same == key]
    return named, rest


def _hide(text: str, options: Mapping[str, str]) -> str:
    """The answer with option texts in lower case, so that the C of "Vitamin C" is not taken for a choice."""
    for option in options.values():
        option = unicodedata.normalize("NFKC", option).strip()
        if len(_key(option)) > 1:
            text = text.replace(option, option.lower())
    return text


def _listed(text: str, keys: Mapping[str, str]) -> set[str]:
    """The options that stand in the answer as in the question: "B. green". An answer may repeat them all."""
    listed = [found for found in _ITEM.finditer(text) if found[1] in keys]
    room = 1000 + 4 * max(map(len, keys.values()), default=0)
    return {found[1] for found in listed if _begins_with(_key(text[found.end() : found.end() + room]), keys[found[1]])}


def _begins_with(text: str, key: str) -> bool:
    return bool(key and _words(key).match(text))


def _words(key: str) -> re.Pattern[str]:
    """Finds a text where it is no part of a longer word or number; Chinese has no such borders."""
    before = r"(?<![a-z0-9])(?<!\d[.,])" if key[0].isascii() and key[0].isalnum() else ""
    after = r"(?![a-z0-9])(?![.,]\d)" if key[-1].isascii() and key[-1].isalnum() else ""
    return re.compile(before + re.escape(key) + after)


def _key(text: str) -> str:
    """What two spellings of an option have in common: no case, no article, no marks around it."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _ARTICLE.sub("", text.strip(_AROUND)) or text
