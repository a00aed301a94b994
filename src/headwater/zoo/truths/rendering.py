"""A comparison as a table, for terminals and for text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from headwater.zoo.truths.verdicts import merged, words

if TYPE_CHECKING:
    from headwater.zoo.truths.comparison import Cell, Comparison, Result

MOST_NAMES = 3
"""Components named in one row; the others are counted."""
WIDTH = 100
"""Columns of text; narrower, the tables lose digits."""


def as_text(comparison: Comparison) -> str:
    """Return a comparison as plain text."""
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None).print(rendered(comparison))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def rendered(comparison: Comparison) -> RenderableType:
    """Return a comparison for `rich`: formulas, scores, facts and notes."""
    truth = comparison.truth
    parts: list[RenderableType] = [
        f"[bold]{truth.name}[/]: {escape(truth.shows)}",
        *(f"  {escape(line)}" for line in truth.formulas),
        "",
        _scores(comparison),
    ]
    refused = list(_refused(comparison))
    if refused:
        parts += ["", *refused]
    if comparison.facts:
        parts += ["", _facts(comparison)]
    notes = list(_notes(comparison))
    return Group(*parts, *([""] if notes else []), *notes)


def _scores(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    several = len(comparison.truth.examples) > 1
    table.add_column("estimator", no_wrap=True)
    if several:
        table.add_column("example", no_wrap=True)
    table.add_column("component")
    for heading in ("score", "exact", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", min_width=21)
    for lines, rows in _blocks(comparison):
        # estimators stand beside their rows; the longer of the two columns goes on alone
        for index in range(max(len(lines), len(rows))):
            name = lines[index] if index < len(lines) else ""
            example, *cells = rows[index] if index < len(rows) else ("",) * 6
            table.add_row(name, *([example] if several else []), *cells)
    return table


def _blocks(comparison: Comparison) -> Iterator[tuple[list[str], list[tuple[str, ...]]]]:
    """Yield estimators that come out alike, with the rows they share."""
    alike: dict[tuple[tuple[str, ...], ...], list[tuple[str, ...]]] = {}
    for result in comparison.results:
        if result.refusal:
            continue
        said = words(result.estimator)
        if result.other_question:
            said = (f"{said[0]}*", *said[1:])
        alike.setdefault(tuple(_rows(result)), []).append(said)
    for rows, names in alike.items():
        yield [escape(line) for line in merged(names)], list(rows)


def _refused(comparison: Comparison) -> Iterator[str]:
    reasons: dict[str, list[tuple[str, ...]]] = {}
    for result in comparison.results:
        if result.refusal:
            reasons.setdefault(result.refusal, []).append(words(result.estimator))
    for reason, names in reasons.items():
        yield f"refused: {escape('; '.join(merged(names)))}: {escape(reason)}"


def _rows(result: Result) -> Iterator[tuple[str, ...]]:
    """Yield example, components, score, exact, ratio and verdict."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for cell in result.cells:
        said = cell.verdict
        if not cell.agrees:
            said = f"{said}; NOT its closed form, {number(cell.expected)}"
        shown = (number(cell.score), number(cell.exact), _ratio(cell), said)
        shared.setdefault((cell.example, *shown), []).append(cell.component)
    for (example, *shown), names in shared.items():
        yield escape(example), escape(_some(names)), *map(escape, shown)


def _some(names: Sequence[str]) -> str:
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return f"{names[0]} and {len(names) - 1} others"


def _ratio(cell: Cell) -> str:
    """Return score over exact effect, empty where one of them is none or the effect is 0."""
    no_effect = cell.verdict in ("kept", "closed")
    if no_effect or cell.exact is None or number(cell.exact) == "0":
        return ""
    return number(cell.score / cell.exact)


def number(value: float | None) -> str:
    """Return a number to four digits; rounding of float64 counts as 0."""
    if value is None:
        return ""
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"


def _facts(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("fact", "closed form", "measured"):
        table.add_column(heading, no_wrap=heading == "fact")
    for fact in comparison.facts:
        table.add_row(escape(fact.name), listed(fact.expected), listed(fact.measured))
    return table


def listed(values: Tensor) -> str:
    """Return numbers of up to two dimensions, one row a line."""
    if values.ndim == 0:
        return number(float(values))
    if values.ndim == 1:
        return " ".join(number(value) for value in values.tolist())
    return "\n".join(listed(row) for row in values)


def _notes(comparison: Comparison) -> Iterator[str]:
    questions: dict[str, list[tuple[str, ...]]] = {}
    for result in comparison.results:
        if result.other_question:
            questions.setdefault(result.other_question, []).append(words(result.estimator))
    for question, names in questions.items():
        yield f"* {escape('; '.join(merged(names)))} - estimand: {escape(question)}"
    if not comparison.agrees:
        yield "[bold red]Not every number is its closed form: please report this.[/]"
