"""The page of a feature circuit: its graph, what flows into each node, what its features are on.

Renders plain dicts and knows no model. With scripts off it shows the strongest nodes and edges and
the strongest contexts as tables, and everything of the sites.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from headwater.page import static
from headwater.page.circuit_payload import carried
from headwater.page.circuit_schema import CircuitData, CircuitNode, ContextRow
from headwater.page.document import asset, head, joined, put, write_page
from headwater.page.notebook import cell, folded
from headwater.page.payload import encoded
from headwater.page.static import escape, number
from headwater.page.tables import TableData, boxed, minus
from headwater.page.tokens import SPACE, visible

STRONGEST = 30
"""Nodes and edges in the tables for readers without scripts."""
FEATURES = 12
"""Features whose contexts they see."""
STYLES = ("page.css", "tables.css", "circuit.css")
SCRIPTS = (
    "elements.js",
    "circuit_data.js",
    "circuit_state.js",
    "circuit_layout.js",
    "circuit_edges.js",
    "circuit_graph.js",
    "circuit_panel.js",
    "circuit.js",
)


def render_circuit(data: CircuitData) -> str:
    """Return the page that shows a feature circuit, as the text of one HTML file.

    Args:
        data: What to show.
    """
    style, script = "\n".join(map(asset, STYLES)), joined(*SCRIPTS)
    facts = {name: minus(value) for name, value in data["facts"].items()}
    parts = {
        "head": head(data["title"], style, script),
        "heading": escape(data["heading"]),
        "headline": static.headline(data["sentences"]),
        "facts": static.terms(facts),
        "notes": static.box("Note", "notes", [*data["notes"], *_left_out(data)]),
        "plain": _plain(data),
        "prompts": _prompts(data),
        "tables": "".join(_section(table, place) for place, table in enumerate(data["tables"])),
        "provenance": static.provenance(data),
        "data": encoded(carried(data)),
        "script": script,
    }
    return put(asset("circuit.html"), parts)


def write_circuit(data: CircuitData, path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`, at once or not at all, and return the path.

    Args:
        data: What to show.
        path: Where to write; its folder is made if it is not there.
    """
    return write_page(render_circuit(data), path)


def circuit_fragment(data: CircuitData) -> str:
    """Return HTML for a notebook: a table that needs no style sheet, and the page folded up.

    Args:
        data: What to show.
    """
    said = "".join(
        f"<p style='margin:.2em 0'>{escape(one)}</p>"
        for one in [*data["sentences"], *data["notes"]]
    )
    rows = strongest(data)[:10]
    longest = max((abs(row["effect"]) for row in rows), default=0.0) or 1.0
    body = "".join(_line(row, longest) for row in rows)
    heading = "".join(
        cell("th", side, text)
        for side, text in (
            ("left", "node"), ("right", "effect"), ("right", "se"), ("right", "edges in"),
            ("left", ""), ("left", ""),
        )
    )  # fmt: skip
    return (
        f"<div class='headwater' style='max-width:60em'><strong>{escape(data['heading'])}</strong>"
        f"{said}<table style='border-collapse:collapse;font-variant-numeric:tabular-nums'><thead>"
        f"<tr>{heading}</tr></thead><tbody>{body}</tbody></table><p style='margin:.2em 0;"
        f"opacity:.75'>The {len(rows):,} strongest of {data['shown']['of_nodes']:,} nodes.</p>"
        f"{folded(render_circuit(data))}</div>"
    )


def strongest(data: CircuitData) -> list[CircuitNode]:
    """Return the nodes by |effect|, the largest first."""
    return sorted(data["nodes"], key=lambda node: -abs(node["effect"]))


def _line(row: CircuitNode, longest: float) -> str:
    width = round(100 * abs(row["effect"]) / longest)
    color = "#e2812f" if row["effect"] < 0 else "#4a90d9"
    cells = [
        cell("td", "left", f"<code>{escape(row['name'])}</code>"),
        cell("td", "right", number(row["effect"])),
        cell("td", "right", number(row["se"])),
        cell("td", "right", number(row["incoming"])),
        cell("td", "left", f"<div style='height:.7em;width:{width}px;background:{color}'></div>"),
        cell("td", "left", escape(row["annotation"])),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _left_out(data: CircuitData) -> Iterator[str]:
    """Yield what the circuit holds and the page does not."""
    shown = data["shown"]
    for what in ("nodes", "edges"):
        if shown[what] < shown[f"of_{what}"]:
            yield (
                f"The page holds the {shown[what]:,} strongest of {shown[f'of_{what}']:,} {what}; "
                "the circuit's folder holds all."
            )


def _plain(data: CircuitData) -> str:
    """Return tables for readers without scripts."""
    nodes: TableData = {
        "title": "Strongest nodes",
        "headings": ("node", "effect", "se", "edges in", "below", "unexplained", "annotation"),
        "rows": [
            (
                node["name"],
                *(number(node[key]) for key in ("effect", "se", "incoming", "below")),
                number(node["unexplained"]),
                node["annotation"] or ("orphan" if node["orphan"] else ""),
            )
            for node in strongest(data)[:STRONGEST]
        ],
    }
    names = [*(node["name"] for node in data["nodes"]), data["metric"]]
    edges: TableData = {
        "title": "Strongest edges",
        "headings": ("from", "to", "weight"),
        "rows": [
            (names[edge["source"]], names[edge["target"]], number(edge["weight"]))
            for edge in data["edges"][:STRONGEST]
        ],
    }
    parts = [
        f'<div class="half"><h3 id="plain-{place}">{escape(table["title"])}</h3>'
        f"{boxed(table, f'plain-{place}', kind='told')}</div>"
        for place, table in enumerate((nodes, edges))
        if table["rows"]
    ]
    return f'<div class="halves">{"".join(parts)}</div>{_plain_contexts(data)}'


def _plain_contexts(data: CircuitData) -> str:
    features = data["features"]
    names = dict.fromkeys(node["name"].split("@")[0] for node in strongest(data))
    items = [
        f"<li><code>{escape(name)}</code>{''.join(map(_context, found['contexts'][:2]))}</li>"
        for name in list(names)
        if (found := features.get(name)) and found["contexts"]
    ][:FEATURES]
    if not items:
        return ""
    return f'<h3>Where they are strongest</h3><ol class="contexts">{"".join(items)}</ol>'


def _context(context: ContextRow) -> str:
    parts = []
    for place, token in enumerate(context["tokens"]):
        text = f"<bdi>{escape(visible(token).replace(SPACE, ' '))}</bdi>"
        parts.append(f"<b>{text}</b>" if place == context["strongest"] else text)
    # tokens that are whole words hold no blank of their own
    between = "" if any(token[:1].isspace() for token in context["tokens"]) else " "
    return f'<p class="context">{between.join(parts)}</p>'


def _prompts(data: CircuitData) -> str:
    if not data["prompts"]:
        return ""
    items = "".join(f"<li>{_tokens(tokens)}</li>" for tokens in data["prompts"])
    count, of = len(data["prompts"]), data["pairs"]
    said = f"The first {count} of {of:,} clean prompts" if count < of else "The clean prompts"
    return (
        '<section aria-labelledby="prompts-title"><h2 id="prompts-title">Prompts</h2>'
        f'<p class="caption">{said}, token by token.</p><ol class="shown">{items}</ol></section>'
    )


def _tokens(tokens: Sequence[str]) -> str:
    return "".join(
        f'<span class="chip"><bdi>{escape(visible(token))}</bdi></span>' for token in tokens
    )


def _section(table: TableData, place: int) -> str:
    name = f"table-{place}"
    said = table.get("caption")
    caption = f'<p class="caption">{escape(said)}</p>' if said else ""
    return (
        f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(table["title"])}</h2>'
        f"{caption}{boxed(table, name, kind='told')}</section>"
    )
