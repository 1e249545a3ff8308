"""A base model's tensors and a folder that peft wrote -> the tensors with the adapter in them, each when it is read.

The arithmetic is that of Hu et al., LoRA (https://arxiv.org/abs/2106.09685), and Liu et al., DoRA
(https://arxiv.org/abs/2402.09353), in float32 whatever the files hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sightline.convert.tensors import Stored, in_file, read_json
from sightline.errors import ModelError, shown
from sightline.patterns import slow

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

PREFIX = "base_model.model."
"""What peft puts before every name of the model that it has wrapped."""

FACTORS = re.compile(r"^(.*)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.weight)?$")
"""The tensors of an adapter; all others are parameters that were trained beside it, and replace those of the base."""

OTHER_WAYS = ("use_qalora", "layer_replication", "alora_invocation_tokens", "arrow_config", "use_bdlora", "kasa_config")
"""Settings of peft under which the weights mean something else than a sum."""

OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of beginning (init_lora_weights) that change the base as well, which then is not the one that is at hand."""

PATTERNS = ("rank_pattern", "target_modules", "exclude_modules", "layers_pattern")
"""Settings that hold regular expressions, or names, which peft tries and we do not."""

MOST_PATTERNS = 2000
"""Of one of them, each tried on each layer; the linear layers of the largest language models are half as many."""

LARGEST_RANK = 1 << 12
"""That of which there may be no tensor: where `rank_pattern` gives each layer its own."""

UNCOMPARED = "--no-verify merges without peft's word"

Rename = Callable[[str], str]


def is_adapter(folder: Path) -> bool:
    """Whether a folder is one that peft wrote."""
    return (folder / CONFIG).is_file()


def adapter_config(folder: Path) -> dict[str, Any]:
    """What an adapter says of itself; raises ModelError where it is no LoRA, or one of a kind that is no sum."""
    if not is_adapter(folder):
        raise ModelError(f"{folder} is no adapter: it has no {CONFIG}")
    config = read_json(folder / CONFIG)
    kind, begun = config.get("peft_type"), config.get("init_lora_weights")
    try:
        alphas = [float(alpha) for alpha in (config["lora_alpha"], *(config.get("alpha_pattern") or {}).values())]
        _check_patterns(folder, "alpha_pattern", config.get("alpha_pattern") or (), _pattern)
        if not all(map(math.isfinite, alphas)):
            raise ValueError(f"a lora_alpha of {alphas[0]}")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, re.error) as error:
        raise ModelError(f"{folder / CONFIG} is damaged ({error!r}); copy it again") from error
    odd = next((f"uses {way}" for way in OTHER_WAYS if config.get(way)), None)
    if isinstance(begun, str) and begun.startswith(OTHER_BASES):
        odd = f"was begun with {begun}, which changes the base model too"
    if kind != "LORA":
        odd = f"is of the kind {str(kind)[:40]}, not LORA"
    if odd:
        raise ModelError(f"the adapter {folder} {odd}: merge it with the program that made it")
    return config


def merged(tensors: Mapping[str, Stored], folder: Path, rename: Rename = str) -> dict[str, Stored]:
    """The tensors with a LoRA or DoRA in them, in their own number formats.

    `rename` makes, of a parameter's name in the wrapped model (`model.layers.0.self_attn.q_proj.weight`), the one in
    `tensors`. Raises ModelError where the adapter is cut, or was made for another model.
    """
    return combined(tensors, adapter_tensors(folder), adapter_config(folder), folder, rename)


def adapter_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of an adapter by their names in the model that it wraps: `....q_proj.lora_A.weight`."""
    adapter_config(folder)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(f"{folder} is half an adapter: it has neither {WEIGHTS[0]} nor {WEIGHTS[1]}")
    return {name.removeprefix(PREFIX): tensor for name, tensor in in_file(file).items()}


def combined(
    tensors: Mapping[str, Stored],
    adapter: Mapping[str, Stored],
    config: Mapping[str, Any],
    place: Path,
    rename: Rename = str,
) -> dict[str, Stored]:
    """The same of an adapter's tensors, which came from `place`, and of what peft's configuration says of them."""
    layers, replaced = _parts(adapter, place)
    own = {rename(f"{layer}.weight"): factors for layer, factors in layers.items()}
    others = {rename(name): tensor for name, tensor in replaced.items()}
    strange = sorted(name for name in (*own, *others) if name not in tensors)
    if strange:
        raise _other_base(place, config, f"{len(strange)} of its tensors are not in it, such as {strange[0]}")
    result = dict(tensors)
    for name, tensor in others.items():
        if tensor.shape != tensors[name].shape:
            there = f"{name} is {list(tensors[name].shape)}, the adapter's is {list(tensor.shape)}"
            raise _other_base(place, config, there)
        result[name] = tensor.to(tensors[name].dtype)
    for (layer, factors), name in zip(layers.items(), own, strict=True):
        wanted, shape = tensors[name].shape, _shape(factors, config)
        # A convolution's factors are as many numbers, in the shape of a kernel.
        if torch.Size(wanted).numel() != torch.Size(shape).numel() or wanted[0] != shape[0]:
            raise _other_base(place, config, f"{name} is {list(wanted)}, the adapter's is {list(shape)}")
        if not tensors[name].dtype.is_floating_point:
            raise ModelError(f"{name} is quantised ({tensors[name].dtype}): merge {place} into the unquantised model")
        scale, turned = _scale(config, layer, factors), _is_turned(factors, config)
        # Not on the base's: peft writes an embedding that has an adapter out beside it.
        result[name] = result[name].then(partial(_added, factors=factors, scale=scale, turned=turned))
    return result


def check_for_peft(folder: Path) -> None:
    """Raise ModelError where peft would search for ever, or make larger factors for an adapter than it has."""
    config, (layers, _) = adapter_config(folder), _parts(adapter_tensors(folder), folder)
    largest = max((next(_ab(factors)).shape[0] for factors in layers.values()), default=0)
    own = config.get("rank_pattern") or {}
    for key in PATTERNS:
        given = config.get(key) or ()
        try:
            _check_patterns(folder, key, (given,) if isinstance(given, str) else given, str)
        except (TypeError, RecursionError, re.error) as error:
            raise ModelError(f"{folder / CONFIG} is damaged ({key}: {error!r}); copy it again") from error
    ranks = {"r": config.get("r"), **own} if isinstance(own, dict) else {"rank_pattern": own}
    for name, rank in ranks.items():
        most = max(largest, LARGEST_RANK) if name == "r" and own else largest
        if not isinstance(rank, int) or not 0 <= rank <= max(most, 1):
            raise ModelError(
                f"{folder / CONFIG} says {shown(name)}: {shown(rank)}, its tensors are of rank {largest}; {UNCOMPARED}"
            )


def _check_patterns(folder: Path, key: str, patterns: Collection[str], whole: Callable[[str], str]) -> None:
    """Raise ModelError for a regular expression that could match for ever; re.error and TypeError for what is none."""
    for pattern in patterns:
        if why := f"one of {len(patterns):,}" if len(patterns) > MOST_PATTERNS else slow(whole(pattern)):
            hint = f"; {UNCOMPARED}" if key in PATTERNS else ""
            raise ModelError(f"{folder / CONFIG}: {key} {shown(pattern[:80])} could match for ever ({why}){hint}")
        re.compile(whole(pattern))


def _parts(adapter: Mapping[str, Stored], place: Path) -> tuple[dict[str, dict[str, Stored]], dict[str, Stored]]:
    """Factors by layer and kind; and the parameters that were trained in full, by name."""
    layers: dict[str, dict[str, Stored]] = {}
    replaced = {}
    for name, tensor in adapter.items():
        if match := FACTORS.match(name):
            layers.setdefault(match[1], {})[match[2]] = tensor
        elif "lora_" in name or "trainable_tokens" in name:
            raise ModelError(f"{place}: {name} is of a kind that cannot be merged; merge it with the program it is of")
        else:
            replaced[re.sub(r"\.(base_layer|modules_to_save)\.", ".", name)] = tensor
    for layer, factors in layers.items():
        if odd := next((factor.dtype for factor in factors.values() if not factor.dtype.is_floating_point), None):
            raise ModelError(f"{place} is damaged: the numbers of {layer} are {odd}, no fractions; copy it again")
        pairs = ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"})
        if factors.keys() - {"lora_magnitude_vector"} not in pairs:
            raise ModelError(f"{place} is cut: of {layer} it has {' and '.join(sorted(factors))} only; copy it again")
        ranks = (next(_ab(factors)).shape[:1], tuple(_ab(factors))[1].shape[1:2])
        if ranks[0] != ranks[1] or 0 in ranks[0]:
            raise ModelError(f"{place} is damaged: the two halves of {layer} do not fit together; copy it again")
    if not layers and not replaced:
        raise ModelError(f"{place} holds no tensors of an adapter")
    return layers, replaced


def _ab(factors: Mapping[str, Stored]) -> Any:
    """The two factors, the inner one first."""
    return (factors[name] for name in sorted(factors) if name[-2:] in ("_A", "_B"))


def _is_turned(factors: Mapping[str, Stored], config: Mapping[str, Any]) -> bool:
    """Whether the weight is kept as inputs x outputs: that of an embedding is, and of GPT-2's layers."""
    return "lora_embedding_A" in factors or bool(config.get("fan_in_fan_out"))


def _shape(factors: Mapping[str, Stored], config: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the weight that the factors belong to, but for the shape of a convolution's kernel."""
    a, b = _ab(factors)
    outer, inner = (b.shape[0],), a.shape[1:]
    return (*inner, *outer) if _is_turned(factors, config) else (*outer, *inner)


def _scale(config: Mapping[str, Any], layer: str, factors: Mapping[str, Stored]) -> float:
    """Of peft: lora_alpha / r; the rank is that of the factors, in which rank_pattern has gone already."""
    rank = next(_ab(factors)).shape[0]
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if _matches(key, layer)), config["lora_alpha"])
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _matches(pattern: str, layer: str) -> bool:
    return re.match(_pattern(pattern), layer) is not None


def _pattern(pattern: str) -> str:
    """As peft has it: the end of a layer's name."""
    return rf"(.*\.)?({pattern})$"


def _added(weight: torch.Tensor, factors: Mapping[str, Stored], scale: float, turned: bool) -> torch.Tensor:
    a, b = (factor.read().float() for factor in _ab(factors))
    change = (b.flatten(1) @ a.flatten(1)) * scale
    if turned:
        change = change.T
    result = weight.float() + change.reshape(weight.shape)
    if "lora_magnitude_vector" in factors:
        # DoRA: each output keeps the length that was learned for it.
        magnitude = factors["lora_magnitude_vector"].read().float().flatten()
        rows = result.T if turned else result
        lengths = torch.linalg.norm(rows.flatten(1), dim=1)
        factor = (magnitude / lengths).reshape(-1, *[1] * (weight.ndim - 1))
        result = (factor.T if turned else factor) * result
    return result.to(weight.dtype)


def _other_base(place: Path, config: Mapping[str, Any], what: str) -> ModelError:
    made_for = config.get("base_model_name_or_path")
    named = f"; it was made for {made_for}" if made_for else ""
    return ModelError(f"the adapter {place} does not belong to this base model ({what}){named}")
