"""The pixels that the vision tower sees, against the same steps done by hand with Pillow and NumPy."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prompters import seen
from tiny import make_llm, make_tower
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from sightline.errors import DataError
from sightline.model.assemble import make_prompter
from sightline.prompt.pixels import fit_all, known_fit
from sightline.prompt.prompter import Prompter
from sightline.recipe import ModelRecipe
from sightline.types import ImageRef

# OpenAI's CLIP (openai/clip-vit-large-patch14-336, preprocessor_config.json).
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ONE_LEVEL = 1 / 255 / min(STD)
SIZES = [(56, 56), (80, 56), (31, 97), (200, 9), (1, 50), (300, 301)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    make_llm(folder / "llm")
    make_tower(folder / "tower")
    return folder


def prompter(folder: Path, ratio: str) -> Prompter:
    spec = {"llm": str(folder / "llm"), "vision_tower": str(folder / "tower"), "image_aspect_ratio": ratio}
    return make_prompter(ModelRecipe.model_validate(spec))


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)
    small = rng.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


def ref(picture: Image.Image) -> ImageRef:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return ImageRef(file.getvalue())


@pytest.mark.parametrize("size", SIZES)
def test_pad_is_a_square_of_the_mean_colour(size: tuple[int, int], folder: Path) -> None:
    picture = noise(*size)
    side = max(size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = np.asarray(square.resize((56, 56), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = ((expected - MEAN) / STD).transpose(2, 0, 1)
    found = seen(prompter(folder, "pad"), [ref(picture)])
    assert (found.shape, found.dtype) == ((1, 3, 56, 56), torch.float32)
    assert np.abs(found[0].numpy() - expected).max() <= ONE_LEVEL + 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_crop_is_what_transformers_does_for_clip(size: tuple[int, int], folder: Path) -> None:
    picture = noise(*size)
    reference = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    expected = reference([picture], return_tensors="pt")["pixel_values"]
    found = seen(prompter(folder, "crop"), [ref(picture)])
    assert torch.equal(found, expected)
    assert found.shape == (1, 3, 56, 56)


def test_pad_shows_everything_and_crop_the_middle(folder: Path) -> None:
    wide = Image.new("RGB", (168, 56), "black")
    wide.paste("white", (0, 0, 56, 56))
    padded, cropped = (seen(prompter(folder, ratio), [ref(wide)])[0] for ratio in ("pad", "crop"))
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(padded[:, 28, 5], white, atol=1e-3)
    assert cropped.amax() < 0


def test_pictures_keep_their_order(folder: Path) -> None:
    pictures = [ref(Image.new("RGB", (9 + n, 20), (n * 60, 0, 0))) for n in range(4)]
    for ratio in ("pad", "crop"):
        together = prompter(folder, ratio).pixels(pictures)
        assert together.shape == (4, 3, 56, 56)
        assert torch.equal(together, torch.cat([prompter(folder, ratio).pixels([picture]) for picture in pictures]))


def test_turned_and_transparent_pictures_are_seen_upright_and_on_white(folder: Path) -> None:
    square = noise(56, 56)
    exif = Image.Exif()
    exif[0x0112] = 3
    file = io.BytesIO()
    square.transpose(Image.Transpose.ROTATE_180).save(file, "PNG", exif=exif)
    see = prompter(folder, "pad").pixels
    assert torch.equal(see([ImageRef(file.getvalue())]), see([ref(square)]))
    clear = Image.new("RGBA", (20, 20), (9, 9, 9, 0))
    assert torch.equal(see([ref(clear)]), see([ref(Image.new("RGB", (20, 20), "white"))]))


@pytest.mark.parametrize("ratio", ["pad", "crop"])
def test_the_grey_picture_is_almost_nothing(ratio: str, folder: Path) -> None:
    one = prompter(folder, ratio)
    grey = one.pixel_values(one.grey_pixels())
    assert grey.shape == (1, 3, 56, 56)
    assert grey.abs().max() < 2 * ONE_LEVEL


@pytest.mark.parametrize("pad", [False, True])
def test_what_a_processor_of_another_kind_would_blow_up(pad: bool) -> None:
    """Bilinear is not done here, and transformers' own way makes all of the picture before its middle is cut out."""
    kind = LlavaImageProcessorPil if pad else CLIPImageProcessorPil
    sides = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    processor = kind(**sides, resample=Image.Resampling.BILINEAR, do_pad=pad)
    assert known_fit(processor) is None
    assert fit_all([Image.new("RGB", (20, 2_000))], processor).shape == (1, 3, 56, 56)
    with pytest.raises(DataError, match=r"an image of 1 x 60000 px becomes .* megapixels .*--raise-limit") as error:
        fit_all([Image.new("RGB", (1, 60_000))], processor)
    assert error.value.kind == "image_bomb"
