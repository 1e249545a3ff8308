"""The names of a recipe's models -> a model of their shape on the meta device, without weights or a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from sightline.errors import ModelError, shown
from sightline.model.foreign import open_config
from sightline.model.llm import check_llm, readable_llm
from sightline.model.next import NEXT, make_tiles
from sightline.model.projector import new_projector
from sightline.model.reading import WHOLE, model_folder, quiet, reading
from sightline.model.vision import checked_tower, select_strategy, tokens_per_image
from sightline.recipe import ModelRecipe

SHIPPED = Path(__file__).with_name("estimate_models.json")
"""What the published configurations say of sizes, so that a plan needs neither weights nor a network."""

NEW_TOKENS = 2
"""`<image>`, and a padding token where there is none."""


@dataclass(frozen=True)
class Blank:
    """A model whose tensors have shapes and no contents."""

    model: LlavaForConditionalGeneration
    tokens_per_image: int
    """Image tokens of a picture; of LLaVA-NeXT, where that depends on its shape, the most."""
    tiles_per_image: int
    """Runs of the vision tower for a picture; of LLaVA-NeXT the most."""


@cache
def shipped() -> dict[str, dict[str, dict[str, Any]]]:
    """kind (llm, vision_tower, whole) -> name -> entry."""
    table = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return {kind: {name: entry for entry in entries for name in entry["names"]} for kind, entries in table.items()}


def blank_model(spec: ModelRecipe, *, layers: int | None = None) -> Blank:
    """The model that a recipe would assemble; raises ModelError for a name whose configuration is not at hand.

    `layers`: only so many of the language model.
    """
    llm, tower, grids = model_parts(spec)
    if layers is not None:
        llm.num_hidden_layers = layers
        if getattr(llm, "layer_types", None):
            llm.layer_types = llm.layer_types[:layers]
    config = LlavaConfig(
        text_config=llm.to_dict(),
        vision_config=tower.to_dict(),
        image_token_index=llm.vocab_size - 1,
        vision_feature_layer=spec.vision_feature_layer,
        vision_feature_select_strategy=select_strategy(tower),
        tie_word_embeddings=bool(llm.tie_word_embeddings),
    )
    config.image_seq_length = tokens = tokens_per_image(config)
    with quiet(), torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
        model.model.multi_modal_projector = new_projector(config, spec.projector_depth)
    if grids is None:
        return Blank(model, tokens, 1)
    tiles = make_tiles(tower, tokens, grids or None)
    # All that LLaVA-NeXT has beyond LLaVA; its tiles are pictures to the vision tower.
    model.model.image_newline = torch.nn.Parameter(torch.empty(llm.hidden_size, device="meta"))
    return Blank(model, tiles.most_tokens, 1 + max(high * wide for high, wide in tiles.grids) // tiles.side**2)


def model_parts(spec: ModelRecipe) -> tuple[Any, Any, list[Any] | None]:
    """Language model, vision tower, and the grids of LLaVA-NeXT: none given, or no NeXT at all (None)."""
    grids = list(spec.grid_pinpoints or []) if spec.next or spec.grid_pinpoints else None
    layer = spec.vision_feature_layer
    if spec.from_model is None:
        assert spec.llm is not None and spec.vision_tower is not None
        return _language_model(spec.llm), _vision_tower(spec.vision_tower, layer), grids
    known = shipped()["whole"].get(spec.from_model)
    if known and not Path(spec.from_model).is_dir():
        grids = grids or [] if known.get("next") else grids
        return _language_model(known["llm"]), _vision_tower(known["vision_tower"], layer), grids
    config = open_config(model_folder(spec.from_model))
    if config.model_type not in WHOLE:
        raise ModelError(
            f"model.from_model: {spec.from_model} is {shown(config.model_type)}, not a LLaVA or LLaVA-NeXT"
        )
    if config.model_type == NEXT:
        grids = grids or list(config.image_grid_pinpoints)
    return config.text_config, config.vision_config, grids


def _language_model(name: str) -> Any:
    if (entry := _entry("llm", name)) is not None:
        config, added = AutoConfig.for_model(**entry["config"]), NEW_TOKENS if entry.get("no_free_rows") else 0
    else:
        with _at_hand("llm", name):
            place = readable_llm(name)
            config = open_config(place)
        check_llm(config, name)
        added = _added_tokens(place, config.vocab_size)
    if added:  # as assembling does, in rows of 64
        config.vocab_size = -(-(config.vocab_size + added) // 64) * 64
    return config


def _vision_tower(name: str, layer: int) -> Any:
    if (entry := _entry("vision_tower", name)) is not None:
        config = AutoConfig.for_model(**entry["config"])
    else:
        with _at_hand("vision_tower", name):
            config = open_config(name)
    return checked_tower(config, name, layer)


def _entry(kind: str, name: str) -> dict[str, Any] | None:
    """What is shipped of a name; None where a folder is called so, or nothing is."""
    return None if Path(name).is_dir() else shipped()[kind].get(name)


@contextmanager
def _at_hand(kind: str, name: str) -> Iterator[None]:
    """Read the configuration of a folder, or what the hub or its cache has."""
    try:
        yield
    except ModelError as error:
        hint = "" if Path(name).is_dir() else f"; Sightline ships the sizes of {_some(kind)}"
        raise ModelError(f"model.{kind}: {str(error).rstrip('.')}{hint}") from error


def _added_tokens(name: str, rows: int) -> int:
    """Rows that the new tokens need beyond those of the embeddings."""
    file = Path(name) / "tokenizer.json"
    if not file.is_file():
        return NEW_TOKENS
    with reading(name):
        content = json.loads(file.read_text(encoding="utf-8"))
        ids = [token["id"] for token in content.get("added_tokens", [])]
        taken = max([len(content["model"].get("vocab", [])), *(number + 1 for number in ids)])
        return int(max(0, taken + NEW_TOKENS - rows))


def _some(kind: str) -> str:
    names = list(shipped()[kind])
    return f"{len(names)} others, such as {names[0]}"
