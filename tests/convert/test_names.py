"""Tables of names against all tensors of models of full size, which are built without weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaNextConfig,
)

from sightline.convert.names import LLM, OFFICIAL, OFFICIAL_LINEAR, TOWER, XTUNER_PROJECTOR, rename, reverse
from sightline.convert.source import hub_shapes

VICUNA_7B = {"vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
LLMS: dict[str, dict[str, Any]] = {
    "7b": VICUNA_7B,
    "13b": {
        **VICUNA_7B,
        **{"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40},
        **{"num_attention_heads": 40, "num_key_value_heads": 40},
    },
    "llama3_8b": {
        **{"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192},
    },
    "internlm2_20b": {
        **{"vocab_size": 92544, "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 48},
        **{"num_attention_heads": 48, "num_key_value_heads": 8, "max_position_embeddings": 32768},
    },
}
CLIP_L = {
    **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    **{"image_size": 336, "patch_size": 14, "projection_dim": 768},
}
Shapes = dict[str, tuple[int, ...]]


def shapes_of(model: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def official_shapes(settings: dict[str, Any], newline: bool) -> Shapes:
    """By the names that LLaVA's classes give: those of a Llama, with the other parts inside its `model`."""
    with torch.device("meta"):
        llm = LlamaForCausalLM(LlamaConfig(**settings))
        tower = CLIPVisionModel(CLIPVisionConfig(**CLIP_L))
    width = settings.get("hidden_size", 4096)
    prefix = "model.vision_tower.vision_tower.vision_model."
    return {
        **shapes_of(llm),
        **{prefix + name.removeprefix("vision_model."): shape for name, shape in shapes_of(tower).items()},
        "model.mm_projector.0.weight": (width, 1024),
        "model.mm_projector.0.bias": (width,),
        "model.mm_projector.2.weight": (width, width),
        "model.mm_projector.2.bias": (width,),
        **({"model.image_newline": (width,)} if newline else {}),
    }


@pytest.mark.parametrize("next_", [False, True])
@pytest.mark.parametrize("size", LLMS)
def test_official_names(size: str, next_: bool) -> None:
    kind = LlavaNextConfig if next_ else LlavaConfig
    hub = hub_shapes(kind(text_config=LlamaConfig(**LLMS[size]), vision_config=CLIPVisionConfig(**CLIP_L)))
    official = official_shapes(LLMS[size], next_)
    layers = LLMS[size].get("num_hidden_layers", 32)
    assert len(official) == 9 * layers + 3 + 16 * 24 + 7 + 4 + next_
    assert {rename(name, OFFICIAL): shape for name, shape in official.items()} == hub
    assert {rename(name, reverse(OFFICIAL)): shape for name, shape in hub.items()} == official


@pytest.mark.parametrize("size", LLMS)
def test_names_of_the_parts(size: str) -> None:
    """A language model, a CLIP as transformers 4 writes it, and XTuner's projector, are the hub's names together."""
    with torch.device("meta"):
        llm = shapes_of(LlamaForCausalLM(LlamaConfig(**LLMS[size])))
        clip = shapes_of(CLIPVisionModel(CLIPVisionConfig(**CLIP_L)))
    tower = {f"vision_model.{name.removeprefix('vision_model.')}": shape for name, shape in clip.items()}
    width = LLMS[size].get("hidden_size", 4096)
    projector: Shapes = {"model.0.weight": (width, 1024), "model.0.bias": (width,)}
    projector |= {"model.2.weight": (width, width), "model.2.bias": (width,)}
    parts = ((LLM, llm), (TOWER, tower), (XTUNER_PROJECTOR, projector))
    found: Shapes = {}
    for table, shapes in parts:
        named = {rename(name, table): shape for name, shape in shapes.items()}
        assert {rename(name, reverse(table)): shape for name, shape in named.items()} == shapes
        found |= named
    assert found == hub_shapes(
        LlavaConfig(text_config=LlamaConfig(**LLMS[size]), vision_config=CLIPVisionConfig(**CLIP_L))
    )


def test_a_projector_of_one_layer() -> None:
    assert rename("model.mm_projector.weight", OFFICIAL_LINEAR) == "multi_modal_projector.linear_1.weight"
    assert rename("multi_modal_projector.linear_1.bias", reverse(OFFICIAL_LINEAR)) == "model.mm_projector.bias"
    assert rename("something.else", OFFICIAL) == "something.else"
