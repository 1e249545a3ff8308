"""A directory or hub id -> a vision-language model with the prompter that belongs to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlavaForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from sightline.errors import MissingExtra, ModelError
from sightline.model.weights import checkpoints
from sightline.prompt.prompter import Prompter, template_named
from sightline.prompt.templates import TEMPLATES, Template, render, to_text
from sightline.runtime import pick_device, pick_dtype, say
from sightline.types import Message, Text, ask

REPORTED = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Arguments of `from_pretrained` with which it tells what does not fit; `check_keys` refuses it."""

TEMPLATE_KEY = "prompt_template"
SYSTEM_KEY = "system_prompt"
"""Where the tokenizer_config.json of an export notes the name of its template."""


@dataclass(frozen=True)
class VLM:
    """A vision-language model and the one way to speak to it."""

    model: LlavaForConditionalGeneration
    prompter: Prompter

    @property
    def device(self) -> torch.device:
        return self.model.device


def load(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    template: str | None = None,
    bits: int | None = None,
) -> VLM:
    """Load a Hugging Face LLaVA directory, a hub id or the model of a run.

    The template is recognised by what the chat template renders. Raises ModelError when the folder is none, lacks
    parts, or its chat template is not a known one and none is named.
    """
    given, path = path, model_folder(path)
    if path != given:
        say(f"{given} is a run; its model is {path}")
    config, tokenizer, image_processor = load_parts(path)
    written_in = template_named(template) if template else recognise_template(tokenizer, path)
    where = pick_device(device)
    options: dict[str, Any] = REPORTED | {"dtype": pick_dtype(dtype, where)}
    if bits is not None:
        options |= {"quantization_config": _quantized(bits, options["dtype"]), "device_map": {"": where}}
    with reading(path), quiet():
        model, report = AutoModelForImageTextToText.from_pretrained(path, **options)
    check_keys(path, report, "missing", "unexpected", "mismatched")
    if bits is None:
        model.to(where)
    prompter = Prompter(
        tokenizer=tokenizer,
        template=written_in,
        image_processor=image_processor,
        tokens_per_image=tokens_per_image(config),
    )
    return VLM(model.eval(), prompter)


def check_keys(path: str | Path, report: dict[str, Any], *kinds: str) -> None:
    """Raise ModelError where transformers would go on with random weights, or without some of the file's."""
    found = {kind: report[f"{kind}_keys"] for kind in kinds if report.get(f"{kind}_keys")}
    if found:
        shown = "; ".join(f"{len(keys)} {kind}, such as {_shown(min(keys))}" for kind, keys in found.items())
        raise ModelError(f"the weights in {path} do not fit its config.json ({shown})")


def _shown(key: str | tuple[str, Sequence[int], Sequence[int]]) -> str:
    return key if isinstance(key, str) else f"{key[0]}, {list(key[1])} in the file and {list(key[2])} in the model"


def model_folder(path: str | Path) -> str | Path:
    """The folder of the finished model, where the path is a run; otherwise the path itself."""
    finished = Path(path, "hf")
    is_run = not Path(path, "config.json").is_file() and (finished / "config.json").is_file()
    return finished if is_run else path


def load_parts(path: str | Path) -> tuple[Any, Any, Any]:
    """Configuration, tokenizer and image processor of a LLaVA directory or a run: all but the weights."""
    path = model_folder(path)
    with reading(path), quiet():
        config = AutoConfig.from_pretrained(path)
        if config.model_type != "llava":
            raise ModelError(
                f"{path} is a {config.model_type!r} model, not a LLaVA model; assemble or convert it first"
            )
        # The PIL backend everywhere: pixels must not depend on whether torchvision happens to be installed.
        return config, AutoTokenizer.from_pretrained(path), AutoImageProcessor.from_pretrained(path, backend="pil")


def tokens_per_image(config: Any) -> int:
    """Features of one picture: patches, and the class token where the strategy keeps it."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return int(patches + (config.vision_feature_select_strategy == "full" and _has_class_token(vision)))


def _has_class_token(vision: Any) -> bool:
    return vision.model_type.startswith("clip")


def positions(language_model: Any) -> int | None:
    """The most tokens that a language model's configuration has positions for; None where it sets no limit.

    A stretched rope reaches `factor` times as far, which some configurations (Llama-3.1) have multiplied out already
    and others (Vicuna-16k) have not; a dynamic one stretches itself to any length.
    """
    limit = getattr(language_model, "max_position_embeddings", None)
    rope = getattr(language_model, "rope_parameters", None) or {}
    if limit is None or rope.get("rope_type") == "dynamic":
        return None
    unstretched = rope.get("original_max_position_embeddings") or limit
    return int(max(limit, unstretched * (rope.get("factor") or 1)))


def recognise_template(tokenizer: Any, path: str | Path) -> Template:
    """The template that writes the same prompt as the tokenizer's chat template; raises ModelError if none does.

    Where several write the same and differ in what ends an answer, the name that our exports note decides; so does the
    system prompt that they note, where a recipe has set another than the template's.
    """
    names = ", ".join(TEMPLATES)
    if not tokenizer.chat_template:
        raise ModelError(f"{path} has no chat template; name one with --prompt-template ({names})")
    messages = (ask("a"), Message("assistant", (Text("b"),)), ask("c"))
    theirs = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.text} for message in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    system = tokenizer.init_kwargs.get(SYSTEM_KEY)
    candidates = list(TEMPLATES.values())
    if isinstance(system, str):
        candidates += [replace(template, default_system=system) for template in TEMPLATES.values()]
    alike = [
        template
        for template in candidates
        if to_text(render(template, messages, bos=tokenizer.bos_token or "", eos=tokenizer.eos_token or "")) == theirs
    ]
    if not alike:
        raise ModelError(
            f"the chat template of {path} is none that Sightline knows; name one with --prompt-template ({names})"
        )
    noted = tokenizer.init_kwargs.get(TEMPLATE_KEY)
    return next((template for template in alike if template.name == noted), alike[0])


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what transformers says about a folder that is no model into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, StrictDataclassError) as error:
        if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
            raise ModelError(f"{path} is not a model folder: it has no config.json{_of_a_run(Path(path))}") from error
        if not Path(path).exists() and (str(path).startswith((".", "/", "~")) or str(path).count("/") != 1):
            raise ModelError(f"no model folder {path}") from error
        raise ModelError(f"cannot load {path}: {_one_line(error)}") from error
    except SafetensorError as error:
        raise ModelError(f"the weights in {path} are damaged ({error}); copy or convert them again") from error


def _of_a_run(folder: Path) -> str:
    if (folder / "hf").is_dir():
        return f"; the model of this run is in {folder / 'hf'}"
    if checkpoints(folder):
        return "; this run is not finished: make a model of its newest checkpoint with sightline convert"
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bar and table of keys: we look at the keys ourselves."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def _one_line(error: Exception) -> str:
    return shorten(str(error) or type(error).__name__, 500, placeholder=" ...")


def _quantized(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingExtra("bitsandbytes", "quantize", f"--bits {bits}") from error
    # transformers 5 matches these names from the root: the short ones would quantise the vision tower as well.
    skipped = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    if bits == 4:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skipped,
        )
    # At every layer of every token it would say that 8 bits are multiplied in float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
