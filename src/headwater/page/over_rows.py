"""Numbers over the rows of a lens as inline SVG, which reads the same with scripts off.

A line joins the rows of the residual stream; what one sublayer writes is not on the way from one of
them to the next, so such a row has marks and no line. The style sheet gives series their colors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headwater.page.static import escape, number
from headwater.page.ticks import ticks

LEFT, RIGHT, TOP, BOTTOM = 60, 12, 10, 28

Numbers = Sequence[float | None]


@dataclass(frozen=True)
class Series:
    """One line, with a band or two around it.

    Args:
        name: What it is called where it is pointed at.
        kind: Its class, which gives color and dashes.
        values: One number a row; None where there is none.
        interval: Ends of the inner band, by row.
        quartiles: Ends of the outer band, by row.
        middle: A second, thin line: the median.
    """

    name: str
    kind: str
    values: Numbers
    interval: tuple[Numbers, Numbers] | None = None
    quartiles: tuple[Numbers, Numbers] | None = None
    middle: Numbers | None = None

    def heights(self) -> Iterator[float | None]:
        """Yield every number that the picture must hold."""
        for numbers in (self.values, self.middle, *(self.interval or ()), *(self.quartiles or ())):
            yield from numbers or ()


class Frame:
    """Where rows and heights lie.

    Args:
        count: Number of rows.
        heights: Every number to be drawn.
        scale: `log` puts decades at equal distances, and zero at the lower edge.
        size: Width and height of the picture in pixels.
    """

    def __init__(
        self, count: int, heights: Sequence[float], scale: str, size: tuple[float, float]
    ) -> None:
        self.width, self.height = size
        self.right, self.bottom = self.width - RIGHT, self.height - BOTTOM
        self.count, self.log = count, scale == "log"
        drawn = [math.log10(value) for value in heights if value > 0] if self.log else heights
        # A statistic that no row could be smaller in starts at zero, so that heights compare.
        floor = [0.0] if not self.log and heights and min(heights) >= 0 else []
        low, high = min([*drawn, *floor], default=0.0), max([*drawn, *floor], default=1.0)
        spare = 0.05 * (high - low) or 0.5
        self.low, self.high = (low if floor and low == 0 else low - spare), high + spare

    def x(self, row: int) -> float:
        """Return where a row lies."""
        return LEFT + (row + 0.5) * (self.right - LEFT) / max(1, self.count)

    def y(self, value: float) -> float:
        """Return where a height lies; beyond the edge, at the edge."""
        if self.log:
            value = math.log10(value) if value > 0 else -math.inf
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return self.bottom - share * (self.bottom - TOP)

    def levels(self) -> list[tuple[float, str]]:
        """Return the heights that the axis names, and how."""
        if self.log:
            return [(value, _round(value)) for value in _decades(self.low, self.high)]
        return [
            (mark, f"{mark:.6g}".replace("-", "\u2212")) for mark in ticks(self.low, self.high, 5)
        ]


def _decades(low: float, high: float) -> list[float]:
    """Return powers of ten between two exponents, with 2 and 5 times each where there are few."""
    digits = (1, 2, 5) if high - low < 2.2 else (1,)
    every = max(1, math.ceil((high - low) / 6))
    powers = [k for k in range(math.floor(low), math.ceil(high) + 1) if k % every == 0]
    marks = [digit * 10.0**power for power in powers for digit in digits]
    return [mark for mark in marks if low - 1e-9 <= math.log10(mark) <= high]


def _round(value: float) -> str:
    if 1e-3 <= value < 1e6:
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e\u2212").replace("e-", "e\u2212")


def picture(
    rows: Sequence[Mapping[str, Any]],
    series: Sequence[Series],
    label: str,
    *,
    unit: str = "",
    scale: str = "linear",
    size: tuple[float, float] = (360, 220),
    holding: Sequence[float] = (),
) -> str:
    """Return series over rows as an `<svg>` element.

    Args:
        rows: `name` and `kind` of each row.
        series: What to draw, one on the other.
        label: What the picture says to who cannot see it.
        unit: What heights are counted in.
        scale: `linear` and `diverging` share a straight axis; `log` has decades.
        size: Width and height in pixels.
        holding: Heights that the axis must hold besides those drawn.
    """
    heights = [h for one in series for h in one.heights() if h is not None and math.isfinite(h)]
    frame = Frame(len(rows), [*heights, *holding], scale, size)
    lined = [row["kind"] != "write" for row in rows]
    parts = [*_ground(rows, frame, unit)]
    parts += [band for one in series for band in _bands(one, frame, lined)]
    parts += [mark for one in series for mark in _marks(one, frame, rows, lined)]
    return (
        f'<svg class="picture rows" viewBox="0 0 {size[0]:g} {size[1]:g}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _ground(rows: Sequence[Mapping[str, Any]], frame: Frame, unit: str) -> Iterator[str]:
    for value, text in frame.levels():
        y = f"{frame.y(value):.1f}"
        yield f'<path class="grid" d="M{LEFT} {y}H{frame.right:g}"/>'
        yield f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{text}</text>'
    if not frame.log and frame.low < 0 < frame.high:
        yield f'<path class="axis" d="M{LEFT} {frame.y(0):.1f}H{frame.right:g}"/>'
    for place in named(rows, frame.right - LEFT):
        x, name = frame.x(place), rows[place]["name"]
        yield f'<path class="axis" d="M{x:.1f} {frame.bottom:g}v4"/>'
        yield f'<text x="{x:.1f}" y="{frame.bottom + 17:g}" text-anchor="middle">{escape(name)}</text>'  # noqa: E501
    yield f'<path class="axis" d="M{LEFT} {frame.bottom:g}H{frame.right:g}"/>'
    middle = (TOP + frame.bottom) / 2
    at = f'transform="translate(11 {middle:g}) rotate(-90)"'
    yield f'<text class="title" {at} text-anchor="middle">{escape(unit)}</text>'


def named(rows: Sequence[Mapping[str, Any]], room: float) -> list[int]:
    """Return the rows that have room for their names: the last, and as many before it as fit."""
    residual = [place for place, row in enumerate(rows) if row["kind"] in ("input", "residual")]
    wide = 8 + 7.5 * max((len(rows[place]["name"]) for place in residual), default=1)
    step = max(1, math.ceil(len(residual) * wide / room))
    return residual[::-1][::step][::-1]


def _bands(one: Series, frame: Frame, lined: Sequence[bool]) -> Iterator[str]:
    for name, ends in (("outer", one.quartiles), ("inner", one.interval)):
        if ends is None:
            continue
        whole = [
            (place, low, high)
            for place, (low, high) in enumerate(zip(*ends, strict=True))
            if low is not None and high is not None and lined[place]
        ]
        if len(whole) < 2:
            continue
        upper = [f"{frame.x(place):.1f} {frame.y(high):.1f}" for place, _, high in whole]
        lower = [f"{frame.x(place):.1f} {frame.y(low):.1f}" for place, low, _ in whole[::-1]]
        yield f'<path class="band {name} {one.kind}" d="M{"L".join([*upper, *lower])}Z"/>'


def _marks(
    one: Series, frame: Frame, rows: Sequence[Mapping[str, Any]], lined: Sequence[bool]
) -> Iterator[str]:
    if one.middle is not None:
        yield f'<path class="line median {one.kind}" d="{_path(one.middle, frame, lined)}"/>'
    yield f'<path class="line {one.kind}" d="{_path(one.values, frame, lined)}"/>'
    for place, value in enumerate(one.values):
        if value is None:
            continue
        words = f"{one.name} {rows[place]['name']}: {number(value)}{_around(one, place)}"
        kind = "" if lined[place] else " hollow"
        yield (
            f'<circle class="dot {one.kind}{kind}" cx="{frame.x(place):.1f}" '
            f'cy="{frame.y(value):.1f}" r="2.5"><title>{escape(words)}</title></circle>'
        )


def _path(values: Numbers, frame: Frame, lined: Sequence[bool]) -> str:
    """Return a path through the rows that have a number; it breaks where one has none."""
    parts, pen = [], "M"
    for place, value in enumerate(values):
        if not lined[place]:
            continue
        if value is None:
            pen = "M"
            continue
        parts.append(f"{pen}{frame.x(place):.1f} {frame.y(value):.1f}")
        pen = "L"
    return "".join(parts)


def _around(one: Series, place: int) -> str:
    """Return what is known of a mean beside itself."""
    words = ""
    if one.interval is not None:
        low, high = (number(end[place]) for end in one.interval)
        words += f" ({low} to {high})"
    if one.quartiles is not None:
        low, high = (number(end[place]) for end in one.quartiles)
        words += f", middle half {low} to {high}"
    return words
