"""The names of a recipe's models -> a model of their shape on the meta device, without weights or a network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from sightline.errors import ModelError
from sightline.model.next import NEXT, make_tiles
from sightline.model.projector import new_projector
from sightline.model.reading import model_folder, quiet, reading
from sightline.model.vision import select_strategy, tokens_per_image
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
        model.model.multi_modal_projector = new_projector(config, getattr(spec, "projector_depth", 2))
    if grids is None:
        return Blank(model, tokens, 1)
    tiles = make_tiles(tower, tokens, grids or None)
    # All that LLaVA-NeXT has beyond LLaVA; its tiles are pictures to the vision tower.
    model.model.image_newline = torch.nn.Parameter(torch.empty(llm.hidden_size, device="meta"))
    return Blank(model, tiles.most_tokens, 1 + max(high * wide for high, wide in tiles.grids) // tiles.side**2)


def model_parts(spec: ModelRecipe) -> tuple[Any, Any, list[Any] | None]:
    """Language model, vision tower, and the grids of LLaVA-NeXT: none given, or no NeXT at all (None)."""
    grids = list(spec.grid_pinpoints or []) if spec.next or spec.grid_pinpoints else None
    if spec.from_model is None:
        assert spec.llm is not None and spec.vision_tower is not None
        return _language_model(spec.llm), _vision_tower(spec.vision_tower), grids
    known = shipped()["whole"].get(spec.from_model)
    if known and not Path(spec.from_model).is_dir():
        grids = grids or [] if known.get("next") else grids
        return _language_model(known["llm"]), _vision_tower(known["vision_tower"]), grids
    with reading(spec.from_model), quiet():
        config = AutoConfig.from_pretrained(model_folder(spec.from_model))
    if not hasattr(config, "vision_config"):
        raise ModelError(f"{spec.from_model} is a {config.model_type!r} model, not a vision-language model")
    if config.model_type == NEXT:
        grids = grids or list(config.image_grid_pinpoints)
    return config.text_config, config.vision_config, grids


def _language_model(name: str) -> Any:
    config, entry = _configuration("llm", name)
    if entry is None:
        added = _added_tokens(name, config.vocab_size)
    else:
        added = NEW_TOKENS if entry.get("no_free_rows") else 0
    if added:  # as assembling does, in rows of 64
        config.vocab_size = -(-(config.vocab_size + added) // 64) * 64
    return config


def _vision_tower(name: str) -> Any:
    config, _ = _configuration("vision_tower", name)
    return getattr(config, "vision_config", config)


def _configuration(kind: str, name: str) -> tuple[Any, dict[str, Any] | None]:
    """A folder's own configuration, else the shipped one, else what the hub or its cache has."""
    entry = None if Path(name).is_dir() else shipped()[kind].get(name)
    if entry is not None:
        return AutoConfig.for_model(**entry["config"]), entry
    try:
        with reading(name), quiet():
            config = AutoConfig.from_pretrained(name)
    except ModelError as error:
        raise ModelError(
            f"model.{kind}: {str(error).rstrip('.')}; Sightline ships the sizes of {_some(kind)}"
        ) from error
    return config, None


def _added_tokens(name: str, rows: int) -> int:
    """Rows that the new tokens need beyond those of the embeddings."""
    file = Path(name) / "tokenizer.json"
    if not file.is_file():
        return NEW_TOKENS
    content = json.loads(file.read_text(encoding="utf-8"))
    ids = [token["id"] for token in content.get("added_tokens", [])]
    taken = max([len(content["model"].get("vocab", [])), *(number + 1 for number in ids)])
    return max(0, taken + NEW_TOKENS - rows)


def _some(kind: str) -> str:
    names = list(shipped()[kind])
    return f"{len(names)} others, such as {names[0]}"
