"""Embeddings and tokenizers with and without what Sightline adds to a language model: `<image>`, and a padding token.

Most formats have no token for a picture. What comes from them gets rows as assembling would give them; what goes there
loses those rows and tokens again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sightline.convert.source import Source
from sightline.convert.tensors import Stored
from sightline.errors import ModelError
from sightline.model.assemble import PAD
from sightline.model.foreign import open_fast_tokenizer, open_tokenizer, try_tokenizer
from sightline.model.llama_tokenizer import rebuilt
from sightline.model.llm import rows_for
from sightline.model.save import write_json
from sightline.prompt.prompter import Prompter
from sightline.types import IMAGE

EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder as its files have it, whatever class its settings name.

    A tokenizer.model alone gets the ids of the package sentencepiece, which is not needed for it. Raises
    ModelError where there is none.
    """
    if (folder / "tokenizer.json").is_file():
        return open_fast_tokenizer(folder)
    if (folder / "vocab.json").is_file():
        return open_tokenizer(folder)
    if not (folder / "tokenizer.model").is_file():
        raise ModelError(f"{folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy it again")
    tokenizer = rebuilt(folder)
    settings = folder / "tokenizer_config.json"
    if not settings.is_file() or not json.loads(settings.read_text(encoding="utf-8")).get("pad_token"):
        tokenizer.pad_token = None
    try_tokenizer(tokenizer, folder)
    return tokenizer


def with_room(
    tensors: Mapping[str, Stored], tokens: int, names: Collection[str] = (EMBEDDING, HEAD)
) -> dict[str, Stored]:
    """Embeddings and head with rows for so many tokens; new rows are the mean of the old ones, as in assembling."""
    result = dict(tensors)
    for name in names:
        if name in tensors:
            old, *width = tensors[name].shape
            rows = rows_for(tokens, old)
            if rows != old:
                result[name] = tensors[name].then(partial(_grown, rows=rows), (rows, *width))
    return result


def _grown(weight: torch.Tensor, rows: int) -> torch.Tensor:
    # In pieces: all of a large vocabulary in float32 would be the most memory that a conversion takes.
    mean = torch.cat([part.float().mean(0) for part in weight.split(256, dim=1)]).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def ours(prompter: Prompter) -> list[str]:
    """The last tokens of a vocabulary, where they are `<image>` and at most a padding token added with it."""
    tokenizer, first = prompter.tokenizer, prompter.image_token_id
    last: list[str] = tokenizer.convert_ids_to_tokens(range(first, len(tokenizer)))
    return last if last in ([IMAGE], [IMAGE, PAD]) else []


def rows_of_the_base(source: Source) -> int:
    """How many rows the language model had before `<image>` was added; all of them, where it had room already."""
    prompter, rows = source.prompter, source.tensors[EMBEDDING].shape[0]
    first = prompter.image_token_id
    if not ours(prompter) or rows != rows_for(len(prompter.tokenizer), 0):
        return rows
    # A language model of a few more rows than tokens could look the same, but its own rows are not all alike.
    if first % 64:
        new = source.tensors[EMBEDDING].read()[first:]
        if not torch.equal(new, new[:1].expand_as(new)):
            return rows
    return first


def without_ours(tensors: Mapping[str, Stored], rows: int) -> dict[str, Stored]:
    """Embeddings and head with so many rows."""
    result = dict(tensors)
    for name in (EMBEDDING, HEAD):
        if name in tensors and tensors[name].shape[0] != rows:
            result[name] = tensors[name].then(lambda weight: weight[:rows].clone(), (rows, *tensors[name].shape[1:]))
    return result


def take_out_of_tokenizer(folder: Path, tokens: Collection[str]) -> None:
    """Remove the last tokens of a vocabulary from the files of a tokenizer."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in tokens]
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        kept = {key: value for key, value in settings.items() if not isinstance(value, str) or value not in tokens}
        if decoder := kept.get("added_tokens_decoder"):
            kept["added_tokens_decoder"] = {n: t for n, t in decoder.items() if t["content"] not in tokens}
        write_json(folder / name, kept)
