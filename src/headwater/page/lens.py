"""The page of a lens: layers by positions, statistics over the layers, rarity, tables.

Renders plain dicts and knows no model. With scripts off it shows the first prompt's most probable
tokens as a table, and everything else but the numbers of single cells.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from headwater.page import lens_curves, static
from headwater.page.document import asset, head, joined, put, write_page
from headwater.page.lens_payload import carried
from headwater.page.lens_schema import LensData, PromptData
from headwater.page.payload import encoded
from headwater.page.static import escape
from headwater.page.tables import TableData, boxed, minus
from headwater.page.tokens import visible

CONVENTION = "Position i reads the tokens up to and including i, and predicts token i + 1."
POSITIONS = 40
"""At most so many positions are in the table for readers without scripts."""
BLOCK = 10
"""So many positions side by side, which fits on paper."""
STYLES = ("page.css", "tables.css", "lens.css")
SCRIPTS = (
    "elements.js",
    "lens_tokens.js",
    "lens_state.js",
    "lens_colors.js",
    "lens_map.js",
    "lens_panel.js",
    "lens_chart.js",
    "lens_pins.js",
    "lens.js",
)


def render_lens(data: LensData) -> str:
    """Return the page that shows a lens, as the text of one HTML file.

    Args:
        data: What to show.
    """
    style, script = "\n".join(map(asset, STYLES)), joined(*_scripts(data))
    parts = {
        "head": head(data["title"], style, script),
        "heading": escape(data["heading"]),
        "headline": static.headline(data["sentences"]),
        "facts": _terms(data["facts"]),
        "notes": static.box("Note", "notes", data["notes"]),
        "map": _map(data),
        "curves": lens_curves.sections(data),
        "tables": "".join(_table(table, place) for place, table in enumerate(data["tables"])),
        "provenance": static.provenance(data),
        "data": encoded(carried(data)),
        "script": script,
    }
    return put(asset("lens.html"), parts)


def write_lens(data: LensData, path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`, at once or not at all, and return the path.

    Args:
        data: What to show.
        path: Where to write; its folder is made if it is not there.
    """
    return write_page(render_lens(data), path)


def _scripts(data: LensData) -> Sequence[str]:
    """Return the scripts by name; those of the map need a prompt."""
    return SCRIPTS if data["prompts"] else SCRIPTS[:3]


def _terms(items: Mapping[str, str]) -> str:
    return static.terms({name: minus(value) for name, value in items.items()})


def _map(data: LensData) -> str:
    """Return the section of layers by positions; nothing if no prompt was kept."""
    if not data["prompts"]:
        return ""
    parts = {
        "convention": escape(CONVENTION),
        "left_out": escape(_left_out(data["shown"])),
        "explain": escape(data["statistics"][0]["explain"]),
        "plain": _plain(data, data["prompts"][0]),
    }
    return put(asset("lens_map.html"), parts)


def _left_out(shown: Mapping[str, int]) -> str:
    """Return a sentence on what was read and is not on the page; nothing if all of it is."""
    parts = [
        f"{shown[some]:,} of {shown[whole]:,} {some}"
        for some, whole in (("prompts", "of"), ("positions", "of_positions"))
        if shown[some] < shown[whole]
    ]
    return f" The page holds {' and '.join(parts)}." if parts else ""


def _plain(data: LensData, prompt: PromptData) -> str:
    """Return the most probable token of each cell as tables, the final layer first."""
    words = [visible(token) for token in data["vocabulary"]]
    of = len(prompt["tokens"])
    count = min(POSITIONS, of)
    tables = "".join(
        _block(data, prompt, words, start, min(start + BLOCK, count))
        for start in range(0, count, BLOCK)
    )
    which = "all positions" if count == of else f"the first {count} of {of:,} positions"
    said = "The first prompt" if len(data["prompts"]) > 1 else "The prompt"
    return (
        f'<p class="caption" id="plain-title">{said}: the most probable next token at {which}, '
        f"the final layer first; bold where it is the final layer\u2019s. {escape(CONVENTION)}</p>"
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="plain-title">'
        f"{tables}</div>"
    )


def _block(data: LensData, prompt: PromptData, words: Sequence[str], start: int, stop: int) -> str:
    """Return a table of as many positions as fit on a page."""
    tokens = "".join(
        f'<th scope="col"><i>{start + place}</i> <bdi>{escape(words[token])}</bdi></th>'
        for place, token in enumerate(prompt["tokens"][start:stop])
    )
    final = prompt["final"][start:stop]
    rows = "".join(
        f'<tr><th scope="row">{escape(row["name"])}</th>{_cells(cells[start:stop], final, words)}'
        "</tr>"
        for row, cells in zip(data["rows"][::-1], prompt["top"][::-1], strict=True)
    )
    return (
        f'<table class="cells"><thead><tr><th scope="col">reads</th>{tokens}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _cells(cells: Sequence[Sequence[int]], finals: Sequence[int], words: Sequence[str]) -> str:
    parts = []
    for tokens, final in zip(cells, finals, strict=True):
        text = f"<bdi>{escape(words[tokens[0]])}</bdi>" if tokens else static.ABSENT
        parts.append(f"<td>{f'<b>{text}</b>' if tokens and tokens[0] == final else text}</td>")
    return "".join(parts)


def _table(table: TableData, place: int) -> str:
    name = f"table-{place}"
    said = table.get("caption")
    caption = f'<p class="caption">{escape(said)}</p>' if said else ""
    return (
        f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(table["title"])}</h2>'
        f"{caption}{boxed(table, name, kind='told')}</section>"
    )
