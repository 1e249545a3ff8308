"""A language model and a vision tower by their names -> one vision-language model with a new projector between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AddedToken,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from sightline.errors import ModelError
from sightline.model.load import (
    REPORTED,
    VLM,
    check_keys,
    load,
    load_parts,
    model_folder,
    positions,
    quiet,
    reading,
    tokens_per_image,
)
from sightline.prompt.prompter import Prompter, template_named
from sightline.recipe import ModelRecipe
from sightline.runtime import say
from sightline.types import IMAGE

PAD = "<pad>"

PROJECTOR = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")


def make_prompter(spec: ModelRecipe) -> Prompter:
    """The prompter of a recipe's model, without loading a weight: the data is checked with it first."""
    if spec.from_model is not None:
        config, tokenizer, image_processor = load_parts(spec.from_model)
        vision, tokens = config.vision_config, tokens_per_image(config)
    else:
        assert spec.llm is not None and spec.vision_tower is not None
        vision = _vision_config(spec.vision_tower)
        layers = vision.num_hidden_layers
        if spec.vision_feature_layer not in (*range(-layers - 1, 0), *range(1, layers + 1)):
            raise ModelError(
                f"model.vision_feature_layer {spec.vision_feature_layer}: {spec.vision_tower} has {layers} layers, so "
                f"choose 1 to {layers}, or -1 to {-layers - 1}"
            )
        tokens = (vision.image_size // vision.patch_size) ** 2
        _check_llm(spec.llm)
        with reading(spec.llm), quiet():
            tokenizer = AutoTokenizer.from_pretrained(spec.llm)
        with reading(spec.vision_tower), quiet():
            image_processor = AutoImageProcessor.from_pretrained(spec.vision_tower, backend="pil")
    _add_tokens(tokenizer)
    return Prompter(
        tokenizer=tokenizer,
        template=template_named(spec.template, spec.system),
        image_processor=_square(image_processor, vision.image_size, pad=spec.image_aspect_ratio == "pad"),
        tokens_per_image=tokens,
    )


def check_length(spec: ModelRecipe, max_length: int) -> None:
    """Raise ModelError where a conversation of `max_length` tokens has more than the language model has positions."""
    name = spec.from_model or spec.llm
    assert name is not None
    with reading(name), quiet():
        limit = positions(AutoConfig.from_pretrained(model_folder(name)).get_text_config())
    if limit is not None and max_length > limit:
        raise ModelError(
            f"batch.max_length {max_length}: {name} has positions for {limit} tokens only (max_position_embeddings); "
            f"set batch.max_length={limit} or less"
        )


def assemble(spec: ModelRecipe, prompter: Prompter) -> VLM:
    """Load the parts in the number format that their files have, and put them together on the CPU.

    The projector is new (drawn from torch's generator) unless `projector_from` names one. Raises ModelError for a
    folder that is no model, a vision tower that is not CLIP, or a projector of other shapes.
    """
    if spec.from_model is not None:
        vlm = VLM(load(spec.from_model, device="cpu", dtype="auto", template=spec.template).model, prompter)
    else:
        vlm = VLM(_join(spec, prompter), prompter)
    if spec.projector_from is not None:
        load_projector(vlm.model, spec.projector_from)
    return vlm


def load_projector(model: LlavaForConditionalGeneration, source: str) -> None:
    """Replace the projector by that of an earlier run, a checkpoint or a model folder, and say what was loaded."""
    folder, state = _read_projector(Path(source))
    projector = model.model.multi_modal_projector
    own = projector.state_dict()
    wrong = [
        f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in PROJECTOR
        if state[name].shape != own[name].shape
    ]
    if wrong:
        raise ModelError(
            f"the projector of {source} does not fit this language model and vision tower: {'; '.join(wrong)}"
        )
    projector.load_state_dict(state)
    say(f"projector: {len(state)} tensors from {folder}")


def _read_projector(source: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    if not source.exists():
        raise ModelError(f"model.projector_from: no folder {source}; train the first stage, or name another one")
    # A run holds its exported model in `hf`.
    for folder in (source, source / "hf"):
        state = {}
        for file in sorted(folder.glob("*.safetensors")):
            with reading(file), safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    _, found, short = name.rpartition("multi_modal_projector.")
                    if found:
                        state[short] = tensors.get_tensor(name)
        if set(PROJECTOR) <= state.keys():
            return folder, {name: state[name] for name in PROJECTOR}
    raise ModelError(
        f"model.projector_from: {source} holds no projector (multi_modal_projector.* in a .safetensors file)"
    )


def _join(spec: ModelRecipe, prompter: Prompter) -> LlavaForConditionalGeneration:
    assert spec.llm is not None and spec.vision_tower is not None
    with reading(spec.llm), quiet():
        llm, report = AutoModelForCausalLM.from_pretrained(spec.llm, **REPORTED)
    check_keys(spec.llm, report, "missing", "mismatched")
    with reading(spec.vision_tower), quiet():
        tower, report = CLIPVisionModel.from_pretrained(spec.vision_tower, **REPORTED)
    check_keys(spec.vision_tower, report, "missing", "mismatched")
    make_room(llm, len(prompter.tokenizer))
    config = LlavaConfig(
        vision_config=tower.config.to_dict(),
        text_config=llm.config.to_dict(),
        image_token_index=prompter.image_token_id,
        image_seq_length=prompter.tokens_per_image,
        vision_feature_layer=spec.vision_feature_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=llm.config.tie_word_embeddings,
        pad_token_id=prompter.pad_token_id,
    )
    projector = LlavaMultiModalProjector(config)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.language_model = llm.base_model
    model.model.vision_tower = tower
    model.model.multi_modal_projector = projector
    model.lm_head = llm.get_output_embeddings()
    model.generation_config = llm.generation_config
    model.generation_config.pad_token_id = prompter.pad_token_id
    # The parts keep configurations of their own otherwise, and switching the attention would miss them.
    llm.base_model.config = config.text_config
    tower.config = config.vision_config
    for module in llm.base_model.modules():
        if hasattr(module, "config"):
            module.config = config.text_config
    for module in tower.modules():
        if hasattr(module, "config"):
            module.config = config.vision_config
    return model.eval()


def make_room(llm: PreTrainedModel, vocabulary: int) -> None:
    """Give the embeddings at least `vocabulary` rows (a multiple of 64); new rows are the mean of the old ones."""
    old = llm.get_input_embeddings().weight.shape[0]
    if vocabulary <= old:
        return
    llm.resize_token_embeddings(vocabulary, pad_to_multiple_of=64, mean_resizing=False)
    for layer in (llm.get_input_embeddings(), llm.get_output_embeddings()):
        with torch.no_grad():
            layer.weight[old:] = layer.weight[:old].float().mean(0).to(layer.weight.dtype)


def _add_tokens(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": AddedToken(PAD, special=True, normalized=False)})


def _check_llm(name: str) -> None:
    with reading(name):
        kind = AutoConfig.from_pretrained(name).model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hint = "; to go on with a whole model, name it as model.from_model" if kind == "llava" else ""
        raise ModelError(f"model.llm: {name} is {kind!r}, not a language model{hint}")


def _vision_config(name: str) -> CLIPVisionConfig:
    with reading(name):
        config = AutoConfig.from_pretrained(name)
    vision = getattr(config, "vision_config", config)
    if not isinstance(vision, CLIPVisionConfig):
        raise ModelError(f"model.vision_tower: {name} is {config.model_type!r}, not a CLIP vision model")
    return vision


def _square(processor: Any, size: int, *, pad: bool) -> Any:
    """The tower's own processor (shorter side resized, centre kept), or one that pads to a square before."""
    side = {"height": size, "width": size}
    if not pad:
        processor.size, processor.crop_size = {"shortest_edge": size}, side
        return processor
    return LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": size},
        crop_size=side,
        resample=processor.resample,
        image_mean=list(processor.image_mean),
        image_std=list(processor.image_std),
    )
