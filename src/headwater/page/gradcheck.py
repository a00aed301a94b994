"""The page of a gradient check: the verdict, error against step, slopes, signs, every direction.

Renders plain dicts and knows no model. With scripts off it shows everything but the pictures of
other directions than the first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from headwater.page import plateau, static
from headwater.page.document import asset, head, joined, put, write_page
from headwater.page.payload import encoded, finite
from headwater.page.static import escape
from headwater.page.tables import TableData, boxed, drawn, minus

Standing = Literal["agree", "disagree", "neither"]
"""How a verdict is colored; the word, and a sign before it, say the same without color."""

READINGS = (
    "gradient", "difference", "error bar", "apart", "forward mode", "order", "noise of a value",
    "best step", "linear range", "steps",
)  # fmt: skip
"""What is told of a direction; `DirectionData.readings` holds one text each."""


class DirectionData(TypedDict):
    """One direction: both slopes and every step, from the longest to the shortest."""

    name: str
    verdict: str
    standing: Standing
    readings: Sequence[str]
    gradient: float
    slope: float
    """The best estimate by differences; not finite if every step was rounded away."""
    bar: float
    plateau: tuple[float, float]
    """The shortest and the longest step of the plateau. All steps are in units of s."""
    linear: float | None
    """The longest step up to which the slope holds within a tenth on both sides."""
    steps: Sequence[float]
    backward: Sequence[float]
    forward: Sequence[float]
    off_gradient: Sequence[float]
    """Central difference minus the gradient."""
    off_slope: Sequence[float]
    """Central difference minus the best slope."""
    error: Sequence[float]
    """What truncation and rounding make of a central difference, as modeled."""


class SiteData(TypedDict):
    """The check at one value."""

    name: str
    verdict: str
    standing: Standing
    size: float
    """s: the value's root mean square."""
    first: int
    """The direction to look at first."""
    directions: Sequence[DirectionData]
    table: TableData
    steps: TableData
    """The steps of the first direction."""
    effects: TableData | None
    signs: TableData | None
    entries: TableData | None
    reach: Mapping[str, str]
    """Terms and values: the whole value set to zero, exactly and by the gradient."""
    share: float | None
    """Share of the way to zero on which the slope holds."""
    precision: Mapping[str, str]


class GradcheckData(TypedDict):
    """Everything the page shows."""

    title: str
    heading: str
    verdict: str
    standing: Standing
    sentences: Sequence[str]
    """The first of them begins with the verdict in capitals."""
    notes: Sequence[str]
    facts: Mapping[str, str]
    tokens: Sequence[str]
    marked: Sequence[int]
    """Positions of the tokens whose value is checked."""
    sites: Sequence[SiteData]
    summary: TableData | None
    """One row a site, where there are several."""
    provenance: Mapping[str, str]


def render_gradcheck(data: GradcheckData) -> str:
    """Return the page that shows a gradient check, as the text of one HTML file.

    Args:
        data: What to show.
    """
    first = data["sites"][0]
    style = "\n".join(map(asset, ("page.css", "tables.css", "gradcheck.css")))
    script = joined("elements.js", "plateau.js", "gradcheck.js")
    sites = [[_short(one) for one in site["directions"]] for site in data["sites"]]
    lead = sites[0][first["first"]]
    span = _span(sites[0])
    parts = {
        "head": head(data["title"], style, script),
        "heading": escape(data["heading"]),
        "headline": _headline(data),
        "facts": _terms(data["facts"]),
        "prompt": _prompt(data["tokens"], set(data["marked"])),
        "notes": static.box("Note", "notes", data["notes"]),
        "along": _along(first, lead),
        "readings": static.terms(dict(zip(READINGS, lead["readings"], strict=True))),
        "errors": plateau.errors(lead, span, first["size"]),
        "slopes": plateau.slopes(lead, span, first["size"]),
        "steps_title": escape(first["steps"]["title"]),
        "steps": drawn(first["steps"]),
        "summary": _summary(data),
        "sites": "".join(
            _site(site, number, of=len(sites)) for number, site in enumerate(data["sites"])
        ),
        "provenance": static.provenance(data),
        "data": encoded(_payload(data, sites)),
        "script": script,
    }
    return put(asset("gradcheck.html"), parts)


def write_gradcheck(data: GradcheckData, path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`, at once or not at all, and return the path."""
    return write_page(render_gradcheck(data), path)


def _payload(data: GradcheckData, sites: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    return {
        "readings": READINGS,
        "sites": [
            {
                "name": site["name"],
                "size": finite(site["size"]),
                "first": site["first"],
                "span": _span(directions),
                "directions": directions,
            }
            for site, directions in zip(data["sites"], sites, strict=True)
        ],
    }


def _short(direction: DirectionData) -> dict[str, Any]:
    """Return a direction as the page carries it; four digits of an error are enough to draw it."""
    errors = {
        name: [float(f"{value:.4g}") for value in direction[name]]
        for name in ("off_gradient", "off_slope", "error")
    }
    readings = list(map(minus, direction["readings"]))
    return finite({**direction, **errors, "readings": readings})


def _span(directions: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the shortest and the longest step of any direction."""
    steps = [step for one in directions for step in one["steps"] if step] or [1e-12, 1.0]
    return [min(steps), max(steps)]


def _headline(data: GradcheckData) -> str:
    """Return the sentences, the verdict's own word in its color and with its sign."""
    lead, *rest = data["sentences"]
    word, _, said = lead.partition(": ")
    colored = _verdict(word, data["standing"])
    follow = "".join(f'<p class="follow">{escape(sentence)}</p>' for sentence in rest)
    return f'<p class="lead">{colored} {_opened(said)}</p>{follow}'


def _opened(sentence: str) -> str:
    return escape(sentence[:1].upper() + sentence[1:])


def _verdict(word: str, standing: Standing) -> str:
    return f'<span class="verdict {standing}">{escape(word)}</span>'


def _prompt(tokens: Sequence[str], marked: set[int]) -> str:
    if not tokens:
        return ""
    chips = "".join(_chip(token, place, marked) for place, token in enumerate(tokens))
    said = "the checked position is marked" if len(marked) == 1 else "every position is checked"
    caption = f"prompt; {said}" if marked else "prompt"
    return f'<div class="asked"><p class="term">{caption}</p><p class="chips">{chips}</p></div>'


def _chip(token: str, place: int, marked: set[int]) -> str:
    shown = token.replace("\r\n", "\u21b5").replace("\n", "\u21b5").replace("\t", "\u21e5")
    tag = "mark" if place in marked else "span"
    return f'<{tag} class="chip" dir="auto" title="position {place}">{escape(shown)}</{tag}>\u200b'


def _along(site: SiteData, direction: Mapping[str, Any]) -> str:
    return (
        f"<code>{escape(site['name'])}</code> along <code>{escape(direction['name'])}</code>: "
        f"{_verdict(direction['verdict'], direction['standing'])}"
    )


def _summary(data: GradcheckData) -> str:
    table = data["summary"]
    if table is None:
        return ""
    standings: list[Standing] = [site["standing"] for site in data["sites"]]
    return (
        '<section aria-labelledby="summary-title"><h2 id="summary-title">Sites</h2>'
        f"{boxed(table, 'summary-title', standings)}</section>"
    )


def _site(site: SiteData, number: int, *, of: int) -> str:
    """Return everything about one value that is plain text: its tables, reach and precision."""
    at = f' at <code class="name">{escape(site["name"])}</code>' if of > 1 else ""

    def section(key: str, heading: str, content: str) -> str:
        name = f"{key}-{number}"
        return f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}{at}</h2>{content}</section>'  # noqa: E501

    parts = [
        section(
            "directions",
            "Directions",
            '<p class="caption">One row a direction through the value. <span class="scripted">'
            "Choose one to see it above.</span></p>"
            + boxed(site["table"], f"directions-{number}", _verdicts(site), kind="directions"),
        )
    ]
    if site["effects"] is not None:
        content = asset("signs.html")
        if site["signs"] is not None:
            content += boxed(site["signs"], f"effects-{number}", kind="words")
        content += boxed(site["effects"], f"effects-{number}", kind="effects")
        parts.append(section("effects", "What a change of one entry does", content))
    if site["entries"] is not None:
        content = f'<p class="caption">{_opened(site["entries"]["title"])}.</p>'
        content += boxed(site["entries"], f"entries-{number}")
        parts.append(section("entries", "Entries of the objective", content))
    if site["reach"]:
        content = f'<dl class="facts">{_terms(site["reach"])}</dl>{_way(site["share"])}'
        parts.append(section("reach", "How far the gradient reaches", content))
    if site["precision"]:
        content = f'<dl class="facts">{_terms(site["precision"])}</dl>'
        parts.append(section("precision", "Precision", content))
    return f'<div class="site" data-site="{number}">{"".join(parts)}</div>'


def _verdicts(site: SiteData) -> list[Standing]:
    return [one["standing"] for one in site["directions"]]


def _terms(items: Mapping[str, str]) -> str:
    return static.terms({name: minus(value) for name, value in items.items()})


def _way(share: float | None) -> str:
    """Return a line from the value to zero, as far as the slope holds drawn thick."""
    held = min(1.0, share or 0.0)
    end = 6 + 308 * held
    words = f"The slope holds for {100 * held:.2g} % of the way to zero"
    return (
        f'<svg class="picture way" viewBox="0 0 320 34" role="img" aria-label="{words}">'
        '<line class="axis" x1="6" y1="10" x2="314" y2="10"/>'
        f'<line class="held" x1="6" y1="10" x2="{end:.1f}" y2="10"/>'
        '<circle class="stop" cx="6" cy="10" r="4"/><circle class="stop hollow" cx="314" cy="10" '
        'r="4"/><text x="2" y="29">the value</text>'
        '<text x="318" y="29" text-anchor="end">zero</text></svg>'
    )
