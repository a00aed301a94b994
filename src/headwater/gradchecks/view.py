"""A gradient check as the plain data that the HTML page renders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from headwater.gradchecks import tables
from headwater.gradchecks.effects import Effects
from headwater.gradchecks.result import Check, DirectionCheck
from headwater.gradchecks.verdicts import PASSES, Verdict
from headwater.gradchecks.words import number, size
from headwater.page.gradcheck import (
    DirectionData,
    GradcheckData,
    SiteData,
    Standing,
)
from headwater.page.tables import Cell, TableData

if TYPE_CHECKING:
    from headwater.gradchecks.report import GradientReport

MOST = 300
"""Directions of one value on a page: more are said to be left to the JSON."""
NOISE = "in the noise"
"""Said of a change without a sign."""


def page_data(report: GradientReport) -> GradcheckData:
    """Return everything that the page of a check shows.

    Args:
        report: The check.
    """
    first, several = report.checks[0], len(report.checks) > 1
    return {
        "title": report.title(),
        "heading": f"Gradient of {report.objective} at {first.name}",
        "verdict": report.verdict,
        "standing": standing(report.verdict),
        "sentences": [one for one in report.sentences() if not one.startswith("Note: ")],
        "notes": [
            f"{check.name}: {note}" if several else note
            for check in report.checks
            for note in (*check.notes, *_left(check))
        ],
        "facts": _facts(report),
        "tokens": report.tokens,
        "marked": _marked(report),
        "sites": [_site(check) for check in report.checks],
        "summary": _table(tables.sites(report.checks)) if several else None,
        "provenance": _flat(report.provenance),
    }


def _left(check: Check) -> list[str]:
    count = len(check.directions)
    if count <= MOST:
        return []
    return [
        f"the page shows {MOST} of {count:,} directions, those that do not pass first; "
        "gradcheck.json and report.rows() have all"
    ]


def standing(verdict: Verdict) -> Standing:
    """Return whether a verdict says that the gradient is right, wrong, or neither."""
    if verdict in PASSES:
        return "agree"
    return "disagree" if verdict == "disagree" else "neither"


def _facts(report: GradientReport) -> dict[str, str]:
    first = report.checks[0]
    facts = {
        "model": report.model,
        report.objective: f"{first.objective:.6g}",
        "where": first.where,
        "entries": f"{first.value.numel():,}",
        "root mean square s": f"{first.size:.4g}",
        "differences in": first.dtype,
        "gradient": first.claimed.removeprefix("the "),
    }
    return {name: text for name, text in facts.items() if text}


def _marked(report: GradientReport) -> list[int]:
    """Return the positions of the prompt whose value is checked; none for gates and weights."""
    position = report.provenance.get("position")
    if not report.checks[0].where or not report.tokens:
        return []
    if isinstance(position, int):
        return [position % len(report.tokens)]
    return list(range(len(report.tokens)))


def _site(check: Check) -> SiteData:
    check = first_of(check)
    precision = check.precision
    return {
        "name": check.name,
        "verdict": check.verdict,
        "standing": standing(check.verdict),
        "size": check.size,
        "first": check.directions.index(check.steepest),
        "directions": [_direction(one, check.size) for one in check.directions],
        "table": _table(tables.directions(check)),
        "steps": _table(tables.steps(check, check.steepest)),
        "effects": _effects(check) if check.effects else None,
        "signs": _signs(check),
        "entries": _table(tables.entries(check)) if check.entries else None,
        "reach": _reach(check),
        "share": None if check.reach is None else check.reach.linear,
        "precision": {}
        if precision is None
        else {
            "the model's own numbers": precision.dtype,
            "gradient off by up to": f"{size(precision.largest)} of its largest entry",
            "cosine with float64's": f"{precision.cosine:.6f}",
            "signs right": f"{100 * precision.signs:.4g} %",
        },
    }


def first_of(check: Check) -> Check:
    """Return a check with as many directions as a page can carry, and their entries' effects."""
    shown = tables.chosen(check, MOST)
    entries = {one.index for one in shown}
    effects = tuple(one for one in check.effects if one.index in entries)
    return replace(check, directions=tuple(shown), effects=effects)


def _reach(check: Check) -> dict[str, str]:
    """Return what is lost when the whole value is set to zero, and how far the slope holds."""
    reach = check.reach
    if reach is None:
        return {}
    way, zero = "no part of the way", "outside the gradient's reach"
    if reach.is_inside:
        way, zero = "all the way", "inside the gradient's reach"
    elif reach.linear is not None:
        way = f"{100 * reach.linear:.2g} % of the way"
    return {
        "activation times gradient": number(reach.estimate),
        "lost when set to zero (exact)": number(reach.exact),
        "slope holds for": way,
        "zero is": zero,
    }


def _direction(one: DirectionCheck, unit: float) -> DirectionData:
    found = one.difference
    return {
        "name": one.name,
        "verdict": one.verdict,
        "standing": standing(one.verdict),
        "readings": _readings(one, unit),
        "gradient": one.gradient,
        "slope": found.slope,
        "bar": found.bar,
        "plateau": (found.plateau[0] / unit, found.plateau[1] / unit),
        "linear": None if found.linear is None else found.linear / unit,
        "steps": (found.steps / unit).tolist(),
        "backward": found.backward.tolist(),
        "forward": found.forward.tolist(),
        "off_gradient": (found.central - one.gradient).tolist(),
        "off_slope": (found.central - found.slope).tolist(),
        "error": found.error.tolist(),
    }


def _readings(one: DirectionCheck, unit: float) -> list[str]:
    """Return one text for each of the page's `READINGS`."""
    found = one.difference
    how = ", two combined" if found.extrapolated else ""
    dead = f", {found.dead} rounded away" if found.dead else ""
    return [
        number(one.gradient, 8),
        number(found.slope, 8),
        size(found.bar),
        size(one.apart),
        number(one.forward, 8),
        "-" if found.order is None else f"{found.order:.2f}",
        size(found.noise),
        f"{found.step / unit:.1e} s{how}",
        "-" if found.linear is None else f"{found.linear / unit:.2g} s",
        f"{len(found.steps)}{dead}",
    ]


def _table(table: tables.Table) -> TableData:
    return {"title": table.title, "headings": table.headings, "rows": table.rows}


def _effects(check: Check) -> TableData:
    """Return the table of effects, each change marked whose sign is not what it must be."""
    table = tables.effects(check)
    columns = {name: place for place, name in enumerate(table.headings)}
    signs = check.signs
    assert signs is not None  # they come with the effects
    rows: list[list[Cell]] = []
    for effect, texts in zip(check.effects, table.rows, strict=True):
        row: list[Cell] = list(texts)
        # what was measured before it was divided by the change
        changes = {
            "adding": (effect.adding * signs.nudge * check.size, effect.gradient),
            "scaling": (effect.scaling * signs.nudge, effect.product),
            "zeroing": (effect.zeroing, -effect.product),
        }
        for name, (change, said) in changes.items():
            seen = check.tells_signs and signs.is_visible(change)
            mark = _mark(name, change, said, effect) if seen else NOISE
            if mark:
                row[columns[name]] = (texts[columns[name]], mark)
        rows.append(row)
    return {"title": table.title, "headings": table.headings, "rows": rows}


def _mark(name: str, change: float, said: float, effect: Effects) -> str:
    """Return what is to be said of a change's sign; empty if it is as the gradient alone says."""
    if change * said <= 0:
        return "other sign"
    return "against g" if name == "scaling" and change * effect.gradient < 0 else ""


def _signs(check: Check) -> TableData | None:
    """Return how often each change had the sign it must have, and the usual misreading."""
    signs = check.signs
    if signs is None or not check.tells_signs:
        return None

    def of(counts: tuple[int, int]) -> str:
        return f"{counts[0]} of {counts[1]}"

    negative = f"a is negative in {signs.negative} of {signs.entries}"
    return {
        "title": "signs",
        "headings": ("change of one entry", "moved so", "with the sign of"),
        "rows": [
            ("adding to it", of(signs.adding), "g"),
            ("scaling it up", of(signs.scaling), "a*g"),
            ("scaling it up", of(signs.scaling_by_gradient), f"g alone: a misreading; {negative}"),
            ("setting it to zero", of(signs.zeroing), "-a*g"),
        ],
    }


def _flat(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return nested provenance as terms and texts."""
    lines: dict[str, str] = {}
    for key, value in provenance.items():
        if key == "task":
            continue
        if isinstance(value, Mapping):
            before = "version of" if key == "versions" else key
            lines |= {f"{before} {name}": str(one) for name, one in value.items()}
        else:
            lines[key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return lines
