"""Curves and histograms: points where a hand would put them."""

from __future__ import annotations

import re

import pytest

from sightline.page.charts import (
    Line,
    curve_chart,
    histogram_chart,
    legend,
    nice_ticks,
    smoothed,
    thin,
)

Pairs = list[tuple[float, float]]


def corners(svg: str) -> list[Pairs]:
    """The polylines of a chart."""
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]
        for points in re.findall(r'<polyline[^>]*points="([^"]*)"', svg)
    ]


def labels(svg: str) -> list[str]:
    return re.findall(r'<text class="tick"[^>]*>([^<]*)<', svg)


def test_points_are_where_a_hand_puts_them() -> None:
    # The plot is 46..392 across and 206..10 up. x runs from 0 to 10; y from 1 to 4 gets the ticks 1, 2, 3, 4.
    svg = curve_chart([Line("loss", [(0, 4), (5, 1), (10, 2.5)])], name="loss")
    assert corners(svg) == [[(46, 10), (219, 206), (392, 108)]]
    assert labels(svg) == ["1", "2", "3", "4", "0", "2", "4", "6", "8", "10"]


def test_from_zero_puts_zero_on_the_floor() -> None:
    svg = curve_chart([Line("speed", [(1, 50), (2, 100)])], name="speed", from_zero=True)
    assert corners(svg) == [[(46, 108), (392, 10)]]


def test_several_lines_share_the_scales_and_have_styles_of_their_own() -> None:
    svg = curve_chart([Line("llm", [(0, 0), (10, 1)]), Line("projector", [(0, 2), (10, 4)])], name="lr")
    assert corners(svg) == [[(46, 206), (392, 157)], [(46, 108), (392, 10)]]
    assert 'class="curve line0"' in svg and 'class="curve line1"' in svg
    assert re.sub(r"<[^>]*>", "", legend(["llm", "a<b"])).split() == ["llm", "a&lt;b"]


def test_raw_points_are_dots_under_the_line() -> None:
    svg = curve_chart([Line("loss", [(0, 1), (10, 1)], dots=[(0, 0), (10, 2)])], name="loss")
    assert '<path class="dots line0" d="M46 206h0M392 10h0"/>' in svg
    assert corners(svg) == [[(46, 108), (392, 108)]]
    assert svg.index("dots") < svg.index("polyline")


@pytest.mark.parametrize("points", [[(1, 2.5)], [(1, 0.0), (2, 0.0)], [(1, -3.0), (2, -3.0)], [(5, 1e-9), (6, 1e12)]])
def test_odd_lines_stay_inside_the_chart(points: Pairs) -> None:
    for x, y in corners(curve_chart([Line("loss", points)], name="loss"))[0]:
        assert 46 <= x <= 392 and 10 <= y <= 206


def test_without_points_there_is_no_chart() -> None:
    assert curve_chart([], name="loss") == "" and curve_chart([Line("loss", [])], name="loss") == ""
    assert histogram_chart([], name="lengths", x_name="tokens") == ""


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.31, 2.2, [0, 0.5, 1.0, 1.5, 2.0, 2.5]),
        (0, 2e-5, [0, 5e-6, 1e-5, 1.5e-5, 2e-5]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (970, 1030, [960, 980, 1000, 1020, 1040]),
    ],
)
def test_ticks_are_round_and_reach_around(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == expected


def test_steps_have_whole_ticks() -> None:
    assert nice_ticks(1, 3, whole=True) == [1, 2, 3]


def test_close_ticks_keep_the_digits_that_tell_them_apart() -> None:
    svg = curve_chart([Line("speed", [(1, 10_000), (2, 10_200)])], name="speed")
    assert labels(svg)[:5] == ["10k", "10.05k", "10.1k", "10.15k", "10.2k"]


def test_smoothing_takes_the_mean_of_the_neighbours() -> None:
    # 10 points, a fifth to either side: two neighbours each, fewer at the start, cut at the end.
    ys = [8.0, 4.0, 0.0, 4.0, 4.0, 4.0, 9.0, 4.0, 4.0, 1.0]
    means = [y for _, y in smoothed(list(enumerate(ys)), share=0.2)]
    expected = [8, 4, 20 / 5, 16 / 5, 21 / 5, 25 / 5, 25 / 5, 22 / 5, 18 / 4, 9 / 3]
    assert means == pytest.approx(expected)


def test_thinning_keeps_the_ends_and_every_spike() -> None:
    points = [(float(step), 1.0) for step in range(20_000)]
    points[7_777] = (7_777.0, 50.0)
    points[12_345] = (12_345.0, -50.0)
    kept = thin(points, 400)
    assert len(kept) <= 400 and kept == sorted(kept)
    assert {points[0], points[7_777], points[12_345], points[-1]} <= set(kept)
    assert thin(points[:400], 400) == points[:400]


def test_bars_are_where_a_hand_puts_them() -> None:
    # Three bins of ten on 46..392: 115.33 units each, half a unit of air on both sides; four samples are 196 units.
    svg = histogram_chart([(10, 1), (20, 4), (30, 2)], name="lengths", x_name="tokens")
    bars = re.findall(r'<rect class="bar" x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"><title>(.*?)<', svg)
    assert bars == [
        ("46.5", "157", "114.3", "49", "1 to 10: 1"),
        ("161.8", "10", "114.3", "196", "11 to 20: 4"),
        ("277.2", "108", "114.3", "98", "21 to 30: 2"),
    ]


def test_small_numbers_stand_in_the_middle_of_their_bars() -> None:
    svg = histogram_chart([(0, 1), (1, 4), (2, 2)], name="images", x_name="images of a row")
    # Three bars over 46..392, each 115.3 wide, their middles at 103.7, 219 and 334.3.
    ticks = re.findall(r'<text class="tick" x="([^"]*)" y="222"[^>]*>([^<]*)<', svg)
    assert ticks == [("103.7", "0"), ("219", "1"), ("334.3", "2")]
    assert re.findall(r"<title>(.*?)</title>", svg) == ["0: 1", "1: 4", "2: 2"]


def test_bins_with_the_same_end_are_one_bar() -> None:
    svg = histogram_chart([(50, 3), (50, 4)], name="lengths", x_name="tokens")
    assert re.findall(r"<title>(.*?)<", svg) == ["50: 7"]


def test_empty_bins_have_no_height() -> None:
    svg = histogram_chart([(1, 0), (2, 0)], name="lengths", x_name="tokens")
    assert re.findall(r'class="bar".*?height="(.*?)"', svg) == ["0", "0"]


def test_more_bins_than_units_are_all_drawn() -> None:
    svg = histogram_chart([(end, 1) for end in range(1, 1001)], name="lengths", x_name="tokens")
    widths = [float(width) for width in re.findall(r'class="bar"[^>]*width="(.*?)"', svg)]
    assert len(widths) == 1000 and min(widths) > 0
