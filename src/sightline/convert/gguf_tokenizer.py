"""A tokenizer and its prompt template -> the keys of a GGUF file from which llama.cpp makes the same ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sightline.errors import ModelError
from sightline.prompt.prompter import Prompter
from sightline.prompt.render import to_jinja
from sightline.prompt.templates import BOS
from sightline.types import IMAGE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's types of tokens."""

IMAGE_MARKS = ("<__media", "__>")
"""How the text begins and ends that llama.cpp puts in the place of an image, before it renders the chat template."""

PHI_3 = {"<unk>", "<s>", "<|endoftext|>"}
"""The tokens of Phi-3 that leave the white space behind them alone."""

NEVER = -1e9
"""The score of a token that no merge makes."""

_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{s}"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{s}|"
)
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PRE = {
    "gpt-2": (None, False),
    "smollm": ("digits", False),
    "smaug-bpe": (_WORD + r"\p{N}{1,3}" + _REST, False),
    "llama-bpe": (_WORD + r"\p{N}{1,3}" + _REST, True),
    "qwen2": (_WORD + r"\p{N}" + _REST, False),
    "tekken": (_CASED.replace("{s}", "") + r"\p{N}" + _SLASH, True),
    "gpt-4o": (_CASED.replace("{s}", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?") + r"\p{N}{1,3}" + _SLASH, False),
}
"""llama.cpp's names for ways to split a text into words, by the pattern in tokenizer.json (None: GPT-2's, which
`tokenizers` has built in), and whether a word that is a token is taken as it is, without merging."""


def tokenizer_keys(prompter: Prompter, rows: int) -> dict[str, Any]:
    """All keys of `tokenizer.*`; `rows` are those of the embeddings, which may be more than there are tokens.

    Raises ModelError for a tokenizer that llama.cpp cannot imitate.
    """
    tokenizer = prompter.tokenizer
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    if made["model"]["type"] != "BPE":
        raise ModelError(f"a tokenizer of the kind {made['model']['type']} cannot be written as GGUF, only BPE")
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in made["model"]["merges"]]
    byte_level = any(step["type"] == "ByteLevel" for step in _steps(made["pre_tokenizer"]))
    tokens, types = _tokens(tokenizer, rows, spelled=not byte_level)
    keys: dict[str, Any] = {"tokens": tokens, "token_type": types}
    if byte_level:
        keys |= {"model": "gpt2", "pre": _pre(made), "merges": [" ".join(pair) for pair in merges]}
    else:
        keys |= {
            "model": "llama",
            "pre": "default",
            "add_space_prefix": _prefix(made),
            "scores": _scores(tokens, merges),
        }
    keys = {f"tokenizer.ggml.{key}": value for key, value in {**keys, **_special(prompter)}.items()}
    template = to_jinja(
        prompter.template, bos=tokenizer.bos_token or "", eos=tokenizer.eos_token or "", marks=IMAGE_MARKS
    )
    return {**keys, "tokenizer.chat_template": template}


def rstrips(tokenizer: Any) -> bool:
    """Whether its tokens swallow the white space behind them, as Phi-3's do.

    llama.cpp learns this from a name with `phi-3` in it, and then does it for all but a few. Raises ModelError for
    other sets of such tokens.
    """
    added = tokenizer.added_tokens_decoder.values()
    if odd := [str(token) for token in added if token.lstrip or token.single_word]:
        raise ModelError(f"the token {odd[0]} looks at what stands around it, which cannot be written as GGUF")
    if not any(token.rstrip for token in added):
        return False
    others = {str(token) for token in added if not token.rstrip} - {IMAGE, tokenizer.pad_token}
    if others <= PHI_3 and {"</s>", *PHI_3} <= set(tokenizer.get_vocab()):
        return True
    raise ModelError("some of its tokens swallow the white space behind them, which llama.cpp does for Phi-3's alone")


def _steps(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one after the other."""
    if part is None:
        return
    inner = part.get("pretokenizers", part.get("normalizers"))
    if inner is None:
        yield part
    else:
        for step in inner:
            yield from _steps(step)


def _pre(made: dict[str, Any]) -> str:
    """The name of the way in which a byte-level tokenizer splits a text."""
    if odd := [step["type"] for step in _steps(made["normalizer"]) if step["type"] != "NFC"]:
        raise ModelError(f"the tokenizer changes texts by {odd[0]} before it splits them, which llama.cpp does not do")
    steps = list(_steps(made["pre_tokenizer"]))
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    digits = [step for step in steps if step["type"] == "Digits" and step["individual_digits"]]
    bytes_ = steps[-1]
    found: str | None = "?"
    if bytes_["type"] == "ByteLevel" and not bytes_["add_prefix_space"]:
        if len(steps) == 1 and bytes_["use_regex"]:
            found = None
        elif len(steps) == 2 and digits and bytes_["use_regex"]:
            found = "digits"
        elif len(steps) == 2 and patterns and not bytes_["use_regex"]:
            found = patterns[0]
    for name, (pattern, whole) in PRE.items():
        if pattern == found and whole == bool(made["model"].get("ignore_merges")):
            return name
    shown = found if patterns else " + ".join(step["type"] for step in steps)
    raise ModelError(f"the tokenizer splits texts in a way that llama.cpp has no known name for: {shown}")


def _prefix(made: dict[str, Any]) -> bool:
    """Whether a space is put before each text; raises ModelError where it is not one of SentencePiece's kind."""
    steps = [*_steps(made["normalizer"]), *_steps(made["pre_tokenizer"])]
    kinds = {step["type"] for step in steps}
    spells = any(step["type"] == "Metaspace" or step.get("content") == "▁" for step in steps)
    if not spells or kinds - {"Metaspace", "Prepend", "Replace", "Split"} or not made["model"]["byte_fallback"]:
        raise ModelError(
            "the tokenizer is neither byte-level nor of SentencePiece's kind with bytes, so llama.cpp cannot imitate it"
        )
    return any(step["type"] == "Prepend" or step.get("prepend_scheme") == "always" for step in steps)


def _tokens(tokenizer: Any, rows: int, *, spelled: bool) -> tuple[list[str], list[int]]:
    """The text and the type of each row of the embeddings; `spelled`: with ▁ for a space and <0x..> for a byte."""
    vocabulary = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(vocabulary) >= rows:
        raise ModelError(f"the tokenizer has a token {max(vocabulary)}, but there are {rows} rows of embeddings")
    tokens = [vocabulary.get(number, f"[PAD{number}]") for number in range(rows)]
    types = [NORMAL if number in vocabulary else UNUSED for number in range(rows)]
    for number, token in tokenizer.added_tokens_decoder.items():
        types[number] = CONTROL if token.special else USER_DEFINED
        # These are looked for in the text as people wrote it.
        tokens[number] = str(token).replace("▁", " ") if spelled and token.normalized else str(token)
    if spelled:
        for byte in range(256):
            # A vocabulary with bytes has all of them, or it would not come this far.
            types[tokenizer.get_vocab()[f"<0x{byte:02X}>"]] = BYTE
        if tokenizer.unk_token_id is not None:
            types[tokenizer.unk_token_id] = UNKNOWN
    return tokens, types


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """llama.cpp joins the pair whose token has the highest score: so merges that come first get the highest."""
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(merges):
        rank.setdefault(left + right, number)
    return [-float(rank[token]) if token in rank else NEVER for token in tokens]


def _special(prompter: Prompter) -> dict[str, Any]:
    tokenizer = prompter.tokenizer
    ends = [number for number in prompter.stop[0] if number != tokenizer.eos_token_id]
    numbers = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "eot_token_id": next(iter(ends), None),
        "eom_token_id": next(iter(ends[1:]), None),
        "unknown_token_id": tokenizer.unk_token_id,
        "padding_token_id": tokenizer.pad_token_id,
    }
    bos = tokenizer.bos_token
    begins = bos is not None and prompter.template.begin.replace(BOS, bos).startswith(bos)
    known = {key: int(number) for key, number in numbers.items() if number is not None}
    return {**known, "add_bos_token": begins, "add_eos_token": False}
