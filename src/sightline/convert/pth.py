"""A checkpoint of XTuner's training (`iter_*.pth`, a file or a folder of DeepSpeed) and the recipe -> a source.

The checkpoint holds what was trained and no more; the recipe names the language model and the vision tower below it,
and says what adapters are multiplied by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sightline.convert import hf, zero
from sightline.convert.joined import NEWLINE, finished, first_projector, joined, llm_names, tower_name
from sightline.convert.lora import PREFIX, combined
from sightline.convert.names import XTUNER_PROJECTOR, rename
from sightline.convert.source import Source, checked
from sightline.convert.tensors import Stored, stored
from sightline.convert.xtuner import as_llama
from sightline.errors import CheckpointError, ModelError
from sightline.model.assemble import make_prompter
from sightline.model.llm import made_of
from sightline.model.pickles import read_pickle, tensors_in
from sightline.recipe import LoraRecipe, Recipe

PARTS = ("llm", "visual_encoder", "projector")
"""What XTuner's names of tensors begin with."""


def read(place: Path, recipe: Recipe) -> Source:
    """The model of a recipe with what the checkpoint holds in the place of what it began with.

    Raises CheckpointError where the checkpoint was made with another recipe, ModelError where its base is another.
    """
    spec = recipe.model
    parts = _parts(zero.read(place) if place.is_dir() else in_file(place), place)
    prompter = make_prompter(spec)
    if spec.from_model is None:
        source = joined(spec, prompter)
        family = made_of(str(spec.llm))
    else:
        source, family = replace(hf.read(spec.from_model, template=spec.template), prompter=prompter), None
    if source.prompter.tiles is not None:
        raise CheckpointError(f"{place} is XTuner's, which knows no LLaVA-NeXT; leave model.next out of the recipe")
    text, tensors = source.config.text_config, dict(source.tensors)
    own = as_llama(parts["llm"], text, family) if family else parts["llm"]
    tune = recipe.tune
    for_tower = partial(tower_name, config=source.config)
    tensors = _learned(tensors, own, llm_names(text).hub, tune.llm, tune.llm_lora, place, "llm")
    tensors = _learned(
        tensors, parts["visual_encoder"], for_tower, tune.vision_tower, tune.vision_lora, place, "vision_tower"
    )
    projector = {rename(name, XTUNER_PROJECTOR): tensor for name, tensor in parts["projector"].items()}
    kind = "a checkpoint of XTuner's"
    if spec.from_model is not None:
        tensors |= projector
        return checked(replace(source, tensors=tensors, path=place, kind=kind))
    if not projector and spec.projector_from is None:
        raise CheckpointError(f"{place} holds no projector, and the recipe names none (model.projector_from)")
    if not projector:
        assert spec.projector_from is not None
        projector = {n: tensor for n, tensor in first_projector(spec.projector_from).items() if n != NEWLINE}
    return finished(replace(source, tensors=tensors), projector, path=place, kind=kind)


def in_file(file: Path) -> dict[str, Stored]:
    """The tensors of a file as mmengine writes it, whatever lies beside them."""
    return {name: stored(tensor) for name, tensor in tensors_in(read_pickle(file)).items()}


def _parts(tensors: Mapping[str, Stored], place: Path) -> dict[str, dict[str, Stored]]:
    """The tensors of each part, by their names in it."""
    found: dict[str, dict[str, Stored]] = {part: {} for part in PARTS}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in found:
            raise CheckpointError(f"{place} is no checkpoint of XTuner's LLaVA: it holds {name}")
        found[part][rest.removeprefix(PREFIX).replace(".default", "")] = tensor
    if not any(found.values()):
        raise CheckpointError(f"{place} holds no weights")
    return found


def _learned(
    tensors: dict[str, Stored],
    learned: Mapping[str, Stored],
    hub: Callable[[str], str],
    how: str,
    lora: LoraRecipe | None,
    place: Path,
    key: str,
) -> dict[str, Stored]:
    """The model with what one part has learned, in the way that the recipe says."""
    has_adapters = any("lora_" in name for name in learned)
    found = "lora" if has_adapters else "full" if learned else "frozen"
    if found != how.removeprefix("q"):
        raise CheckpointError(f"{place} was made with tune.{key}={found}, and the recipe says {how}: change the recipe")
    if lora is not None:
        ranks = {tensor.shape[0] for name, tensor in learned.items() if name.endswith("lora_A.weight")}
        if ranks != {lora.r}:
            shown = " and ".join(map(str, sorted(ranks)))
            raise CheckpointError(f"{place} has adapters of rank {shown}, and the recipe says tune.{key}: r {lora.r}")
        settings: dict[str, Any] = {"lora_alpha": lora.alpha, "use_rslora": lora.rslora}
        return combined(tensors, learned, settings, place, hub)
    result = dict(tensors)
    for name, tensor in learned.items():
        new = hub(name)
        if "inv_freq" in name or name.endswith("position_ids"):
            continue
        if new not in tensors or tensors[new].shape != tensor.shape:
            there = f"is {list(tensors[new].shape)}" if new in tensors else "is not"
            raise ModelError(f"{place}: {name} is {list(tensor.shape)}, but {there} in the model that the recipe names")
        result[new] = tensor
    prefix = "language_model." if key == "llm" else "vision_tower."
    kept = [name for name in tensors if name.startswith(prefix) and result[name] is tensors[name]]
    if learned and kept:
        raise CheckpointError(f"{place} lacks {len(kept)} tensors of the {key} that it was to hold, such as {kept[0]}")
    return result
