"""A feature circuit as the plain data that its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.errors import ResultError
from headwater.feature_circuits import words
from headwater.feature_circuits.annotations import (
    Annotations,
    annotation_of,
    read_annotations,
    unmatched,
)
from headwater.feature_circuits.contexts import Contexts, base
from headwater.page.circuit_schema import (
    CircuitData,
    CircuitEdge,
    CircuitNode,
    CircuitSite,
    Column,
    CorpusRow,
    FeatureRow,
)
from headwater.page.static import interval, number, one_level
from headwater.page.tables import TableData
from headwater.sites import Site

if TYPE_CHECKING:
    from headwater.feature_circuits.nodes import Node, SiteSummary
    from headwater.feature_circuits.result import FeatureCircuit

MOST_NODES = 2000
"""Nodes on a page; beyond this the strongest."""
MOST_EDGES = 20_000
"""Edges on a page, the strongest: about half a megabyte."""
ABSENT = "-"
COLUMNS: dict[str, Column] = {"attn": "attention", "mixer": "mixer", "mlp": "MLP"}
"""Where a site stands in its layer, by the first part of its name; others are the residual."""


def page_data(
    circuit: FeatureCircuit,
    contexts: Contexts | str | Path | None = None,
    annotations: Annotations | str | Path | None = None,
) -> CircuitData:
    """Return what the page of a circuit shows.

    Args:
        circuit: The circuit.
        contexts: Of its features, or where they were saved.
        annotations: Text by name, or a file of them.

    Raises:
        ResultError: If contexts are of another model's features, or annotations cannot be read.
        RunFolderError: If contexts cannot be read.
    """
    if isinstance(contexts, str | Path):
        contexts = Contexts.load(contexts)
    if contexts is not None:
        _refuse_others(circuit, contexts)
    if isinstance(annotations, str | Path):
        annotations = read_annotations(annotations)
    nodes, place = _nodes(circuit, annotations or {})
    edges = _edges(circuit, place)
    made = circuit.provenance
    features = {} if contexts is None else _features(nodes, contexts)
    return {
        "title": f"Feature circuit of {made['task']['name']} on {made['model']['name']}",
        "heading": f"Feature circuit of {made['task']['name']} on {made['model']['name']}",
        "sentences": [_capital(one) for one in _sentences(circuit)],
        "notes": _notes(circuit, contexts, annotations or {}),
        "facts": _facts(circuit),
        "provenance": _provenance(made),
        "metric": _metric(circuit),
        "clean": circuit.clean,
        "sites": [_site(one) for one in circuit.sites],
        "nodes": nodes,
        "edges": edges,
        "shown": {
            "nodes": len(nodes),
            "of_nodes": len(circuit.nodes),
            "edges": len(edges),
            "of_edges": len(circuit.graph.weights),
        },
        "prompts": [list(one) for one in circuit.tokens],
        "pairs": len(made["task"]["pairs"]),
        "features": features,
        "corpus": None if contexts is None else _corpus(contexts),
        "tables": [*_audits(circuit), *_evaluation(circuit), _sites(circuit)],
    }


def _refuse_others(circuit: FeatureCircuit, contexts: Contexts) -> None:
    """Refuse contexts that were made with another model or other dictionaries.

    Raises:
        ResultError: Naming which.
    """
    made, there = circuit.provenance, contexts.provenance
    if made["model"].get("weights_hash") != there["model"].get("weights_hash"):
        raise ResultError(
            f"these contexts are of features of {there['model'].get('name')!r}, another model "
            f"than the circuit's, {made['model'].get('name')!r}.\n"
            "Make them with the circuit: circuit.contexts(corpus)."
        )
    theirs = {one["site"]: one["sha256"] for one in there["dictionaries"]}
    for one in made["dictionaries"]:
        if theirs.get(one["site"]) != one["sha256"]:
            raise ResultError(
                f"these contexts are of another dictionary at '{one['site']}' than the circuit's."
                "\nMake them with the circuit: circuit.contexts(corpus)."
            )


def _metric(circuit: FeatureCircuit) -> str:
    return str(circuit.provenance["task"]["metric"]["name"])


def _nodes(
    circuit: FeatureCircuit, annotations: Annotations
) -> tuple[list[CircuitNode], dict[int, int]]:
    """Return the nodes on the page, and of each of the circuit's its place there."""
    kept = range(len(circuit.nodes))
    if len(kept) > MOST_NODES:
        strength = [-abs(node.effect) for node in circuit.nodes]
        kept = sorted(sorted(kept, key=strength.__getitem__)[:MOST_NODES])
    place = {number: there for there, number in enumerate(kept)}
    place[len(circuit.nodes)] = len(place)
    sites = {one.site: number for number, one in enumerate(circuit.sites)}
    exact = _exact(circuit, "nodes")
    return [
        _node(node, sites[node.site], exact.get(node.name), annotation_of(annotations, node.name))
        for node in (circuit.nodes[number] for number in kept)
    ], place


def _node(node: Node, site: int, exact: float | None, annotation: str) -> CircuitNode:
    return {
        "name": node.name,
        "kind": node.kind,
        "site": site,
        "index": node.index,
        "position": node.position,
        "effect": node.effect,
        "se": node.se,
        "incoming": node.incoming,
        "below": node.below,
        "unexplained": node.unexplained,
        "orphan": node.orphan,
        "exact": exact,
        "annotation": annotation,
    }


def _edges(circuit: FeatureCircuit, place: Mapping[int, int]) -> list[CircuitEdge]:
    found, exact = circuit.graph, _exact(circuit, "edges")
    names = [*(node.name for node in circuit.nodes), words.LOGITS]
    edges: list[CircuitEdge] = []
    for source, target, weight in zip(
        found.sources.tolist(), found.targets.tolist(), found.weights.tolist(), strict=True
    ):
        if source not in place or target not in place:
            continue
        edges.append(
            {
                "source": place[source],
                "target": place[target],
                "weight": weight,
                "exact": exact.get(f"{names[source]} -> {names[target]}"),
            }
        )
        if len(edges) == MOST_EDGES:
            break
    return edges


def _exact(circuit: FeatureCircuit, of: str) -> dict[str, float]:
    """Return what an audit found by intervention, by name."""
    rows = circuit.audits.get(of, {}).get("rows", [])
    return {row["name"]: row["exact"] for row in rows}


def _site(summary: SiteSummary) -> CircuitSite:
    site = Site.parse(summary.site)
    column = COLUMNS.get(site.name.split(".")[0], "residual")
    return {"label": summary.label, "layer": site.layer, "column": column}


def _features(nodes: Sequence[CircuitNode], contexts: Contexts) -> dict[str, FeatureRow]:
    names = dict.fromkeys(base(node["name"]) for node in nodes if node["kind"] == "feature")
    return {
        name: {
            "fires": contexts[name].fires,
            "prompts": contexts[name].prompts,
            "contexts": [
                {
                    "tokens": one.tokens,
                    "activations": one.activations,
                    "strongest": one.position - one.start,
                    "prompt": one.prompt,
                }
                for one in contexts[name].contexts
            ],
        }
        for name in names
        if name in contexts
    }


def _corpus(contexts: Contexts) -> CorpusRow:
    return {
        "source": str(contexts.provenance["corpus"]["source"]),
        "tokens": contexts.tokens,
        "prompts": contexts.prompts,
    }


def _sentences(circuit: FeatureCircuit) -> list[str]:
    strongest = circuit.top(3)
    names = ", ".join(node.name for node in strongest)
    found = [f"Strongest: {names}."] if strongest else []
    found += [f"Audit of the {of}: {one['verdict']}" for of, one in circuit.audits.items()]
    if not circuit.audits:
        found.append(
            "Not audited: how far these numbers are from exact interventions is unknown. "
            "circuit.audit() checks a sample."
        )
    # the metric is among the facts
    return [*found, f"{words.counts(circuit).split('; ', 1)[1]}."]


def _notes(
    circuit: FeatureCircuit, contexts: Contexts | None, annotations: Annotations
) -> list[str]:
    # audits and evaluation have a headline and a table of their own
    bare = replace(circuit, audits={}, evaluation=None)
    found = [_capital(one) for one in words.sentences(bare)]
    if contexts is not None:
        features = {base(node.name) for node in circuit.nodes if node.kind == "feature"}
        missing = sorted(name for name in features if name not in contexts)
        if missing:
            found.append(
                f"{len(missing):,} features have no contexts here, {missing[0]} among them: they "
                "were looked for of another circuit."
            )
    if said := unmatched(annotations, circuit.nodes):
        found.append(_capital(said))
    return found


def _facts(circuit: FeatureCircuit) -> dict[str, str]:
    made = circuit.provenance
    return {
        "metric": _metric(circuit),
        "clean prompts": number(circuit.clean),
        "nodes": f"{len(circuit.nodes):,}",
        "edges": f"{len(circuit.graph.weights):,}",
        "estimator": str(made["estimator"]["name"]),
        "reference": str(made["reference"]["name"]),
        "slope": str(made["slope"]),
        "mask": str(made["mask"]),
        "positions": "added up" if made["aggregation"] == "sum" else "apart",
        "prompt pairs": f"{len(made['task']['pairs']):,}",
    }


def _sites(circuit: FeatureCircuit) -> TableData:
    """Return how well the effects at each site add up, and what its slopes were."""
    return {
        "title": "Sites",
        "caption": (
            "Whether the effects of all nodes of a site, kept or not, add up to what the metric "
            "loses when the whole site is at its reference. Secants: how many activations differ "
            "from their reference, the steepest slope used, and how many were too steep, so that "
            "the clean run\u2019s took their place. Explained: the share of the variance at the "
            "site that the features account for, over the task\u2019s prompts."
        ),
        "headings": (
            "site", "dictionary", "features", "explained", "nodes", "sum of effects", "exact",
            "gap", "active", "steepest", "replaced",
        ),
        "rows": [
            (
                one.label,
                one.kind,
                f"{one.features:,}",
                ABSENT if one.explained is None else f"{one.explained:.1%}",
                f"{one.kept:,}",
                number(one.effects),
                number(one.exact),
                number(one.gap),
                *_slopes(circuit, place),
            )
            for place, one in enumerate(circuit.sites)
        ],
    }  # fmt: skip


def _slopes(circuit: FeatureCircuit, place: int) -> tuple[str, str, str]:
    """Return what the table says of a site's slopes: nothing where edges into it took none."""
    one = circuit.sites[place]
    # nothing lies before the first site
    if not (place and one.kept and one.features):
        return ABSENT, ABSENT, ABSENT
    if circuit.provenance["slope"] == "gradient":
        return f"{one.active:,}", ABSENT, ABSENT
    return f"{one.active:,}", number(one.steepest), f"{one.replaced:,}"


def _audits(circuit: FeatureCircuit) -> list[TableData]:
    return [
        {
            "title": f"Audit of the {of}",
            "caption": f"{one['sentence'].replace(' components ', f' {of} ')} Cost: {one['cost']}.",
            "headings": ("statistic", "value", "interval", "in words"),
            "rows": [
                (row["name"], number(row["value"], "unknown"), interval(row), row["words"])
                for row in one["statistics"]
            ],
        }
        for of, one in circuit.audits.items()
    ]


def _evaluation(circuit: FeatureCircuit) -> list[TableData]:
    found = circuit.evaluation
    if not found:
        return []
    return [
        {
            "title": "What the circuit carries",
            "caption": (
                f"The metric with only the strongest nodes left, and with only these closed: "
                f"{number(found['clean'])} with nothing closed, {number(found['closed'])} with "
                f"every node at its reference ({found['reference']}; errors: {found['errors']}). "
                "Faithfulness 1 is all of the behavior, completeness 0 nothing left of it."
            ),
            "headings": ("nodes", "metric", "faithfulness", "without them", "completeness"),
            "rows": [
                (
                    f"{one['nodes']:,}",
                    number(one["metric"]),
                    number(one["faithfulness"]),
                    number(one["without"]),
                    number(one["completeness"]),
                )
                for one in found["sizes"]
            ],
        }
    ]


def _provenance(made: Mapping[str, Any]) -> dict[str, str]:
    """Return where the numbers come from as one level of texts; hashes by their beginning."""
    others = {key: value for key, value in made.items() if key not in ("task", "dictionaries")}
    found = one_level(others)
    for one in made["dictionaries"]:
        name = f"dictionary at {one['site']}"
        found[name] = (
            f"{one['kind']}, {one['features']:,} features, {one['path'] or 'made in memory'}"
        )
    return found


def _capital(sentence: str) -> str:
    return f"{sentence[0].upper()}{sentence[1:]}"
