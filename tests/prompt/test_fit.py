"""Pixels against transformers' own processors, to the last bit; and who makes them where a processor is not known."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from prompters import make_prompter, seen
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from sightline.prompt import pixels as pixels_module
from sightline.prompt.pixels import fit_all, known_fit, levels, look_up
from sightline.types import ImageRef


def square(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SIZE = {"height": 384, "width": 384}

PROCESSORS: dict[str, Any] = {
    "clip pad": LlavaImageProcessorPil(do_pad=True, **square(336)),
    "clip crop": CLIPImageProcessorPil(**square(336)),
    "llava without pad": LlavaImageProcessorPil(**square(336)),
    "middle of a larger one": CLIPImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 200}
    ),
    "small tower": LlavaImageProcessorPil(do_pad=True, **square(56)),
    "siglip": SiglipImageProcessorPil(size=SIZE),
    "siglip pad": LlavaImageProcessorPil(do_pad=True, **square(384), **HALF),
    "padded, then stretched": LlavaImageProcessorPil(do_pad=True, do_center_crop=False, size=SIZE),
}

SIZES = [(640, 480), (480, 640), (336, 336), (337, 335), (1, 1), (1, 50), (90, 2), (200, 9), (31, 97), (400, 1500)]
"""With the last one, cropped, Pillow 13 takes columns before rows."""


def picture(width: int, height: int) -> Image.Image:
    """Noise with a corner of stripes, whose weighted sums meet the middle between two levels exactly."""
    levels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    levels[: height // 2, : width // 2] = np.arange(width // 2)[:, None] % 2 * 255
    return Image.fromarray(levels)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [*SIZES, "random"])
def test_pixels_are_those_of_transformers(name: str, size: Any) -> None:
    sizes = [size]
    if size == "random":
        rng = np.random.default_rng(len(name))
        sizes = [(int(width), int(height)) for width, height in np.exp(rng.uniform(1, 6.2, (6, 2)))]
    processor = PROCESSORS[name]
    pictures = [picture(*size) for size in sizes]
    expected = processor(pictures, return_tensors="pt")["pixel_values"]
    fitted = fit_all(pictures, processor)
    assert known_fit(processor) is not None and fitted.dtype == torch.uint8
    assert torch.equal(look_up(fitted, levels(processor)), expected)
    # And the levels themselves, which a table that joins two of them would hide.
    unchanged = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    assert torch.equal(fitted, processor(pictures, **unchanged)["pixel_values"])


@pytest.mark.parametrize("name", PROCESSORS)
def test_without_own_products_the_pixels_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = [picture(300, 200)]
    fitted = fit_all(one, PROCESSORS[name])
    monkeypatch.setattr("sightline.prompt.resample._as_pillow", lambda: False)
    assert torch.equal(fit_all(one, PROCESSORS[name]), fitted)


class Own(CLIPImageProcessorPil):  # type: ignore[misc]
    """A processor that does more than its settings say."""


UNKNOWN: dict[str, Any] = {
    "another filter": CLIPImageProcessorPil(resample=Image.Resampling.LANCZOS, **square(56)),
    "another kind": ViTImageProcessorPil(size={"height": 56, "width": 56}, resample=Image.Resampling.BICUBIC),
    "a kind derived from a known one": Own(**square(56)),
    "no normalising": CLIPImageProcessorPil(do_normalize=False, **square(56)),
    "no resizing": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 56, "width": 56}),
    "a middle larger than the picture": CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 56, "width": 56}
    ),
    "a longest side": SiglipImageProcessorPil(size={"shortest_edge": 56, "longest_edge": 56}),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_left_to_the_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels_module, "fit", None)
    processor = UNKNOWN[name]
    assert known_fit(processor) is None
    one = [picture(80, 60)]
    made = fit_all(one, processor)
    assert made.dtype == torch.float32
    assert torch.equal(made, processor(one, return_tensors="pt")["pixel_values"])


def test_a_prompter_gives_what_the_processor_gives_known_or_not() -> None:
    file = io.BytesIO()
    picture(80, 60).save(file, "PNG")
    prompter = make_prompter()
    for processor, travels in ((PROCESSORS["small tower"], torch.uint8), (UNKNOWN["another filter"], torch.float32)):
        prompter = dataclasses.replace(prompter, image_processor=processor)
        images = [ImageRef(file.getvalue())] * 2
        expected = processor([picture(80, 60)] * 2, return_tensors="pt")["pixel_values"]
        assert prompter.pixels(images).dtype == prompter.grey_pixels().dtype == travels
        assert torch.equal(seen(prompter, images), expected)


def test_any_numbers_may_rescale_and_normalise() -> None:
    odd = {"rescale_factor": 1 / 127.5, "image_mean": [0.1, 1.0, 1.9], "image_std": [0.3, 1.0, 7.0]}
    processor = CLIPImageProcessorPil(**square(56), **odd)
    one = [picture(80, 60)]
    expected = processor(one, return_tensors="pt")["pixel_values"]
    assert torch.equal(look_up(fit_all(one, processor), levels(processor)), expected)


def test_numbers_are_the_same_on_every_way() -> None:
    noise = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    table = torch.randn(3 * 256)
    by_hand = torch.stack([table[256 * colour :][noise[:, colour].long()] for colour in range(3)], dim=1)
    assert torch.equal(look_up(noise, table), by_hand)
    assert torch.equal(pixels_module._at_once(noise, table), by_hand)
