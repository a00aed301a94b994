"""Circuits of features in every family: what flows out of a node and into a residual adds up."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

import headwater as hw
from coded_cases import dictionaries, task
from tiny_models import BUILDERS
from tiny_tasks import model


@pytest.mark.parametrize("family", BUILDERS)
def test_edges_add_up_out_of_every_node_and_into_every_residual(family):
    found = model(family)
    given = dictionaries(found, names=(*found.anatomy().writes, "resid_post"))
    circuit = hw.feature_circuit(
        found, task(), given, node_threshold=0.0, edge_threshold=0.0, estimator=hw.Gradient()
    )
    out: dict[str, float] = defaultdict(float)
    for edge in circuit.edges:
        out[edge.source] += edge.weight
    # with every node kept, sums of some thousand float64 products of size one
    for node in circuit.nodes:
        assert out[node.name] == pytest.approx(node.effect, abs=1e-13)
        if node.site.endswith("resid_post"):
            assert node.unexplained == pytest.approx(0, abs=1e-13)
            assert node.incoming == pytest.approx(node.effect, abs=1e-13)


@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX", "Mamba"])
@pytest.mark.parametrize("sites", [("resid_post",), ("out",)])
def test_sites_that_are_no_nodes_are_passed_through(family, sites):
    found = model(family)
    writes = found.anatomy().writes
    names = sites if sites[0] == "resid_post" else (writes[-1],)
    given = dictionaries(found, names=names)
    circuit = hw.feature_circuit(
        found, task(), given, node_threshold=0.0, edge_threshold=0.0, estimator=hw.Gradient()
    )
    out: dict[str, float] = defaultdict(float)
    for edge in circuit.edges:
        out[edge.source] += edge.weight
    for node in circuit.nodes:
        assert out[node.name] == pytest.approx(node.effect, abs=1e-13)


@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX"])
def test_bfloat16_models_run_and_stay_near_float32(family):
    found = model(family, torch.float32)
    given = dictionaries(found)
    wide = hw.feature_circuit(found, task(), given, nodes=20)
    narrow = hw.feature_circuit(found, task(), given, nodes=20, dtype="bfloat16")
    effects = {node.name: node.effect for node in narrow.nodes}
    shared = [node for node in wide.nodes if node.name in effects]
    assert len(shared) >= 15
    for node in shared:
        # bfloat16 keeps eight bits: effects of size one, made of hundreds of products
        assert effects[node.name] == pytest.approx(node.effect, abs=0.1)


def test_a_site_without_a_dictionary_is_one_node():
    found = model("Llama")
    given = dictionaries(found, names=("resid_post",))
    sites = ["embed", "layers.0.attn.out", "layers.0.mlp.out", *(str(site) for site in given)]
    circuit = hw.feature_circuit(
        found, task(), given, node_threshold=0.0, edge_threshold=0.0, sites=sites
    )
    assert {"input", "a0", "m0"} <= {node.name for node in circuit.nodes}
    assert [node.kind for node in circuit.nodes if node.name == "a0"] == ["site"]
    # r0 is a sum of nodes, so its edges are explained; r1 is reached through layer 1
    for node in circuit.nodes:
        if node.site == "layers.0.resid_post":
            assert node.unexplained == pytest.approx(0, abs=1e-13)
