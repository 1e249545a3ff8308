"""A folder or hub id -> the configuration, the tokenizer or the image processor in it, opened as a stranger's.

This is the one way to them. No code of the folder is run, what is in its files is bounded before anything is built of
it, and each is tried once, so that a setting that only fails in use fails here: in one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.utils import cached_file

from sightline.child import Failed, in_child
from sightline.errors import ModelError
from sightline.limits import limits, remedy
from sightline.model.pickles import read_pickle
from sightline.model.reading import hushed, quiet, reading
from sightline.model.settings import (
    check_added,
    check_config,
    check_patterns,
    check_pipeline,
    check_processor_settings,
    check_tokenizer_settings,
)
from sightline.prompt.prompter import Prompter
from sightline.terminal import printable
from sightline.types import ImageRef

TRIAL = "".join(map(chr, range(32, 127))) + "\n\t" + " a" * 200 + "a" * 400 + " " * 400 + "\n" * 200 + "中文ä" * 200
"""What a tokenizer is tried on: every printable ASCII character, and long runs, which slow patterns stumble over."""

_TRIAL_MEGABYTES = 512
"""Beyond what the tokenizer itself holds; no text of some thousand characters needs a hundredth of it."""

_OBLONG = ImageRef(b"P5 3 2 255 ......")
"""A grey picture that is no square, which some settings leave as oblong as it is."""

SLACK = 1 << 26
"""Numbers that a model may have beyond two for each byte of its files, which is what 4 bits give."""


def open_config(name: str | Path) -> Any:
    """The configuration of a folder or hub id; ModelError where it is none of a model, or asks for too much."""
    with reading(name), quiet():
        config_settings(name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    for section in (config, *(getattr(config, part, None) for part in ("text_config", "vision_config"))):
        if section is not None:  # what a forward pass gives is for its caller to say, and we say nothing
            section.return_dict, section.output_attentions, section.output_hidden_states = True, False, False
    return config


def config_settings(name: str | Path) -> dict[str, Any]:
    """The config.json of a folder or hub id as plain JSON, checked in the same way; for models without a class."""
    with reading(name), quiet():
        content: dict[str, Any]
        _check_size(_file(name, "config.json"))
        if Path(name, "config.json").is_file() and Path(name, "adapter_config.json").is_file():
            raise ModelError(
                f"{name} holds a model (config.json) and an adapter (adapter_config.json), and programs differ in "
                f"which of them they load; move one to a folder of its own"
            )
        content, _ = PreTrainedConfig.get_config_dict(name)
        check_config(content, name)
        return content


def open_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a folder or hub id; ModelError where it is none, or takes too much time or memory."""
    return _tokenizer(name, AutoTokenizer)


def open_fast_tokenizer(name: str | Path) -> Any:
    """The same as its tokenizer.json has it, whatever class its settings name."""
    return _tokenizer(name, PreTrainedTokenizerFast)


def _tokenizer(name: str | Path, kind: Any) -> Any:
    with reading(name), quiet():
        for file in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            if (content := _json(name, file)) is not None:
                check_tokenizer_settings(content, Path(name) / file)
        for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"):
            _check_size(_file(name, file))
        _check_added(_file(name, "tokenizer.json"))
        with hushed():  # a library in Rust that gives up says so in lines of its own
            tokenizer = kind.from_pretrained(name, trust_remote_code=False)
        try_tokenizer(tokenizer, name)
        return tokenizer


def _check_added(path: Path | None) -> None:
    """Raise ModelError where a tokenizer.json adds more tokens, before or behind each text or beside its vocabulary."""
    if path is None or (content := path.read_bytes()).count(b"{") <= limits().added_tokens:
        return  # each is an object of its own; to parse all of a large vocabulary for this takes its time
    parsed = json.loads(content)
    steps = parsed.get("post_processor") or {}
    steps = [steps, *(steps.get("processors") or ())]
    check_added(len(parsed.get("added_tokens") or ()) + sum(len(step.get("single") or ()) for step in steps), path)


def try_tokenizer(tokenizer: Any, name: object) -> None:
    """Raise ModelError where a tokenizer cannot tokenise a short text within the limits."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        steps = {key: getattr(backend, key) for key in ("normalizer", "pre_tokenizer", "decoder")}
        states = {key: step.__getstate__() for key, step in steps.items() if step is not None}
        check_pipeline(states, name)
        for state in states.values():
            check_patterns(state, name)

    def tokenise(text: str) -> int:
        ids = tokenizer(text, add_special_tokens=True)["input_ids"]
        tokenizer.decode(ids)
        return len(ids)

    seconds = limits().tokenizer_seconds
    with in_child(tokenise, seconds=seconds, megabytes=_TRIAL_MEGABYTES, characters=100) as ask:
        try:
            ask(TRIAL)
        except Failed as error:
            hint = f" ({remedy('tokenizer_seconds', 60 * seconds)})" if error.bound == "seconds" else ""
            raise ModelError(f"the tokenizer of {name} fails on a short text: {printable(str(error))}{hint}") from None


def open_processor(name: str | Path) -> Any:
    """The image processor of a folder or hub id; ModelError where it is none that could make pixels."""
    with reading(name), quiet():
        _check_size(_file(name, "preprocessor_config.json"))
        # The PIL backend everywhere: pixels must not depend on whether torchvision happens to be installed.
        processor = AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
        check_processor_settings(processor, name)
        return processor


def try_pixels(prompter: Prompter, side: int, name: object) -> None:
    """Raise ModelError where a prompter does not make of an image what a vision tower of `side` pixels takes."""
    with reading(str(name)):
        found = prompter.pixel_values(prompter.pixels([_OBLONG]))
    if tuple(found.shape[1:]) != (3, side, side) or not found.isfinite().all():
        raise ModelError(
            f"the image processor of {name} makes images of {' x '.join(map(str, found.shape[1:]))}, and its vision "
            f"tower takes 3 x {side} x {side}: config.json and preprocessor_config.json are of two models"
        )


def check_fits(name: str | Path, build: Callable[[], Any]) -> None:
    """Raise ModelError where the model of a folder's configuration is far larger than the weights that lie there.

    Otherwise it would be built, filled with random numbers, and only then found not to fit. `build` makes the model on
    the meta device.
    """
    _check_pickles(name)
    folder = Path(name)
    if not folder.is_dir():
        return
    held = sum(file.stat().st_size for form in ("*.safetensors", "*.bin") for file in folder.glob(form))
    with reading(name), quiet(), torch.device("meta"):
        wanted = sum(parameter.numel() for parameter in build().parameters())
    if held and wanted > 2 * held + SLACK:
        raise ModelError(
            f"the config.json of {name} describes a model of {wanted / 1e9:.1f} billion numbers, and the weights there "
            f"are {held / 1e9:.2f} GB; copy both again from the same place"
        )


def _check_pickles(name: str | Path) -> None:
    """Raise ModelError for a .bin that holds more than weights: transformers would read it without our bounds."""
    with reading(name), quiet():
        if any(_file(name, file) for file in ("model.safetensors", "model.safetensors.index.json")):
            return  # which transformers takes first
        index = _json(name, "pytorch_model.bin.index.json") or {}
        for file in sorted({"pytorch_model.bin", *index.get("weight_map", {}).values()}):
            if (path := _file(name, file)) is not None:
                read_pickle(path)


def _file(name: str | Path, file: str) -> Path | None:
    """A file of a folder, or of a hub id, fetched if need be; None where there is none."""
    if Path(name).is_dir():
        path = Path(name, file)
        return path if path.is_file() else None
    found = cached_file(
        str(name), file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if found is None else Path(found)


def _json(name: str | Path, file: str) -> Mapping[str, Any] | None:
    path = _file(name, file)
    if path is None:
        return None
    _check_size(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no object of JSON; copy it again")
    return content


def _check_size(path: Path | None) -> None:
    if path is not None and (size := path.stat().st_size / 1e6) > limits().settings_megabytes:
        raise ModelError(
            f"{path} has {size:,.0f} MB; at most {limits().settings_megabytes:g} are taken, "
            f"{remedy('settings_megabytes', size)}"
        )
