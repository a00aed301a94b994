"""Fill the template: one HTML file with its style, its script and its data inside.

The style and the script are fixed files, so the page's content security policy names them by
hash: nothing else can run, whatever text the prompts hold.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from headwater.files import write_text
from headwater.page import curve, static
from headwater.page.payload import payload
from headwater.page.schema import check

SCRIPTS = (
    "elements.js",
    "data.js",
    "choice.js",
    "heatmap.js",
    "plot.js",
    "scatter.js",
    "table.js",
    "prompts.js",
    "start.js",
)
"""In order: one scope holds them all, so each may use what an earlier one defines."""
OPTIONAL = ("curves.js", "strip.js")
"""Only on pages that have response curves, and components that are shown in strips."""
STRIPS = frozenset({"neuron", "feature", "error"})
"""Kinds of component that are shown in strips; `inStrip` in `data.js`."""


def render(data: Mapping[str, Any]) -> str:
    """Return the page that shows `data`, as the text of one HTML file.

    Args:
        data: What to show; `PageData` in `headwater.page.schema` lists the keys.

    Returns:
        The whole document: at most 62 KB more than the data it carries.

    Raises:
        UnknownOptionError: If `data["kind"]` is not a kind of page.
        ResultError: If a key that every page needs is missing.
    """
    check(data)
    curves = data.get("curves") or []
    strips = any(row["kind"] in STRIPS for row in data["components"])
    style, script = sheet(curves=bool(curves)), bundle(curves=bool(curves), strips=strips)
    rows, sentence = static.strongest(data, 20)
    audited = static.is_audited(data)
    parts = {
        "head": head(data["title"], style, script),
        "title": static.escape(data["title"]),
        "kicker": "attribution, audited" if audited else "attribution, not audited yet",
        "facts": static.facts(data),
        "headline": static.headline(data.get("headline") or []),
        "notes": static.notes(data),
        "sense": static.sense(data),
        "strongest": rows,
        "strongest_caption": sentence,
        "plain_pairs": static.plain_pairs(data.get("pairs") or [], 20),
        "statistics": static.statistics(data),
        "curves": curve.figures(curves),
        "provenance": static.provenance(data),
        "data": payload(data),
        "script": script,
    }
    return put(asset("page.html"), parts)


def write_curve(data: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write one response curve as an HTML file that loads nothing, and return the path.

    Args:
        data: `CurveData` in `headwater.page.schema` lists the keys.
        path: Where to write; its folder is made if it is not there.
    """
    title = f"{data['name']}: response curve"
    return write_page(plain(title, "response curve", curve.figure(data), sheet(curves=True)), path)


def plain(title: str, kicker: str, body: str, style: str) -> str:
    """Return a page without scripts, as the text of one HTML file.

    Args:
        title: What stands in the window's title.
        kicker: What kind of page it is.
        body: What it shows, as HTML.
        style: Its style sheet.
    """
    parts = {
        "head": head(title, style),
        "kicker": static.escape(kicker),
        "body": body,
    }
    return put(asset("plain.html"), parts)


def head(title: str, style: str, script: str | None = None) -> str:
    """Return what stands before a page's body: its title, its style, and what it may load."""
    allowed = {"style-src": style, "script-src": script}
    policy = [f"{kind} '{digest(text)}'" for kind, text in allowed.items() if text is not None]
    parts = {"policy": "; ".join(policy), "title": static.escape(title), "style": style}
    return put(asset("head.html"), parts)


def put(template: str, parts: Mapping[str, str]) -> str:
    """Fill a template in one pass: text that is put in is never searched for placeholders."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def write(data: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`, at once or not at all, and return the path.

    Args:
        data: As for `render`.
        path: Where to write; its folder is made if it is not there.
    """
    return write_page(render(data), path)


def write_page(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a page's text to `path`, at once or not at all, and return the path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return target


@cache
def asset(name: str) -> str:
    """Return the text of one of the page's own files."""
    text = files("headwater.page").joinpath("assets", name).read_text(encoding="utf-8")
    return squeeze(text)


def squeeze(text: str) -> str:
    """Return `text` without indentation, blank lines and lines that are only a comment.

    The page carries what the browser needs. In these files a comment has a line of its own, and no
    text spans lines.
    """
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("//", "/*")))


@cache
def sheet(*, curves: bool) -> str:
    """Return an attribution's style; that of response curves only where there are some."""
    parts = ["attribution.css", "page.css", *(["curves.css"] if curves else [])]
    return "\n".join(map(asset, parts))


def bundle(*, curves: bool, strips: bool) -> str:
    """Return the script of an attribution's page."""
    wanted = zip(OPTIONAL, (curves, strips), strict=True)
    return joined(*(name for name, is_wanted in wanted if is_wanted), *SCRIPTS)


@cache
def joined(*names: str) -> str:
    """Return the scripts of these names as one: all inside one function, so no name is global."""
    return "(() => {\n'use strict';\n" + "\n".join(map(asset, names)) + "\n})();\n"


def digest(text: str) -> str:
    """Return the hash by which a content security policy allows an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
