"""A response curve as inline SVG: curve, tangent, chord and the slopes taken, from plain data.

Drawn once, here, so that it reads the same in a page, in a notebook, with scripts off and in print.
Colors are presentation attributes, which need no style sheet and which the page's may replace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headwater.page.static import escape, number
from headwater.page.ticks import ticks

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 44
SLOPE_LENGTH = 30
"""Pixels of a drawn slope."""
BLUE, ORANGE, GRAY = "#4a90d9", "#e2812f", "#8886"


class _Frame:
    """Where gates and metric values lie in the picture."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        spare = 0.06 * (high - low) or 0.5
        self.low, self.high = low - spare, high + spare

    def x(self, gate: float) -> float:
        return LEFT + gate * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def at(self, gate: float, value: float) -> str:
        return f"{self.x(gate):.1f},{self.y(value):.1f}"


def svg(data: Mapping[str, Any], mark: str = "") -> str:
    """Return one curve as an `<svg>` element.

    Args:
        data: The summary of a curve: `name`, `metric`, `rest`, `pairs`, `gates`, `values`, `low`,
            `high`, `tangent`, `chord`, `integral`, `nodes`, `weights`, `slopes`.
        mark: Tells this picture's ids from those of others in one document.
    """
    frame = _Frame([*data["values"], *data["low"], *data["high"]])
    clip = f"curve-clip{mark}"
    label = f"Response curve of {data['name']}: {', '.join(readings(data))}"
    parts = [
        f'<clipPath id="{clip}"><rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/></clipPath>',
        *_axes(frame, str(data["metric"])),
        f'<g clip-path="url(#{clip})">{_band(data, frame)}{_lines(data, frame)}</g>',
        *_slopes(data, frame),
        *_points(data, frame),
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" class="curve-picture" role="img" '
        f'aria-label="{escape(label)}" font-family="sans-serif" font-size="12" fill="none" '
        f'stroke-width="1">{"".join(parts)}</svg>'
    )


def readings(
    data: Mapping[str, Any], write: Callable[[float], str] = number
) -> tuple[str, str, str]:
    """Return what tangent, chord and slopes of a curve read, in words."""
    return (
        f"tangent at gate {data['rest']:g} (AtP) {write(data['tangent'])}",
        f"chord (exact) {write(data['chord'])}",
        f"{len(data['nodes'])} slopes along the way (IG) {write(data['integral'])}",
    )


def figure(data: Mapping[str, Any], mark: str = "") -> str:
    """Return one curve with its title, readings and key as a `<figure>`."""
    pairs = f"{data['pairs']:,} pairs" if data["pairs"] > 1 else "1 pair"
    band = "; shaded: where the middle 80 % of the pairs lie" if data["pairs"] > 1 else ""
    return (
        f'<figure class="curve" data-curve="{escape(data["name"])}">'
        f"<h3><code>{escape(data['name'])}</code> {escape(data['metric'])} by its gate</h3>"
        f"{svg(data, mark)}<figcaption>{_key(data)}<br>Mean over {pairs}{band}.</figcaption>"
        "</figure>"
    )


def figures(curves: Sequence[Mapping[str, Any]]) -> str:
    """Return the section of a page that holds its curves; nothing if it has none."""
    if not curves:
        return ""
    drawn = "".join(figure(data, f"-{place}") for place, data in enumerate(curves))
    names = " ".join(
        f'<button type="button" class="name" data-pick="{escape(data["name"])}">'
        f"{escape(data['name'])}</button>"
        for data in curves
    )
    return (
        '<section id="curves" aria-labelledby="curves-title"><h2 id="curves-title">Response curves'
        '</h2><p class="caption">What the metric does while one gate goes from closed to open, all '
        "others as they are. Choose a ringed point of the scatter plot, or a name: "
        f'<span class="worst">{names}</span></p><div class="drawn">{drawn}</div></section>'
    )


def _axes(frame: _Frame, metric: str) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for gate in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = f"{frame.x(gate):.1f}"
        parts += [
            f'<path class="grid" d="M{x} {TOP}V{bottom}" stroke="{GRAY}"/>',
            _text(x, bottom + 16, f"{gate:g}", "middle"),
        ]
    for value in ticks(frame.low, frame.high, 7):
        y = frame.y(value)
        parts += [
            f'<path class="grid" d="M{LEFT} {y:.1f}H{right}" stroke="{GRAY}"/>',
            _text(LEFT - 7, y + 4, f"{value:.12g}".replace("-", "\u2212"), "end"),
        ]
    middle = (TOP + bottom) / 2
    parts += [
        _text((LEFT + right) / 2, HEIGHT - 8, "gate: 0 closed, 1 open", "middle", "title"),
        f'<text class="title" fill="currentColor" text-anchor="middle" '
        f'transform="translate(13 {middle:.0f}) rotate(-90)">{escape(metric)}</text>',
    ]
    return parts


def _text(x: object, y: float, text: str, anchor: str, name: str = "tick") -> str:
    return (
        f'<text class="{name}" x="{x}" y="{y:.1f}" text-anchor="{anchor}" '
        f'fill="currentColor">{escape(text)}</text>'
    )


def _band(data: Mapping[str, Any], frame: _Frame) -> str:
    if data["pairs"] < 2:
        return ""
    upper = [frame.at(*point) for point in zip(data["gates"], data["high"], strict=True)]
    lower = [frame.at(*point) for point in zip(data["gates"], data["low"], strict=True)]
    return (
        f'<polygon class="band" points="{" ".join([*upper, *lower[::-1]])}" fill="{BLUE}" '
        'fill-opacity="0.14"/>'
    )


def _lines(data: Mapping[str, Any], frame: _Frame) -> str:
    first, last, rest = data["values"][0], data["values"][-1], data["rest"]
    resting = last if rest == 1 else first
    ends = [resting + (gate - rest) * data["tangent"] for gate in (0.0, 1.0)]
    curve = " ".join(frame.at(*point) for point in zip(data["gates"], data["values"], strict=True))
    return (
        f'<path class="chord" d="M{frame.at(0, first)}L{frame.at(1, last)}" stroke="currentColor" '
        f'stroke-width="1.5" stroke-dasharray="5 4"><title>chord: exact effect '
        f"{number(data['chord'])}</title></path>"
        f'<path class="tangent" d="M{frame.at(0, ends[0])}L{frame.at(1, ends[1])}" '
        f'stroke="{ORANGE}" stroke-width="2"><title>tangent at gate {rest:g}: AtP '
        f"{number(data['tangent'])}</title></path>"
        f'<polyline class="response" points="{curve}" stroke="{BLUE}" stroke-width="2.5"/>'
    )


def _points(data: Mapping[str, Any], frame: _Frame) -> list[str]:
    """Return a spot at each gate value that says its number when pointed at."""
    return [
        f'<circle class="spot" cx="{frame.x(gate):.1f}" cy="{frame.y(value):.1f}" r="6" '
        f'fill="{BLUE}" fill-opacity="0"><title>gate {gate:.3g}: {escape(data["metric"])} '
        f"{number(value)}</title></circle>"
        for gate, value in zip(data["gates"], data["values"], strict=True)
    ]


def _slopes(data: Mapping[str, Any], frame: _Frame) -> list[str]:
    """Return a short line of the right steepness at each quadrature point."""
    across = frame.x(1) - frame.x(0)
    down = (HEIGHT - TOP - BOTTOM) / (frame.high - frame.low)
    parts = []
    for node, weight, slope in zip(data["nodes"], data["weights"], data["slopes"], strict=True):
        angle = math.atan2(slope * down, across)
        dx, dy = (SLOPE_LENGTH / 2 * part for part in (math.cos(angle), math.sin(angle)))
        x, y = frame.x(node), frame.y(_between(data, node))
        parts.append(
            f'<g class="node" stroke="currentColor"><path d="M{x - dx:.1f} {y + dy:.1f}L'
            f'{x + dx:.1f} {y - dy:.1f}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" '
            f'fill="currentColor"/><title>gate {node:.3g}: slope {number(slope)}, weight '
            f"{number(weight)}</title></g>"
        )
    return parts


def _between(data: Mapping[str, Any], gate: float) -> float:
    """Return the mean curve at a gate value, on the line between its two neighbors."""
    gates, values = data["gates"], data["values"]
    right = next((i for i, one in enumerate(gates) if one >= gate), len(gates) - 1)
    left = max(right - 1, 0)
    if gates[right] == gates[left]:
        return values[right]
    share = (gate - gates[left]) / (gates[right] - gates[left])
    return values[left] + share * (values[right] - values[left])


def _key(data: Mapping[str, Any]) -> str:
    """Return what each line is and reads."""

    def item(shape: str, text: str) -> str:
        return (
            '<span class="item"><svg viewBox="0 0 24 10" width="24" height="10" '
            f'aria-hidden="true" fill="none">{shape}</svg> {escape(text)}</span> '
        )

    tangent, chord, slopes = readings(data)
    return "".join(
        [
            item(
                f'<path d="M0 5H24" class="response" stroke="{BLUE}" stroke-width="2.5"/>', "f(m)"
            ),
            item(
                f'<path d="M0 5H24" class="tangent" stroke="{ORANGE}" stroke-width="2"/>',
                tangent,
            ),
            item(
                '<path d="M0 5H24" class="chord" stroke="currentColor" stroke-width="1.5" '
                'stroke-dasharray="5 4"/>',
                chord,
            ),
            item(
                '<g class="node" stroke="currentColor"><path d="M2 9L22 1"/><circle cx="12" cy="5" '
                'r="2.5" fill="currentColor"/></g>',
                slopes,
            ),
        ]
    )
