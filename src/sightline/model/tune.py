"""Which tensors learn, by which part and at which rate: frozen, full or LoRA for each part of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import LlavaForConditionalGeneration

from sightline.errors import RecipeError
from sightline.recipe import LoraRecipe, OptimRecipe, TuneRecipe


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


def apply_tuning(model: LlavaForConditionalGeneration, tune: TuneRecipe, optim: OptimRecipe) -> list[Group]:
    """Freeze what stays, put adapters in, and return what learns, a group for each part.

    Layers of the vision tower behind the one that is used get no gradient and stay frozen in every mode.
    """
    model.requires_grad_(False)
    llm, tower = model.model.language_model, model.model.vision_tower
    used = list(_used_vision_modules(model))
    if tune.llm == "full":
        llm.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    elif tune.llm == "lora":
        _add_lora(
            llm, tune.llm_lora or LoraRecipe(), [name for name, m in llm.named_modules() if isinstance(m, nn.Linear)]
        )
    if tune.vision_tower == "full":
        for _, module in used:
            module.requires_grad_(True)
    elif tune.vision_tower == "lora":
        names = [
            f"{prefix}.{name}"
            for prefix, module in used
            for name, m in module.named_modules()
            if isinstance(m, nn.Linear)
        ]
        _add_lora(tower, tune.vision_lora or LoraRecipe(), names)
    model.model.multi_modal_projector.requires_grad_(tune.projector == "full")

    parts = {
        "llm": (optim.lr, (llm, model.lm_head)),
        "vision_tower": (optim.vision_lr or optim.lr, (tower,)),
        "projector": (optim.projector_lr or optim.lr, (model.model.multi_modal_projector,)),
    }
    tables = frozenset(id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding))
    tables |= {id(model.lm_head.weight)}
    return [
        Group(name, learning, lr, tables) for name, (lr, modules) in parts.items() if (learning := _learning(modules))
    ]


def merge_adapters(model: nn.Module) -> None:
    """Add LoRA adapters to the weights and take them out of the model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    for module in model.modules():
        if hasattr(module, "peft_config"):
            del module.peft_config


def _used_vision_modules(model: LlavaForConditionalGeneration) -> Iterator[tuple[str, nn.Module]]:
    """The parts of the tower that a feature of `vision_feature_layer` depends on, by name."""
    tower: Any = model.model.vision_tower
    layers = tower.encoder.layers
    layer = model.config.vision_feature_layer
    # hidden_states[0] is the embedding, hidden_states[n] the output of the n-th layer.
    count = layer if layer >= 0 else len(layers) + 1 + layer
    yield "embeddings", tower.embeddings
    yield "pre_layrnorm", tower.pre_layrnorm
    for number in range(count):
        yield f"encoder.layers.{number}", layers[number]


def _add_lora(module: nn.Module, lora: LoraRecipe, linear: list[str]) -> None:
    known = sorted({name.rpartition(".")[2] for name in linear})
    wanted = lora.target_modules if lora.target_modules is not None else known
    unknown = [name for name in wanted if name not in known]
    if unknown or not known:
        there = f"there are: {', '.join(known)}" if known else "there is none that could get an adapter"
        raise RecipeError(f"tune: no linear layer is named {' or '.join(unknown) or 'anything'}; {there}")
    targets = [name for name in linear if name.rpartition(".")[2] in wanted]
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="none", target_modules=targets)
    inject_adapter_in_model(config, module)


def _learning(modules: tuple[nn.Module, ...]) -> tuple[nn.Parameter, ...]:
    """Each tensor once, also where the head is tied to the embeddings."""
    found = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return tuple(found.values())
