"""Estimators side by side as one HTML file: a table, and a scatter plot each, drawn as SVG.

No script: points carry their names as titles, so the page reads the same with scripts off.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from headwater.page.document import asset, plain, put, write_page
from headwater.page.static import escape, headline, number
from headwater.page.ticks import ticks

WIDTH, HEIGHT = 380, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40


class ComparedPoint(TypedDict):
    """One component that was checked exactly."""

    name: str
    kind: str
    estimate: float
    exact: float


class ComparedData(TypedDict):
    """One estimator: its row of the table and its points."""

    name: str
    cells: Sequence[str]
    estimand: str
    verdict: str
    points: Sequence[ComparedPoint]


class ComparisonData(TypedDict):
    """What the page shows."""

    title: str
    advice: Sequence[str]
    columns: Sequence[str]
    caption: str
    estimators: Sequence[ComparedData]


def render_comparison(data: ComparisonData) -> str:
    """Return the page that shows a comparison, as the text of one HTML file."""
    parts = {
        "title": escape(data["title"]),
        "headline": headline(data["advice"]),
        "heading": _heading(data["columns"]),
        "rows": "".join(map(_row, data["estimators"])),
        "caption": escape(data["caption"]),
        "plots": _plots(data["estimators"]),
        "kinds": _kinds(data["estimators"]),
    }
    style = asset("page.css") + "\n" + asset("comparison.css")
    body = put(asset("comparison.html"), parts)
    return plain(data["title"], "estimators compared", body, style)


def write_comparison(data: ComparisonData, path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`, at once or not at all, and return the path."""
    return write_page(render_comparison(data), path)


def _heading(columns: Sequence[str]) -> str:
    numbers = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in columns)
    return f'<tr><th scope="col">estimator</th>{numbers}</tr>'


def _row(estimator: ComparedData) -> str:
    cells = "".join(f'<td class="number">{escape(cell)}</td>' for cell in estimator["cells"])
    said = f"{escape(estimator['verdict'])} <span>Estimates {escape(estimator['estimand'])}.</span>"
    words = f'<td class="words" colspan="{len(estimator["cells"]) + 1}">{said}</td>'
    name = f'<th scope="row" class="name">{escape(estimator["name"])}</th>'
    return f"<tr>{name}{cells}</tr><tr>{words}</tr>"


def _plots(estimators: Sequence[ComparedData]) -> str:
    values = [
        value
        for estimator in estimators
        for point in estimator["points"]
        for value in (point["estimate"], point["exact"])
        if math.isfinite(value)
    ]
    axis = _Axis(values or [0.0])
    return "".join(_plot(estimator, axis) for estimator in estimators)


class _Axis:
    """One range for both axes of every plot."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min(*values, 0.0), max(*values, 0.0)
        spare = 0.05 * (high - low) or 0.5
        self.low, self.high = low - spare, high + spare
        self.ticks = ticks(self.low, self.high, 4)

    def x(self, value: float) -> float:
        return LEFT + self._share(value) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self._share(value) * (HEIGHT - TOP - BOTTOM)

    def _share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def _plot(estimator: ComparedData, axis: _Axis) -> str:
    name = escape(estimator["name"])
    label = f"Estimates of {name} against exact effects"
    parts = [
        f'<svg class="picture" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    ]
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for tick in axis.ticks:
        x, y = f"{axis.x(tick):.1f}", f"{axis.y(tick):.1f}"
        kind = "axis" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        said = number(tick)
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{said}</text>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{axis.y(tick) + 4:.1f}" text-anchor="end">{said}</text>'
        )
    low, high = axis.low, axis.high
    parts.append(
        f'<line class="identity" x1="{axis.x(low):.1f}" y1="{axis.y(low):.1f}" '
        f'x2="{axis.x(high):.1f}" y2="{axis.y(high):.1f}"/>'
    )
    parts += [_point(point, axis) for point in estimator["points"]]
    parts.append(
        f'<text class="title" x="{right}" y="{HEIGHT - 6}" text-anchor="end">exact effect</text>'
        f'<text class="title" x="{LEFT}" y="{HEIGHT - 6}">estimate, upward</text></svg>'
    )
    return f'<figure class="small"><h3 class="name">{name}</h3>{"".join(parts)}</figure>'


def _point(point: ComparedPoint, axis: _Axis) -> str:
    if not (math.isfinite(point["estimate"]) and math.isfinite(point["exact"])):
        return ""
    said = (
        f"{escape(point['name'])}: estimate {number(point['estimate'])}, "
        f"exact {number(point['exact'])}"
    )
    kind = escape(point["kind"])
    x, y = axis.x(point["exact"]), axis.y(point["estimate"])
    place = f'cx="{x:.1f}" cy="{y:.1f}"'
    return f'<circle class="point kind-{kind}" {place} r="4.5"><title>{said}</title></circle>'


def _kinds(estimators: Sequence[ComparedData]) -> str:
    kinds = dict.fromkeys(
        point["kind"] for estimator in estimators for point in estimator["points"]
    )
    return " ".join(
        f'<span class="item"><svg class="sample" viewBox="0 0 12 12" aria-hidden="true">'
        f'<circle class="point kind-{kind}" cx="6" cy="6" r="4.5"/></svg>{kind}</span>'
        for kind in map(escape, kinds)
    )
