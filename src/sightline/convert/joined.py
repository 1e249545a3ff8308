"""A language model and a vision tower by their names -> a source, before and after a projector is put between them.

What `model/assemble.py` does in memory, done with tensors that are still in their files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sightline.convert.hf import hub_name
from sightline.convert.source import Source, checked, hub_shapes
from sightline.convert.tensors import Stored, in_folder, stored
from sightline.convert.vocabulary import with_room
from sightline.errors import ModelError
from sightline.model.assemble import joined_config
from sightline.model.llm import fetched, llm_config, readable_llm, rows_for
from sightline.model.next import next_config
from sightline.model.projector import DEPTH_KEY, exported_state, find_projector
from sightline.model.reading import quiet, reading
from sightline.model.vision import vision_config
from sightline.prompt.prompter import Prompter
from sightline.recipe import ModelRecipe

BODY, HEAD = "language_model.model.", "language_model.lm_head."
"""The hub's names of a language model's decoder and head begin so."""

NEWLINE = "image_newline"
"""The hub's name of what a LLaVA-NeXT learns beside its projector."""


@dataclass(frozen=True, slots=True)
class LlmNames:
    """What a language model calls its parts by itself, and the hub inside a LLaVA."""

    prefix: str
    head: str
    embedding: str
    """The hub's name."""

    def hub(self, name: str) -> str:
        """A name of its own in the hub's; one that is none of its own stays."""
        if name.startswith(self.head):
            return HEAD + name.removeprefix(self.head)
        return BODY + name.removeprefix(self.prefix) if name.startswith(self.prefix) else name

    def own(self, name: str) -> str:
        """The way back."""
        if name.startswith(HEAD):
            return self.head + name.removeprefix(HEAD)
        return self.prefix + name.removeprefix(BODY)


def llm_names(text: Any) -> LlmNames:
    """The names of a language model, from its configuration."""
    with torch.device("meta"), quiet():
        llm: Any = AutoModelForCausalLM.from_config(text)
    head = next(name for name, module in llm.named_modules() if module is llm.get_output_embeddings())
    body = llm.base_model.named_modules()
    embedding = next(name for name, module in body if module is llm.get_input_embeddings())
    return LlmNames(f"{llm.base_model_prefix}.", f"{head}.", f"{BODY}{embedding}.weight")


def joined(spec: ModelRecipe, prompter: Prompter) -> Source:
    """Language model and tower of a recipe, without a projector, with embeddings as the language model has them."""
    assert spec.llm is not None and spec.vision_tower is not None
    text, vision = llm_config(spec.llm), vision_config(spec.vision_tower, spec.vision_feature_layer)
    with reading(spec.llm):
        llm = in_folder(fetched(readable_llm(spec.llm, weights=True), weights=True))
    with reading(spec.vision_tower):
        tower = in_folder(fetched(spec.vision_tower, weights=True))
    names = llm_names(text)
    own = {names.hub(name): tensor for name, tensor in llm.items() if "inv_freq" not in name}
    if text.tie_word_embeddings:
        own.pop(HEAD + "weight", None)
    if names.embedding not in own:
        raise ModelError(f"{spec.llm} has no embeddings ({names.embedding}) in its files; copy it again")
    text.vocab_size = rows_for(len(prompter.tokenizer), own[names.embedding].shape[0])
    config: Any = joined_config(spec, prompter, text, vision)
    if prompter.tiles is not None:
        config = next_config(config, prompter.tiles)
    wanted = hub_shapes(config)
    # The files of a tower may hold a text model, too.
    seen = {tower_name(name, config): tensor for name, tensor in tower.items()}
    own |= {name: tensor for name, tensor in seen.items() if name in wanted}
    where = {"llm": spec.llm, "vision_tower": spec.vision_tower}
    return Source(Path(spec.llm), "a language model and a vision tower", config, prompter, own, where)


def finished(source: Source, projector: Mapping[str, Stored], **changes: Any) -> Source:
    """The whole model: with a projector by the hub's names, and room for the tokens that were added.

    Raises ModelError where a tensor is missing, left over or of another shape.
    """
    tensors = dict(source.tensors) | _projector(projector, source.config, changes.get("path", source.path))
    text = source.config.text_config
    tensors = with_room(tensors, text.vocab_size, (llm_names(text).embedding, HEAD + "weight"))
    return checked(replace(source, tensors=tensors, **changes))


def first_projector(projector_from: str) -> dict[str, Stored]:
    """The projector that a training began with, by the hub's names, with the `image_newline` where there is one."""
    found = find_projector(Path(projector_from))
    newline = {} if found.newline is None else {NEWLINE: stored(found.newline)}
    return newline | {f"multi_modal_projector.{name}": stored(tensor) for name, tensor in found.tensors.items()}


def tower_name(name: str, config: Any) -> str:
    """The hub's name of a vision tower's tensor, in whichever version of transformers it was written."""
    return hub_name(f"vision_tower.{name}", config)


def _projector(tensors: Mapping[str, Stored], config: Any, place: Path) -> dict[str, Stored]:
    """Noted in the configuration; of one layer, two of which the second changes nothing."""
    depth = sum(name.endswith(".weight") for name in tensors)
    if not depth:
        raise ModelError(f"{place} holds no projector")
    config.multimodal_projector_bias = any(name.endswith(".bias") for name in tensors)
    if depth != 2:
        setattr(config, DEPTH_KEY, depth)
    if depth == 1:
        whole = exported_state({name: tensor.read() for name, tensor in tensors.items()}, depth)
        return {name: stored(tensor) for name, tensor in whole.items()}
    return dict(tensors)
