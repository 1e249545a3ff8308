"""Tiles against transformers' own processor and model: grids, numbers of tokens, and pixels to the last bit."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from prompters import make_prompter, said, seen
from transformers import LlavaNextProcessor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, unpad_image

from sightline.errors import DataError
from sightline.prompt import tiles as tiles_module
from sightline.prompt.pixels import levels, look_up
from sightline.prompt.prompter import Prompter
from sightline.prompt.tiles import Tiles, cut, cut_all, square_grids
from sightline.types import ImageRef

LLAVA_16 = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""`image_grid_pinpoints` of llava-hf/llava-v1.6-vicuna-7b-hf."""

CLIP_336 = Tiles(square_grids(336), 336, 24)
SMALL = Tiles(square_grids(28), 28, 2)
SIGLIP_384 = Tiles(((384, 768), (768, 384), (768, 768), (1152, 768)), 384, 27)
MANY = Tiles(tuple((rows * 42, columns * 42) for rows in range(1, 5) for columns in range(1, 5)), 42, 3)
KINDS = {"clip 336": CLIP_336, "small": SMALL, "siglip 384": SIGLIP_384, "many": MANY}


def processor_of(tiles: Tiles, **changes: Any) -> Any:
    settings = {
        "size": {"shortest_edge": tiles.side},
        "crop_size": {"height": tiles.side, "width": tiles.side},
        "image_grid_pinpoints": [list(grid) for grid in tiles.grids],
    }
    return LlavaNextImageProcessorPil(**(settings | changes))


def picture(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    levels[: height // 2, : width // 2] = np.arange(width // 2)[:, None] % 2 * 255
    return Image.fromarray(levels)


def ref(picture: Image.Image) -> ImageRef:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return ImageRef(file.getvalue())


def prompter(tiles: Tiles = SMALL, **changes: Any) -> Prompter:
    return dataclasses.replace(
        make_prompter(),
        image_processor=processor_of(tiles, **changes),
        tokens_per_image=tiles.patches**2,
        tiles=tiles,
    )


def sizes(number: int) -> list[tuple[int, int]]:
    """Sizes of all kinds: any, near the grids' own proportions, small squares, long and thin ones."""
    rng = np.random.default_rng(number)
    found = [(int(w), int(h)) for w, h in np.exp(rng.uniform(np.log(8), np.log(4000), (number // 2, 2)))]
    for _ in range(number // 4):
        width, height = rng.integers(1, 4, 2) * rng.integers(20, 900) + rng.integers(-2, 3, 2)
        found.append((int(width), int(height)))
    found += [(side, side) for side in rng.integers(1, 700, number // 8).tolist()]
    found += [(int(w), 1 + int(w) // 60) for w in rng.integers(1, 3000, number // 8)]
    return found


def test_the_grids_are_those_of_llava_16() -> None:
    assert CLIP_336.grids == tuple(map(tuple, LLAVA_16))


def test_known_numbers() -> None:
    """Of LLaVA-1.6 at 336 px, as the official code has them for these sizes."""
    known = {(336, 336): 1176, (640, 480): 2340, (672, 672): 2928, (1008, 336): 2328, (1920, 1080): 1948}
    assert {size: CLIP_336.tokens(*size) for size in known} == known
    assert CLIP_336.most_tokens == 2928


@pytest.mark.parametrize("kind", KINDS)
def test_grids_and_tokens_of_2000_sizes_are_those_of_transformers(kind: str) -> None:
    tiles = KINDS[kind]
    side = tiles.side
    tokenizer = make_prompter().tokenizer
    theirs = LlavaNextProcessor(
        processor_of(tiles), tokenizer, patch_size=side // tiles.patches, vision_feature_select_strategy="full"
    )
    for width, height in sizes(2000):
        grid = select_best_resolution((height, width), [list(grid) for grid in tiles.grids])
        assert tiles.grid(width, height) == grid
        assert tiles.tokens(width, height) == theirs._get_number_of_features(height, width, side, side)
        # And what the model keeps of the tiles, which its processor only predicts.
        high, wide = (tiles.patches * (length // side) for length in grid)
        kept = unpad_image(torch.empty(0, high, wide, device="meta"), (height, width)).shape
        assert tiles.tokens(width, height) == tiles.patches**2 + kept[1] * (kept[2] + 1)


def official(width: int, height: int) -> tuple[tuple[int, int], int]:
    """Grid (height, width) and tokens of LLaVA-1.6's own code, written anew: it reads the list as (width, height)."""
    found: list[tuple[int, int, int]] = []
    for number, (wide, high) in enumerate(LLAVA_16):
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        found.append((-kept, wide * high - kept, number))
    wide, high = LLAVA_16[min(found)[2]]
    columns, rows = wide // 14, high // 14
    if width / height > columns / rows:
        rows -= (rows - int(height * (columns / width))) // 2 * 2
    else:
        columns -= (columns - int(width * (rows / height))) // 2 * 2
    return (high, wide), 576 + rows * (columns + 1)


def test_official_llava_differs_where_a_tile_has_room_for_the_whole_picture() -> None:
    """And nowhere else; with its own order written as (height, width) it is the same everywhere."""
    as_official = Tiles(tuple((height, width) for width, height in CLIP_336.grids), 336, 24)
    small = 0
    for width, height in sizes(2000):
        grid, tokens = official(width, height)
        assert (as_official.grid(width, height), as_official.tokens(width, height)) == (grid, tokens)
        if max(width, height) <= 336:
            assert CLIP_336.grid(width, height) == (336, 672) and grid == (672, 336)
            small += 1
        else:
            assert (CLIP_336.grid(width, height), CLIP_336.tokens(width, height)) == (grid, tokens)
    assert small > 100
    assert (CLIP_336.tokens(100, 100), official(100, 100)[1]) == (1176, 1176)
    assert (CLIP_336.tokens(300, 200), official(300, 200)[1]) == (1464, 976)


def test_a_picture_by_hand() -> None:
    """84 x 28 px fill three tiles of 28 as they are; on 2 x 2 tiles they shrink, and the rest is black."""
    red = Image.new("RGB", (84, 28), (200, 0, 0))
    whole, *rest = cut(red, SMALL)
    assert SMALL.grid(84, 28) == (28, 84) and len(rest) == 3
    assert all((tile[0] == 200).all() and not tile[1:].any() for tile in (whole, *rest))
    assert SMALL.tokens(84, 28) == 4 + 2 * (6 + 1)
    square = Tiles(((56, 56),), 28, 2)
    whole, *rest = cut(red, square)
    assert (whole[0] == 200).all()
    # 56 x 19 px, 18 px of black above and 19 below.
    above = np.zeros((2, 28, 28)) + np.where(np.arange(28) < 18, 0, 200)[:, None]
    below = np.zeros((2, 28, 28)) + np.where(np.arange(28) < 9, 200, 0)[:, None]
    assert np.array_equal([tile[0] for tile in rest], [*above, *below])
    # 4 x 4 patches, of which int(28 / 84 * 4) = 1 row of the picture; 3 // 2 rows are cut at either side.
    assert square.tokens(84, 28) == 4 + 2 * (4 + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_transformers(kind: str) -> None:
    tiles = KINDS[kind]
    processor = processor_of(tiles)
    rng = np.random.default_rng(7)
    some = [(int(width), int(height)) for width, height in np.exp(rng.uniform(3, 6.6, (4, 2)))]
    for size in [*some, (tiles.side, tiles.side), (1, 1), (3, 60), (1, 900), (640, 480), (333, 334)]:
        one = picture(*size)
        expected = processor([one], return_tensors="pt")
        found = cut_all([one], tiles, processor)
        assert found.dtype == torch.uint8
        assert torch.equal(look_up(found, levels(processor)), expected["pixel_values"][0])
        unchanged = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        assert torch.equal(found, processor([one], **unchanged)["pixel_values"][0])


def test_several_pictures_lie_one_behind_the_other() -> None:
    pictures = [picture(*size) for size in ((90, 30), (20, 20), (50, 160))]
    for changes in ({}, {"resample": Image.Resampling.LANCZOS}):
        one = prompter(**changes)
        padded = one.image_processor(pictures, return_tensors="pt")["pixel_values"]
        counts = [len(cut(each, SMALL)) for each in pictures]
        expected = torch.cat([tiles[:count] for tiles, count in zip(padded, counts, strict=True)])
        found = seen(one, [ref(each) for each in pictures])
        assert found.shape[0] == sum(counts) == 4 + 3 + 4
        assert torch.equal(found, expected)


UNKNOWN: dict[str, dict[str, Any]] = {
    "another filter": {"resample": Image.Resampling.LANCZOS},
    "no normalising": {"do_normalize": False},
    "another size": {"size": {"shortest_edge": 30}},
}


@pytest.mark.parametrize("change", UNKNOWN)
def test_what_is_not_known_is_left_to_the_processor(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_module, "cut", None)
    processor = processor_of(SMALL, **UNKNOWN[change])
    made = cut_all([picture(40, 30)], SMALL, processor)
    assert made.dtype == torch.float32
    assert torch.equal(made, processor([picture(40, 30)], return_tensors="pt")["pixel_values"][0])


# --- in a prompt ------------------------------------------------------------------------------------------------------


def test_each_image_takes_its_own_number_of_tokens() -> None:
    one = prompter()
    wide, square = ref(picture(90, 30)), ref(picture(40, 40))
    encoded = one.encode([said("user", wide, square, "What?", wide)])
    assert encoded.sizes == ((90, 30), (40, 40), (90, 30))
    lengths = one.image_lengths(encoded)
    assert lengths == [SMALL.tokens(*size) for size in encoded.sizes] == [18, 24, 18]
    assert (encoded.ids == one.image_token_id).sum() == 60
    assert "2 <image> x 18 + 24What?<image> x 18 tokens" in one.explain(encoded).plain
    given = one.encode([said("user", wide, square, "What?", wide)], sizes=[(1, 1), (50, 1), (9, 9)])
    assert given.sizes == ((1, 1), (50, 1), (9, 9))


def test_max_length_never_cuts_an_image() -> None:
    one = prompter()
    messages = [said("user", "Look: ", ref(picture(90, 30)), " What is it?")]
    whole = one.encode(messages)
    at = np.flatnonzero(whole.ids == one.image_token_id)
    shortest = int(at[-1]) + 1
    assert len(one.encode(messages, max_length=shortest).ids) == shortest
    for length in (shortest - 1, int(at[0]) + 1):
        with pytest.raises(DataError, match="cuts an image") as error:
            one.encode(messages, max_length=length)
        assert error.value.kind == "image_cut"


def test_the_grey_prompt_belongs_to_the_grey_pixels() -> None:
    one = prompter()
    grey, pixels = one.grey_prompt(), one.grey_pixels()
    assert (grey.ids == one.image_token_id).all() and grey.num_targets == 0 and grey.images == ()
    (width, height) = grey.sizes[0]
    assert len(grey.ids) == SMALL.tokens(width, height)
    assert len(pixels) == 1 + SMALL.grid(width, height)[0] * SMALL.grid(width, height)[1] // SMALL.side**2


def test_the_model_lays_features_where_the_tiles_were() -> None:
    """transformers' `pack_image_features` on features that say which tile, row and column they are of."""
    config = type("Config", (), {"image_grid_pinpoints": [list(grid) for grid in SMALL.grids]})()
    config.vision_config = type("Vision", (), {"image_size": 28, "patch_size": 14})()
    place = torch.arange(5 * 4).float().reshape(5, 4, 1)
    model = type("Model", (), {"config": config})()
    newline = torch.tensor([-1.0])
    packed, lengths = LlavaNextModel.pack_image_features(model, [place], ((40, 40),), "full", newline)
    assert SMALL.grid(40, 40) == (56, 56) and lengths.tolist() == [SMALL.tokens(40, 40)]
    rows = [[4, 5, 8, 9], [6, 7, 10, 11], [12, 13, 16, 17], [14, 15, 18, 19]]
    assert packed[0].flatten().tolist() == [0, 1, 2, 3, *(value for row in rows for value in (*row, -1))]
