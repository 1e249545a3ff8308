"""A tokenizer -> the tokenizer.model that it was made of: sentencepiece's file, which many programs read instead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from sightline.errors import ModelError
from sightline.model.sentencepiece import read_sentencepiece

FILE = "tokenizer.model"


def find_tokenizer_model(tokenizer: Any, *places: Any) -> Path | None:
    """The first with the tokenizer's own tokens: where it came from, or in one of these folders and hub ids."""
    files = (file for place in (tokenizer.name_or_path, *places) if place for file in _file_in(place))
    return next((file for file in files if _is_the_same(file, tokenizer)), None)


def _file_in(place: Any) -> Iterator[Path]:
    if Path(place).is_dir():
        file: Any = Path(place) / FILE
    else:
        try:
            file = try_to_load_from_cache(str(place), FILE)
        except ValueError:  # no name of the hub
            return
    if isinstance(file, (str, Path)) and Path(file).is_file():
        yield Path(file)


def _is_the_same(file: Path, tokenizer: Any) -> bool:
    try:
        pieces = [piece.text for piece in read_sentencepiece(file).pieces]
    except ModelError:
        return False
    return len(pieces) <= len(tokenizer) and tokenizer.convert_ids_to_tokens(range(len(pieces))) == pieces
