"""LoRA adapters: put beside linear layers, and added to their weights again. By peft, imported when there are any."""

from __future__ import annotations

from torch import nn

from sightline.errors import RecipeError
from sightline.model.quantize import calm_bitsandbytes
from sightline.recipe import LoraRecipe


def is_named(name: str, wanted: str) -> bool:
    """Whether a module's path is the wanted one or ends in it: `layers.0.mlp.up_proj` is named `up_proj`."""
    return bool(wanted) and (name == wanted or name.endswith(f".{wanted}"))


def add_lora(module: nn.Module, lora: LoraRecipe, linear: list[str], key: str) -> None:
    """Put adapters on the linear layers of these paths, or on those among them that `target_modules` names."""
    known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
    if not linear:
        raise RecipeError(f"{key}: there is no linear layer that could get an adapter")
    targets = linear
    if lora.target_modules is not None:
        unknown = [w for w in lora.target_modules if not any(is_named(name, w) for name in linear)]
        if unknown:
            raise RecipeError(
                f"{key}.target_modules: no linear layer is named {' or '.join(unknown)}; there are: {known}"
            )
        targets = [name for name in linear if any(is_named(name, wanted) for wanted in lora.target_modules)]
    with calm_bitsandbytes():
        from peft import LoraConfig, inject_adapter_in_model
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=targets,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    inject_adapter_in_model(config, module)


def merge_adapters(model: nn.Module) -> None:
    """Add LoRA adapters to the weights and take them out of the model."""
    if not any(hasattr(module, "peft_config") for module in model.modules()):
        return
    with calm_bitsandbytes():
        from peft.tuners.tuners_utils import BaseTunerLayer
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer())
    for module in model.modules():
        if hasattr(module, "peft_config"):
            del module.peft_config
