"""Pictures of the world with their captions -> the demo's vision tower: a small CLIP, trained by contrast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, LlamaTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from sightline.demo.learning import learn
from sightline.demo.questions import changed
from sightline.demo.scenes import Scene, caption, draw_scene, paint

if TYPE_CHECKING:
    from sightline.demo.backbones import Schedule

IMAGE_SIZE, PATCH_SIZE = 56, 28
"""2 x 2 patches: each sees one place of the grid."""

PLACE_STD = 4.0
"""Scale of the position embeddings at the start: several times that of the embedded patches."""

FAMILY = 4
"""A scene and three that differ from it in one thing."""

VISION = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
}
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def train_tower(folder: Path, tokenizer: LlamaTokenizer, schedule: Schedule, *, pictures: int, seed: int) -> float:
    """Train a CLIP and save its vision model with an image processor; returns its last loss."""
    rng = np.random.default_rng([seed, 3])
    scenes = [scene for _ in range(pictures // FAMILY) for scene in _family(rng)]
    pixels = _pixels(scenes, rng)
    ids, lengths = _captions(scenes, tokenizer)
    end = len(tokenizer)
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": end, "pad_token_id": 0}
    size = {"projection_dim": 128}
    text = {**TEXT, **size, **marks, "vocab_size": end + 1}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**VISION, **size}, **size))
    # Where a patch is must be as plain in its feature as what it shows: CLIP's own start is a thirtieth of the pixels'
    # part, and so few steps do not make up for it. A language model then learns to look up places very slowly.
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=PLACE_STD)

    def loss_of(step: int) -> torch.Tensor:
        families = rng.choice(len(scenes) // FAMILY, schedule.batch // FAMILY, replace=False)
        batch = torch.from_numpy((families[:, None] * FAMILY + np.arange(FAMILY)).ravel())
        longest = int(lengths[batch].max())
        scores = model(input_ids=ids[batch, :longest], pixel_values=pixels[batch]).logits_per_image
        right = torch.arange(len(batch))
        cross_entropy = torch.nn.functional.cross_entropy
        return (cross_entropy(scores, right) + cross_entropy(scores.T, right)) / 2

    loss = learn("vision tower", model, schedule, loss_of)
    tower = CLIPVisionModel(model.config.vision_config)
    # Some versions of transformers keep the transformer of a CLIPVisionModel one level deeper.
    getattr(tower, "vision_model", tower).load_state_dict(model.vision_model.state_dict())
    tower.save_pretrained(folder)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side).save_pretrained(folder)
    return loss


def _family(rng: np.random.Generator) -> list[Scene]:
    """A scene with its variants; none of them is kept for evaluation."""
    while True:
        scene = draw_scene(rng)
        variants = [variant for variant in changed(scene, rng) if not variant.held_out]
        if len(variants) == FAMILY - 1:
            return [scene, *variants]


def _pixels(scenes: list[Scene], rng: np.random.Generator) -> torch.Tensor:
    """float32 [N, 3, H, W], padded to a square as the training does it."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    own = CLIPImageProcessorPil()
    processor = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": IMAGE_SIZE},
        crop_size=side,
        resample=own.resample,
        image_mean=own.image_mean,
        image_std=own.image_std,
    )
    parts = [
        processor([paint(scene, rng) for scene in scenes[at : at + 256]], return_tensors="pt")["pixel_values"]
        for at in range(0, len(scenes), 256)
    ]
    return torch.cat(parts)


def _captions(scenes: list[Scene], tokenizer: LlamaTokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [N, T] and [N]: captions between marks, and how long they are.

    The end mark is an id of its own behind the vocabulary: CLIPTextModel takes an end mark of 2, which Llama's is, for
    an old configuration and looks elsewhere.
    """
    texts = [caption(scene) for scene in scenes]
    tokens = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = [[tokenizer.bos_token_id, *row, len(tokenizer)] for row in tokens]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
    return ids, torch.tensor([len(row) for row in rows])
