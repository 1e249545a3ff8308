"""A recipe -> its model at full size, made up on the device, tuned as the recipe says; no file and no network.

Speed and memory do not depend on what the weights are. They are drawn by a seed, so that both sides have the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from job import Job, forget_peak
from rows import Row, draw_rows
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import AddedToken, CLIPImageProcessorPil, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from sightline.model.estimate import Operations, operations
from sightline.model.estimate_models import blank_model, model_parts
from sightline.model.load import VLM
from sightline.model.next import make_processor, make_tiles, with_tiles
from sightline.model.quantize import quantize_linear
from sightline.model.tune import Group, apply_tuning
from sightline.model.vision import tokens_per_image
from sightline.prompt.prompter import Prompter, template_named
from sightline.prompt.tiles import Tiles
from sightline.recipe import Recipe
from sightline.runtime import seed_everything
from sightline.types import IMAGE

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


@dataclass(frozen=True)
class World:
    """All that both sides get."""

    recipe: Recipe
    vlm: VLM
    groups: list[Group]
    rows: list[Row]
    """`global_batch` for each step, those of warming up first."""
    cost: Operations
    device: torch.device
    dtype: torch.dtype

    def operations_of(self, rows: list[Row]) -> float:
        """What the mathematics of a step needs, padding and recomputing not counted."""
        encoded = [row.encoded for row in rows]
        targets, tiles = sum(one.num_targets for one in encoded), sum(row.tiles for row in rows)
        return self.cost.count([len(one.ids) for one in encoded], targets=targets, tiles=tiles)


def build(job: Job) -> World:
    recipe, device, dtype = job.recipe, torch.device(job.device), getattr(torch, job.dtype)
    seed_everything(0)
    model, tiles = blank(recipe, tiny=job.tiny)
    fill(model, recipe, device, dtype)
    groups = apply_tuning(model, recipe.tune, recipe.optim)
    vlm = VLM(model.to(device), prompter_for(model.config, tiles))
    config, count = model.config, job.global_batch * (job.warm + job.steps)
    limit, side = recipe.batch.max_length, config.vision_config.image_size
    rows = draw_rows(job.of.rows, count, vlm.prompter, config.image_token_index, side, limit)
    forget_peak(device)
    return World(recipe, vlm, groups, rows, operations(model), device, dtype)


def blank(recipe: Recipe, *, tiny: bool) -> tuple[Any, Tiles | None]:
    """The recipe's model with parameters of shapes alone, but buffers as they are; and LLaVA-NeXT's tiles."""
    config, grids = blank_model(recipe.model).model.config, model_parts(recipe.model)[2]
    if tiny:
        shrink(config)
    config.pad_token_id = 0
    assert not config.tie_word_embeddings, "a head that is tied would be filled as two"
    with init_empty_weights(include_buffers=False):
        model = LlavaForConditionalGeneration(config)
    if grids is None:
        return model.eval(), None
    tiles = make_tiles(config.vision_config, tokens_per_image(config), grids or None)
    return with_tiles(model, tiles), tiles


def shrink(config: Any) -> None:
    """To what a CPU does in seconds, with as many key heads for each head, and as large a share of a picture."""
    text, vision = config.text_config, config.vision_config
    groups = text.num_attention_heads // text.num_key_value_heads
    for part, more in (
        (text, {"vocab_size": 512, "num_hidden_layers": 2, "num_key_value_heads": 4 // groups, "head_dim": 16}),
        (vision, {"num_hidden_layers": 3, "projection_dim": 16, "image_size": 4 * vision.patch_size}),
    ):
        for name, value in {**TINY, **more}.items():
            setattr(part, name, value)
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None
    config.image_token_index = 511
    config.image_seq_length = tokens_per_image(config)


def fill(model: Any, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> None:
    """Give all parameters numbers, layer by layer; a layer of 4 bits before the next one is there."""
    generator = torch.Generator(device).manual_seed(0)
    llm = model.model.language_model
    for number, layer in enumerate(llm.layers):
        draw(layer, generator, dtype)
        if recipe.tune.quantized:
            linear = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
            quantize_linear(llm, [f"layers.{number}.{name}" for name in linear], device=device, dtype=dtype)
    draw(model, generator, dtype)


def draw(module: nn.Module, generator: torch.Generator, dtype: torch.dtype) -> None:
    """Numbers for the parameters that have none yet: norms leave as is, biases add nothing, matrices are noise."""
    for inner in module.modules():
        for name, parameter in list(inner.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            value = torch.empty(parameter.shape, device=generator.device, dtype=dtype)
            if value.ndim > 1:
                value.normal_(0, 0.02, generator=generator)
            else:
                value.fill_(float(name == "weight"))
            setattr(inner, name, nn.Parameter(value))


def prompter_for(config: Any, tiles: Tiles | None) -> Prompter:
    """A prompter whose tokenizer knows the image's token alone: no text is ever read here."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, IMAGE: config.image_token_index}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), unk_token="<unk>", eos_token="</s>"
    )
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    side = config.vision_config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    if tiles is not None:
        processor = make_processor(processor, tiles)
    return Prompter(tokenizer, template_named("plain"), processor, tokens_per_image(config), tiles)
