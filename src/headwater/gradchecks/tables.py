"""The tables of a check, as headings and cells: for the terminal, a repr and the page alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headwater.gradchecks.result import Check, DirectionCheck
from headwater.gradchecks.verdicts import PASSES
from headwater.gradchecks.words import number, region, size


@dataclass(frozen=True)
class Table:
    """Headings and rows of text; the first and last column are words, the others numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def chosen(check: Check, most: int | None) -> Sequence[DirectionCheck]:
    """Return so many directions, those that do not pass first, and the one to look at."""
    every, lead = check.directions, check.steepest
    if most is None or len(every) <= most:
        return every
    shown = sorted(every, key=lambda one: one.verdict in PASSES)[:most]
    return shown if any(one is lead for one in shown) else [*shown[:-1], lead]


def directions(check: Check, most: int | None = None) -> Table:
    """Return one row a direction, those that need a look first if not all are shown."""
    shown, title = chosen(check, most), "directions"
    if len(shown) < len(check.directions):
        title = f"{most} of {len(check.directions)} directions"
    unit = check.size
    return Table(
        title,
        ("direction", "gradient", "difference", "bar", "apart", "order", "linear", "verdict"),
        tuple(
            (
                one.name,
                number(one.gradient, 6),
                number(one.difference.slope, 6),
                size(one.difference.bar),
                size(one.apart),
                "-" if one.difference.order is None else f"{one.difference.order:.2f}",
                "-" if one.difference.linear is None else f"{one.difference.linear / unit:.2g} s",
                one.verdict,
            )
            for one in shown
        ),
    )


def steps(check: Check, direction: DirectionCheck) -> Table:
    """Return one row a step along one direction, from the longest to the shortest."""
    found = direction.difference
    return Table(
        f"steps along {direction.name}: slope {number(found.slope, 8)}, error bar "
        f"{size(found.bar)}; s = {check.size:.4g}, the value's root mean square",
        ("step", "backward", "forward", "central", "off slope", "off gradient", "region"),
        tuple(
            (
                f"{half / check.size:.1e} s",
                number(found.backward[place], 6),
                number(found.forward[place], 6),
                number(found.central[place], 10),
                size(abs(found.central[place] - found.slope)),
                size(abs(found.central[place] - direction.gradient)),
                region(direction, place),
            )
            for place, half in enumerate(found.steps)
        ),
    )


def effects(check: Check) -> Table:
    """Return one row a checked entry: what three changes of it do, beside what predicts them."""
    return Table(
        "what a change of one entry does (sign it must have: adding g, scaling a*g, zeroing -a*g)",
        ("entry", "activation a", "gradient g", "adding", "a*g", "scaling", "-a*g", "zeroing",
         "slope holds for"),
        tuple(
            (
                one.name,
                number(one.activation),
                number(one.gradient),
                number(one.adding),
                number(one.product),
                number(one.scaling),
                number(-one.product),
                number(one.zeroing),
                "-" if one.reach is None else
                "all the way" if one.is_inside else f"{100 * one.reach:.2g} % of the way",
            )
            for one in check.effects
        ),
    )  # fmt: skip


def entries(check: Check) -> Table:
    """Return one row an entry of a vector objective, with its own slopes."""
    shown = [place for place, one in enumerate(check.directions)][:4]
    return Table(
        "entries of the objective, each with its own slope",
        ("entry", "value", *(check.directions[place].name for place in shown), "other sign"),
        tuple(
            (
                str(one.index),
                number(one.value),
                *(number(one.slopes[place]) for place in shown),
                f"{100 * one.opposite:.0f} %",
            )
            for one in check.entries
        ),
    )


def sites(checks: Sequence[Check]) -> Table:
    """Return one row a value."""
    return Table(
        "sites",
        ("site", "|gradient|", "linear", "negative", "g misreads scaling", "a*g", "exact loss",
         "verdict"),
        tuple(_site(one) for one in checks),
    )  # fmt: skip


def _site(check: Check) -> tuple[str, ...]:
    far, signs, reach = check.steepest.difference.linear, check.signs, check.reach
    misread = "-"
    if signs is not None and check.tells_signs:
        right, total = signs.scaling_by_gradient
        misread = f"{total - right} of {total}"
    return (
        check.name,
        f"{float(check.gradient.double().norm()):.4g}",
        "-" if far is None else f"{far / check.size:.2g} s",
        "-" if signs is None else f"{signs.negative} of {signs.entries}",
        misread,
        "-" if reach is None else number(reach.estimate),
        "-" if reach is None else number(reach.exact),
        check.verdict,
    )


def plain(table: Table) -> Iterator[str]:
    """Yield the lines of a table in columns of equal width."""
    lines = [table.headings, *table.rows]
    wide = [max(len(line[column]) for line in lines) for column in range(len(table.headings))]
    last = len(wide) - 1
    for line in lines:
        cells = [
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, wide, strict=True))
        ]
        yield "  ".join(cells).rstrip()
