"""What people have written about features: JSON lines, ours and those of feature-circuits.

{"name": "r5.f3036", "annotation": "promotes singular verbs"}
{"Component": "resid", "Layer": "5", "Feature": "3036", "Name": "resid_5/3036",
 "Annotation": "promotes singular verbs", "Notes": "active on 'that'"}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from headwater.components.names import parse_component
from headwater.errors import HeadwaterError, ResultError
from headwater.feature_circuits.contexts import base
from headwater.feature_circuits.nodes import Node
from headwater.files import write_text

Annotations: TypeAlias = Mapping[str, str]
"""Text by name: of `m3.f77`, or of it at one position, `m3.f77@5`."""

_THEIRS = re.compile(r"(?:(?P<kind>resid|attn|mlp)_(?P<layer>\d+)|embed)/(?P<feature>\d+)")
_OURS = {"resid": "r", "attn": "a", "mlp": "m"}
_HEADING = "Name"
"""Their files repeat the heading of the table they were made from."""
_BETWEEN = "; "


def read_annotations(path: str | Path) -> dict[str, str]:
    """Read a file of annotations, ours or of feature-circuits, line by line.

    Lines without a text say nothing and are left out. Two texts of one feature are joined.

    Args:
        path: JSON lines.

    Returns:
        Text by our names: `resid_5/3036` is `r5.f3036`, `embed/3036` is `input.f3036`.

    Raises:
        ResultError: If there is no such file, or a line is neither; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise ResultError(f"no file {str(path)!r} of annotations.")
    found: dict[str, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ResultError(f"{path} is not UTF-8: {error}.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, text = _read(line, f"{path}, line {number}")
        if text and text not in found.setdefault(name, []):
            found[name].append(text)
    return {name: _BETWEEN.join(texts) for name, texts in found.items() if texts}


def write_annotations(annotations: Annotations, path: str | Path) -> Path:
    """Write annotations as JSON lines, one a feature, and return the path.

    Args:
        annotations: Text by name.
        path: The file; its folder is made if it does not exist.

    Raises:
        ResultError: If a name is none of a feature, an error or a site.
    """
    path = Path(path)
    for name in annotations:
        _checked(name, "annotations")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({"name": name, "annotation": text}, ensure_ascii=False)
        for name, text in annotations.items()
    )
    write_text(path, "".join(f"{line}\n" for line in lines))
    return path


def annotation_of(annotations: Annotations, name: str) -> str:
    """Return what is said of a node: of it at its position, else of the feature; else nothing.

    Args:
        annotations: Text by name.
        name: The node's.
    """
    return annotations.get(name) or annotations.get(base(name), "")


def unmatched(annotations: Annotations, nodes: Sequence[Node]) -> str:
    """Return in a sentence how many annotations are of none of these nodes; else nothing.

    Args:
        annotations: Text by name.
        nodes: Of a circuit.
    """
    names = {name for node in nodes for name in (node.name, base(node.name))}
    others = [name for name in annotations if name not in names]
    if not others:
        return ""
    return (
        f"{len(others):,} of {len(annotations):,} annotations are of no node of this circuit, "
        f"{others[0]} among them."
    )


def _read(line: str, where: str) -> tuple[str, str]:
    """Return name and text of a line; a text that is not there is empty."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ResultError(f"{where}: not JSON ({error.msg}, column {error.colno}).") from None
    if isinstance(entry, dict) and "name" in entry:
        return _checked(entry["name"], where), _text(entry, "annotation", where)
    if isinstance(entry, dict) and "Name" in entry:
        if entry["Name"] == _HEADING:
            return "", ""
        return _translated(entry["Name"], where), _text(entry, "Annotation", where)
    found = ", ".join(map(repr, entry)) if isinstance(entry, dict) else f"{entry!r:.60}"
    raise ResultError(
        f"{where}: no annotation of a feature; it holds {found or 'nothing'}.\n"
        'Write {"name": "r5.f3036", "annotation": "..."} on each line.'
    )


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    text = entry.get(key) or ""
    if not isinstance(text, str):
        raise ResultError(f"{where}: {key!r} is {text!r:.60}, not a text.")
    return text.strip()


def _translated(name: Any, where: str) -> str:
    match = _THEIRS.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise ResultError(
            f"{where}: {name!r:.60} is no feature. Names of feature-circuits are resid_5/3036, "
            "attn_5/3036, mlp_5/3036 and embed/3036."
        )
    feature = int(match["feature"])
    if match["kind"] is None:
        return f"input.f{feature}"
    return f"{_OURS[match['kind']]}{int(match['layer'])}.f{feature}"


def _checked(name: Any, where: str) -> str:
    """Return a name that a node may have."""
    for form in (name, f"{base(name)}.error") if isinstance(name, str) else ():
        try:
            parse_component(form)
        except HeadwaterError:
            continue
        return name
    raise ResultError(
        f"{where}: {name!r:.60} is no node of a circuit. Names are r5.f3036, a5.f3036, m5.f3036, "
        "input.f3036, m5.error and m5, each with @7 for a position."
    )
