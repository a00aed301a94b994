"""A result as the plain data that the HTML page renders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headwater.attribution.flags import flag_words
from headwater.attribution.rows import rows_of

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

MOST_COMPONENTS = 3000
"""Rows a page holds; beyond this the strongest and the audited ones are shown, and it says so."""


def page_data(result: Attribution) -> dict[str, Any]:
    """Return title, headline, components, audit, prompts and provenance as plain data."""
    parts, said, audit = result.parts, result.provenance, result.checked
    shown = _shown(result)
    corrupted = None if parts.corrupted is None else float(parts.corrupted.mean())
    headline = [*result.said_of_truth(), _lead(result)]
    if audit is not None:
        headline.insert(1, audit.verdict)
    elif flags := flag_words(result):
        headline.append(f"Flags: {flags}.")
    headline.append(f"{result.stability()}.")
    if sums := result.sums():
        headline.append(f"{sums}.")
    headline.append(f"Cost: {result.cost}.")
    metric = result.task.metric if result.task is not None else None
    return {
        "kind": "attribution",
        "title": result.title(),
        "headline": [f"{line[0].upper()}{line[1:]}" for line in headline],
        "warnings": result.warnings(),
        "estimator": said.estimator["name"],
        "reference": said.reference["name"],
        "metric": {
            "name": "f" if metric is None else metric.name,
            "sense": "" if metric is None else metric.sense,
            "clean": float(parts.clean.mean()),
            "corrupted": corrupted,
        },
        "components": [row.to_dict() for row in rows_of(result, shown)],
        "shown": {"components": len(shown), "of": len(parts.components)},
        "statistics": [] if audit is None else list(audit.statistics),
        "worst": [] if audit is None else list(audit.worst),
        "curves": [curve.summary() for curve in result.extras.curves.values()],
        "pairs": _pairs(result),
        "pairs_shown": {
            "shown": len(parts.tokens),
            "of": len(parts.clean),
        },
        "provenance": _provenance(result),
    }


def _lead(result: Attribution) -> str:
    """Name the strongest components, and how far to believe it."""
    names = ", ".join(row.name for row in result.top(3))
    if result.is_exact:
        return f"Strongest: {names}. These are exact effects, by intervention."
    if result.checked is not None or result.verification is not None:
        return f"Strongest by the estimate: {names}."
    return f"Strongest by the estimate: {names}. Not audited: how far from the truth is unknown."


def _shown(result: Attribution) -> list[int]:
    count = len(result.parts.components)
    if count <= MOST_COMPONENTS:
        return list(range(count))
    strength = result.mean().abs()
    kept = set(strength.topk(MOST_COMPONENTS).indices.tolist())
    kept |= set(result.known())
    return sorted(kept)


def _pairs(result: Attribution) -> list[dict[str, Any]]:
    if result.task is None:
        return []
    parts = result.parts
    rows = []
    for i, (pair, tokens) in enumerate(zip(result.task.pairs, parts.tokens, strict=False)):
        rows.append(
            {
                "clean": tokens["clean"],
                "corrupted": tokens["corrupted"],
                "answer": [str(answer) for answer in pair.answer],
                "wrong": [str(answer) for answer in pair.wrong],
                "label": pair.label,
                "clean_value": float(parts.clean[i]),
                "corrupted_value": None if parts.corrupted is None else float(parts.corrupted[i]),
            }
        )
    return rows


def _provenance(result: Attribution) -> dict[str, str]:
    manifest = result.manifest()
    said = manifest.provenance
    lines = {f"model {key}": str(value) for key, value in said.model.items()}
    lines |= {"estimator": _options(said.estimator), "reference": _options(said.reference)}
    lines |= {"prompts": str(manifest.prompts_hash), "seed": str(said.seed)}
    lines |= {"batch size": str(said.batch_size), "created": manifest.created}
    return lines | {f"version of {name}": value for name, value in manifest.versions.items()}


def _options(chosen: dict[str, Any]) -> str:
    options = ", ".join(f"{key}={value}" for key, value in chosen.items() if key != "name")
    return f"{chosen['name']}({options})"
