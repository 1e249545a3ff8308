"""What is written for the official programs against what was released: fields, and tensors of full size; and 1.6."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import official_files as made
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
)

from sightline.convert import hf, official
from sightline.convert.names import OFFICIAL, rename, reverse
from sightline.convert.official_config import official_config
from sightline.convert.source import Source, hub_shapes
from sightline.convert.tensors import Stored
from sightline.model.assemble import make_prompter
from sightline.recipe import ModelRecipe

CLIP_L = CLIPVisionConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
    patch_size=14, projection_dim=768,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.make_parts(tmp_path_factory.mktemp("world"))


def full_size(config: Any, world: Path) -> Source:
    """A source of the shapes of a released model, in float16; nothing of it can be read."""
    spec = {"llm": str(world / "llm"), "vision_tower": str(world / "tower"), "template": "vicuna"}
    prompter = make_prompter(ModelRecipe.model_validate(spec))

    def unreadable() -> torch.Tensor:
        raise AssertionError("read")

    tensors = {name: Stored(shape, torch.float16, unreadable) for name, shape in hub_shapes(config).items()}
    return Source(Path("mine"), "made up", config, prompter, tensors)


@pytest.mark.parametrize(
    ("released", "kind"), [(made.V15, LlavaConfig), (made.V16, LlavaNextConfig)], ids=["1.5", "1.6"]
)
def test_fields_are_those_of_the_released_models(world: Path, released: dict[str, Any], kind: Any) -> None:
    more = (
        {"image_grid_pinpoints": [[h, w] for w, h in made.V16["image_grid_pinpoints"]]} if kind != LlavaConfig else {}
    )
    text = LlamaConfig(vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5, pad_token_id=0)
    config = kind(text_config=text, vision_config=CLIP_L, **more)
    written = official_config(full_size(config, world), 32000, "/models/clip", pad=0)
    wanted = {key: value for key, value in released.items() if key not in made.NOT_WRITTEN | {"mm_vision_tower_lr"}}
    assert {key: written.get(key, "missing") for key in wanted} == wanted
    assert written["mm_vision_tower"] == "/models/clip"
    # What is written besides has the same meaning in every version of transformers.
    extra = {"attention_bias", "attention_dropout", "head_dim", "mlp_bias", "rope_theta", "torch_dtype"}
    assert written.keys() - released.keys() - {"mm_vision_tower_lr"} <= extra


RELEASED_16: dict[str, tuple[str, dict[str, Any]]] = {
    "vicuna-13b": (
        "llama",
        {
            **{"vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40},
            **{"num_attention_heads": 40, "num_key_value_heads": 40},
        },
    ),
    "mistral-7b": (
        "mistral",
        {
            **{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None},
        },
    ),
    "34b": (
        "llama",
        {
            **{"vocab_size": 64000, "hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60},
            **{"num_attention_heads": 56, "num_key_value_heads": 8},
        },
    ),
}
"""The language models inside of liuhaotian/llava-v1.6-*: model_type and sizes."""


@pytest.mark.parametrize("released", RELEASED_16)
def test_tensors_of_full_size_16(world: Path, released: str) -> None:
    """All of those that the classes of LLaVA-1.6 have, with their shapes, and no other; on the meta device."""
    kind, sizes = RELEASED_16[released]
    text = AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        llm, tower = AutoModelForCausalLM.from_config(text), CLIPVisionModel(CLIP_L)
    width, inside = sizes["hidden_size"], "model.vision_tower.vision_tower.vision_model."
    wanted = {name: tuple(tensor.shape) for name, tensor in llm.state_dict().items()}
    wanted |= {
        inside + name.removeprefix("vision_model."): tuple(tensor.shape) for name, tensor in tower.state_dict().items()
    }
    wanted |= {"model.mm_projector.0.weight": (width, 1024), "model.mm_projector.2.weight": (width, width)}
    wanted |= {f"model.{name}": (width,) for name in ("mm_projector.0.bias", "mm_projector.2.bias", "image_newline")}
    grids = [[high, wide] for wide, high in made.V16["image_grid_pinpoints"]]
    config = LlavaNextConfig(text_config=text, vision_config=CLIP_L, image_grid_pinpoints=grids)
    source = full_size(config, world)
    found = {rename(name, reverse(OFFICIAL)): tensor.shape for name, tensor in source.tensors.items()}
    assert found == wanted and len(wanted) == 9 * sizes["num_hidden_layers"] + 3 + 24 * 16 + 7 + 5
    written = official_config(source, sizes["vocab_size"], "/models/clip", pad=0)
    names = {"llama": ("LlavaLlamaForCausalLM", "llava"), "mistral": ("LlavaMistralForCausalLM", "llava_mistral")}
    assert (written["architectures"][0], written["model_type"]) == names[kind]
    assert written["image_grid_pinpoints"] == made.V16["image_grid_pinpoints"]


def test_what_is_written_of_a_next(world: Path, tmp_path: Path) -> None:
    """Tiles, what ends their rows, and the tower inside, as in the released llava-v1.6-vicuna-7b."""
    grids = [[112, 56], [56, 112], [56, 168]]
    official.write(
        hf.read(made.assembled(world, tmp_path / "hf", next=True, grid_pinpoints=grids)),
        tmp_path / "llava",
        max_shard_size="5GB",
    )
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert (config["image_aspect_ratio"], config["mm_patch_merge_type"]) == ("anyres", "spatial_unpad")
    assert config["image_grid_pinpoints"] == [[56, 112], [112, 56], [168, 56]]  # width first, height first in ours
    assert config["unfreeze_mm_vision_tower"] is True
    tensors = load_file(tmp_path / "llava" / "model.safetensors")
    assert tensors["model.image_newline"].shape == (64,)
    whole = load_file(tmp_path / "hf" / "model.safetensors")
    assert torch.equal(tensors["model.image_newline"], whole["image_newline"])
    inside = {name for name in tensors if name.startswith("model.vision_tower.vision_tower.vision_model.")}
    assert len(inside) == 3 * 16 + 7
