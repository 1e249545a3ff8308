"""From pydantic's errors to one line each for people: file, dotted key, what is wrong, the nearest valid key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sightline.recipes import KeyPath, dotted

ELSEWHERE = {
    "accumulative_counts": "batch.global_batch",
    "batch_size": "batch.global_batch",
    "data_path": "data.*.path",
    "dataloader_num_workers": "batch.workers",
    "freeze_llm": "tune.llm",
    "freeze_visual_encoder": "tune.vision_tower",
    "image_folder": "data.*.images",
    "learning_rate": "optim.lr",
    "llm_name_or_path": "model.llm",
    "logging_steps": "run.log_every",
    "lora_alpha": "tune.llm_lora.alpha",
    "lora_r": "tune.llm_lora.r",
    "max_epochs": "optim.epochs",
    "max_norm": "optim.clip_grad",
    "mm_projector_lr": "optim.projector_lr",
    "model_name_or_path": "model.llm",
    "model_max_length": "batch.max_length",
    "num_train_epochs": "optim.epochs",
    "pad_image_to_square": "model.image_aspect_ratio",
    "pretrain_mm_mlp_adapter": "model.projector_from",
    "pretrained_pth": "model.projector_from",
    "prompt_template": "model.template",
    "save_steps": "run.save_every",
    "save_total_limit": "run.keep",
    "select_layer": "model.vision_feature_layer",
    "visual_encoder": "model.vision_tower",
    "visual_encoder_lora": "tune.vision_lora",
    "visual_encoder_name_or_path": "model.vision_tower",
}
"""What XTuner, LLaVA and transformers call our keys."""

MANY = 12
"""Choices beyond it are not all listed where one of them is near."""

MOST = 50
"""Errors that are told; the nearest key of ten thousand would be looked for for minutes."""

_LONGEST = 600
"""Characters of an error; all keys of a section fit, a value of many lines does not."""

_QUOTED = re.compile(r"'([^']*)'")

_PLAIN = {
    "Input should be": "must be",
    "a valid array": "a list",
    "an object": "a section (key: value)",
    "a valid boolean": "true or false",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text",
    "Value error, ": "",
}


def key_types(model: type[BaseModel], path: KeyPath = ()) -> dict[KeyPath, Any]:
    """The type of every key below a model, an entry of a list written `*`: ("data", "*", "path") -> str."""
    found: dict[KeyPath, Any] = {}
    for name, field in model.model_fields.items():
        found[(*path, name)] = field.annotation
        for inner, repeated in _sections(field.annotation):
            below = (*path, name, "*") if repeated else (*path, name)
            found[below] = inner if repeated else field.annotation
            found |= key_types(inner, below)
    return found


def _sections(annotation: Any, repeated: bool = False) -> list[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, repeated)]
    many = get_origin(annotation) in (list, tuple)
    return [found for inner in get_args(annotation) for found in _sections(inner, repeated or many)]


def is_text(annotation: Any, text: str) -> bool:
    """Whether the words of an override are the value itself: `model.llm=123` is a name, `null` is none."""
    options = get_args(annotation)
    if type(None) in options and text in ("null", "~", ""):
        return False
    return annotation is str or str in options or get_origin(annotation) is Literal


def explain(error: ValidationError, keys: Mapping[KeyPath, Any], files: Mapping[KeyPath, str]) -> list[str]:
    """A line for each error; `files` says where each value was written, under the empty path the recipe's own file."""
    # A list whose entries are all wrong is also reported as too short.
    items = [item for item in error.errors() if not (item["type"] == "too_short" and item["input"])]
    lines = [f"{_file(item['loc'], files)}: {_problem(item, keys)}" for item in items[:MOST]]
    more = [f"and {len(items) - MOST:,} more errors"] * (len(items) > MOST)
    return [line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..." for line in lines] + more


def _file(path: KeyPath, files: Mapping[KeyPath, str]) -> str:
    below = {file for other, file in files.items() if other[: len(path)] == path}
    if len(below) == 1:
        return below.pop()
    return files[max((other for other in files if other == path[: len(other)]), key=len)]


def _problem(item: Any, keys: Mapping[KeyPath, Any]) -> str:
    path, kind = item["loc"], item["type"]
    if kind == "extra_forbidden":
        return unknown_key(path, keys)
    if kind == "missing":
        return f"{dotted(path)}: missing"
    if kind == "too_short":
        return f"{dotted(path)}: must have at least one entry"
    if kind == "too_long":
        return f"{dotted(path)}: must have {item['ctx']['max_length']} entries, not {len(item['input'])}"
    if kind == "literal_error" and (options := _QUOTED.findall(item["ctx"]["expected"]))[MANY:]:
        near = difflib.get_close_matches(str(item["input"]), options, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(options)}"
        return f"{dotted(path)}: there is no {json.dumps(item['input'], ensure_ascii=False)}; {hint}"
    message = item["msg"]
    for theirs, ours in _PLAIN.items():
        message = message.replace(theirs, ours)
    got = "" if kind == "value_error" else f", not {json.dumps(item['input'], ensure_ascii=False)}"
    return f"{dotted(path) or 'the recipe'}: {message}{got}"


def unknown_key(path: KeyPath, keys: Mapping[KeyPath, Any]) -> str:
    """What to say of a key that there is not: the nearest one, or all that could stand there."""
    near = nearest(path, keys)
    if near is not None:
        return f"{dotted(path)}: unknown key; did you mean {near}?"
    parent = _schema(path)[:-1]
    siblings = [str(key[-1]) for key in keys if key[:-1] == parent]
    return f"{dotted(path)}: unknown key; " + (f"known here: {', '.join(siblings)}" if siblings else "nothing is here")


def nearest(path: KeyPath, keys: Mapping[KeyPath, Any]) -> str | None:
    """The valid key that was probably meant: by another program's name for it, misplaced, or misspelt."""
    name, parent = str(path[-1]), _schema(path)[:-1]
    if name in ELSEWHERE:
        return _numbered(tuple(ELSEWHERE[name].split(".")), path)
    misplaced = [key for key in keys if key[-1] == name]
    if misplaced:
        return _numbered(misplaced[0], path)
    siblings = {str(key[-1]): key for key in keys if key[:-1] == parent}
    everywhere = {str(key[-1]): key for key in reversed(list(keys))}
    for candidates, cutoff in ((siblings, 0.6), (everywhere, 0.75)):
        close = difflib.get_close_matches(name, candidates, n=1, cutoff=cutoff)
        if close:
            return _numbered(candidates[close[0]], path)
    return None


def _schema(path: KeyPath) -> KeyPath:
    return tuple("*" if isinstance(piece, int) else piece for piece in path)


def _numbered(key: KeyPath, path: KeyPath) -> str:
    """The key of a schema with the number of the entry that the faulty path was in, or the first."""
    index = next((piece for piece in path if isinstance(piece, int)), 0)
    return dotted(tuple(index if piece == "*" else piece for piece in key))
