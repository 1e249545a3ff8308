"""A model and what learns of it -> its parameters by part, and floating-point operations that know what is frozen.

Operations are counted as those that the mathematics needs: a multiplication and an addition per weight and position,
the gradient of the input only where something before it learns, that of the weight only where it learns itself, the
vision tower up to the layer that is used, the head on targets alone, attention on the causal half.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from sightline.errors import ModelError
from sightline.model.next import projector_parts
from sightline.model.vision import leading_tokens, tokens_per_image


@dataclass(frozen=True)
class Part:
    """The parameters of one part of a model; a tensor that two parts share counts for the first."""

    name: str
    total: int
    """Adapters included."""
    learning: int
    adapters: int


@dataclass(frozen=True)
class Operations:
    """What forward and backward cost, in floating-point operations per unit."""

    per_token: float
    """Language model without attention, for each token of a sequence."""
    per_target: float
    """Head, for each target."""
    per_tile: float
    """Vision tower and projector, for each of its runs: one per image, or per tile of LLaVA-NeXT."""
    per_pair: tuple[tuple[int | None, float], ...]
    """Attention of the language model: (window or None, operations for each pair of a position and one it sees)."""

    def count(self, lengths: Sequence[int], *, targets: int, tiles: int) -> float:
        """Of samples of these lengths (tokens), with so many targets and tiles in all."""
        attention = sum(cost * sum(pairs(length, window) for length in lengths) for window, cost in self.per_pair)
        return self.per_token * sum(lengths) + self.per_target * targets + self.per_tile * tiles + attention


def pairs(length: int, window: int | None = None) -> int:
    """How many (position, earlier or same position) there are, no further apart than a window."""
    if window is None or length <= window:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def parameters(model: nn.Module) -> tuple[Part, ...]:
    """Language model with its head, vision tower, projector."""
    inner: Any = model
    modules = {
        "language model": (inner.model.language_model, inner.lm_head),
        "vision tower": (inner.model.vision_tower,),
        "projector": projector_parts(inner),
    }
    seen: set[int] = set()
    parts = []
    for name, members in modules.items():
        total = learning = adapters = 0
        for key, tensor in ((key, tensor) for member in members for key, tensor in member.named_parameters()):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            size = weights_of(tensor)
            total += size
            learning += size if tensor.requires_grad else 0
            adapters += size if "lora_" in key else 0
        parts.append(Part(name, total, learning, adapters))
    return tuple(parts)


def weights_of(tensor: Any) -> int:
    """Numbers in a parameter; bitsandbytes keeps two of them in a byte, and their shape beside it."""
    state = getattr(tensor, "quant_state", None)
    return int(state.shape.numel()) if state is not None else int(tensor.numel())


def operations(model: nn.Module, *, recompute: bool = False) -> Operations:
    """Of a model that is tuned already. `recompute`: with the second forward pass of gradient checkpointing.

    Raises ModelError for a mixture of experts, whose cost a configuration alone does not tell.
    """
    inner: Any = model
    config = inner.config
    refuse_experts(model)
    tower, flows = _tower(inner.model.vision_tower, config.vision_config, config.vision_feature_layer)
    features = tokens_per_image(config)
    projector, flows = _linear(inner.model.multi_modal_projector, flows)

    llm, text = inner.model.language_model, config.text_config
    flows |= any(p.requires_grad for p in llm.get_input_embeddings().parameters())
    per_token = 0.0
    seen: dict[int | None, float] = {}
    heads = text.num_attention_heads
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    again = 1 if recompute else 0
    for layer, window in zip(layers_of(llm, text), windows(text), strict=True):
        cost, flows = _linear(layer, flows, again=again)
        per_token += cost
        seen[window] = seen.get(window, 0.0) + 4.0 * width * (1 + again * flows + 2 * flows)
    head, _ = _linear(inner.lm_head, flows)
    return Operations(per_token, head, tower + projector * features, tuple(seen.items()))


def windows(text: Any) -> list[int | None]:
    """How far back each layer of a language model sees; None: to the beginning."""
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def patches(vision: Any) -> int:
    return int((vision.image_size // vision.patch_size) ** 2)


def used_layers(vision: Any, feature_layer: int) -> int:
    """How many layers of a vision tower come before its `feature_layer`: 0 is the embeddings, -1 the last."""
    return int(feature_layer if feature_layer >= 0 else vision.num_hidden_layers + 1 + feature_layer)


def layers_of(model: nn.Module, config: Any) -> nn.ModuleList:
    """The transformer layers of a language model or vision tower of any family."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return module
    raise ModelError(f"{config.model_type}: no list of {config.num_hidden_layers} layers in this model")


def refuse_experts(model: nn.Module) -> None:
    """Raise ModelError for a mixture of experts: which of them a token takes is seen when it is computed."""
    inner: Any = model
    text = inner.config.text_config
    layers = layers_of(inner.model.language_model, text)
    if any(p.ndim > 2 for p in layers.parameters()):
        raise ModelError(
            f"the language model ({text.model_type}) is a mixture of experts: which of them a token takes is not "
            f"known beforehand, so neither operations nor memory can be told"
        )


def _tower(tower: nn.Module, vision: Any, feature_layer: int) -> tuple[float, bool]:
    """Operations for one image, and whether anything in the tower learns."""
    layers = layers_of(tower, vision)[: used_layers(vision, feature_layer)]
    inside = {id(module) for layer in layers_of(tower, vision) for module in layer.modules()}
    before = [module for module in tower.modules() if id(module) not in inside]
    total, flows = 0.0, False
    for module in before:
        if isinstance(module, nn.Conv2d):  # the patches' embedding; pixels need no gradient
            learns = module.weight.requires_grad
            total += 2.0 * module.weight.numel() * patches(vision) * (1 + learns)
            flows |= learns
    positions = patches(vision) + leading_tokens(vision)
    for layer in layers:
        cost, flows = _linear(layer, flows)
        total += cost * positions + 4.0 * vision.hidden_size * positions**2 * (1 + 2 * flows)
    return total, flows


def _linear(module: nn.Module, flows: bool, *, again: int = 0) -> tuple[float, bool]:
    """Operations of all linear maps for one position, and whether a gradient has to pass behind them.

    Modules stand in the order of computing but for siblings (q, k and v), which share their input: the first layer that
    learns may be counted for a little more than it costs.
    """
    total = 0.0
    for _, part in _without_originals(module):
        if isinstance(part, (nn.Linear, Conv1D)):
            learns = part.weight.requires_grad
            backward = flows + learns
            total += 2.0 * weights_of(part.weight) * (1 + backward + again * (flows or learns))
        flows |= any(p.requires_grad for p in part.parameters(recurse=False))
    return total, flows


def _without_originals(module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """All modules but those that peft keeps beside the copy that learns."""
    return ((name, part) for name, part in module.named_modules() if "original_module" not in name)
