"""A language model and a vision tower by their names -> one vision-language model with a new projector between them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AddedToken,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from sightline.errors import ModelError
from sightline.model.foreign import open_config, open_processor, try_pixels
from sightline.model.llm import llm_config, llm_tokenizer, load_llm, longest_packed, make_room
from sightline.model.load import VLM, load, load_parts, positions
from sightline.model.next import load_newline, make_processor, wanted_tiles, with_tiles
from sightline.model.projector import DEPTH_KEY, depth_of, load_projector, new_projector
from sightline.model.quantize import bitsandbytes
from sightline.model.reading import model_folder
from sightline.model.tune import check_quantizable
from sightline.model.vision import (
    features,
    load_tower,
    select_strategy,
    square_processor,
    tokens_per_image,
    vision_config,
)
from sightline.prompt.prompter import Prompter, template_named
from sightline.recipe import ModelRecipe, TuneRecipe
from sightline.runtime import say
from sightline.types import IMAGE

PAD = "<pad>"


def make_prompter(spec: ModelRecipe) -> Prompter:
    """The prompter of a recipe's model, without loading a weight: the data is checked with it first."""
    if spec.from_model is not None:
        config, tokenizer, image_processor = load_parts(spec.from_model)
        vision, tokens = config.vision_config, tokens_per_image(config)
    else:
        assert spec.llm is not None and spec.vision_tower is not None
        config = None
        vision = vision_config(spec.vision_tower, spec.vision_feature_layer)
        tokens = features(vision, select_strategy(vision))
        llm_config(spec.llm)
        tokenizer = llm_tokenizer(spec.llm)
        image_processor = open_processor(spec.vision_tower)
    add_tokens(tokenizer)
    tiles = wanted_tiles(spec, config, vision, tokens)
    if tiles is None:
        image_processor = square_processor(image_processor, vision.image_size, pad=spec.image_aspect_ratio == "pad")
    else:
        image_processor = make_processor(image_processor, tiles)
    prompter = Prompter(
        tokenizer=tokenizer,
        template=template_named(spec.template, spec.system, tokenizer=tokenizer, image_place=spec.image_place),
        image_processor=image_processor,
        tokens_per_image=tokens,
        tiles=tiles,
    )
    try_pixels(prompter, vision.image_size, spec.from_model or spec.vision_tower)
    return prompter


def check_length(spec: ModelRecipe, max_length: int) -> None:
    """Raise ModelError where a conversation of `max_length` tokens has more than the language model has positions."""
    name, config = spec.from_model or spec.llm, _text_config(spec)
    limit, packed = positions(config), longest_packed(config)
    if limit is not None and max_length > limit:
        raise ModelError(
            f"batch.max_length {max_length}: {name} has positions for {limit} tokens only (max_position_embeddings); "
            f"set batch.max_length={limit} or less"
        )
    if packed is not None and max_length > packed:
        raise ModelError(
            f"batch.max_length {max_length}: beyond {packed} tokens {name} counts positions otherwise, also those of "
            f"shorter samples in the same pack (rope_type {config.rope_parameters['rope_type']}); set "
            f"batch.max_length={packed} or less"
        )


def check_bits(spec: ModelRecipe, tune: TuneRecipe, device: torch.device) -> None:
    """Raise UserError where the language model is to be held in 4 bits and cannot be, before its weights are loaded."""
    if tune.quantized:
        bitsandbytes("a language model of 4 bits", device)
        check_quantizable(_text_config(spec), tune, device)


def _text_config(spec: ModelRecipe) -> Any:
    if spec.llm is not None:
        return llm_config(spec.llm)
    assert spec.from_model is not None
    return open_config(model_folder(spec.from_model)).get_text_config()


def assemble(spec: ModelRecipe, prompter: Prompter) -> VLM:
    """Load the parts in the number format that their files have, and put them together on the CPU.

    The projector is new (drawn from torch's generator) unless `projector_from` names one. Raises ModelError for a
    folder that is no model, parts that do not go together, or a projector of other layers or shapes.
    """
    if spec.from_model is not None:
        model = load(spec.from_model, device="cpu", dtype="auto", template=spec.template).model
    else:
        model = _join(spec, prompter)
    vlm = VLM(model if prompter.tiles is None else with_tiles(model, prompter.tiles), prompter)
    if (depth := depth_of(model.config)) != 2:
        setattr(vlm.model.config, DEPTH_KEY, depth)
    if spec.projector_from is not None:
        load_newline(vlm.model, load_projector(vlm.model, spec.projector_from))
    return vlm


def _join(spec: ModelRecipe, prompter: Prompter) -> LlavaForConditionalGeneration:
    assert spec.llm is not None and spec.vision_tower is not None
    tower = load_tower(spec.vision_tower, vision_config(spec.vision_tower, spec.vision_feature_layer))
    llm: Any = load_llm(spec.llm)
    make_room(llm, len(prompter.tokenizer))
    config = joined_config(spec, prompter, llm.config, tower.config)
    projector = new_projector(config, spec.projector_depth)
    if spec.projector_depth > 2:
        say(f"a projector of {spec.projector_depth} layers: nothing but Sightline loads such a model, others know two")
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.language_model = llm.base_model
    model.model.vision_tower = tower
    model.model.multi_modal_projector = projector
    model.lm_head = llm.get_output_embeddings()
    model.generation_config = llm.generation_config
    model.generation_config.pad_token_id = prompter.pad_token_id
    # The parts keep configurations of their own otherwise, and switching the attention would miss them.
    llm.base_model.config = config.text_config
    tower.config = config.vision_config
    for module in llm.base_model.modules():
        if hasattr(module, "config"):
            module.config = config.text_config
    for module in tower.modules():
        if hasattr(module, "config"):
            module.config = config.vision_config
    return model.eval()


def joined_config(spec: ModelRecipe, prompter: Prompter, text: Any, vision: Any) -> LlavaConfig:
    """The configuration of a language model (whose embeddings have room for all tokens) and a vision tower, joined."""
    return LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=prompter.image_token_id,
        image_seq_length=prompter.tokens_per_image,
        vision_feature_layer=spec.vision_feature_layer,
        vision_feature_select_strategy=select_strategy(vision),
        tie_word_embeddings=text.tie_word_embeddings,
        pad_token_id=prompter.pad_token_id,
    )


def add_tokens(tokenizer: Any) -> None:
    """Make `<image>` one special token, and see that there is one for padding."""
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": AddedToken(PAD, special=True, normalized=False)})
