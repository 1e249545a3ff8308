"""What a run has learned, and the models that it began with, both in their files -> a source with one put on the other.

The same as `model/restore.py` makes in memory, but read tensor by tensor: a run of adapters on a model of any size is
converted in the memory of its largest file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from sightline.convert.joined import finished, joined, llm_names
from sightline.convert.learned import Adapter
from sightline.convert.lora import combined
from sightline.convert.source import Source
from sightline.convert.tensors import Stored, in_file
from sightline.convert.verify import memory_name
from sightline.convert.vocabulary import with_room
from sightline.errors import CheckpointError, ModelError
from sightline.model.assemble import make_prompter
from sightline.model.projector import readable
from sightline.model.save import hub_name
from sightline.model.weights import RECIPE, WEIGHTS, check_base, fingerprint
from sightline.recipe import LoraRecipe, Recipe

KIND = "what a run of Sightline has learned"
HEAD = "language_model.lm_head.weight"


def can_be_read(recipe: Recipe) -> bool:
    """Whether all of the model is in files: neither drawn anew and kept frozen, nor made a LLaVA-NeXT of a LLaVA."""
    spec = recipe.model
    return recipe.tune.projector == "full" and spec.llm is not None and not spec.next


def read(folder: Path, recipe: Recipe, *, dtype: torch.dtype) -> Source:
    """The model, in `dtype`; raises CheckpointError where the base is another than that of the run."""
    spec, tune = recipe.model, recipe.tune
    try:
        base = joined(spec, make_prompter(spec))
    except ModelError as error:
        where = f"name the place of these models in {folder / RECIPE} (section model)"
        raise ModelError(f"{error}; {folder} holds only what was learned on top: {where}") from error
    text = base.config.text_config
    tensors = with_room(base.tensors, text.vocab_size, (llm_names(text).embedding, HEAD))
    check_base(folder, _fingerprints(tensors, base.config), tune)
    # As they were when the adapters learned; what is added to them must not be rounded before.
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    learned = {name.replace(".default", ""): tensor for name, tensor in in_file(folder / WEIGHTS).items()}
    learned = {hub_name(name, base.config): tensor for name, tensor in learned.items()}
    projector = {name: tensor.to(dtype) for name, tensor in learned.items() if name.startswith("multi_modal_")}
    adapters = {}
    for part, prefix, lora in (
        ("llm", "language_model.", tune.llm_lora),
        ("vision_tower", "vision_tower.", tune.vision_lora),
    ):
        own = {name: tensor for name, tensor in learned.items() if name.startswith(prefix)}
        tensors = _with(tensors, own, lora, folder)
        if own:
            adapters[part] = None if lora is None else Adapter(own, lora, str(getattr(spec, part)))
    return finished(replace(base, tensors=tensors, adapters=adapters), projector, path=folder, kind=KIND)


def _with(
    tensors: Mapping[str, Stored], learned: Mapping[str, Stored], lora: LoraRecipe | None, folder: Path
) -> dict[str, Stored]:
    if any(".lora_" in name for name in learned):
        assert lora is not None
        return combined(tensors, learned, {"lora_alpha": lora.alpha, "use_rslora": lora.rslora}, folder)
    for name, tensor in learned.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            raise CheckpointError(f"{folder}: {name} does not fit the model that the recipe names")
    return {**tensors, **{name: tensor.to(tensors[name].dtype) for name, tensor in learned.items()}}


def _fingerprints(tensors: Mapping[str, Stored], config: Any) -> dict[str, str]:
    """Those of the language model and the vision tower, as a run notes them."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(readable(config))
    by_memory = {memory_name(name): tensor for name, tensor in tensors.items()}
    if config.tie_word_embeddings:
        by_memory["lm_head.weight"] = by_memory[memory_name(llm_names(config.text_config).embedding)]

    def of(*prefixes: str) -> Iterable[torch.Tensor]:
        for prefix in prefixes:
            for name in model.state_dict():
                if name.startswith(prefix):
                    yield by_memory[name].read()

    return {
        "llm": fingerprint(of("model.language_model.", "lm_head.")),
        "vision_tower": fingerprint(of("model.vision_tower.")),
        "projector": "",  # the learned one takes its place
    }
