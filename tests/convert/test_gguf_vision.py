"""With a picture, llama.cpp says what our model says; with CLIP, once the known defect of its class token is emulated.

llama.cpp puts the class token behind the patches, but gives positions and takes features as if it stood before them
(https://github.com/ggml-org/llama.cpp/issues/25814). So patches have the position of their neighbour, the first one is
lost, and the class token is seen instead. A vision tower without class token (SigLIP) is computed as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import tiny
import torch
from gguf import GGUFReader
from llama_cpp import LlamaCpp, assembled, encoded, serving, written
from PIL import Image

from sightline.errors import ModelError
from sightline.model.load import VLM
from sightline.prompt.templates import TEMPLATES
from sightline.types import ImageRef, Message, Text, ask

QUESTION = "What colour is this square?"


def with_class_token_last(vlm: VLM) -> None:
    """The defect, in our model."""
    embeddings = vlm.model.model.vision_tower.embeddings

    def forward(pixel_values: torch.Tensor, **_: Any) -> torch.Tensor:
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        token = embeddings.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([patches, token], dim=1) + embeddings.position_embedding.weight

    embeddings.forward = forward


def picture(path: Path, side: int) -> Image.Image:
    """Noise of exactly the tower's size, so that nothing is resized."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    image.save(path)
    return image


def ours(vlm: VLM, path: Path) -> torch.Tensor:
    encoded = vlm.prompter.encode([ask(QUESTION, [ImageRef(str(path))])])
    pixels = vlm.prompter.pixel_values(vlm.prompter.pixels(encoded.images))
    with torch.no_grad():
        logits = vlm.model(input_ids=torch.tensor(encoded.ids)[None], pixel_values=pixels).logits
    return logits[0, -1].log_softmax(-1)


def theirs(server: LlamaCpp, vlm: VLM, image: Image.Image) -> torch.Tensor:
    text = f"{vlm.prompter.template.default_system} USER: <image>\n{QUESTION} ASSISTANT:"
    return server.log_probs(text, vlm.model.config.text_config.vocab_size, image)


@pytest.mark.parametrize(
    ("tower", "layer", "quantize", "near"),
    [
        ("clip", -2, "f32", 1e-3),
        ("clip", -1, "f32", 1e-3),
        ("clip", 1, "f32", 1e-3),
        ("siglip", -2, "f32", 1e-3),
        ("siglip", -1, "f32", 1e-3),
        ("siglip_odd", -2, "f32", 1e-3),
        ("siglip", -2, "f16", 5e-3),
        ("clip", -2, "f16", 5e-3),
        ("clip", -2, "bf16", 2e-2),
        ("clip", -2, "q8_0", 5e-2),
    ],
)
def test_every_token_is_as_likely(tmp_path: Path, tower: str, layer: int, quantize: str, near: float) -> None:
    made = families.make_tower(tmp_path / "tower", tower)
    vlm = assembled(tmp_path / "hf", tiny.make_llm(tmp_path / "llm"), made, vision_feature_layer=layer)
    image = picture(tmp_path / "a.png", vlm.model.config.vision_config.image_size)
    truth = ours(vlm, tmp_path / "a.png")
    if tower == "clip":
        with_class_token_last(vlm)
    with serving(written(tmp_path / "hf", tmp_path / "gguf", quantize)) as server:
        said = theirs(server, vlm, image)
    expected = ours(vlm, tmp_path / "a.png")
    assert (said - expected).abs().max() < near
    assert expected.std() > 0.1
    if tower == "clip":
        assert (expected - truth).abs().max() > 1.5 * near  # so it was the defect
    layers = vlm.model.config.vision_config.num_hidden_layers
    number = layer if layer > 0 else layers + 1 + layer
    assert keys(tmp_path / "gguf")["clip.vision.feature_layer"] == [number]


def test_mended(tmp_path: Path) -> None:
    """All features are as in our model; only, the class token's is seen behind the patches instead of the first."""
    vlm = assembled(tmp_path / "hf", tiny.make_llm(tmp_path / "llm"), tiny.make_tower(tmp_path / "tower"))
    image, tower = picture(tmp_path / "a.png", 56), vlm.model.model.vision_tower
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    right = tower(pixels).last_hidden_state
    positions = tower.embeddings.position_embedding.weight
    positions.data = torch.cat([positions[1:], positions[:1]]).detach()  # the class token's behind those of the patches
    with_class_token_last(vlm)
    assert torch.allclose(tower(pixels).last_hidden_state, torch.cat([right[:, 1:], right[:, :1]], dim=1), atol=1e-5)
    with serving(written(tmp_path / "hf", tmp_path / "gguf", mend_clip=True)) as server:
        said = theirs(server, vlm, image)
    assert (said - ours(vlm, tmp_path / "a.png")).abs().max() < 1e-3


def keys(folder: Path, file: str = "mmproj-*.gguf") -> dict[str, Any]:
    return {field.name: field.contents() for field in GGUFReader(next(folder.glob(file))).fields.values()}


def test_what_a_chat_writes(tmp_path: Path) -> None:
    """The prompt of llama.cpp's chat is ours, with the picture on a line of its own."""
    control = TEMPLATES["chatml"].tokens
    llm, tower = tiny.make_llm(tmp_path / "llm", extra=control), tiny.make_tower(tmp_path / "tower")
    vlm = assembled(tmp_path / "hf", llm, tower, template="chatml")
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(Image.new('RGB', (56, 56)))}"}}
    chat: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image, image, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "It is red."},
        {"role": "user", "content": "Sure?"},
    ]
    same = [
        Message("system", (Text("Be brief."),)),
        ask(QUESTION, [ImageRef("a"), ImageRef("b")]),
        Message("assistant", (Text("It is red."),)),
        ask("Sure?"),
    ]
    expected = "".join(
        part.content.text if isinstance(part.content, Text) else "*" for part in vlm.prompter.render(same)
    )
    with serving(written(tmp_path / "hf", tmp_path / "gguf")) as server:
        prompt = server.ask("/apply-template", {"messages": chat})["prompt"]
        assert prompt.replace(server.props["media_marker"], "*") == expected
        said = server.ask("/v1/chat/completions", {"messages": chat, "max_tokens": 4})
    # 16 of each picture; the rest as our tokenizer counts it.
    words = len(vlm.prompter.tokenizer(expected.replace("*", ""), add_special_tokens=False)["input_ids"])
    assert abs(said["usage"]["prompt_tokens"] - words - 32) <= 2


def test_next(tmp_path: Path) -> None:
    """A smoke test: llama.cpp cuts tiles in a way of its own."""
    llm, tower = tiny.make_llm(tmp_path / "llm"), tiny.make_tower(tmp_path / "tower")
    vlm = assembled(tmp_path / "hf", llm, tower, next=True, grid_pinpoints=[[56, 112], [112, 56]])
    folder = written(tmp_path / "hf", tmp_path / "gguf")
    found = keys(folder)
    # Width and height, where transformers has height and width.
    assert found["clip.vision.image_grid_pinpoints"] == [112, 56, 56, 112]
    assert found["clip.vision.mm_patch_merge_type"] == "spatial_unpad"
    with serving(folder) as server:
        said = theirs(server, vlm, Image.new("RGB", (112, 56), (220, 30, 30)))
    assert not said.isnan().any()


def test_what_is_in_the_file(tmp_path: Path) -> None:
    llm, tower = tiny.make_llm(tmp_path / "llm"), tiny.make_tower(tmp_path / "tower")
    assembled(tmp_path / "hf", llm, tower)
    folder = written(tmp_path / "hf", tmp_path / "gguf", "q8_0")
    found = keys(folder)
    assert found["general.type"] == "mmproj" and found["clip.projector_type"] == "mlp"
    assert found["clip.vision.block_count"] == 2 and found["clip.use_gelu"] is False
    tensors = {tensor.name: tensor for tensor in GGUFReader(next(folder.glob("mmproj-f16.gguf"))).tensors}
    assert {"mm.0.weight", "mm.2.bias", "v.class_embd", "v.pre_ln.weight", "v.blk.1.ffn_up.weight"} <= tensors.keys()
    assert not any(name.startswith(("v.post_ln", "v.blk.2")) for name in tensors)
    assert tensors["mm.0.weight"].tensor_type.name == "F16" and tensors["mm.0.bias"].tensor_type.name == "F32"


def changed(config: Any, **changes: Any) -> Any:
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        setattr(getattr(config, part) if part else config, key, value)
    return config


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision_config__hidden_act": "relu"}, "'relu'"),
        ({"vision_config__intermediate_size": 32}, "one matrix for the other"),
        ({"vision_feature_select_strategy": "full"}, "strategy 'default'"),
        ({"vision_feature_layer": [-2, -1]}, "written for one layer"),
        ({"projector_hidden_act": "relu"}, "with relu"),
        ({"projector_depth": 1}, "has 1"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    from sightline.convert.gguf_vision import check_vision

    vlm = assembled(tmp_path / "hf", tiny.make_llm(tmp_path / "llm"), tiny.make_tower(tmp_path / "tower"))
    with pytest.raises(ModelError) as refused:
        check_vision(changed(vlm.model.config, **changes))
    assert reason in str(refused.value) and "\n" not in str(refused.value)


def test_a_tower_that_llama_cpp_does_not_compute(tmp_path: Path) -> None:
    tower = families.make_tower(tmp_path / "tower", "registers")
    assembled(tmp_path / "hf", tiny.make_llm(tmp_path / "llm"), tower)
    with pytest.raises(ModelError, match="no 'dinov2_with_registers'"):
        written(tmp_path / "hf", tmp_path / "gguf")
    assert not (tmp_path / "gguf").exists()
