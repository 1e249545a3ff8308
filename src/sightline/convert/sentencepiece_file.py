"""A tokenizer.model, which many programs read instead of tokenizer.json -> beside a converted model's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sightline.convert.source import Source
from sightline.model.save import write_json
from sightline.model.tokenizer_model import FILE, find_tokenizer_model
from sightline.runtime import say


def carry_sentencepiece(source: Source, folder: Path) -> None:
    """Copy the file where it is at hand and has the same tokens, and have the settings of the tokenizer name its class.

    Says so where a tokenizer of this kind has none: LLaVA's own programs then read tokenizer.json.
    """
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    file = find_tokenizer_model(source.prompter.tokenizer, source.path, (source.parts or {}).get("llm"))
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
