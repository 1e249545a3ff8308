"""Is a converted model the same? The logits of a picture and a question, of what was read and of what was written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import init_empty_weights
from PIL import Image
from transformers import AutoModelForImageTextToText

from sightline.convert.source import Source
from sightline.errors import CheckpointError
from sightline.model.load import VLM, check_ids
from sightline.model.projector import depth_of, exported_act, readable
from sightline.model.reading import quiet
from sightline.model.save import HUB_NAMES, write_json
from sightline.prompt.prompter import Prompter
from sightline.prompt.tiles import heights_and_widths
from sightline.types import ImageRef, ask

PROOF = "conversion.json"
"""The file of a converted folder that says what it was made of, and how near it is."""

QUESTION = "What is in the picture?"
SAME, CLOSE = 1e-3, 0.05
"""How far logits may be apart, as a share of their spread: of the same number format, and of another one."""

ROUNDED = 0.25
"""How much farther, where a model is computed in 16 bits: what was rounded otherwise grows from layer to layer."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a comparison has found."""

    made_from: str
    kind: str
    largest_difference: float
    """Of all logits of all positions."""
    spread: float
    """Standard deviation of the logits: what the difference is to be compared with."""
    positions: int


def to_vlm(source: Source, dtype: torch.dtype) -> VLM:
    """The model of a source on the CPU, whole in memory."""
    config = readable(source.config)
    depth = depth_of(config)
    if depth == 1:
        config.projector_hidden_act = exported_act(config.projector_hidden_act, depth)
    with init_empty_weights(), quiet():
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    state = {memory_name(name): tensor.to(dtype).read() for name, tensor in source.tensors.items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return VLM(model.eval(), source.prompter)


def memory_name(name: str) -> str:
    """The name in transformers 5's memory of a tensor of the hub."""
    for memory, hub in (*HUB_NAMES, ("model.vision_tower.", "vision_tower.")):
        if name.startswith(hub):
            return memory + name.removeprefix(hub)
    raise ValueError(name)


@torch.inference_mode()
def logits(vlm: VLM) -> torch.Tensor:
    """float32 [T, V] of the fixed picture and question."""
    encoded = vlm.prompter.encode([ask(QUESTION, [ImageRef(_picture())])])
    pixels = vlm.prompter.pixel_values(vlm.prompter.pixels(encoded.images)).to(vlm.model.dtype)
    sizes = heights_and_widths([encoded])
    more = {"image_sizes": torch.tensor(sizes)} if sizes else {}
    ids = torch.from_numpy(encoded.ids)[None]
    check_ids(vlm, ids)
    result: torch.Tensor = vlm.model(input_ids=ids, pixel_values=pixels, **more).logits[0].float()
    return result


def compare(
    source: Source, result: Source, *, near: float | None = None, rounded: Callable[[], Source] | None = None
) -> Proof:
    """Compute both, one after the other; raises CheckpointError where they are no longer the same model.

    `near` is how far logits may be apart, as a share of their spread (None: by the number formats of both). Where they
    are farther, `rounded` makes the source as the result's number format rounds it, whose own distance, twice, is
    allowed: some models answer very differently to small changes.
    """
    if near is None:
        near = SAME if source.dtype == result.dtype else CLOSE
    dtype = torch.float32 if _is_small(source) else source.dtype
    if near > SAME and dtype != torch.float32:
        near += ROUNDED
    known = min(_words(source.prompter), _words(result.prompter))
    before = logits(to_vlm(source, dtype))[:, :known]
    after = logits(to_vlm(result, dtype))[:, :known]
    if before.shape != after.shape:
        raise CheckpointError(
            f"{result.path} makes {len(after)} tokens of a question of which {source.path} makes {len(before)}: the "
            f"tokenizer or the image processor did not come along"
        )
    difference, spread = float((before - after).abs().max()), float(before.std())
    allowed = near * max(spread, 1e-6)
    if rounded is not None and difference > allowed:
        by_rounding = logits(to_vlm(rounded(), dtype))[:, :known]
        allowed = max(allowed, 2 * float((before - by_rounding).abs().max()))
    if not difference <= allowed:
        raise CheckpointError(
            f"{result.path} answers otherwise than {source.path}: logits differ by up to {difference:.3g} (their "
            f"standard deviation is {spread:.3g}); the result was removed, please report this"
        )
    return Proof(str(source.path), source.kind, difference, spread, len(before))


def write_proof(proof: Proof, folder: Path) -> None:
    """Keep the figures in the folder."""
    write_json(folder / PROOF, asdict(proof))


def read_proof(folder: Path) -> Proof:
    """The figures of a converted folder."""
    return Proof(**json.loads((folder / PROOF).read_text(encoding="utf-8")))


def _is_small(source: Source) -> bool:
    """Whether the model fits into memory in float32 on machines that are used for such work."""
    return sum(tensor.nbytes // tensor.dtype.itemsize for tensor in source.tensors.values()) < 2e9


def _words(prompter: Prompter) -> int:
    """Ids that every format has: those before the first that was added for pictures."""
    added = [number for number in (prompter.image_token_id, prompter.pad_token_id) if number]
    return min(added)


def _picture() -> bytes:
    """A PNG of 96 x 64: a gradient each way, and a dark square."""
    y, x = np.mgrid[0:64, 0:96]
    pixels = np.stack([x * 255 // 95, y * 255 // 63, (x + y) % 256], axis=-1).astype(np.uint8)
    pixels[16:40, 24:56] = 20
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
