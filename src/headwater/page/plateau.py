"""The two pictures of a gradient check as inline SVG: error against step, and slopes against step.

Drawn here for one direction, so that the page reads the same with scripts off and in print;
`plateau.js` draws the others by the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from headwater.page.static import escape
from headwater.page.ticks import ticks

HEIGHT = 360
LEFT, RIGHT, TOP, BOTTOM = 72, 14, 26, 46
STRIP = 20
"""Room at the bottom for exact zeros, which have no place on a logarithmic axis."""
HALF = 10**0.25
"""Steps are half a decade apart; a region ends half way to the next."""
SHAPES = {
    "off-slope": "M0 -3.2L3.2 0L0 3.2L-3.2 0Z",
    "forward": "M-3 -4L4.5 0L-3 4Z",
    "backward": "M3 -4L-4.5 0L3 4Z",
}
"""What is drawn instead of a disk."""
_RAISED = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3" + "\u2074\u2075\u2076\u2077\u2078\u2079"
)


class Frame:
    """Where steps and heights lie in a picture.

    Args:
        width: Of the picture in pixels.
        span: The shortest and the longest step that any direction has.
        low: The lowest height.
        high: The highest.
        strip: Room kept free below the lowest.
    """

    def __init__(
        self, width: float, span: Sequence[float], low: float, high: float, strip: float = 0
    ) -> None:
        self.width, self.low, self.high = width, low, high
        self.right, self.bottom, self.floor = (
            width - RIGHT,
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM - strip,
        )
        self.first, self.last = (
            math.log10(span[0]) - 0.25,
            math.log10(span[1]) + 0.25,
        )

    def x(self, step: float) -> float:
        """Return where a step lies; beyond the edge, at the edge."""
        share = (math.log10(step) - self.first) / (self.last - self.first)
        return LEFT + min(1.0, max(0.0, share)) * (self.right - LEFT)

    def y(self, height: float) -> float:
        """Return where a height lies; beyond the edge, at the edge."""
        share = (height - self.low) / (self.high - self.low)
        return self.floor - min(1.0, max(0.0, share)) * (self.floor - TOP)

    def holds(self, height: float | None) -> bool:
        """Whether a height is one, and not beyond the edge."""
        return height is not None and self.low <= height <= self.high


def errors(
    direction: Mapping[str, Any], span: Sequence[float], size: float, width: float = 700
) -> str:
    """Return the log-log picture of error against step as an `<svg>` element.

    Args:
        direction: As the page carries it: `DirectionData`, with None for what is not finite.
        span: The shortest and the longest step that any direction has.
        size: s, the unit of steps.
        width: Of the picture in pixels.
    """
    series = [direction[name] for name in ("off_gradient", "off_slope")]
    sizes = [abs(value) for values in series for value in values if value]
    zeros = any(value == 0 for values in series for value in values)
    bar = direction["bar"]
    sizes += [value for value in (*direction["error"], bar) if value]
    low, high = _decades(sizes)
    frame = Frame(width, span, low, high, STRIP if zeros else 0)
    every = math.ceil(26 * (high - low) / (frame.floor - TOP))
    heights = [(float(k), _power(k)) for k in range(math.ceil(low), math.floor(high) + 1, every)]
    steps = direction["steps"]

    def height(value: float | None) -> float | None:
        return math.log10(abs(value)) if value else None

    def y_of(value: float) -> float:
        return frame.y(math.log10(abs(value))) if value else frame.bottom

    taken = [
        (frame.x(at), y_of(off)) for offs in series for at, off in zip(steps, offs, strict=True)
    ]
    parts = [*_ground(direction, frame, heights, "size of the error", size, taken)]
    if zeros:
        parts.append(_line("edge", LEFT, frame.floor, frame.right, frame.floor))
        parts.append(_text(LEFT - 7, frame.bottom + 4, "0", "end"))
    if bar:
        y = frame.y(math.log10(bar))
        parts.append(_line("bar-line", LEFT, y, frame.right, y))
        parts.append(_text(LEFT + 6, y - 5, f"error bar {short(bar)}", "start", "named"))
    for name, values in (("model", direction["error"]), ("off-gradient", series[0]),
                         ("off-slope", series[1])):  # fmt: skip
        parts.append(_path(name, frame, steps, [height(value) for value in values]))
    for place, step in enumerate(steps):
        marks = []
        for name, values in zip(("off-gradient", "off-slope"), series, strict=True):
            off = values[place]
            marks.append(_mark(name, frame.x(step), y_of(off), hollow=not off))
        parts.append(_step(place, said(direction, place), marks))
    label = f"Error of the central difference against the step, along {direction['name']}"
    if steps:
        least, where = min((abs(off), step) for off, step in zip(series[1], steps, strict=True))
        label += (
            f": smallest, {short(least)}, at step {short(where)} s; plateau from "
            f"{short(direction['plateau'][0])} to {short(direction['plateau'][1])} s"
        )
    return _svg(width, label, parts)


def slopes(
    direction: Mapping[str, Any], span: Sequence[float], size: float, width: float = 420
) -> str:
    """Return the picture of one-sided and central slopes against the step as an `<svg>` element.

    Args:
        direction: As the page carries it: `DirectionData`, with None for what is not finite.
        span: The shortest and the longest step that any direction has.
        size: s, the unit of steps.
        width: Of the picture in pixels.
    """
    low, high = hull(direction)
    frame = Frame(width, span, low, high)
    heights = [(value, tick(value)) for value in ticks(low, high, 7)]
    steps = direction["steps"]
    families = {name: direction[name] for name in ("backward", "forward")}
    families["central"] = central(direction)
    taken = [
        (frame.x(at), frame.y(value))
        for values in families.values()
        for at, value in zip(steps, values, strict=True)
        if value is not None
    ]
    parts = [*_ground(direction, frame, heights, "slope", size, taken)]
    if direction["linear"]:
        ends = sorted(share * direction["slope"] for share in (0.9, 1.1))
        top, bottom = frame.y(ends[1]), frame.y(ends[0])
        parts.append(_rect("tenth", LEFT, top, frame.right - LEFT, bottom - top))
    y = frame.y(direction["gradient"])
    parts.append(_line("claimed", LEFT, y, frame.right, y))
    for name, values in families.items():
        parts.append(_path(name, frame, steps, [v if frame.holds(v) else None for v in values]))
    for place, step in enumerate(steps):
        marks = [
            _mark(name, frame.x(step), frame.y(height), hollow=not frame.holds(height))
            for name, values in families.items()
            if (height := values[place]) is not None
        ]
        parts.append(_step(place, said(direction, place), marks))
    label = f"Slopes against the step, along {direction['name']}"
    if steps:
        label += (
            f": at the longest step {short(direction['backward'][0])} backward and "
            f"{short(direction['forward'][0])} forward, at the shortest "
            f"{short(direction['backward'][-1])} and {short(direction['forward'][-1])}; the "
            f"gradient says {short(direction['gradient'])}"
        )
    return _svg(width, label, parts)


def central(direction: Mapping[str, Any]) -> list[float | None]:
    """Return the central differences: the page carries how far off they are."""
    slope = direction["slope"]
    return [None if slope is None or off is None else slope + off for off in direction["off_slope"]]


def hull(direction: Mapping[str, Any]) -> tuple[float, float]:
    """Return the range of slopes worth a look: without what rounding or a far step throws away."""
    least = direction["plateau"][0] or 0
    kept = [
        value
        for values in (direction["backward"], direction["forward"], central(direction))
        for value, step in zip(values, direction["steps"], strict=True)
        if value is not None and step >= least
    ]
    limit = 3 * median(map(abs, kept)) if kept else 0
    slope, gradient = direction["slope"] or 0, direction["gradient"] or 0
    inside = [value for value in kept if abs(value) <= limit]
    inside += [0.9 * slope, 1.1 * slope, gradient]
    low, high = min(inside), max(inside)
    spare = 0.06 * (high - low) or 0.5
    return low - spare, high + spare


def region(direction: Mapping[str, Any], place: int) -> str:
    """Return what rules the error at a step."""
    shortest, longest = direction["plateau"]
    step = direction["steps"][place]
    if step > longest:
        return "truncation"
    return "plateau" if step >= shortest else "rounding"


def said(direction: Mapping[str, Any], place: int) -> str:
    """Return a step in words."""
    off, slope = direction["off_gradient"][place], direction["off_slope"][place]
    return (
        f"step {short(direction['steps'][place])} s, {region(direction, place)}: backward "
        f"{tick(direction['backward'][place])}, forward {tick(direction['forward'][place])}; "
        f"off the gradient {_off(off)}, off the best slope {_off(slope)}"
    )


def _off(value: float | None) -> str:
    return "exactly 0" if value == 0 else short(value and abs(value))


def short(value: float | None) -> str:
    """Return a number with two digits: all that an error has."""
    return "n/a" if value is None else tick(float(f"{value:.2g}"))


def tick(value: float | None) -> str:
    """Return a number with at most six digits, as short as it can be written."""
    if value is None:
        return "n/a"
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, power = f"{value:.5e}".split("e")
        text = f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    else:
        text = f"{value:.6g}"
    return text.replace("-", "\u2212")


def _decades(sizes: Sequence[float]) -> tuple[float, float]:
    """Return the logarithms between which all sizes lie, two apart at least."""
    logs = [math.log10(size) for size in sizes] or [-16.0]
    low, high = min(logs) - 0.35, max(logs) + 0.35
    spare = max(0.0, 2 - (high - low)) / 2
    return low - spare, high + spare


def _power(exponent: int) -> str:
    return "1" if exponent == 0 else "10" + str(exponent).translate(_RAISED)


def _ground(
    direction: Mapping[str, Any],
    frame: Frame,
    heights: Sequence[tuple[float, str]],
    title: str,
    size: float,
    taken: Sequence[tuple[float, float]],
) -> Iterator[str]:
    """Yield what both pictures have below their points: regions in words, axes, linear range."""
    if not direction["steps"]:
        middle = (LEFT + frame.right) / 2
        yield _text(middle, HEIGHT / 2, "every step was rounded away", "middle", "title")
        return
    yield from _regions(direction, frame)
    for height, text in heights:
        y = frame.y(height)
        yield _line("grid", LEFT, y, frame.right, y)
        yield _text(LEFT - 7, y + 4, text, "end")
    decades = range(math.ceil(frame.first), math.floor(frame.last) + 1)
    every = math.ceil(44 * (frame.last - frame.first) / (frame.right - LEFT))
    for decade in (one for one in decades if one % every == 0):
        x = frame.x(10.0**decade)
        yield _line("grid", x, TOP, x, frame.bottom)
        yield _text(x, frame.bottom + 17, _power(decade), "middle")
    yield _line("axis", LEFT, frame.bottom, frame.right, frame.bottom)
    across = f"step, in units of s = {tick(float(f'{size:.4g}'))}"
    yield _text((LEFT + frame.right) / 2, HEIGHT - 7, across, "middle", "title")
    yield (
        f'<text class="title" text-anchor="middle" transform="translate(11 '
        f'{(TOP + frame.bottom) / 2:.0f}) rotate(-90)">{escape(title)}</text>'
    )
    if direction["linear"]:
        x = frame.x(direction["linear"])
        yield _line("linear", x, TOP, x, frame.bottom)
        least = "at least " if direction["linear"] >= 0.99 * max(direction["steps"]) else ""
        words = f"linear {least}to {short(direction['linear'])} s"
        anchor, aside = ("end", -6) if x > (LEFT + frame.right) / 2 else ("start", 6)
        ends = sorted((x + aside, x + aside + math.copysign(6.5 * len(words), aside)))
        yield _text(x + aside, _clear(frame, ends, taken), words, anchor, "named")


def _clear(frame: Frame, ends: Sequence[float], taken: Sequence[tuple[float, float]]) -> float:
    """Return the height at which a word between two ends is farthest from every point."""
    near = [y for x, y in taken if ends[0] - 5 <= x <= ends[1] + 5]
    places = (frame.floor - 7, (TOP + frame.floor) / 2, TOP + 16)
    return max(places, key=lambda place: min((abs(place - 4 - y) for y in near), default=0))


def _regions(direction: Mapping[str, Any], frame: Frame) -> Iterator[str]:
    """Yield the three regions, shaded, with their names above."""
    shortest, longest = direction["plateau"]
    low, high = frame.x(shortest / HALF), frame.x(longest * HALF)
    y, half = TOP - 9, 22
    middle = min(frame.right - half, max(LEFT + half, (low + high) / 2))
    yield _rect("region plateau", low, TOP, high - low, frame.bottom - TOP)
    yield _text(middle, y, "plateau", "middle", "named")
    sides = (
        ("rounding", LEFT, low, LEFT, "start", middle - half - LEFT),
        ("truncation", high, frame.right, frame.right, "end", frame.right - middle - half),
    )
    for name, start, end, edge, anchor, room in sides:
        if end - start < 9:
            continue
        yield _rect(f"region {name}", start, TOP, end - start, frame.bottom - TOP)
        if room > 64:
            yield _text(edge, y, name, anchor, "named")
        else:
            at = f"translate({(start + end) / 2 + 4:.1f} {frame.floor - 8:.1f}) rotate(-90)"
            yield f'<text class="named" transform="{at}">{name}</text>'


def _path(name: str, frame: Frame, steps: Sequence[float], heights: Sequence[float | None]) -> str:
    """Return a line through the points that have a height; it breaks where one has none."""
    parts, pen = [], "M"
    for step, height in zip(steps, heights, strict=True):
        if height is None:
            pen = "M"
            continue
        parts.append(f"{pen}{frame.x(step):.1f} {frame.y(height):.1f}")
        pen = "L"
    return f'<path class="line {name}" d="{"".join(parts)}"/>'


def _step(place: int, words: str, marks: Sequence[str]) -> str:
    """Return the marks of one step, which say its numbers when pointed at."""
    return f'<g data-step="{place}"><title>{escape(words)}</title>{"".join(marks)}</g>'


def _mark(name: str, x: float, y: float, *, hollow: bool) -> str:
    """Return one mark; a hollow one does not lie where its number is."""
    kind = f"{name} hollow" if hollow else name
    if name in SHAPES:
        at = f'transform="translate({x:.1f} {y:.1f})"'
        return f'<path class="mark {kind}" d="{SHAPES[name]}" {at}/>'
    r = 2.2 if name == "central" else 5
    return f'<circle class="mark {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'


def _line(name: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _rect(name: str, x: float, y: float, width: float, height: float) -> str:
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" {size}/>'


def _text(x: float, y: float, text: str, anchor: str, name: str = "tick") -> str:
    at = f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text class="{name}" {at} text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="picture" viewBox="0 0 {width:g} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
