"""Numbers -> SVG: curves with ticks and grid, and histograms.

The markup carries classes only; colours and fonts come from `page.css`, so that a chart follows light and dark.
All charts are 400 x 240 units and are meant to be shown at about that many pixels, from phone to desk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

import numpy as np

from sightline.page.numbers import short

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 34
"""Space around the plot: labels on the left, ticks and the name of the x axis below."""

COLOURS = 6
"""So many line styles has the style sheet; the next line starts over."""

MOST_DOTS, MOST_CORNERS = 1000, 500
"""So many points of a line are drawn, however long the run was."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart, over finite points in the order of x."""

    name: str
    points: Sequence[Point]
    dots: Sequence[Point] = field(default_factory=tuple)
    """The raw points under a smoothed line."""


@dataclass(frozen=True, slots=True)
class Scale:
    """An interval of numbers laid on an interval of units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def curve_chart(lines: Sequence[Line], *, name: str, x_name: str = "step", from_zero: bool = False) -> str:
    """A chart of one or several lines over the same x; without any point: an empty string."""
    points = [point for line in lines for point in (*line.points, *line.dots)]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high = _widened(min(xs), max(xs))
    y_ticks = nice_ticks(*_widened(min([0.0, *ys] if from_zero else ys), max(ys)))
    x_scale = Scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    y_scale = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    x_ticks = [tick for tick in nice_ticks(x_low, x_high, whole=True) if x_low <= tick <= x_high]
    body = [_axes(x_scale, y_scale, x_ticks, y_ticks, x_name)]
    for number, line in enumerate(lines):
        style = f"line{number % COLOURS}"
        if line.dots:
            dots = "".join(f"M{_unit(x_scale(x))} {_unit(y_scale(y))}h0" for x, y in thin(line.dots, MOST_DOTS))
            body.append(f'<path class="dots {style}" d="{dots}"/>')
        path = " ".join(f"{_unit(x_scale(x))},{_unit(y_scale(y))}" for x, y in thin(line.points, MOST_CORNERS))
        body.append(f'<polyline class="curve {style}" points="{path}"/>')
    return _svg(body, name)


def legend(names: Sequence[str]) -> str:
    """HTML: the names of the lines of a chart, each with a sample of its line."""
    return "".join(swatch(name, f"curve line{number % COLOURS}") for number, name in enumerate(names))


def swatch(name: str, style: str) -> str:
    """HTML: a name with a sample of the line style that it stands for."""
    line = f'<line class="{style}" x1="1" x2="23" y1="4" y2="4"/>'
    return f'<span class="key"><svg viewBox="0 0 24 8" aria-hidden="true">{line}</svg> {escape(name)}</span> '


def figure(name: str, chart: str, caption: str = "", kind: str = "") -> str:
    """HTML: a chart under its name, the caption (HTML) below; without a chart: an empty string."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{kind}"><b>{escape(name)}</b>{chart}{below}</figure>' if chart else ""


def histogram_chart(bins: Sequence[tuple[int, int]], *, name: str, x_name: str) -> str:
    """Bars for (upper end, count), in the order of the ends; without any: an empty string.

    A bin reaches from the end of the one before it, exclusive, to its own, inclusive; the first is as wide as the
    second. Bins with the same end are drawn as one.
    """
    merged: dict[int, int] = {}
    for end, count in bins:
        merged[end] = merged.get(end, 0) + count
    if not merged:
        return ""
    ends, counts = list(merged), list(merged.values())
    edges = [2 * ends[0] - ends[1] if len(ends) > 1 else ends[0] - 1, *ends]
    # Half a unit to the right, so that a whole number stands in the middle of its place.
    x_scale = Scale(edges[0] + 0.5, edges[-1] + 0.5, LEFT, WIDTH - RIGHT)
    y_ticks = nice_ticks(0, max(*counts, 1), whole=True)
    y_scale = Scale(0, y_ticks[-1], HEIGHT - BOTTOM, TOP)
    x_ticks = [tick for tick in nice_ticks(edges[0], edges[-1], whole=True) if edges[0] < tick <= edges[-1]]
    body = [_axes(x_scale, y_scale, x_ticks, y_ticks, x_name)]
    for count, (low, high) in zip(counts, pairwise(edges), strict=True):
        x, y = x_scale(low + 0.5), y_scale(count)
        width = max(x_scale(high + 0.5) - x - 1, 0.5)
        span = f"{low + 1} to {high}" if low + 1 < high else str(high)
        body.append(
            f'<rect class="bar" x="{_unit(x + 0.5)}" y="{_unit(y)}" width="{_unit(width)}" '
            f'height="{_unit(y_scale(0) - y)}"><title>{span}: {count}</title></rect>'
        )
    return _svg(body, name)


def smoothed(points: Sequence[Point], share: float = 0.02) -> list[Point]:
    """Every point replaced by the mean of its neighbours, `share` of the line to either side.

    Centred, so that it does not lag as an average over the past alone would.
    """
    if len(points) < 3:
        return list(points)
    reach = math.ceil(len(points) * share)
    total = np.concatenate([[0.0], np.cumsum([y for _, y in points], dtype=np.float64)])
    place = np.arange(len(points))
    # At the start, where a loss falls steeply, the window stays centred and shrinks; at the end it is cut.
    first = place - np.minimum(reach, place)
    last = np.minimum(place + np.minimum(reach, place), len(points) - 1)
    means = (total[last + 1] - total[first]) / (last + 1 - first)
    return [(x, float(mean)) for (x, _), mean in zip(points, means, strict=True)]


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points that look like all of them: of every stretch the first, the lowest and the highest."""
    if len(points) <= most:
        return list(points)
    borders = np.linspace(0, len(points), (most - 1) // 3 + 1).astype(int)
    ys = np.asarray([y for _, y in points])
    kept = {len(points) - 1}
    for start, end in pairwise(borders):
        kept |= {int(start), int(start + ys[start:end].argmin()), int(start + ys[start:end].argmax())}
    return [points[index] for index in sorted(kept)]


def nice_ticks(low: float, high: float, *, about: int = 5, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below `low` to at or above `high`."""
    step = _nice_step((high - low) / about)
    if whole:
        step = max(round(step), 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _widened(low: float, high: float) -> tuple[float, float]:
    """An interval that is not empty."""
    margin = abs(low) / 2 or 0.5
    return (low, high) if high - low > 1e-12 * max(abs(low), abs(high)) else (low - margin, high + margin)


def _axes(x_scale: Scale, y_scale: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str) -> str:
    left, right, floor = x_scale.start, x_scale.end, y_scale.start
    parts = []
    for tick, label in zip(y_ticks, _labels(y_ticks), strict=True):
        y = _unit(y_scale(tick))
        parts.append(f'<line class="grid" x1="{_unit(left)}" x2="{_unit(right)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_unit(left - 6)}" y="{y}" dy="0.35em" text-anchor="end">{label}</text>')
    for tick, label in zip(x_ticks, _labels(x_ticks), strict=True):
        x = x_scale(tick)
        anchor = "end" if x > right - 14 else "middle"
        parts.append(
            f'<line class="axis" x1="{_unit(x)}" x2="{_unit(x)}" y1="{_unit(floor)}" y2="{_unit(floor + 4)}"/>'
            f'<text class="tick" x="{_unit(x)}" y="{_unit(floor + 16)}" text-anchor="{anchor}">{label}</text>'
        )
    parts.append(f'<line class="axis" x1="{_unit(left)}" x2="{_unit(right)}" y1="{_unit(floor)}" y2="{_unit(floor)}"/>')
    centre = _unit((left + right) / 2)
    parts.append(f'<text class="axis-name" x="{centre}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_name)}</text>')
    return "".join(parts)


def _labels(ticks: Sequence[float]) -> list[str]:
    """Short, with as many digits as neighbours need to differ."""
    for digits in range(3, 9):
        labels = [short(tick, digits) for tick in ticks]
        if all(math.isclose(float(f"{tick:.{digits}g}"), tick, rel_tol=1e-9) for tick in ticks):
            break
    return labels


def _svg(body: Sequence[str], name: str) -> str:
    label = escape(name)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>'


def _unit(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
