"""A circuit as the JSON that attribution graph viewers open: Neuronpedia's and circuit-tracer's.

What the viewers expect beyond their schema decides the form. A node's place is its layer and token;
two nodes at one place are told apart by the number `feature` alone, and the label of the output
must hold a probability. Where several sites of a layer have nodes, rows are therefore the sites in
the order of the forward pass instead of layers, and the description lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from headwater import strict_json
from headwater.errors import ResultError
from headwater.feature_circuits.annotations import Annotations, annotation_of
from headwater.feature_circuits.nodes import Node
from headwater.feature_circuits.words import title
from headwater.files import write_text
from headwater.sites import Site

if TYPE_CHECKING:
    from headwater.feature_circuits.result import FeatureCircuit

SCHEMA_VERSION = 1
"""Of circuit-tracer: `feature` is layer and number in one."""
FEATURE = "cross layer transcoder"
ERROR = "mlp reconstruction error"
INPUT = "embedding"
OUTPUT = "logit"
EMBED = "embed"
Rows: TypeAlias = Mapping[Site, int]


def export(
    circuit: FeatureCircuit,
    path: str | Path,
    *,
    slug: str | None,
    scan: str | None,
    source_set: str | None,
    annotations: Annotations,
) -> Path:
    """Write a circuit as a graph that Neuronpedia and circuit-tracer open.

    Args:
        circuit: The circuit.
        path: The file.
        slug: The graph's name there.
        scan: The model's name there.
        source_set: Where the viewer finds dashboards of the features.
        annotations: Text by name.

    Returns:
        The file.

    Raises:
        ResultError: If the slug could not stand in an address.
    """
    path = Path(path)
    data = graph(circuit, slug=slug, scan=scan, source_set=source_set, annotations=annotations)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, strict_json.dumped(data))
    return path


def graph(
    circuit: FeatureCircuit,
    *,
    slug: str | None = None,
    scan: str | None = None,
    source_set: str | None = None,
    annotations: Annotations | None = None,
) -> dict[str, Any]:
    """Return the graph as plain data; arguments as for `export`.

    Raises:
        ResultError: If the slug could not stand in an address.
    """
    rows = rows_of(circuit)
    tokens = _tokens(circuit)
    nodes = [_node(node, rows, tokens, annotations or {}) for node in circuit.nodes]
    nodes.append(_output(circuit, rows, tokens))
    ids = [node["node_id"] for node in nodes]
    found = circuit.graph
    return {
        "metadata": _metadata(circuit, rows, tokens, slug, scan, source_set),
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": [
            {"source": ids[source], "target": ids[target], "weight": weight}
            for source, target, weight in zip(
                found.sources.tolist(), found.targets.tolist(), found.weights.tolist(), strict=True
            )
        ],
    }


def rows_of(circuit: FeatureCircuit) -> Rows:
    """Return the row of each site that has nodes: its layer, if no other site shares it."""
    kept = [one for one in circuit.sites if one.kept]
    # the embedding as a whole has a row of its own, under all others
    sites = [Site.parse(one.site) for one in kept if one.site != EMBED or one.features]
    rows = {Site.parse(one.site): 0 for one in kept if one.site == EMBED and not one.features}
    layers = [site.layer for site in sites if site.layer is not None]
    # viewers refuse a graph whose only row is 0
    if len(set(layers)) < len(sites) or max(layers, default=0) == 0:
        return rows | {site: row for row, site in enumerate(sites, start=1)}
    return rows | dict(zip(sites, layers, strict=True))


def _tokens(circuit: FeatureCircuit) -> list[str]:
    """Return the tokens of the first prompt, or numbers for those that no text is kept of."""
    known = list(circuit.tokens[0]) if circuit.tokens else []
    last = max((node.position or 0 for node in circuit.nodes), default=0)
    return known + [str(place) for place in range(len(known), last + 1)]


def _node(node: Node, rows: Rows, tokens: list[str], annotations: Annotations) -> dict[str, Any]:
    site = Site.parse(node.site)
    place = len(tokens) - 1 if node.position is None else node.position
    row = rows[site]
    if node.site == EMBED and node.index is None and node.kind == "site":
        # viewers write the token over an input's label: without a position it is none
        kind = FEATURE if node.position is None else INPUT
        number, layer, feature = place, "E", place
    elif node.index is None:
        number, layer, kind, feature = -1, str(row), ERROR, -1
    else:
        number, layer, kind, feature = node.index, str(row), FEATURE, _paired(row, node.index)
    said = annotation_of(annotations, node.name)
    return {
        "node_id": f"{layer}_{number}_{place}",
        "feature": feature,
        "layer": layer,
        "ctx_idx": place,
        "feature_type": kind,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{layer}_{number}-{place}",
        "clerp": f"{node.name}: {said}" if said else node.name,
        "influence": None,
        "activation": None,
        "effect": node.effect,
    }


def _output(circuit: FeatureCircuit, rows: Rows, tokens: list[str]) -> dict[str, Any]:
    """Return the node of the metric, above all others and at the last token."""
    layer, place = str(max(rows.values(), default=0) + 1), len(tokens) - 1
    name = circuit.provenance["task"]["metric"]["name"]
    return {
        "node_id": f"{layer}_0_{place}",
        "feature": 0,
        "layer": layer,
        "ctx_idx": place,
        "feature_type": OUTPUT,
        "token_prob": 1.0,
        "is_target_logit": True,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"L_0-{place}",
        # viewers read a probability out of this label; a metric has none
        "clerp": f'Output "{name}" (p=1.000)',
        "influence": None,
        "activation": None,
        "effect": circuit.clean,
    }


def _metadata(
    circuit: FeatureCircuit,
    rows: Rows,
    tokens: list[str],
    slug: str | None,
    scan: str | None,
    source_set: str | None,
) -> dict[str, Any]:
    made = circuit.provenance
    model, task = str(made["model"]["name"]), str(made["task"]["name"])
    slug = _slug(f"{task}-{model}") if slug is None else slug
    if slug != _slug(slug) or not slug:
        raise ResultError(
            f"slug={slug!r} stands in an address: small letters, digits and dashes.\n"
            f"Type slug={_slug(slug) or 'my-circuit'!r}."
        )
    labels = {Site.parse(one.site): one.label for one in circuit.sites}
    listed = ", ".join(f"{row} {labels[site]}" for site, row in rows.items())
    found = {
        "slug": slug,
        "scan": model if scan is None else scan,
        "transcoder_list": [],
        "prompt_tokens": tokens,
        "prompt": "".join(tokens),
        "schema_version": SCHEMA_VERSION,
        "info": {
            "description": f"{title(circuit)}. Weights are changes of the metric, positive "
            f"supports. Rows: {listed}. {_placeholders(circuit)}",
            "generator": {"name": "headwater", "version": made["versions"].get("headwater", "")},
        },
        "generation_settings": {
            key: made[key] for key in ("aggregation", "slope", "edge_slope", "batch_size")
        },
        "pruning_settings": {"edge_threshold": made["edge_threshold"]},
    }
    if made["node_threshold"] is not None:
        found["pruning_settings"]["node_threshold"] = made["node_threshold"]
    if source_set is not None:
        found["feature_details"] = {"neuronpedia_source_set": source_set}
    return found


def _placeholders(circuit: FeatureCircuit) -> str:
    """Return what of the graph says nothing, because the form asks for more than a circuit has."""
    said = "The output is the metric; its p=1.000 is no probability."
    if circuit.provenance["aggregation"] == "sum":
        said += " Positions are added up: that nodes stand at the last token means nothing."
    pairs = len(circuit.provenance["task"]["pairs"])
    return said + (f" The tokens are those of the first of {pairs} prompts." if pairs > 1 else "")


def _slug(text: str) -> str:
    letters = "".join(one if one.isascii() and one.isalnum() else "-" for one in text.lower())
    return "-".join(part for part in letters.split("-") if part)


def _paired(first: int, second: int) -> int:
    """Return two numbers as one, by Cantor's pairing: how viewers find layer and feature again."""
    total = first + second
    return total * (total + 1) // 2 + second
