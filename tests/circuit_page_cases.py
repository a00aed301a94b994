"""Pages of feature circuits to test and to look at: plain dicts that resemble real circuits."""

from __future__ import annotations

import random
from typing import Any

KINDS = (("a", "attention"), ("m", "MLP"), ("r", "residual"))
WORDS = ["[BOS]", "When", "Mary", "and", "John", "went", "to", "the", "store", ",", "John", "gave"]


def sites(layers: int) -> list[dict[str, Any]]:
    """The input, and attention, MLP and residual of each layer."""
    found: list[dict[str, Any]] = [{"label": "input", "layer": None, "column": "residual"}]
    found += [
        {"label": f"{letter}{layer}", "layer": layer, "column": column}
        for layer in range(layers)
        for letter, column in KINDS
    ]
    return found


def page(
    layers: int = 3,
    nodes: int = 30,
    edges: int = 80,
    *,
    positions: bool = False,
    corpus: bool = True,
    seed: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """A circuit with every kind of node, edges only upward, and contexts of every feature."""
    draw = random.Random(seed)
    places = sites(layers)
    found = [_node(draw, places, positions=positions) for _ in range(nodes)]
    found = sorted({one["name"]: one for one in found}.values(), key=lambda one: one["site"])
    flows = _edges(draw, found, edges)
    for number, one in enumerate(found):
        _accounted(one, [edge for edge in flows if edge["target"] == number])
    data: dict[str, Any] = {
        "title": "Feature circuit of ioi on tiny",
        "heading": "Feature circuit of ioi on tiny",
        "sentences": ["Strongest: one, two, three.", "Not audited."],
        "notes": ["Effects add up."],
        "facts": {"metric": "logit-diff", "nodes": f"{len(found):,}"},
        "provenance": {"model name": "tiny", "steepest": "10"},
        "metric": "logit-diff",
        "clean": 6.43,
        "sites": places,
        "nodes": found,
        "edges": flows,
        "shown": {"nodes": len(found), "of_nodes": len(found),
                  "edges": len(flows), "of_edges": len(flows)},
        "prompts": [WORDS, [*WORDS[:2], "Anna", *WORDS[3:]]],
        "pairs": 32,
        "features": {},
        "corpus": None,
        "tables": [{"title": "Sites", "caption": "Whether effects add up.",
                    "headings": ("site", "exact"), "rows": [("m0", "1.20"), ("r0", "6.43")]}],
    }  # fmt: skip
    if corpus:
        names = {one["name"].split("@")[0] for one in found if one["kind"] == "feature"}
        data["features"] = {name: _contexts(draw) for name in sorted(names)}
        data["corpus"] = {"source": "the list", "tokens": 1000, "prompts": 100}
    return data | changes


def _node(draw: random.Random, places: list[dict[str, Any]], *, positions: bool) -> dict[str, Any]:
    site = draw.randrange(len(places))
    kind = draw.choices(["feature", "error", "site"], [8, 1, 0 if site % 4 else 4])[0]
    index = draw.randrange(4000) if kind == "feature" else None
    position = draw.randrange(len(WORDS)) if positions else None
    name = {"feature": f".f{index}", "error": ".error", "site": ""}[kind]
    at = "" if position is None else f"@{position}"
    return {
        "name": f"{places[site]['label']}{name}{at}",
        "kind": kind,
        "site": site,
        "index": index,
        "position": position,
        "effect": draw.choice([1, 1, 1, -1]) * draw.paretovariate(1.2) * 0.05,
        "se": 0.01,
        "incoming": None,
        "below": None,
        "unexplained": None,
        "orphan": False,
        "exact": None,
        "annotation": draw.choice(["", "", "", "plural nouns", "names after a comma"]),
    }


def _edges(draw: random.Random, nodes: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    found: dict[tuple[int, int], float] = {}
    for _ in range(20 * count):
        source, target = draw.randrange(len(nodes)), draw.randrange(len(nodes) + 1)
        above = target == len(nodes) or nodes[source]["site"] < nodes[target]["site"]
        if above and len(found) < count:
            found[source, target] = draw.choice([1, 1, -1]) * draw.paretovariate(1.1) * 0.002
    return [
        {"source": source, "target": target, "weight": weight, "exact": None}
        for (source, target), weight in sorted(found.items(), key=lambda one: -abs(one[1]))
    ]


def _accounted(node: dict[str, Any], into: list[dict[str, Any]]) -> None:
    """Let what flows in, the rest below and the unexplained part add up to the effect."""
    if node["site"] == 0:
        return
    node["incoming"] = sum(edge["weight"] for edge in into)
    node["below"] = 0.5 * (node["effect"] - node["incoming"])
    node["unexplained"] = node["effect"] - node["incoming"] - node["below"]
    node["orphan"] = not into and node["kind"] == "feature"


def _contexts(draw: random.Random) -> dict[str, Any]:
    found = []
    for number in range(3):
        tokens = [draw.choice(WORDS) for _ in range(9)]
        values = [draw.choice([0.0, 0.0, draw.random()]) for _ in tokens]
        strongest = draw.randrange(len(tokens))
        values[strongest] = 1.5 - 0.1 * number
        found.append(
            {"tokens": tokens, "activations": values, "strongest": strongest, "prompt": number}
        )
    return {"fires": draw.randrange(1, 200), "prompts": 40, "contexts": found}
