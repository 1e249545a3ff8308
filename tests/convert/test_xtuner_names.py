"""The names of XTuner's folders on the meta device, against the models of full size."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, CLIPVisionConfig, LlamaConfig, LlavaConfig

from sightline.convert.joined import llm_names
from sightline.convert.names import XTUNER_PROJECTOR, rename, reverse
from sightline.convert.source import hub_shapes

CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SIZES = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "8B": {
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "vocab_size": 128256},
    },
    "20B": {
        **{"hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 48, "num_attention_heads": 48},
        **{"num_key_value_heads": 8, "vocab_size": 92544},
    },
}


@pytest.mark.parametrize("size", SIZES)
def test_all_names_of_the_full_models(size: str) -> None:
    """Each name goes to one of XTuner's three folders and comes back; their shapes are those of XTuner's classes."""
    text = LlamaConfig(**SIZES[size])
    vision = CLIPVisionConfig(**CLIP_L, image_size=336, patch_size=14)
    shapes = hub_shapes(LlavaConfig(text_config=text, vision_config=vision))
    names, back = llm_names(text), reverse(XTUNER_PROJECTOR)
    with torch.device("meta"):
        llm = {name: tuple(t.shape) for name, t in AutoModelForCausalLM.from_config(text).state_dict().items()}
    wide, inner = text.hidden_size, vision.hidden_size
    projector = {"model.0.weight": (wide, inner), "model.0.bias": (wide,)}
    projector |= {"model.2.weight": (wide, wide), "model.2.bias": (wide,)}
    found: dict[str, dict[str, tuple[int, ...]]] = {"language_model": {}, "multi_modal_projector": {}}
    for name, shape in shapes.items():
        if name.startswith("vision_tower."):
            continue
        own = names.own(name) if name.startswith("language_model.") else rename(name, back)
        assert (names.hub(own) if name.startswith("language_model.") else rename(own, XTUNER_PROJECTOR)) == name
        found[name.partition(".")[0]][own] = shape
    assert found == {"language_model": llm, "multi_modal_projector": projector}
    tower = [name for name in shapes if name.startswith("vision_tower.vision_model.")]
    assert len(tower) + len(llm) + len(projector) == len(shapes) and len(tower) == 24 * 16 + 7
