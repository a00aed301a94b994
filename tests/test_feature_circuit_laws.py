"""Edges of a feature circuit: how they answer to changes of dictionaries, prompts and options."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import headwater as hw
import tiny_tasks
from circuit_cases import EMBED, LENGTH, STANDARD, Layout, dictionaries, found, pairs
from headwater.dictionaries import Dictionary, TopK
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import UnknownOptionError
from headwater.feature_circuits.kept import Kept
from headwater.feature_circuits.mistakes import residual_edges
from headwater.sites import Site
from shape_checks import unchecked

FIRST, LAST = Site(0, "resid_post"), Site(1, "resid_post")
MLP = Site(0, "mlp.out")


def changed(sources: Dictionaries, site: Site, **fields: object) -> Dictionaries:
    return Dictionaries({**sources, site: replace(sources[site], **fields)})


# --- the dictionaries ----------------------------------------------------------------


@pytest.mark.parametrize("site", [MLP, FIRST, LAST], ids=str)
def test_features_in_another_order_are_the_same_features(site):
    sources = dictionaries("Llama")
    one = sources[site]
    order = torch.randperm(one.features, generator=torch.Generator().manual_seed(3))
    shuffled = changed(
        sources, site, encoder=one.encoder[:, order], encoder_bias=one.encoder_bias[order],
        decoder=one.decoder[order],
    )  # fmt: skip
    before, after = (
        found("Llama", each, pairs(), aggregation="sum", slope="secant")
        for each in (sources, shuffled)
    )
    nodes = torch.cat([order, torch.tensor([one.features])])
    for (up, down), block in before.edges.blocks.items():
        weights = block.weights[nodes] if down == site else block.weights
        weights = weights[:, nodes] if up == site else weights
        assert_close(after.edges.blocks[up, down].weights, weights, rtol=1e-9, atol=1e-12)


def test_the_length_of_decoder_rows_changes_nothing():
    sources = dictionaries("GPT-NeoX")
    scaled = {}
    for site, one in sources.items():
        size = torch.linspace(0.3, 4.0, one.features, dtype=torch.float64)
        scaled[site] = replace(
            one, encoder=one.encoder / size, encoder_bias=one.encoder_bias / size,
            decoder=one.decoder * size[:, None],
        )  # fmt: skip
    before, after = (
        found("GPT-NeoX", each, pairs(), slope="secant") for each in (sources, Dictionaries(scaled))
    )
    for ends, block in before.edges.blocks.items():
        assert_close(after.edges.blocks[ends].weights, block.weights, rtol=1e-9, atol=1e-12)


def test_no_two_sites_need_the_same_number_of_features():
    fast = found("Llama", dictionaries("Llama"), pairs(), aggregation="sum")
    widths = [node.features for node in fast.nodes]
    assert len(set(widths)) == len(widths)
    for (up, down), block in fast.edges.blocks.items():
        sizes = (fast.nodes[fast.nodes.sites.index(site)].features + 1 for site in (down, up))
        assert tuple(block.weights.shape) == tuple(sizes)


# --- the prompts ---------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_batch_is_the_mean_of_its_prompts_alone(batch_size):
    task, sources = pairs(3), dictionaries("Llama")
    together = found("Llama", sources, task, batch_size=batch_size, slope="secant")
    alone = [found("Llama", sources, hw.Task([pair]), slope="secant") for pair in task.pairs]
    for ends, block in together.edges.blocks.items():
        mean = sum(one.edges.blocks[ends].weights for one in alone) / 3
        assert_close(block.weights, mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("slope", ["gradient", "secant"])
def test_edges_between_positions_add_up_to_edges_between_features(slope):
    sources = dictionaries("Llama")
    apart, together = (
        found("Llama", sources, pairs(), aggregation=aggregation, slope=slope)
        for aggregation in ("none", "sum")
    )
    for ends, block in together.edges.blocks.items():
        rows, columns = block.weights.shape
        weights = apart.edges.blocks[ends].weights.view(LENGTH, rows, LENGTH, columns)
        assert_close(block.weights, weights.sum((0, 2)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("subtract", [False, True])
def test_nothing_flows_from_positions_up_to_which_the_prompts_are_the_same(subtract):
    task = hw.Task([tiny_tasks.pair(LENGTH, seed=seed, changed=(1,)) for seed in (1, 2)])
    fast = found("Llama", dictionaries("Llama"), task, slope="secant", subtract=subtract)
    for block in fast.edges.blocks.values():
        columns = block.weights.shape[1] // LENGTH
        assert not block.weights[:, :columns].any()
        assert block.weights[:, columns:].any()


def test_prompts_of_several_lengths_are_padded_without_a_trace():
    lengths = (3, 5, 4)
    task = tiny_tasks.task(*lengths)
    sources = dictionaries("Llama")
    together = found("Llama", sources, task, aggregation="sum", slope="secant")
    alone = [
        found("Llama", sources, hw.Task([pair]), aggregation="sum", slope="secant")
        for pair in task.pairs
    ]
    for ends, block in together.edges.blocks.items():
        mean = sum(one.edges.blocks[ends].weights for one in alone) / len(lengths)
        assert_close(block.weights, mean, rtol=1e-9, atol=1e-12)


# --- what is kept --------------------------------------------------------------------


def test_a_site_of_which_no_node_is_kept_has_no_edges_and_takes_none_from_others():
    def without_mlp(kept, effects):
        return kept | {MLP: Kept(kept[MLP].node, ())}

    sources = dictionaries("Llama")
    whole = found("Llama", sources, pairs(), aggregation="sum")
    less = found("Llama", sources, pairs(), aggregation="sum", keep=without_mlp)
    for (up, down), block in whole.edges.blocks.items():
        if down == MLP:
            assert (up, down) not in less.edges.blocks
        elif up == MLP:
            assert less.edges.blocks[up, down].weights.shape == (len(block.weights), 0)
            assert_close(less.edges.blocks[up, down].total, block.total)
        else:
            assert_close(less.edges.blocks[up, down].weights, block.weights)


def test_edges_out_of_errors_are_not_zero():
    fast = found("Llama", dictionaries("Llama"), pairs(), aggregation="sum")
    for block in fast.edges.blocks.values():
        assert block.weights[:, -1].abs().max() > 1e-3


def test_a_circuit_accounts_for_everything_that_flows_into_a_node():
    circuit = hw.feature_circuit(
        tiny_tasks.model("GPT-NeoX"), pairs(), dictionaries("GPT-NeoX"), nodes=25,
        edge_threshold=0, steepest=1e9,
    )  # fmt: skip
    for node in circuit.nodes:
        if node.incoming is None:
            continue
        flow = node.incoming + node.below + node.unexplained
        assert flow == pytest.approx(node.effect, abs=1e-9)
        edges = sum(edge.weight for edge in circuit.into(node.name))
        assert edges == pytest.approx(node.incoming, abs=1e-12)
        if node.site.endswith("resid_post"):
            assert node.unexplained == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("edges", ["direct", "subtracted"])
def test_a_circuit_says_how_its_edges_were_computed(edges):
    circuit = hw.feature_circuit(
        tiny_tasks.model("Llama"), pairs(), dictionaries("Llama"), nodes=10, edges=edges
    )
    assert circuit.provenance["edges"] == edges


def test_a_misspelt_way_of_computing_edges_is_answered_with_the_closest():
    with unchecked(), pytest.raises(UnknownOptionError, match="'subtracted'"):
        hw.feature_circuit(
            tiny_tasks.model("Llama"), pairs(), dictionaries("Llama"), edges="subtract"
        )


def test_subtraction_without_the_mediators_is_refused_with_what_is_missing():
    layout = Layout(("mlp.out", "resid_post"))
    with pytest.raises(UnknownOptionError) as refused:
        found("Llama", dictionaries("Llama", layout), pairs(), layout=layout, subtract=True)
    assert "reaches layers.0.resid_post" in str(refused.value)
    assert "must be nodes: layers.0.attn.out." in str(refused.value)
    assert 'edges="direct"' in str(refused.value)


def test_subtraction_without_residuals_is_refused():
    layout = Layout(("attn.out", "mlp.out"))
    with pytest.raises(UnknownOptionError, match="no residual after a layer is a node here"):
        found("Llama", dictionaries("Llama", layout), pairs(), layout=layout, subtract=True)


# --- secants -------------------------------------------------------------------------


def pushed_out() -> Dictionaries:
    """Two features compete for one place; the second one's own pre-activation hardly moves.

    Feature 0 reads coordinate 0 and grows, feature 1 is a constant with 1e-6 of coordinate 1.
    """
    sources = dictionaries("Llama")
    width = sources[FIRST].d_in
    encoder = torch.zeros(width, 2, dtype=torch.float64)
    encoder[0, 0], encoder[1, 1] = 1.0, 1e-6
    one = Dictionary(
        encoder, torch.tensor([0.0, 0.2], dtype=torch.float64), sources[FIRST].decoder[:2],
        torch.zeros(width, dtype=torch.float64), TopK(1),
    )  # fmt: skip
    return Dictionaries({**sources, FIRST: one})


def test_a_feature_that_another_pushes_out_keeps_the_clean_slope_and_says_what_is_left():
    sources, task = pushed_out(), pairs(6)
    whole = hw.feature_circuit(
        tiny_tasks.model("Llama"), task, sources, node_threshold=0, edge_threshold=0,
        estimator=hw.Gradient(), steepest=10.0,
    )  # fmt: skip
    node = whole.node("r0.f1")
    (site,) = (one for one in whole.sites if one.label == "r0")
    states = found("Llama", sources, task)
    (one,) = states.runs
    state = one.state(states.nodes[states.nodes.sites.index(FIRST)])
    apart = state.moved @ sources[FIRST].encoder
    steep = (state.change.abs() > 10 * apart.abs()) & (state.change != 0)
    assert steep[..., 1].any()
    assert site.replaced == int(steep.sum())
    assert site.steepest <= 10.0
    # the clean slope is that of a feature that hardly reads anything
    assert abs(node.incoming + node.below) < 1e-4 * abs(node.effect)
    assert node.unexplained == pytest.approx(node.effect, rel=1e-3)


def test_the_report_of_secants_counts_what_changed_and_names_the_steepest():
    sources = dictionaries("Llama")
    loose = found("Llama", sources, pairs(), slope="secant", steepest=1e9)
    (one,) = loose.runs
    for node in list(loose.nodes)[1:]:
        state = one.state(node)
        apart = state.moved @ node.dictionary.encoder
        report = loose.edges.slopes[node.site]
        quotients = (state.change / apart)[apart != 0]
        assert report.active == int((state.change != 0).sum())
        assert report.replaced == 0
        assert report.steepest == pytest.approx(float(quotients.abs().max()))
        # of a ReLU a secant lies between the two slopes it has
        assert 0 <= float(quotients.min()) <= float(quotients.max()) <= 1 + 1e-9


def test_without_secants_nothing_flows_into_a_feature_that_is_off_in_the_clean_run():
    sources = dictionaries("Llama")
    secant, gradient = (
        found("Llama", sources, pairs(), slope=slope, aggregation="sum")
        for slope in ("secant", "gradient")
    )
    (one,) = gradient.runs
    state = one.state(gradient.nodes[gradient.nodes.sites.index(LAST)])
    off = ((state.features == 0).all((0, 1)) & (state.change != 0).any((0, 1))).nonzero().flatten()
    assert len(off)
    incoming = gradient.into(LAST)[off], secant.into(LAST)[off]
    assert not incoming[0].any()
    assert_close(incoming[1], secant.own(LAST)[off])


# --- indirect terms ------------------------------------------------------------------


@given(
    family=st.sampled_from(["Llama", "GPT-2", "GPT-NeoX", "Gemma 2"]),
    threshold=st.sampled_from([0.0, 0.001, 0.01]),
    batch_size=st.integers(1, 4),
    lengths=st.lists(st.integers(3, 7), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_indirect_terms_are_never_all_zero(family, threshold, batch_size, lengths, seed):
    layer = seed % 2
    right = residual_edges(
        tiny_tasks.model(family), tiny_tasks.task(*lengths, seed=seed), dictionaries(family), layer,
        node_threshold=threshold, batch_size=batch_size,
    )  # fmt: skip
    assert right.indirect.norm() > 1e-6 * right.total.norm() > 0


def test_the_embedding_is_a_node_by_default():
    assert EMBED in found("Llama", dictionaries("Llama"), pairs(), layout=STANDARD).nodes.sites
