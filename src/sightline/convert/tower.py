"""A folder with a vision tower -> its tensors by the hub's names; and those -> a folder that other programs read."""

from __future__ import annotations

from pathlib import Path

from sightline.convert.names import TOWER, rename, reverse
from sightline.convert.shards import write_shards
from sightline.convert.source import Source
from sightline.convert.tensors import Stored, in_folder
from sightline.model.llm import fetched
from sightline.model.reading import reading
from sightline.model.save import write_json
from sightline.model.vision import square_processor

OTHER_PARTS = ("text_model.", "text_projection.", "visual_projection.", "logit_")
"""What a whole CLIP or SigLIP has besides its vision tower."""


def tower_tensors(name: str) -> dict[str, Stored]:
    """Those of the vision tower of that name, or of the one inside a whole CLIP or SigLIP, by the hub's names."""
    with reading(name):
        folder = fetched(name, weights=True)
    found = in_folder(folder, of="the vision tower")
    return {
        # transformers 5 writes a tower by itself without its first level.
        rename(short if short.startswith("vision_model.") else f"vision_model.{short}", TOWER): tensor
        for short, tensor in found.items()
        if not short.startswith(OTHER_PARTS) and not short.endswith("position_ids")
    }


def write_tower(source: Source, folder: Path, *, max_shard_size: str) -> None:
    """Write a CLIP by itself, with the image processor that goes with it.

    Its config.json is that of a whole CLIP, of which the vision tower is at hand: so LMDeploy finds `vision_config` in
    it, and transformers takes the tower out of it by itself.
    """
    vision = source.config.vision_config
    folder.mkdir()
    back = reverse(TOWER)
    tensors = {rename(n, back): t for n, t in source.tensors.items() if n.startswith("vision_tower.")}
    write_shards(tensors, folder, max_shard_size=max_shard_size)
    kept = {key: value for key, value in vision.to_dict().items() if key != "_name_or_path"}
    dtype = str(source.dtype).removeprefix("torch.")
    config = {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip",
        "projection_dim": vision.projection_dim,
        "torch_dtype": dtype,
        "vision_config": {**kept, "architectures": ["CLIPVisionModel"], "dtype": dtype, "torch_dtype": dtype},
    }
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", plain_processor(source))


def plain_processor(source: Source) -> dict[str, object]:
    """The settings of the tower's own image processor: padding and tiles are what LLaVA does before it."""
    own = source.prompter.image_processor
    settings: dict[str, object] = square_processor(own, source.config.vision_config.image_size, pad=False).to_dict()
    return settings
