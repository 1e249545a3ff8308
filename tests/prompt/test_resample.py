"""Resized pictures against Pillow's own `resize`, to the last bit."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from sightline.prompt import resample as module
from sightline.prompt.resample import Axis, by_pillow, resample

COLOUR = (122, 116, 104)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def axis(size: int, canvas: int, resized: int, start: int = 0, length: int | None = None) -> Axis:
    return Axis(size, canvas, (canvas - size) // 2, resized, start, length or resized - start)


TASKS = {
    "smaller": (axis(640, 640, 336), axis(480, 480, 252)),
    "larger": (axis(20, 20, 97), axis(30, 30, 145)),
    "as it is": (axis(50, 50, 50), axis(40, 40, 40)),
    "half": (axis(80, 80, 40), axis(60, 60, 30)),
    "padded above and below": (axis(90, 90, 33), axis(40, 90, 33)),
    "padded at the sides": (axis(7, 90, 33), axis(90, 90, 33)),
    "much smaller": (axis(2000, 2000, 28), axis(1500, 1500, 21)),
    "cut": (axis(90, 90, 60, 11, 30), axis(60, 60, 40, 3, 30)),
    "much lower than narrow": (axis(60, 60, 55), axis(400, 400, 20)),
    "far from every edge": (axis(120, 900, 330), axis(130, 900, 330)),
    "cut beside the picture": (axis(120, 900, 330, 0, 90), axis(900, 900, 330)),
    "one pixel": (axis(1, 1, 5), axis(1, 1, 5)),
}


@pytest.mark.parametrize("name", TASKS)
def test_it_is_what_pillow_does(name: str) -> None:
    across, down = TASKS[name]
    picture = noise(across.size, down.size)
    canvas = Image.new("RGB", (across.canvas, down.canvas), COLOUR)
    canvas.paste(picture, (across.before, down.before))
    resized = canvas.resize((across.resized, down.resized), Image.Resampling.BICUBIC)
    left, top = across.start, down.start
    expected = np.asarray(resized.crop((left, top, left + across.length, top + down.length))).transpose(2, 0, 1)
    ways = [resample, by_pillow]
    if name != "much lower than narrow":  # there Pillow takes the columns first
        ways.append(module._by_products)
    for way in ways:
        made = way(picture, across, down, COLOUR)
        assert (made.dtype, made.shape) == (np.uint8, expected.shape)
        assert np.array_equal(made, expected)


def test_the_fast_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every test here would compare Pillow with itself."""
    assert module._as_pillow()
    monkeypatch.setattr(module, "by_pillow", None)
    for side in (axis(640, 640, 336), axis(20, 20, 336), axis(90, 90, 90)):
        resample(noise(side.size, side.size), side, side, COLOUR)


def test_what_lies_beside_the_picture_is_not_calculated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_by_products", lambda *task: np.zeros((3, task[2].length, task[1].length), np.uint8))
    made = resample(noise(480, 640), axis(480, 640, 336), axis(640, 640, 336), COLOUR)
    # 80 pixels at each side are 42 results, two of which the picture still reaches.
    assert (made[:, :, [0, 39, 296, 335]] == np.array(COLOUR)[:, None, None]).all()
    assert not made[:, :, 42:294].any()


def test_black_and_white_meet_the_middle_between_two_levels() -> None:
    """Sums of exactly one half, and ends that lie beyond 0 and 255 before they are cut off."""
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[::2, 1::3] = 255
    task = Image.fromarray(stripes), axis(64, 64, 32), axis(64, 64, 32), COLOUR
    assert np.array_equal(module._by_products(*task), by_pillow(*task))


def test_a_long_strip_costs_no_more_than_what_is_kept() -> None:
    strip = noise(5000, 1)
    made = resample(strip, axis(5000, 5000, 1_680_000, 839_832, 336), axis(1, 1, 336), COLOUR)
    # Each pixel is 336 times as wide: the last column kept is the middle of pixel 2500.
    assert made.shape == (3, 336, 336)
    assert np.abs(made[:, :, 335].astype(int) - np.asarray(strip).astype(int)[0, 2500, :, None]).max() <= 1


def test_threads_do_not_share_what_they_calculate_in() -> None:
    tasks = [(noise(200 + 40 * n, 150, n), axis(200 + 40 * n, 200 + 40 * n, 99), axis(150, 150, 70)) for n in range(4)]
    expected = [by_pillow(*task, COLOUR) for task in tasks]
    wrong = []

    def work(number: int) -> None:
        for _ in range(30):
            if not np.array_equal(resample(*tasks[number], COLOUR), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_another_pillow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "by_pillow", lambda *task: module._by_products(*task) ^ 1)
    module._as_pillow.cache_clear()
    try:
        assert not module._as_pillow()
    finally:
        module._as_pillow.cache_clear()


def test_a_narrow_picture_takes_no_more_memory_than_its_results() -> None:
    picture = noise(2, 20_000)
    task = axis(2, 20_000, 336), axis(20_000, 20_000, 336)
    tracemalloc.start()
    resample(picture, *task, COLOUR)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    between = 20_000 * 3 * 336
    assert most < 3 * between
