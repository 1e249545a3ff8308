"""A tokenizer.model, which many programs read instead of tokenizer.json -> beside a converted model's tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from sightline.convert.source import Source
from sightline.errors import ModelError
from sightline.model.save import write_json
from sightline.model.sentencepiece import read_sentencepiece
from sightline.runtime import say

FILE = "tokenizer.model"


def carry_sentencepiece(source: Source, folder: Path) -> None:
    """Copy the file where it is at hand and has the same tokens, and have the settings of the tokenizer name its class.

    Says so where a tokenizer of this kind has none: LLaVA's own programs then read tokenizer.json.
    """
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    file = next((file for file in _files(source) if _is_the_same(file, source.prompter.tokenizer)), None)
    if file is None:
        if content["model"].get("byte_fallback"):
            say(f"no {FILE} is beside the tokenizer of {source.path}: programs must do with tokenizer.json")
        return
    shutil.copyfile(file, folder / FILE)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {str(token.pop("id")): token for token in content["added_tokens"]}
    # `legacy`: a space begins each piece of text, as the package sentencepiece has it.
    llama = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True}
    write_json(folder / "tokenizer_config.json", settings | llama | {"added_tokens_decoder": added})


def _files(source: Source) -> Iterator[Path]:
    """Where the tokenizer, the whole model or the language model came from."""
    for place in (source.prompter.tokenizer.name_or_path, source.path, (source.parts or {}).get("llm")):
        if not place:
            continue
        if Path(place).is_dir():
            file: Any = Path(place) / FILE
        else:
            try:
                file = try_to_load_from_cache(str(place), FILE)
            except ValueError:  # no name of the hub
                continue
        if isinstance(file, (str, Path)) and Path(file).is_file():
            yield Path(file)


def _is_the_same(file: Path, tokenizer: Any) -> bool:
    try:
        pieces = [piece.text for piece in read_sentencepiece(file).pieces]
    except ModelError:
        return False
    return len(pieces) <= len(tokenizer) and tokenizer.convert_ids_to_tokens(range(len(pieces))) == pieces
