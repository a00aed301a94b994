"""Tables of text, as every page of results shows them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NotRequired, TypedDict

from headwater.page.static import escape

Cell = str | tuple[str, str]
"""A text, or a text with a mark behind it: `other sign`, `against g`."""

NUMBER = re.compile(r"[-+\u2212]?[\d.][\d.,]*(e[-+\u2212]?\d+)?( ?%)?|-|\u2013|n/a")


class TableData(TypedDict):
    """Headings and rows of text; the first column names the row."""

    title: str
    caption: NotRequired[str]
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def boxed(
    table: TableData, label: str, standings: Sequence[str] = (), *, kind: str = "plain"
) -> str:
    """Return a table that scrolls in a box of its own where it is wide or long.

    Args:
        table: What it holds.
        label: The id of the heading that names it.
        standings: How each row's last cell is colored, if it is a verdict.
        kind: Its class; `told` puts columns of words to the left and of numbers to the right.
    """
    return (
        f'<div class="scroll tall" tabindex="0" role="region" aria-labelledby="{label}">'
        f"{drawn(table, standings, kind=kind)}</div>"
    )


def drawn(table: TableData, standings: Sequence[str] = (), *, kind: str = "plain") -> str:
    """Return a table without a box; arguments as for `boxed`."""
    words = worded(table) if kind == "told" else frozenset()
    mark = [' class="words"' if place in words else "" for place in range(len(table["headings"]))]
    heading = "".join(
        f'<th scope="col"{mark[place]}>{escape(minus(text))}</th>'
        for place, text in enumerate(table["headings"])
    )
    rows = "".join(
        f"<tr>{_row(row, standings[number] if standings else None, mark)}</tr>"
        for number, row in enumerate(table["rows"])
    )
    return (
        f'<table class="checked {kind}"><thead><tr>{heading}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def worded(table: TableData) -> frozenset[int]:
    """Return the columns that hold a text which is not a number."""
    return frozenset(
        place
        for place in range(len(table["headings"]))
        if not all(NUMBER.fullmatch(_text(row[place])) for row in table["rows"])
    )


def minus(text: str) -> str:
    """Return a number with true minus signs, a dash where there is none, other text as it is."""
    if text == "-":
        return "\u2013"
    return text.replace("-", "\u2212") if text[:1] in set("+-0123456789") else text


def _row(row: Sequence[Cell], standing: str | None, mark: Sequence[str]) -> str:
    first, *others = row
    kinds = list(mark[1:])
    if standing is not None:
        kinds[-1] = f' class="verdict {standing}"'
    cells = "".join(
        f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds, others, strict=True)
    )
    return f'<th scope="row">{_cell(first)}</th>{cells}'


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(minus(cell))
    text, mark = cell
    kind = "aside" if mark.startswith("against") else "wrong"
    # before the number, so that numbers stay in line
    return f'<span class="{kind}">{escape(mark)}</span> {escape(minus(text))}'
