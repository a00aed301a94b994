"""A result in a notebook: a short static table, with the whole page folded up under it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from headwater.page import static
from headwater.page.document import render

PAGE_LIMIT = 2_000_000
"""Above this many characters the page is not put into the notebook, which would carry it."""


def fragment(data: Mapping[str, Any]) -> str:
    """Return HTML for a notebook's `_repr_html_`.

    The first ten components stand in a table that needs neither scripts nor a style sheet, so it
    survives viewers that strip both. The page itself lies folded up in a sandboxed frame.

    Args:
        data: As for `render`.
    """
    page = render(data)
    sentences = "".join(
        f"<p style='margin:.2em 0'>{static.escape(sentence)}</p>"
        for sentence in [*(data.get("headline") or []), *(data.get("warnings") or [])]
    )
    return (
        f"<div class='headwater' style='max-width:60em'><strong>{static.escape(data['title'])}"
        f"</strong>{sentences}{table(data, 10)}{folded(page)}</div>"
    )


def table(data: Mapping[str, Any], count: int) -> str:
    """Return the `count` strongest components with a bar each, styled in place."""
    rows = static.by_strength(data["components"])[:count]
    sizes = [abs(row["score"]) for row in rows if finite(row.get("score"))]
    longest = max(sizes, default=0.0) or 1.0
    audited = any(row.get("exact") is not None for row in data["components"])
    resampled = any(row.get("se") is not None for row in data["components"])
    body = "".join(line(row, longest, audited=audited, resampled=resampled) for row in rows)
    exact = cell("th", "right", "exact") if audited else ""
    spread = cell("th", "right", "se") + cell("th", "right", "ranks") if resampled else ""
    head = cell("th", "left", "component") + cell("th", "right", "score") + spread + exact
    _, scored = static.shown(data)
    return (
        "<table style='border-collapse:collapse;font-variant-numeric:tabular-nums'>"
        f"<thead><tr>{head}<th></th></tr></thead><tbody>{body}</tbody></table>"
        f"<p style='margin:.2em 0;opacity:.75'>The {len(rows):,} strongest of {scored:,}.</p>"
    )


def line(row: Mapping[str, Any], longest: float, *, audited: bool, resampled: bool = False) -> str:
    """Return one component's row; the bar is blue where it supports, orange where it opposes."""
    score = row.get("score")
    width = round(100 * abs(score) / longest) if score is not None and finite(score) else 0
    color = "#e2812f" if score is not None and score < 0 else "#4a90d9"
    cells = [
        cell("td", "left", f"<code>{static.escape(row['name'])}</code>"),
        cell("td", "right", static.number(score)),
        cell("td", "right", static.number(row.get("se"))) if resampled else "",
        cell("td", "right", static.escape(row.get("ranks") or static.ABSENT)) if resampled else "",
        cell("td", "right", static.number(row.get("exact"))) if audited else "",
        cell("td", "left", f"<div style='height:.7em;width:{width}px;background:{color}'></div>"),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def cell(tag: str, side: str, content: str) -> str:
    """Return a table cell with its style in place, because viewers strip style sheets."""
    return f"<{tag} style='text-align:{side};padding:.1em .6em'>{content}</{tag}>"


def folded(page: str) -> str:
    """Return the page in a frame without any rights but to run its own script, folded up."""
    if len(page) > PAGE_LIMIT:
        return (
            "<p style='margin:.2em 0'>The page is too large for a notebook "
            f"({len(page) / 1e6:.1f} MB): write it to a file with <code>.page(path)</code>.</p>"
        )
    return (
        "<details><summary>the whole page</summary><iframe sandbox='allow-scripts' loading='lazy' "
        "title='headwater' style='width:100%;height:50em;border:1px solid #8888' "
        f'srcdoc="{static.escape(page)}"></iframe></details>'
    )


def finite(value: float | int | None) -> bool:
    """Return whether `value` is a number that can be drawn."""
    return value is not None and math.isfinite(value)
