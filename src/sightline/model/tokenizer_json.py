"""A tokenizer.json as transformers 5 writes it -> one that older programs read, and that begins texts or leaves it."""

from __future__ import annotations

from typing import Any

ADDS_TOKENS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
"""Post-processors that put special tokens around a text."""


def plain_merges(content: dict[str, Any]) -> None:
    """Write pairs as one string: `tokenizers` before 0.20 calls all others damaged, and newer ones read both."""
    merges = content["model"].get("merges")
    if merges and not any(" " in part for pair in merges if isinstance(pair, list) for part in pair):
        content["model"]["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]


def begin_with(content: dict[str, Any], token: str | None, number: int | None) -> None:
    """Have the tokenizer put this token (None: nothing) before a text, instead of whatever it put around it."""
    old = content.get("post_processor")
    parts = old["processors"] if old and old["type"] == "Sequence" else [old] if old else []
    parts = [part for part in parts if part["type"] not in ADDS_TOKENS]
    if token is not None or not parts:  # none at all would be filled in by transformers 5
        parts.append(_beginning(token, number))
    content["post_processor"] = parts[0] if len(parts) == 1 else {"type": "Sequence", "processors": parts}


def _beginning(token: str | None, number: int | None) -> dict[str, Any]:
    text: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    special: dict[str, Any] = {}
    if token is not None:
        text.insert(0, {"SpecialToken": {"id": token, "type_id": 0}})
        special[token] = {"id": token, "ids": [number], "tokens": [token]}
    pair = [*text, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": text, "pair": pair, "special_tokens": special}
