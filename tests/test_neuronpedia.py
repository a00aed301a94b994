"""Circuits as attribution graphs: what the viewers' schema asks for, and what they do beyond it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

import feature_circuit_cases as cases
from headwater.errors import ResultError
from headwater.feature_circuits.collect import Graph
from headwater.feature_circuits.neuronpedia import graph
from headwater.feature_circuits.result import FeatureCircuit

# The schema that Neuronpedia checks uploads against (draft-07), read in 2026: of each object the
# keys that must be, and the types of those that may.
TOP = {"metadata": dict, "qParams": dict, "nodes": list, "links": list}
METADATA = {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str}
OPTIONAL = {
    "feature_details": dict,
    "node_threshold": (int, float),
    "info": dict,
    "generation_settings": dict,
    "pruning_settings": dict,
}
QUERY = {"pinnedIds": list, "supernodes": list, "linkType": str, "clickedId": str, "sg_pos": str}
NODE = {
    "node_id": str,
    "feature": (int, type(None)),
    "layer": (str, int),
    "ctx_idx": int,
    "feature_type": str,
    "jsNodeId": str,
    "clerp": str,
}
MAYBE = {"influence": (int, float, type(None)), "activation": (int, float, type(None))}
LINK = {"source": str, "target": str, "weight": (int, float)}
TYPES = {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}


def has(data: dict[str, Any], required: dict[str, Any], optional: dict[str, Any] | None = None):
    assert set(required) <= set(data)
    for key, kinds in {**required, **(optional or {})}.items():
        if key in data:
            assert isinstance(data[key], kinds), key
            assert not isinstance(data[key], bool), key


def valid(data: dict[str, Any]) -> None:
    has(data, TOP)
    has(data["metadata"], METADATA, OPTIONAL)
    assert all(isinstance(token, str) for token in data["metadata"]["prompt_tokens"])
    has(data["qParams"], {}, QUERY)
    for node in data["nodes"]:
        has(node, NODE, MAYBE)
        assert node["feature_type"] in TYPES
        assert 0 <= node["ctx_idx"] < len(data["metadata"]["prompt_tokens"])
    for link in data["links"]:
        has(link, LINK)
        assert math.isfinite(link["weight"])


def written(circuit: FeatureCircuit, tmp_path: Any, **options: Any) -> dict[str, Any]:
    path = circuit.export(tmp_path / "graph.json", **options)
    return json.loads(path.read_text(encoding="utf-8"))


def by_label(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["clerp"].split(":")[0]: node for node in data["nodes"]}


@pytest.mark.parametrize("aggregation", ["sum", "none"])
def test_a_written_graph_has_every_key_and_type_of_the_schema(tmp_path, aggregation):
    data = written(cases.known(aggregation), tmp_path)
    valid(data)
    assert len(data["nodes"]) == len(cases.known(aggregation).nodes) + 1


@pytest.mark.parametrize("aggregation", ["sum", "none"])
def test_links_are_the_edges_with_their_signs(aggregation):
    circuit = cases.known(aggregation)
    data = graph(circuit)
    names = {node["node_id"]: label for label, node in by_label(data).items()}
    assert len(names) == len(data["nodes"])  # no two nodes share an id
    output = data["nodes"][-1]["node_id"]
    found = [
        (names[link["source"]], "logits" if link["target"] == output else names[link["target"]],
         link["weight"])
        for link in data["links"]
    ]  # fmt: skip
    assert found == [(edge.source, edge.target, edge.weight) for edge in circuit.edges]
    assert min(link["weight"] for link in data["links"]) < 0


def test_nodes_stand_at_their_token_or_at_the_last(tmp_path):
    last = len(cases.known().tokens[0]) - 1
    assert {node["ctx_idx"] for node in graph(cases.known())["nodes"]} == {last}
    nodes = by_label(graph(cases.known("none")))
    for node in cases.known("none").nodes:
        assert nodes[node.name]["ctx_idx"] == node.position


@pytest.mark.parametrize("aggregation", ["sum", "none"])
def test_placeholders_are_said_to_be_some(aggregation):
    data = graph(cases.known(aggregation))
    said = data["metadata"]["info"]["description"]
    assert "its p=1.000 is no probability" in said
    assert ("nodes stand at the last token means nothing" in said) == (aggregation == "sum")
    assert "The tokens are those of the first of 6 prompts." in said


def test_no_two_nodes_are_one_to_a_viewer():
    # viewers tell nodes at one layer and token apart by the number `feature` alone
    for circuit in (cases.known(), cases.known("none")):
        nodes = graph(circuit)["nodes"]
        assert len({(n["layer"], n["ctx_idx"], n["feature"]) for n in nodes}) == len(nodes)
        assert len({n["jsNodeId"] for n in nodes}) == len(nodes)


def test_sites_that_share_a_layer_have_rows_in_the_order_of_the_forward_pass():
    circuit = cases.known()
    rows = {}
    for node in circuit.nodes:
        row = by_label(graph(circuit))[node.name]["layer"]
        if row != "E":
            rows.setdefault(int(row), set()).add(node.site)
    kept = [site.site for site in circuit.sites if site.kept and site.site != "embed"]
    assert [rows[row] for row in sorted(rows)] == [{site} for site in kept]
    labels = {site.site: site.label for site in circuit.sites}
    description = graph(circuit)["metadata"]["info"]["description"]
    for row, (site,) in rows.items():
        assert f" {row} {labels[site]}" in description


def only(circuit: FeatureCircuit, ending: str) -> FeatureCircuit:
    """The circuit of the nodes at some sites alone, without edges."""
    kept = tuple(node for node in circuit.nodes if node.site.endswith(ending))
    sites = tuple(
        replace(site, kept=sum(node.site == site.site for node in kept)) for site in circuit.sites
    )
    old = circuit.graph
    none = old.sources[:0], old.targets[:0], old.weights[:0]
    return replace(circuit, graph=Graph(kept, *none, 0, 0.0, sites))


def test_one_site_a_layer_is_its_layer_and_pairs_it_with_the_feature_as_viewers_expect():
    circuit = only(cases.known(), "resid_post")
    for node in circuit.nodes:
        found = by_label(graph(circuit))[node.name]
        layer = int(node.site.split(".")[1])
        assert found["layer"] == str(layer)
        if node.index is None:
            assert found["feature_type"] == "mlp reconstruction error"
            continue
        # what a viewer takes the number apart with
        total = math.floor((math.sqrt(8 * found["feature"] + 1) - 1) / 2)
        index = found["feature"] - total * (total + 1) // 2
        assert (total - index, index) == (layer, node.index)
        assert found["feature_type"] == "cross layer transcoder"
        assert found["node_id"].startswith(f"{layer}_{node.index}_")


def test_the_metric_is_above_all_with_a_label_that_viewers_can_read():
    for circuit in (cases.known(), cases.known("none")):
        *nodes, output = graph(circuit)["nodes"]
        assert output["feature_type"] == "logit"
        assert int(output["layer"]) == 1 + max(int(n["layer"]) for n in nodes if n["layer"] != "E")
        assert float(output["clerp"].split("(p=")[1].split(")")[0]) == output["token_prob"]
        assert output["clerp"].startswith('Output "logit-diff"')


def test_a_graph_always_has_a_row_above_zero():
    # viewers refuse one whose highest row is 0
    circuit = only(cases.known(), "0.mlp.out")
    assert circuit.nodes
    assert {node["layer"] for node in graph(circuit)["nodes"][:-1]} == {"1"}


def test_the_embedding_as_a_whole_is_the_tokens_only_where_it_has_positions():
    placed = [n for n in graph(cases.known("none"))["nodes"] if n["layer"] == "E"]
    assert placed
    for node in placed:
        assert node["feature_type"] == "embedding"
        assert node["feature"] == node["ctx_idx"]
    (whole,) = (n for n in graph(cases.known())["nodes"] if n["layer"] == "E")
    assert whole["feature_type"] != "embedding"
    assert whole["clerp"] == "input"


def test_annotations_are_labels(tmp_path):
    node = next(n for n in cases.known("none").nodes if n.kind == "feature")
    base = node.name.split("@")[0]
    data = written(cases.known("none"), tmp_path, annotations={base: "plural nouns"})
    assert by_label(data)[node.name]["clerp"] == f"{node.name}: plural nouns"


def test_names_there_are_as_asked(tmp_path):
    data = written(cases.known(), tmp_path, slug="my-graph", scan="gemma-2-2b", source_set="scope")
    assert data["metadata"]["slug"] == "my-graph"
    assert data["metadata"]["scan"] == "gemma-2-2b"
    assert data["metadata"]["feature_details"] == {"neuronpedia_source_set": "scope"}
    plain = graph(cases.known())["metadata"]
    assert "feature_details" not in plain
    assert plain["prompt_tokens"] == list(cases.known().tokens[0])


def test_a_slug_that_could_not_stand_in_an_address_is_refused(tmp_path):
    with pytest.raises(ResultError) as caught:
        cases.known().export(tmp_path / "graph.json", slug="My graph!")
    assert str(caught.value) == (
        "slug='My graph!' stands in an address: small letters, digits and dashes.\n"
        "Type slug='my-graph'."
    )
    assert not (tmp_path / "graph.json").exists()
