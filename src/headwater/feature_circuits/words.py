"""A circuit in words and tables, for the terminal and the notebook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwater.feature_circuits.nodes import Node
    from headwater.feature_circuits.result import FeatureCircuit

LOGITS = "logits"
"""The metric, as the target of edges."""
SHOWN = 10
"""Nodes and edges of a printed circuit."""
GAP = 0.1
"""A site's effects are off where their sum misses the exact change by this share of it ..."""
POOR = 0.2
"""Explained variance below which a dictionary hardly fits its site."""
APART = 1e-3
"""Share of an effect by which what flows in may differ from it, for rounding."""
SMALL = 0.02
"""... and by this share of the metric."""


def printed(circuit: FeatureCircuit) -> str:
    """Return one screen."""
    lines = [title(circuit), counts(circuit), "", *_node_table(circuit), "", *_edge_table(circuit)]
    return "\n".join([*lines, "", *sentences(circuit), f"cost: {circuit.cost}"])


def title(circuit: FeatureCircuit) -> str:
    """Return what the circuit is of, on one line."""
    made = circuit.provenance
    pairs = len(made["task"]["pairs"])
    return (
        f"Feature circuit of {made['task']['name']} on {made['model']['name']}: "
        f"{made['estimator']['name']}, reference {made['reference']['name']}, "
        f"{pairs} pair{'s' * (pairs > 1)}"
    )


def counts(circuit: FeatureCircuit) -> str:
    """Return how many nodes and edges there are, and of how many."""
    total = sum(site.features + (site.features > 0) for site in circuit.sites)
    total += sum(site.features == 0 for site in circuit.sites)
    kinds = [node.kind for node in circuit.nodes]
    parts = [f"{kinds.count('feature')} features", f"{kinds.count('error')} errors"]
    if "site" in kinds:
        parts.append(f"{kinds.count('site')} whole sites")
    edges = len(circuit.graph.weights)
    return (
        f"{circuit.provenance['task']['metric']['name']} {circuit.clean:+.3f}; "
        f"{len(circuit.nodes):,} nodes ({', '.join(parts)}) of {total:,}; {edges:,} edges, "
        f"{circuit.graph.dropped:,} below the threshold (sum of sizes "
        f"{circuit.graph.dropped_size:.3g})"
    )


def _node_table(circuit: FeatureCircuit) -> Iterator[str]:
    shown = circuit.top(SHOWN)
    width = max([12, *(len(node.name) for node in shown)])
    yield f"{'node':<{width}}{'effect':>9}{'se':>8}{'edges in':>10}{'below':>9}{'unexpl.':>9}"
    for node in shown:
        flow = (node.incoming, node.below, node.unexplained)
        cells = "".join(
            f"{'' if one is None else format(one, '+.3f'):>{size}}"
            for one, size in zip(flow, (10, 9, 9), strict=True)
        )
        se = "" if node.se is None else f"{node.se:.3f}"
        yield f"{node.name:<{width}}{node.effect:>+9.3f}{se:>8}{cells}{_flag(node)}"
    if len(circuit.nodes) > len(shown):
        yield f"... {len(circuit.nodes) - len(shown):,} more in circuit.nodes"


def _flag(node: Node) -> str:
    return "  orphan" if node.orphan else ""


def _edge_table(circuit: FeatureCircuit) -> Iterator[str]:
    inner = [edge for edge in circuit.edges if edge.target != LOGITS]
    width = max([12, *(len(edge.source) for edge in inner[:SHOWN])])
    yield f"{'from':<{width}}    {'to':<{width}}{'weight':>9}"
    for edge in inner[:SHOWN]:
        yield f"{edge.source:<{width}} -> {edge.target:<{width}}{edge.weight:>+9.3f}"
    if len(circuit.edges) > len(inner[:SHOWN]):
        into = len(circuit.edges) - len(inner)
        yield (
            f"... {len(circuit.edges) - len(inner[:SHOWN]):,} more in circuit.edges, {into:,} of "
            "them into logits"
        )


def sentences(circuit: FeatureCircuit) -> list[str]:
    """Return what to know before believing the numbers."""
    found = []
    worst = [
        site
        for site in circuit.sites
        if abs(site.gap) > max(GAP * abs(site.exact), SMALL * abs(circuit.clean))
    ]
    if worst:
        listed = ", ".join(
            f"{site.label} {site.effects:+.2f} for {site.exact:+.2f}"
            for site in sorted(worst, key=lambda site: -abs(site.gap))[:4]
        )
        found.append(
            f"effects do not add up to the exact change of the whole site at {len(worst)} of "
            f"{len(circuit.sites)} sites: {listed}. {_advice(circuit)}"
        )
    else:
        found.append(
            f"effects add up to the exact change of the whole site within {GAP:.0%} at all "
            f"{len(circuit.sites)} sites."
        )
    poor = [site for site in circuit.sites if site.explained is not None and site.explained < POOR]
    if poor:
        listed = ", ".join(f"{site.label} {site.explained:.0%}" for site in poor[:5])
        several = len(poor) > 1
        found.append(
            f"{len(poor)} {'dictionaries explain' if several else 'dictionary explains'} little of "
            f"the variance at {'their sites' if several else 'its site'} ({listed}"
            f"{', ...' if len(poor) > 5 else ''}): another model, layer, centering or scale? "
            "What they leave out is in their errors."
        )
    if circuit.orphans:
        found.append(_orphans(circuit))
    if any(
        node.total is not None and abs(node.total - node.effect) > APART * abs(node.effect)
        for node in circuit.nodes
    ):
        found.append(
            "edges in, below and unexplained add up to first-order effects in the clean run, which "
            "are not the effects shown: these come from another estimate."
        )
    replaced = sum(site.replaced for site in circuit.sites)
    if replaced:
        active = sum(site.active for site in circuit.sites)
        found.append(
            f"{replaced:,} of {active:,} activations change with hardly any change of what they "
            f"are read from (secant above {circuit.provenance['steepest']:g}): their cause is in "
            "the unexplained column."
        )
    for checked in circuit.audits.values():
        found.append(f"{checked['sentence']} {checked['verdict']}")
    if circuit.evaluation is not None:
        found.append(_evaluated(circuit.evaluation))
    return found


def _advice(circuit: FeatureCircuit) -> str:
    """Return what to do about effects that do not add up."""
    estimator = circuit.provenance["estimator"]
    if estimator["name"] == "ig" and estimator["path"] == "family":
        return "Take more steps: hw.IntegratedGradients(steps=20)."
    if estimator["name"] == "gradient":
        return "Integrate: hw.IntegratedGradients(steps=10)."
    return "Effects of single nodes need not; those of hw.IntegratedGradients() do."


def _orphans(circuit: FeatureCircuit) -> str:
    names = ", ".join(node.name for node in circuit.orphans[:5])
    several = len(circuit.orphans) > 1
    said = (
        f"{len(circuit.orphans)} node{'s are orphans' if several else ' is an orphan'}: of effect, "
        f"but no slope leads there ({names}{', ...' if len(circuit.orphans) > 5 else ''})."
    )
    if circuit.provenance["slope"] == "gradient":
        return f'{said} slope="secant" finds what moves them.'
    return f"{said} Their activations change with hardly any change of what they are read from."


def _evaluated(evaluation: dict[str, Any]) -> str:
    whole = evaluation["sizes"][-1]
    shares = [
        "undefined" if one is None else f"{round(one, 2) + 0.0:.2f}"
        for one in (whole["faithfulness"], whole["completeness"])
    ]
    return (
        f"faithfulness {shares[0]}, completeness {shares[1]} with {evaluation['reference']} in "
        f"place of all other nodes (errors: {evaluation['errors']})."
    )
