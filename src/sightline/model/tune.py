"""Which tensors learn, by which part and at which rate: frozen, full or by adapters for each part of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from sightline.errors import RecipeError
from sightline.model.adapters import add_lora, is_named
from sightline.model.next import projector_parts
from sightline.model.quantize import check_widths, quantize_linear
from sightline.model.reading import quiet
from sightline.recipe import LoraRecipe, OptimRecipe, TuneRecipe

Model: TypeAlias = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration


@dataclass(frozen=True)
class Group:
    """The tensors of one part that learn, and their highest learning rate."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    lr: float
    tables: frozenset[int] = frozenset()
    """`id` of the parameters that are tables with a row for each token or place, not maps: embeddings and heads."""

    @property
    def size(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)


def apply_tuning(model: Model, tune: TuneRecipe, optim: OptimRecipe) -> list[Group]:
    """Freeze what stays, put adapters in, and return what learns, a group for each part.

    What of the vision tower lies behind the layer that is used gets no gradient and stays frozen in every mode. With
    qlora the weights are those that the model has: 4-bit ones after `quantize`, otherwise the whole ones.
    """
    model.requires_grad_(False)
    _tune_llm(model, tune)
    if tune.vision_tower != "frozen":
        _tune_tower(model, tune)
    for module in projector_parts(model):
        module.requires_grad_(tune.projector == "full")

    parts = {
        "llm": (optim.lr, (model.model.language_model, model.lm_head)),
        "vision_tower": (optim.vision_lr or optim.lr, (model.model.vision_tower,)),
        "projector": (optim.projector_lr or optim.lr, projector_parts(model)),
    }
    tables = frozenset(id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding))
    tables |= {id(model.lm_head.weight)}
    return [
        Group(name, learning, lr, tables) for name, (lr, modules) in parts.items() if (learning := _learning(modules))
    ]


def quantize(model: Model, tune: TuneRecipe, *, device: torch.device, dtype: torch.dtype) -> None:
    """Turn the language model's linear layers into 4-bit ones, before `apply_tuning`; not its head, nor what learns."""
    llm = model.model.language_model
    saved = _saved(_llm_modules(model), tune.llm_lora, "tune.llm_lora")
    quantize_linear(llm, _linear(llm, leave=saved), device=device, dtype=dtype)


def check_quantizable(config: Any, tune: TuneRecipe, device: torch.device) -> None:
    """Raise UserError where `quantize` would, by the language model's configuration: before its weights are loaded."""
    if not tune.quantized or device.type != "cpu":
        return
    with torch.device("meta"), quiet():
        llm = AutoModel.from_config(config)
    saved = _saved({**dict(llm.named_modules()), "lm_head": nn.Identity()}, tune.llm_lora, "tune.llm_lora")
    check_widths([llm.get_submodule(name) for name in _linear(llm, leave=saved)], device)


def settle(model: nn.Module, dtype: torch.dtype, *, pure: bool = False) -> None:
    """Every tensor gets the format that it has while the model learns; 4 bits stay."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(kept_in(parameter, dtype, pure=pure))


def kept_in(parameter: nn.Parameter, dtype: torch.dtype, *, pure: bool) -> torch.dtype:
    """Learning tensors have full precision, frozen ones that which they are computed with; `pure`: so have matrices."""
    whole = parameter.requires_grad and not (pure and parameter.ndim > 1)
    return torch.float32 if whole else dtype


def _tune_llm(model: Model, tune: TuneRecipe) -> None:
    llm, frozen = model.model.language_model, tune.freeze_layers or 0

    def learns(name: str) -> bool:
        return (number := _layer(name)) is None or number >= frozen

    layers = _layers(name for name, _ in llm.named_parameters())
    if frozen > len(layers):
        raise RecipeError(f"tune.freeze_layers: {frozen}, but the language model has {len(layers)} layers")
    if tune.llm == "full":
        llm.requires_grad_(True)
        for name, parameter in llm.named_parameters():
            parameter.requires_grad_(learns(name))
        if frozen:
            llm.get_input_embeddings().requires_grad_(False)
        model.lm_head.requires_grad_(True)  # after the embeddings: where both are one, it is the head that counts
    elif tune.llm_lora is not None:
        modules = _llm_modules(model)
        saved = _saved(modules, tune.llm_lora, "tune.llm_lora")
        add_lora(llm, tune.llm_lora, [name for name in _linear(llm, leave=saved) if learns(name)], "tune.llm_lora")
        for name in filter(learns, saved):  # afterwards, because peft freezes all but its adapters
            modules[name].requires_grad_(True)
        _check_saved(modules, tune.llm_lora, "tune.llm_lora")


def _tune_tower(model: Model, tune: TuneRecipe) -> None:
    tower = model.model.vision_tower
    wanted = used_parameters(model)
    if tune.vision_last_n is not None:
        layers = _layers(wanted)
        if tune.vision_last_n > len(layers):
            raise RecipeError(
                f"tune.vision_last_n: {tune.vision_last_n}, but {len(layers)} layers of the vision tower are used"
            )
        wanted = {name for name in wanted if _layer(name) in layers[-tune.vision_last_n :]}
    if tune.vision_lora is None:
        for name in wanted:
            tower.get_parameter(name).requires_grad_(True)
        return
    modules = dict(tower.named_modules())
    saved = _saved(modules, tune.vision_lora, "tune.vision_lora")
    linear = [name for name in _linear(tower, leave=saved) if f"{name}.weight" in wanted]
    add_lora(tower, tune.vision_lora, linear, "tune.vision_lora")
    for name in wanted:
        if any(name.startswith(f"{module}.") for module in saved):
            tower.get_parameter(name).requires_grad_(True)
    _check_saved(modules, tune.vision_lora, "tune.vision_lora")


def used_parameters(model: Model) -> set[str]:
    """The parameters of the vision tower that the features of `vision_feature_layer` depend on, by name.

    Any tower tells by itself: a gradient is sent through a copy of it that has shapes and no numbers.
    """
    tower, config = model.model.vision_tower, model.config
    meta = {name: torch.empty_like(p, device="meta", dtype=torch.float32) for name, p in tower.named_parameters()}
    buffers = {name: buffer.to("meta") for name, buffer in tower.named_buffers()}
    vision: Any = config.vision_config
    pixels = torch.empty(1, vision.num_channels, vision.image_size, vision.image_size, device="meta")
    names, copies = list(meta), [copy.requires_grad_(True) for copy in meta.values()]
    with torch.enable_grad():
        out = torch.func.functional_call(tower, (meta, buffers), (pixels,), {"output_hidden_states": True})
        features = out.hidden_states[config.vision_feature_layer]
    gradients = torch.autograd.grad(features, copies, torch.empty_like(features), allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def _layer(name: str) -> int | None:
    """The number of the layer that a module or parameter is in; None outside of all layers."""
    found = re.search(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)(?:\.|$)", name)
    return int(found[1]) if found else None


def _layers(names: Iterable[str]) -> list[int]:
    return sorted({number for name in names if (number := _layer(name)) is not None})


def _llm_modules(model: Model) -> dict[str, nn.Module]:
    return {**dict(model.model.language_model.named_modules()), "lm_head": model.lm_head}


def _linear(module: nn.Module, *, leave: Iterable[str]) -> list[str]:
    """The paths of the linear layers, but for those in the modules `leave`."""
    left = tuple(leave)
    return [
        name
        for name, inner in module.named_modules()
        if isinstance(inner, nn.Linear) and not any(name == other or name.startswith(f"{other}.") for other in left)
    ]


def _saved(modules: dict[str, nn.Module], lora: LoraRecipe | None, key: str) -> list[str]:
    """The paths of the modules that `modules_to_save` names."""
    wanted = (lora.modules_to_save if lora is not None else None) or []
    for name in wanted:
        if not any(is_named(path, name) for path in modules):
            known = sorted({path.rpartition(".")[2] for path in modules} - {""})
            there = ", ".join(name for name in known if not name.isdecimal())
            raise RecipeError(f"{key}.modules_to_save: no module is named {name or repr(name)}; there are: {there}")
    return [path for path in modules if any(is_named(path, name) for name in wanted)]


def _check_saved(modules: dict[str, nn.Module], lora: LoraRecipe, key: str) -> None:
    for name in lora.modules_to_save or []:
        named = [module for path, module in modules.items() if is_named(path, name)]
        if not any(parameter.requires_grad for module in named for parameter in module.parameters()):
            raise RecipeError(
                f"{key}.modules_to_save: nothing of {name} can learn: it has no weights, or its layers are frozen or "
                f"not used; leave it out"
            )


def _learning(modules: tuple[nn.Module, ...]) -> tuple[nn.Parameter, ...]:
    """Each tensor once, also where the head is tied to the embeddings."""
    found = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return tuple(found.values())
