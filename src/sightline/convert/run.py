"""What a run has learned, and the models that it began with, both in their files -> a source with one put on the other.

The same as `model/restore.py` makes in memory, but read tensor by tensor: a run on a model of any size is converted in
the memory of its largest file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from sightline.convert import hf
from sightline.convert.joined import NEWLINE, finished, first_projector, joined, llm_names
from sightline.convert.learned import Adapter
from sightline.convert.lora import combined
from sightline.convert.source import Source, checked
from sightline.convert.tensors import Stored, in_file
from sightline.convert.verify import memory_name
from sightline.convert.vocabulary import with_room
from sightline.errors import CheckpointError, ModelError
from sightline.model.assemble import make_prompter
from sightline.model.next import next_config
from sightline.model.projector import DEPTH_KEY, depth_of, new_projector, readable
from sightline.model.save import hub_name
from sightline.model.tune import apply_tuning
from sightline.model.weights import RECIPE, WEIGHTS, check_base, fingerprint, trainable_state
from sightline.recipe import LoraRecipe, ModelRecipe, Recipe

KIND = "what a run of Sightline has learned"
HEAD, PROJECTOR = "language_model.lm_head.weight", "multi_modal_projector."


def was_drawn(recipe: Recipe) -> bool:
    """Whether a part is in no file: drawn anew when the run began, and kept frozen."""
    spec = recipe.model
    return recipe.tune.projector == "frozen" and (spec.next or not (spec.from_model or spec.projector_from))


def read(folder: Path, recipe: Recipe, *, dtype: torch.dtype) -> Source:
    """The model, in `dtype`; raises CheckpointError where the base is another than that of the run.

    The recipe is one of which `was_drawn` says no.
    """
    spec, tune = recipe.model, recipe.tune
    try:
        base = _base(spec, None if tune.projector == "full" else spec.projector_from)
    except ModelError as error:
        where = f"name the place of these models in {folder / RECIPE} (section model)"
        raise ModelError(f"{error}; {folder} holds only what was learned on top: {where}") from error
    model = _shapes(base.config)
    check_base(folder, _fingerprints(base, list(model.state_dict())), tune)
    apply_tuning(model, tune, recipe.optim)
    learned = _learned(folder, trainable_state(model), base.config)
    # As they were when the adapters learned; what is added to them must not be rounded before.
    base = base.to(dtype)
    tensors, adapters = dict(base.tensors), {}
    for part, prefix, lora in (
        ("llm", "language_model.", tune.llm_lora),
        ("vision_tower", "vision_tower.", tune.vision_lora),
    ):
        own = {name: tensor for name, tensor in learned.items() if name.startswith(prefix)}
        tensors = _with(tensors, own, lora, folder)
        if own:
            adapters[part] = None if lora is None else Adapter(own, lora, str(getattr(spec, part)))
    tensors |= {name: learned[name].to(dtype) for name in learned if name.startswith((PROJECTOR, NEWLINE))}
    if spec.from_model is not None:
        return checked(replace(base, tensors=tensors, path=folder, kind=KIND))
    projector = {name: tensor for name, tensor in tensors.items() if name.startswith(PROJECTOR)}
    return finished(replace(base, tensors=tensors, adapters=adapters), projector, path=folder, kind=KIND)


def _base(spec: ModelRecipe, projector_from: str | None) -> Source:
    """What a run began with: without a projector, where it is one that has learned since."""
    prompter = make_prompter(spec)
    first = {} if projector_from is None else first_projector(projector_from)
    if spec.from_model is None:
        base = joined(spec, prompter)
        if spec.projector_depth != 2:
            setattr(base.config, DEPTH_KEY, spec.projector_depth)
        text = base.config.text_config
        tensors = with_room(base.tensors, text.vocab_size, (llm_names(text).embedding, HEAD))
        return replace(base, tensors=tensors | first)
    base = replace(hf.read(spec.from_model, template=spec.template), prompter=prompter)
    if prompter.tiles is not None:
        base = replace(base, config=next_config(base.config, prompter.tiles))
    return replace(base, tensors={**base.tensors, **{name: first[name] for name in first if name in base.tensors}})


def _shapes(config: Any) -> Any:
    """The model as a run has it in memory, without numbers."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(readable(config))
        if depth_of(config) != 2:
            model.model.multi_modal_projector = new_projector(config, depth_of(config))
    return model


def _learned(folder: Path, wanted: Mapping[str, torch.Tensor], config: Any) -> dict[str, Stored]:
    """The tensors of a checkpoint by the hub's names, those of adapters as peft writes them."""
    found = in_file(folder / WEIGHTS)
    if odd := sorted(wanted.keys() ^ found.keys()):
        shown = f"{len(odd)} differ, such as {odd[0]}"
        raise CheckpointError(f"{folder} holds other tensors than this recipe tunes ({shown})")
    for name, tensor in found.items():
        if tensor.shape != tuple(wanted[name].shape):
            raise CheckpointError(
                f"{folder}: {name} is {list(tensor.shape)}, expected {list(wanted[name].shape)}: it is of another model"
            )
    return {hub_name(name, config).replace(".default", ""): tensor for name, tensor in found.items()}


def _with(
    tensors: Mapping[str, Stored], learned: Mapping[str, Stored], lora: LoraRecipe | None, folder: Path
) -> dict[str, Stored]:
    if any(".lora_" in name for name in learned):
        assert lora is not None
        return combined(tensors, learned, {"lora_alpha": lora.alpha, "use_rslora": lora.rslora}, folder)
    return {**tensors, **{name: tensor.to(tensors[name].dtype) for name, tensor in learned.items()}}


def _fingerprints(base: Source, names: Iterable[str]) -> dict[str, str]:
    """Those of the parts, as a run notes them; `names` are those in memory."""
    by_memory = {memory_name(name): tensor for name, tensor in base.tensors.items()}
    if base.config.tie_word_embeddings:
        embedding = memory_name(llm_names(base.config.text_config).embedding)
        by_memory["lm_head.weight"] = by_memory[embedding]

    def of(*prefixes: str) -> Iterable[torch.Tensor]:
        return (by_memory[name].read() for prefix in prefixes for name in names if name.startswith(prefix))

    projector = "model.multi_modal_projector."
    return {
        "llm": fingerprint(of("model.language_model.", "lm_head.")),
        "vision_tower": fingerprint(of("model.vision_tower.")),
        # Where it learns, there may be none to look at, and what it began with does not matter.
        "projector": fingerprint(of(projector)) if any(name.startswith(projector) for name in by_memory) else "",
    }
