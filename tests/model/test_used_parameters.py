"""What of a vision tower the features depend on, told without numbers, against a real backward pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from sightline.model.tune import used_parameters

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
TOWERS = {
    "clip": (CLIPVisionModel, CLIPVisionConfig),
    "siglip": (SiglipVisionModel, SiglipVisionConfig),
    "dinov2": (Dinov2Model, Dinov2Config),
    "dinov2 with registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig),
}


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize(("layer", "used"), [(-1, 3), (-2, 2), (1, 1), (-4, 0)])
def test_what_gets_a_gradient(tower: str, layer: int, used: int) -> None:
    kind, settings = TOWERS[tower]
    config: Any = settings(**SIZES, image_size=56, patch_size=14)
    torch.manual_seed(0)
    model = kind(config)
    whole: Any = SimpleNamespace(
        model=SimpleNamespace(vision_tower=model),
        config=SimpleNamespace(vision_config=config, vision_feature_layer=layer),
    )
    model.requires_grad_(False)  # as apply_tuning leaves it
    with torch.no_grad():
        told = used_parameters(whole)
    assert all(p.device.type == "cpu" and not p.requires_grad and p.grad is None for p in model.parameters())
    model.requires_grad_(True)
    model(torch.randn(2, 3, 56, 56), output_hidden_states=True).hidden_states[layer].square().sum().backward()
    assert told == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len({name.split(".")[2] for name in told if name.startswith("encoder.")}) == used
