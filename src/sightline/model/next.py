"""A LLaVA -> a LLaVA-NeXT of the same parts, which sees pictures in tiles; and what recipes and files say of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration as Llava
from transformers import LlavaNextConfig
from transformers import LlavaNextForConditionalGeneration as LlavaNext
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from sightline.errors import ModelError
from sightline.model.projector import Found, unsound
from sightline.prompt.tiles import Tiles, as_grids, grids_of, square_grids
from sightline.recipe import ModelRecipe
from sightline.runtime import say

NEXT = "llava_next"
"""`model_type` of its configurations."""

_SHARED = (
    "image_token_index",
    "projector_hidden_act",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "multimodal_projector_bias",
    "image_seq_length",
    "tie_word_embeddings",
    "pad_token_id",
)
"""What the configurations of both say alike, besides their parts."""


def make_tiles(vision: Any, tokens_per_image: int, grids: Sequence[Sequence[int]] | None) -> Tiles:
    """Tiles for a vision tower's configuration, on these grids (height, width); None: on LLaVA-1.6's.

    Raises ModelError where a grid does not consist of whole tiles, or a tile's features are more than its patches.
    """
    side, patches = int(vision.image_size), int(vision.image_size // vision.patch_size)
    if tokens_per_image != patches**2:
        raise ModelError(
            f"LLaVA-NeXT lays {patches} x {patches} features of a tile beside those of the next one, but this vision "
            f"tower gives {tokens_per_image}, because a class token or registers are among them: choose another tower"
        )
    chosen = square_grids(side) if grids is None else as_grids(grids)
    for grid in chosen:
        if any(length < side or length % side for length in grid):
            raise ModelError(
                f"grid_pinpoints: {list(grid)} does not consist of whole tiles: the vision tower sees {side} px, so "
                f"write multiples of {side} (height, width), or leave grid_pinpoints out"
            )
    return Tiles(chosen, side, patches)


def wanted_tiles(spec: ModelRecipe, config: Any, vision: Any, tokens_per_image: int) -> Tiles | None:
    """The tiles that a recipe asks for, or its `from_model` (of that configuration) has; None: no LLaVA-NeXT."""
    of_model = getattr(config, "image_grid_pinpoints", None)
    if not spec.next and of_model is None:
        if spec.grid_pinpoints is not None:
            raise ModelError(f"model.grid_pinpoints: {spec.from_model} has no tiles; model.next=true gives it some")
        return None
    return make_tiles(vision, tokens_per_image, spec.grid_pinpoints or of_model)


def tiles_of(config: Any, tokens_per_image: int) -> Tiles | None:
    """The tiles of a model's configuration; None where it is no LLaVA-NeXT."""
    if config.model_type != NEXT:
        return None
    return make_tiles(config.vision_config, tokens_per_image, config.image_grid_pinpoints)


def make_processor(tower: Any, tiles: Tiles) -> Any:
    """An image processor that cuts tiles and normalises as the vision tower's own does."""
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": tiles.side},
        crop_size={"height": tiles.side, "width": tiles.side},
        image_grid_pinpoints=[list(grid) for grid in tiles.grids],
        resample=tower.resample,
        image_mean=list(tower.image_mean),
        image_std=list(tower.image_std),
    )


def check_processor(processor: Any, tiles: Tiles | None, path: object) -> None:
    """Raise ModelError where the image processor of a folder cuts other tiles than its model counts."""
    if tiles is None:
        return
    cuts = getattr(processor, "image_grid_pinpoints", None)
    if cuts is None or grids_of(processor) != tiles.grids:
        theirs = "none" if cuts is None else cuts
        raise ModelError(
            f"{path}: the tiles of preprocessor_config.json ({theirs}) are not those of config.json "
            f"({[list(grid) for grid in tiles.grids]}): make image_grid_pinpoints the same in both"
        )


def with_tiles(model: Llava | LlavaNext, tiles: Tiles) -> LlavaNext:
    """A LLaVA-NeXT on these grids: the model itself, on which no weight depends, or one of the parts of a LLaVA.

    The `image_newline` of the latter is new, drawn from torch's generator.
    """
    if isinstance(model, LlavaNext):
        next_config(model.config, tiles)
        return model
    config = next_config(model.config, tiles)
    with torch.device("meta"):
        made = LlavaNext(config)
    for part in ("language_model", "vision_tower", "multi_modal_projector"):
        setattr(made.model, part, getattr(model.model, part))
    width = config.text_config.hidden_size
    made.model.image_newline = nn.Parameter(torch.randn(width) / width**0.5)
    made.lm_head = model.lm_head
    made.generation_config = model.generation_config
    return made.eval()


def next_config(old: Any, tiles: Tiles) -> Any:
    """The configuration of a LLaVA-NeXT on these grids: that of one itself, changed, or one of a LLaVA's parts."""
    grids = [list(grid) for grid in tiles.grids]
    if old.model_type == NEXT:
        old.image_grid_pinpoints = grids
        return old
    config = LlavaNextConfig(
        text_config=old.text_config,
        vision_config=old.vision_config,
        image_grid_pinpoints=grids,
        **{name: getattr(old, name) for name in _SHARED},
    )
    for name, value in old.to_dict().items():  # what ours note besides, such as another depth of the projector
        if not hasattr(config, name):
            setattr(config, name, value)
    return config


def load_newline(model: Llava | LlavaNext, found: Found) -> None:
    """Take the `image_newline` from where the projector came from; it stays new where there is none."""
    if not isinstance(model, LlavaNext):
        return
    own, other = model.model.image_newline, found.newline
    if other is None:
        say(f"image_newline: new, for there is none in {found.source}")
        return
    wrong = f"is {list(other.shape)}, not {list(own.shape)}" if other.shape != own.shape else unsound(other)
    if wrong:
        raise ModelError(f"the image_newline of {found.source} does not fit this language model: it {wrong}")
    own.data = other.to(own.dtype, copy=True)
    say(f"image_newline: from {found.source}")


def projector_parts(model: Llava | LlavaNext) -> tuple[nn.Module, ...]:
    """The projector, and what learns with it: the `image_newline` of a LLaVA-NeXT."""
    newline = getattr(model.model, "image_newline", None)
    projector: nn.Module = model.model.multi_modal_projector
    return (projector,) if newline is None else (projector, nn.ParameterList([newline]))
