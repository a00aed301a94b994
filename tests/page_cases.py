"""Pages to test and to look at: plain dicts that resemble real results."""

from __future__ import annotations

import random
from typing import Any

CLEAN = [
    "Then",
    ",",
    "Mary",
    "and",
    "John",
    "went",
    "to",
    "the",
    "store",
    ".",
    "John",
    "gave",
    "a",
    "drink",
    "to",
]


def component(name: str, kind: str, layer: int | None, index: int | None, score: float) -> dict:
    """One component row without an audit."""
    return {
        "name": name,
        "kind": kind,
        "layer": layer,
        "index": index,
        "position": None,
        "score": score,
        "spread": abs(score) * 0.35 + 0.02,
        "size": 0.21,
        "exact": None,
        "stratum": None,
        "flags": [],
    }


def pair(number: int) -> dict:
    """One prompt pair of the indirect-object task."""
    clean = [(" " if place else "") + word for place, word in enumerate(CLEAN)]
    corrupted = list(clean)
    corrupted[10] = " Anna"
    return {
        "clean": clean,
        "corrupted": corrupted,
        "answer": [" Mary"],
        "wrong": [" John"],
        "label": "",
        "clean_value": 6.8 + 0.13 * number,
        "corrupted_value": -0.4 - 0.21 * number,
    }


def page(components: list[dict], **changes: Any) -> dict[str, Any]:
    """Page data with everything but an audit."""
    data = {
        "kind": "attribution",
        "title": "tiny on ioi: heads and MLPs",
        "headline": [
            f"The 3 strongest of {len(components):,} components carry most of the behavior.",
            "Not audited: nothing is known of the estimate's error.",
            "Cost: 2 forward passes and 1 backward pass over 64 pairs, 0.21 s.",
        ],
        "warnings": [],
        "estimator": "Gradient(at='clean')",
        "reference": "Corrupted()",
        "metric": {
            "name": "logit-diff",
            "sense": "rises when the model prefers the answer to the wrong one",
            "clean": 7.12,
            "corrupted": -0.43,
        },
        "components": components,
        "shown": {"components": len(components), "of": len(components)},
        "statistics": [],
        "worst": [],
        "pairs": [pair(number) for number in range(8)],
        "pairs_shown": {"shown": 8, "of": 64},
        "provenance": {
            "model": "tiny",
            "weights": "sha256 9f2c71ab0d",
            "task": "ioi, 64 pairs, sha256 51b0aa77c2",
            "dtype": "float32",
            "device": "cpu",
            "seed": "0",
            "headwater": "0.1.0",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "written": "2026-05-01 12:00 UTC",
        },
    }
    return data | changes


def transformer(layers: int, heads: int, seed: int = 0) -> list[dict]:
    """Heads and MLPs with heavy-tailed scores: a few matter, most do not."""
    draw = random.Random(seed)
    rows = []
    for layer in range(layers):
        for head in range(heads):
            score = draw.gauss(0, 0.08) + (
                draw.choice([-1, 1, 1]) * draw.expovariate(0.7) if draw.random() < 0.18 else 0
            )
            rows.append(component(f"a{layer}.h{head}", "head", layer, head, score))
        rows.append(component(f"m{layer}", "mlp", layer, None, draw.gauss(0.2, 0.6)))
    for row in rows:
        row["size"] = round(draw.uniform(0.01, 0.6), 4)
    return rows


def audited(components: list[dict], sample: int, seed: int = 1, **changes: Any) -> dict[str, Any]:
    """Page data with exact effects for `sample` components, drawn over three strata."""
    draw = random.Random(seed)
    ranked = sorted(components, key=lambda row: -abs(row["score"]))
    third = max(1, len(ranked) // 3)
    for place, row in enumerate(ranked):
        row["stratum"] = ("top", "middle", "tail")[min(2, place // third)]
    chosen = ranked if sample >= len(ranked) else draw.sample(ranked, sample)
    for row in chosen:
        row["exact"] = row["score"] * draw.gauss(1.08, 0.18) + draw.gauss(0, 0.05)
    for row in components:
        if row not in chosen:
            row["stratum"] = None
    errors = sorted(chosen, key=lambda row: -abs(row["score"] - row["exact"]))
    errors[0]["flags"] = ["small cause, large effect"]
    data = page(
        components,
        headline=[
            f"{len(chosen)} of {len(components):,} components checked exactly: r 0.97, slope 0.91, "
            "no wrong sign among the top 10; the largest error is at "
            f"{errors[0]['name']}.",
            "Cost: 2 forward passes and 1 backward pass over 64 pairs, 0.21 s; the audit took "
            "20 forward passes, 0.84 s.",
        ],
        statistics=[
            stat("r", 0.971, 0.942, 0.988, "Pearson correlation of estimate and exact effect"),
            stat("spearman", 0.93, 0.871, 0.969, "Rank correlation"),
            stat("slope", 0.91, 0.87, 0.96, "Estimates are 9 % too small on the whole"),
            stat("relative error", 0.18, 0.12, 0.25, "Error relative to the exact effects"),
            stat("sign agreement", 0.95, 0.86, 1.0, "Estimate and exact effect agree in sign"),
            stat("recall at 10", None, None, None, "The tail was not sampled"),
        ],
        worst=[row["name"] for row in errors[:5]],
    )
    return data | changes


def stat(name: str, value: float | None, low: float | None, high: float | None, words: str) -> dict:
    """One line of the audit's table."""
    return {"name": name, "value": value, "low": low, "high": high, "words": words}


def neurons(layers: int, each: int, seed: int = 2) -> list[dict]:
    """Neurons, most of them near zero."""
    draw = random.Random(seed)
    rows = []
    for layer in range(layers):
        for index in range(each):
            score = draw.gauss(0, 0.02) + (draw.gauss(0, 0.5) if draw.random() < 0.02 else 0)
            rows.append(component(f"m{layer}.n{index}", "neuron", layer, index, score))
    return rows


def by_position(layers: int, heads: int, positions: int, seed: int = 3) -> list[dict]:
    """Heads and MLPs at every position."""
    rows = []
    for place in range(positions):
        for row in transformer(layers, heads, seed + place):
            row["name"] += f"@{place}"
            row["position"] = place
            row["score"] *= 1.0 if place in (4, 10, 14) else 0.1
            rows.append(row)
    return rows
