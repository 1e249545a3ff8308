"""What the JSON files of a model folder say, held against what any model could mean by it, before anything is built.

A stranger's configuration may ask for 10**7 layers, a kernel to be fetched, or divide by its patch size of 0. These
checks see that it does not; whether the parts fit each other is asked later, by whoever puts them together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from sightline.errors import ModelError, shown
from sightline.limits import limits, remedy
from sightline.patterns import slow

COUNTED = {
    "hidden_size": 1 << 18,
    "intermediate_size": 1 << 22,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "vocab_size": 1 << 24,
    "patch_size": 1 << 12,
    "num_channels": 64,
    "num_experts": 1 << 16,
    "num_local_experts": 1 << 16,
}
"""Settings that count something, and what no model comes near; each is at least 1 where it is given."""

MOST_LABELS = 1 << 20
"""A name is made for each; the most in use are the 21,843 of ImageNet."""

LONGEST_SIDE = 1 << 12
"""Pixels to which an image processor resizes; the largest in use take 1,536, and this many squared fill a gigabyte."""

ATTENTIONS = {"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
"""What transformers computes attention with by itself; a name with a slash would be fetched from the hub and run."""

ENDLESS = {"time_step_limit"}
"""Settings of which infinity is an ordinary value."""

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "chat_template": ((str, list, dict), "template"),
    "model_max_length": ((int, float), "number"),
    "tokenizer_class": ((str,), "name"),
}
"""Settings of tokenizers that are looked at when they are used, what they may be, and how messages call that."""

ADDED = ("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens")
"""Where a tokenizer_config.json lists tokens that are added, one by one, to the vocabulary."""

GROWTH = 64
"""How many times as long as a text its normalised form may be; what is in use makes it twice as long at most."""


def check_config(content: Mapping[str, Any], name: object) -> None:
    """Raise ModelError for a config.json whose numbers are none of a model, or that would fetch or run something."""
    if content.get("quantization_config"):
        raise ModelError(
            f"{name} holds weights of few bits (quantization_config in its config.json), which can be neither "
            f"assembled nor converted; take the model that it was made of, and --bits 4 or tune.llm_bits=4"
        )
    for place, section in _sections(content):
        where = f"the config.json of {name} says {place}"
        for key, value in section.items():
            _check_value(where, key, value)
        side, patch = section.get("image_size"), section.get("patch_size")
        if isinstance(side, int) and isinstance(patch, int) and patch > 0:
            most = limits().patches
            if (count := (side // patch) ** 2) > most:
                raise ModelError(
                    f"{where}image_size {side} in patches of {patch}, which are {count} patches; at most {most:g} are "
                    f"taken, {remedy('patches', count)}"
                )


def _sections(content: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects in a configuration that describe a model: itself, and text_config and the like."""
    yield place, content
    for key, value in content.items():
        if isinstance(value, dict) and key.endswith("_config"):
            yield from _sections(value, f"{place}{key}.")


def _check_value(where: str, key: str, value: Any) -> None:
    if "attn_implementation" in key and value is not None and str(value) not in ATTENTIONS:
        raise ModelError(f"{where}{key}: {shown(value)}, and nothing is fetched or run for a model; take it out")
    if key in ("num_hidden_layers", "n_layer") and isinstance(value, int) and value > limits().layers:
        most = f"{limits().layers:g} are taken, {remedy('layers', value)}"
        raise ModelError(f"{where}{key} {value}; at most {most}")
    if key == "num_labels" and isinstance(value, int) and value > MOST_LABELS:
        raise ModelError(f"{where}num_labels {value}, which no model tells apart; copy it again")
    if key in COUNTED and value is not None:
        most_ever = COUNTED[key]
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= most_ever for n in numbers):
            raise ModelError(f"{where}{key} {shown(value)}, no number from 1 to {most_ever}; copy it again")
    if key.endswith("_eps") and isinstance(value, (int, float)) and not 0 <= value < 1:
        raise ModelError(f"{where}{key} {value}, which is no small number; copy it again")
    within = key in ENDLESS or key.endswith("_config")  # a section of its own
    if not within and not all(map(math.isfinite, _numbers(value))):
        raise ModelError(f"{where}{key} {shown(value)}, which is no number; copy it again")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


def check_processor_settings(processor: Any, name: object) -> None:
    """Raise ModelError where an image processor would trip over a setting, or make pixels that are no numbers."""
    where = f"the preprocessor_config.json of {name} says"
    factor = getattr(processor, "rescale_factor", 1.0) if getattr(processor, "do_rescale", True) else 1.0
    if not _is_number(factor) or factor <= 0:
        raise ModelError(f"{where} rescale_factor: {shown(factor)}, no number above 0; copy it again")
    brightest = max(1.0, 255 * factor)
    for key in ("image_mean", "image_std"):
        colours = getattr(processor, key, None)
        sound = isinstance(colours, list | tuple) and len(colours) == 3 and all(map(_is_number, colours))
        least, most = min(colours or (0,)) if sound else 0, max(colours or (0,)) if sound else 0
        if not sound or least < 0 or most > brightest or (key == "image_std" and least == 0):
            raise ModelError(f"{where} {key}: {shown(colours)}, not three numbers, one a colour; copy it again")
    if getattr(processor, "resample", 3) not in range(6):
        raise ModelError(
            f"{where} resample: {shown(processor.resample)}, no filter of Pillow's (0 to 5); copy it again"
        )
    for key in ("size", "crop_size", "pad_size"):
        sides = getattr(processor, key, None)
        for side, length in dict(sides or {}).items():
            if length is not None and (not isinstance(length, int) or not 1 <= length <= LONGEST_SIDE):
                raise ModelError(
                    f"{where} {key}.{side}: {shown(length)}, no side of 1 to {LONGEST_SIDE} pixels; copy it again"
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_tokenizer_settings(content: Mapping[str, Any], file: object) -> None:
    """Raise ModelError for a tokenizer_config.json or special_tokens_map.json that no tokenizer could be made of."""
    for key, (kinds, word) in KINDS.items():
        if not isinstance(content.get(key), (*kinds, type(None))):
            raise ModelError(f"{file} says {key}: {shown(content[key])}, which is no {word}; copy it again")
    for key in SPECIAL:
        token = content.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str) and token is not None:
            raise ModelError(f"{file} says {key}: {shown(token)}, which is no token; copy it again")
    check_added(sum(len(content[key]) for key in ADDED if isinstance(content.get(key), dict | list)), file)


def check_added(count: int, file: object) -> None:
    """Raise ModelError where a file adds more tokens to a tokenizer than the limit allows."""
    if count > limits().added_tokens:
        most = f"{limits().added_tokens:g} are taken, {remedy('added_tokens', count)}"
        raise ModelError(f"{file} adds {count} tokens; at most {most}")


def check_pipeline(states: Mapping[str, bytes], name: object) -> None:
    """Raise ModelError where a tokenizer's steps, as JSON by their names, could make a short text huge."""
    for step, state in states.items():
        if (times := _growth(json.loads(state))) > GROWTH:
            raise ModelError(
                f"the tokenizer of {name} can make a text {times:.3g} times as long ({step} in its tokenizer.json), "
                f"which none in use does; take another copy of the model"
            )


def _growth(step: Any) -> float:
    """By how much a step, and the steps in it, can multiply the length of a text."""
    inner = [part for key in ("normalizers", "decoders") for part in step.get(key) or ()]
    own = 1.0
    if step.get("type") == "Replace":
        pattern = step["pattern"].get("String", "")  # a regular expression may find nothing, everywhere
        own = max(1.0, len(step["content"]) / len(pattern) if pattern else 1.0 + len(step["content"]))
    if step.get("type") == "Prepend":
        own = 1.0 + len(step.get("prepend", ""))
    return math.prod([own, *map(_growth, inner)])


def check_patterns(state: bytes, name: object) -> None:
    """Raise ModelError for a regular expression in a tokenizer's step that can take for ever."""
    for pattern in _patterns(json.loads(state)):
        if reason := slow(pattern):
            raise ModelError(f"the tokenizer of {name} looks for {shown(pattern)} in texts: {reason}")


def _patterns(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and isinstance(value.get("Regex"), str):
        yield value["Regex"]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _patterns(inner)
