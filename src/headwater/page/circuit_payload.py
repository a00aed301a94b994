"""A circuit as its page carries it: columns, few digits, tokens as numbers into one vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from headwater.page.circuit_schema import CircuitData, ContextRow, FeatureRow
from headwater.page.lens_payload import short
from headwater.page.tokens import visible

NODE_NUMBERS = ("effect", "se", "incoming", "below", "unexplained", "exact")
HEAT = 99
"""The heat of the strongest token."""


def carried(data: CircuitData) -> dict[str, Any]:
    """Return what the page's script draws, as plain data without NaN and infinity."""
    nodes, edges = data["nodes"], data["edges"]
    count = Counter(token for tokens in _texts(data) for token in tokens)
    place = {token: number for number, (token, _) in enumerate(count.most_common())}
    columns: dict[str, Any] = {
        key: [node[key] for node in nodes]
        for key in ("name", "kind", "site", "index", "position", "annotation")
    }
    columns["orphan"] = [int(node["orphan"]) for node in nodes]
    columns |= {key: [short(node[key]) for node in nodes] for key in NODE_NUMBERS}
    return {
        "metric": data["metric"],
        "clean": short(data["clean"]),
        "sites": [dict(site) for site in data["sites"]],
        "nodes": columns,
        "edges": {
            "source": [edge["source"] for edge in edges],
            "target": [edge["target"] for edge in edges],
            "weight": [short(edge["weight"]) for edge in edges],
            "exact": {
                str(number): short(edge["exact"])
                for number, edge in enumerate(edges)
                if edge["exact"] is not None
            },
        },
        "shown": dict(data["shown"]),
        "prompt": [visible(token) for token in (data["prompts"] or [[]])[0]],
        "vocabulary": [visible(token) for token in place],
        "features": {name: _feature(feature, place) for name, feature in data["features"].items()},
        "corpus": None if data["corpus"] is None else dict(data["corpus"]),
    }


def heat(context: ContextRow) -> list[int]:
    """Return how strong each token is beside the strongest, from 0 to `HEAT`, with its sign."""
    peak = max((abs(value) for value in context["activations"]), default=0.0)
    if not 0 < peak < float("inf"):
        return [0 for _ in context["activations"]]
    # what is on at all is seen to be on
    shares = [value / peak for value in context["activations"]]
    return [
        0 if not share else (1 if share > 0 else -1) * max(1, round(HEAT * abs(share)))
        for share in shares
    ]


def _texts(data: CircuitData) -> list[Sequence[str]]:
    return [
        context["tokens"]
        for feature in data["features"].values()
        for context in feature["contexts"]
    ]


def _feature(feature: FeatureRow, place: Mapping[str, int]) -> dict[str, Any]:
    return {
        "fires": feature["fires"],
        "prompts": feature["prompts"],
        "contexts": [
            {
                "tokens": [place[token] for token in context["tokens"]],
                "heat": heat(context),
                "strongest": context["strongest"],
                "most": short(context["activations"][context["strongest"]]),
                "prompt": context["prompt"],
            }
            for context in feature["contexts"]
        ],
    }
