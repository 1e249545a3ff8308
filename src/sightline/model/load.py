"""A directory or hub id -> a vision-language model with the prompter that belongs to it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
)

from sightline.errors import ModelError, shown
from sightline.model.foreign import check_fits, open_config, open_processor, open_tokenizer, try_pixels
from sightline.model.next import check_processor, tiles_of
from sightline.model.projector import deeper, depth_of, read_own_projector, readable
from sightline.model.quantize import bitsandbytes
from sightline.model.reading import REPORTED, WHOLE, check_keys, model_folder, quiet, reading
from sightline.model.tune import check_quantizable
from sightline.model.vision import check_feature_layer, tokens_per_image
from sightline.prompt.chat_template import Unrendered, chat_template
from sightline.prompt.own_template import AUTO, own_template
from sightline.prompt.prompter import Prompter, template_named, why_not
from sightline.prompt.render import render, to_text
from sightline.prompt.templates import TEMPLATES, Template
from sightline.recipe import TuneRecipe
from sightline.runtime import pick_device, pick_dtype, say
from sightline.types import Message, Text, ask

TEMPLATE_KEY = "prompt_template"
SYSTEM_KEY = "system_prompt"
PLACE_KEY = "image_place"
"""Where the tokenizer_config.json of an export notes its template's name, system prompt and place of images."""


NAME_ONE = "name one with --prompt-template (vicuna, llama3_chat, qwen_2_5, phi3_chat, ...: docs/templates.md)"
"""What to do where no template is recognised."""


@dataclass(frozen=True)
class VLM:
    """A vision-language model and the one way to speak to it."""

    model: LlavaForConditionalGeneration | LlavaNextForConditionalGeneration
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
    config, prompter = load_prompter(path, template)
    where = pick_device(device)
    options: dict[str, Any] = REPORTED | {"dtype": pick_dtype(dtype, where)}
    if bits is not None:
        options |= {"quantization_config": _quantized(bits, options["dtype"], where), "device_map": {"": where}}
        if bits == 4:
            check_quantizable(config.text_config, TuneRecipe(llm="frozen", llm_bits=4), where)
    check_fits(path, lambda: AutoModelForImageTextToText.from_config(readable(config)))
    with reading(path), quiet():
        model, report = AutoModelForImageTextToText.from_pretrained(
            path, config=readable(config), **options, trust_remote_code=False
        )
    check_keys(path, deeper(report, depth_of(config)), "missing", "unexpected", "mismatched")
    read_own_projector(model, path)
    if bits is None:
        model.to(where)
    return VLM(model.eval(), prompter)


def load_prompter(path: str | Path, template: str | None = None) -> tuple[Any, Prompter]:
    """Configuration and prompter of a LLaVA directory; its template is recognised where none is named."""
    config, tokenizer, image_processor = load_parts(path)
    tiles = tiles_of(config, tokens_per_image(config))
    check_processor(image_processor, tiles, path)
    written_in = template_named(template, tokenizer=tokenizer) if template else recognise_template(tokenizer, path)
    prompter = Prompter(
        tokenizer=tokenizer,
        template=written_in,
        image_processor=image_processor,
        tokens_per_image=tokens_per_image(config),
        tiles=tiles,
    )
    try_pixels(prompter, config.vision_config.image_size, path)
    return config, prompter


def load_parts(path: str | Path) -> tuple[Any, Any, Any]:
    """Configuration, tokenizer and image processor of a LLaVA directory or a run: all but the weights."""
    path = model_folder(path)
    config = open_config(path)
    if config.model_type not in WHOLE:
        raise ModelError(
            f"{path} is a {shown(config.model_type)} model, not a LLaVA model; assemble or convert it first"
        )
    check_feature_layer(config, path)
    return config, open_tokenizer(path), open_processor(path)


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


def rows_of(vlm: VLM) -> int:
    """For how many tokens its language model has embeddings."""
    embeddings: Any = vlm.model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def check_ids(vlm: VLM, ids: torch.Tensor) -> None:
    """Raise ModelError where a tokenizer gives numbers that the embeddings have no row for."""
    if (largest := int(ids.max())) >= rows_of(vlm):
        raise ModelError(
            f"the tokenizer gives token {largest}, and the language model has embeddings for {rows_of(vlm)}: they are "
            f"of two models, or tokens were added to one of them alone"
        )


def recognise_template(tokenizer: Any, path: str | Path) -> Template:
    """The known template that writes the same prompt as the tokenizer's chat template, otherwise that one itself.

    Where several write the same and differ in what ends an answer, the name that our exports note decides; so does the
    system prompt that they note, where a recipe has set another than the template's. A prompt begins with the token
    that the chat template writes first, or else leaves to the tokenizer. Raises ModelError where there is no chat
    template, or one that `auto` refuses.
    """
    if not tokenizer.chat_template:
        raise ModelError(f"{path} has no chat template; {NAME_ONE}")
    messages = (ask("a"), Message("assistant", (Text("b"),)), ask("c"))
    try:
        with chat_template(tokenizer) as write:
            theirs = write(messages)
    except Unrendered as error:
        raise ModelError(f"the chat template of {path}: {error}; {NAME_ONE}") from None
    begun = _begun(tokenizer, theirs)
    system, place = (tokenizer.init_kwargs.get(key) for key in (SYSTEM_KEY, PLACE_KEY))
    kept: dict[str, Any] = {"image_place": "kept"} if place == "kept" else {}
    candidates = list(TEMPLATES.values())
    if isinstance(system, str):
        candidates += [replace(t, default_system=system) for t in TEMPLATES.values() if t.system is not None]
    alike = [
        template
        for template in candidates
        if to_text(render(template, messages, bos=tokenizer.bos_token or "", eos=tokenizer.eos_token or ""))
        == begun + theirs
    ]
    noted = tokenizer.init_kwargs.get(TEMPLATE_KEY)
    if not alike or noted == AUTO:
        try:
            own = own_template(tokenizer, str(path))
            return replace(own, begin=begun + own.begin, **kept)
        except ModelError as error:
            if endless := _without_ends(theirs, messages, tokenizer):
                say(f"the chat template of {path} leaves out what ends an answer; it is read as {endless.name}")
                return replace(endless, **kept)
            raise ModelError(f"{error}; {NAME_ONE}") from None
    return replace(next((template for template in alike if template.name == noted), alike[0]), **kept)


def _without_ends(theirs: str, messages: Sequence[Message], tokenizer: Any) -> Template | None:
    """The known template without a system prompt that differs from what was written in what ends an answer alone.

    The llava-hf models' templates leave that out, though the models have learnt to say it.
    """
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    for template in TEMPLATES.values():
        bare = replace(template, default_system="")
        ours = to_text(render(replace(bare, end=" ", begin=""), messages, bos=bos, eos=eos))
        if ours.split() == theirs.removeprefix(bos).split() and not why_not(bare, tokenizer):
            return bare
    return None


def _begun(tokenizer: Any, prompt: str) -> str:
    """The token that the tokenizer puts before a prompt, where its chat template leaves that to it; else nothing."""
    bos = tokenizer.bos_token
    if not bos or prompt.startswith(bos) or tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return ""
    return str(bos)


def _quantized(bits: int, dtype: torch.dtype, device: torch.device) -> BitsAndBytesConfig:
    bitsandbytes(f"--bits {bits}", device)
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
