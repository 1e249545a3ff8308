"""Numbers as people read them."""

from __future__ import annotations

import pytest

from sightline.page.numbers import counted, duration, short


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.15, "0.15"), (2e-5, "2e-05"), (999.6, "1k"), (12_345, "12.3k"), (-1500, "-1.5k"), (7.06e9, "7.06G")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (8.4, "8 s"), (59.6, "1 min 00 s"), (192, "3 min 12 s"), (7500, "2 h 05 min"), (97_200, "1 d 03 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_is_not_many() -> None:
    assert [counted(number, "row") for number in (0, 1, 2, 12_345)] == ["0 rows", "1 row", "2 rows", "12,345 rows"]
