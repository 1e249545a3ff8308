"""The tokenizer of a folder -> the same ids without the Python file that came with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from sightline.errors import ModelError
from sightline.model.sentencepiece import CONTROL, USER_DEFINED, SentencePiece, read_sentencepiece, to_tokenizer

ALONGSIDE = ("generation_config.json", "tokenizer.model", "LICENSE", "LICENSE.txt")
"""Files that are carried over as they are, where they are there."""

OWN = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
"""Those of InternLM, where tokenizer_config.json names none."""


def carry_tokenizer(source: Path, out: Path, *, keep: bool) -> None:
    """Write the tokenizer of `source` to `out`: as it is (`keep`), or rebuilt from tokenizer.json or tokenizer.model.

    Raises ModelError where there is neither.
    """
    for name in (*ALONGSIDE, *(OWN if keep else ())):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    if not keep:
        rebuilt(source).save_pretrained(out)


def rebuilt(source: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of an InternLM folder, whose tokenizer_config.json names a class that comes as a program."""
    settings = _json(source / "tokenizer_config.json")
    noted = {int(number): entry for number, entry in settings.get("added_tokens_decoder", {}).items()}
    if (source / "tokenizer.json").is_file():
        backend = Tokenizer.from_file(str(source / "tokenizer.json"))
    elif (source / "tokenizer.model").is_file():
        backend = to_tokenizer(_named(read_sentencepiece(source / "tokenizer.model"), noted))
    else:
        raise ModelError(f"{source} has no tokenizer (tokenizer.json or tokenizer.model)")
    for number, entry in sorted(noted.items()):
        token = AddedToken(
            entry["content"],
            special=entry.get("special", True),
            **{key: entry.get(key, False) for key in ("lstrip", "rstrip", "single_word", "normalized")},
        )
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != number:
            raise ModelError(f"{source / 'tokenizer_config.json'} puts {token.content} at {number}, where another is")
    special = {key: _content(settings.get(key)) or default for key, default in SPECIAL.items()}
    if settings.get("add_bos_token", True):
        bos = special["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B:1",
            special_tokens=[(bos, backend.token_to_id(bos))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, padding_side="left", **special
    )
    if template := settings.get("chat_template"):
        tokenizer.chat_template = template
    return tokenizer


def _named(model: SentencePiece, noted: dict[int, dict[str, Any]]) -> SentencePiece:
    """Pieces under the names that the folder gives them: InternLM2 calls unused ones <|im_start|> and the like."""
    pieces = list(model.pieces)
    for number, entry in noted.items():
        if number < len(pieces) and pieces[number].text != entry["content"]:
            kind = CONTROL if entry.get("special", True) else USER_DEFINED
            pieces[number] = replace(pieces[number], text=entry["content"], kind=kind)
    return replace(model, pieces=tuple(pieces))


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error})") from error
    return content
