"""A circuit in words and tables, for the terminal and the notebook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from headwater.audits.again import estimator_from
from headwater.components.kinds import CODED
from headwater.estimators import ESTIMATORS
from headwater.sites import Site

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
    return (
        f"Feature circuit of {made['task']['name']} on {made['model']['name']}: "
        f"{made['estimator']['name']}, reference {made['reference']['name']}, "
        f"{_several(len(made['task']['pairs']), 'pair')}"
    )


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def counts(circuit: FeatureCircuit) -> str:
    """Return how many nodes and edges there are, and of how many."""
    total = sum(site.features + 1 for site in circuit.sites)
    if circuit.provenance["aggregation"] == "none":
        total *= len(circuit.tokens[0])  # all prompts have this length
    kinds = [node.kind for node in circuit.nodes]
    parts = [_several(kinds.count("feature"), "feature"), _several(kinds.count("error"), "error")]
    if "site" in kinds:
        parts.append(_several(kinds.count("site"), "whole site"))
    return (
        f"{circuit.provenance['task']['metric']['name']} {circuit.clean:+.3f}; "
        f"{_several(len(circuit.nodes), 'node')} ({', '.join(parts)}) of {total:,}; "
        f"{_several(len(circuit.graph.weights), 'edge')}, {circuit.graph.dropped:,} below the "
        f"threshold (sum of sizes {circuit.graph.dropped_size:.3g})"
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
    ranking = _ranking(circuit)
    worst = [
        site
        for site in circuit.sites
        if abs(site.gap) > max(GAP * abs(site.exact), SMALL * abs(circuit.clean))
    ]
    if ranking:
        found.append(f"the column effect holds no effects in units of the metric: {ranking}.")
    elif worst:
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
    if between := _between(circuit):
        several = len(between) > 1
        found.append(
            f"{', '.join(between)} {'are' if several else 'is'} no node, though sites of "
            f"{'their' if several else 'its'} kind before and behind are: what passes there is in "
            "the edges around it. A dictionary is missing?"
        )
    if circuit.provenance["reference"]["name"] == "zero" and any(
        site.features for site in circuit.sites
    ):
        found.append(
            "at zero a site is its decoder's bias, and these do not add up from site to site as "
            "activations do: what that makes is in the unexplained column."
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
        found.append(_apart(circuit))
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


def _ranking(circuit: FeatureCircuit) -> str:
    """Return what the estimator estimates, if that is no effect; else nothing."""
    made = circuit.provenance["estimator"]
    if made["name"] not in ESTIMATORS:
        return ""  # the user's own
    estimator = estimator_from(made)
    return "" if estimator.are_effects else estimator.estimand


def _between(circuit: FeatureCircuit) -> list[str]:
    """Return the labels of sites that are no nodes, between others of their kind that are."""
    layers: dict[str, set[int]] = {}
    for site in (Site.parse(one.site) for one in circuit.sites):
        if site.layer is not None:
            layers.setdefault(site.name, set()).add(site.layer)
    return [
        CODED[name].format(layer=layer)
        for name, there in layers.items()
        for layer in range(min(there), max(there))
        if layer not in there
    ]


def _apart(circuit: FeatureCircuit) -> str:
    """Return why what flows into nodes does not add up to their effects."""
    made = circuit.provenance
    masked = (
        "of those pairs and positions where a node's effect exceeds the threshold "
        '(mask="original"); the effects shown are of all.'
    )
    if made["mask"] != "original":
        return (
            "edges in, below and unexplained add up to first-order effects in the clean run, which "
            "are not the effects shown: these come from another estimate."
        )
    if made["edge_slope"] == "clean":
        return f"edges in, below and unexplained are first-order effects in the clean run, {masked}"
    return f"edges in, below and unexplained are {masked}"


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
    names += ", ..." if len(circuit.orphans) > 5 else ""
    verb = "are orphans" if len(circuit.orphans) > 1 else "is an orphan"
    said = (
        f"{_several(len(circuit.orphans), 'node')} {verb}: of effect, but no slope leads there "
        f"({names})."
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
