"""Edges of a feature circuit: identities that hold whatever the model and the dictionaries are.

All in true float64. What is compared agrees up to rounding, which is 1e-16 for each of some hundred
products in a row: 1e-11 of the largest number is far above it, and far below any mistake.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

import headwater as hw
import tiny_tasks
from circuit_cases import (
    EMBED,
    FAMILIES,
    LAYOUTS,
    LENGTH,
    SERIAL,
    STANDARD,
    Found,
    Layout,
    dictionaries,
    found,
    pairs,
    twin,
)
from circuit_twins import ids_of
from headwater.dictionaries import Gated, JumpRelu, Relu
from headwater.dictionaries.collection import Dictionaries
from headwater.dictionaries.dictionary import Dictionary
from headwater.sites import Site

ROUNDING = 1e-11
LAST = Site(1, "resid_post")
(PAIR,) = pairs(1).pairs  # that a batch is the mean of its pairs is a test of its own
FAMILIES_AND_LAYOUTS = [
    *((family, "standard") for family in FAMILIES),
    *(("Llama", layout) for layout in LAYOUTS if layout != "standard"),
    ("GPT-NeoX", "residuals alone"),
]


def close(one: Tensor, other: Tensor, tolerance: float = ROUNDING) -> None:
    """Assert that two tensors agree, relative to the largest number in them."""
    size = float(torch.maximum(one.abs().max(), other.abs().max()))
    assert float((one - other).abs().max()) <= tolerance * max(size, 1e-3)


@functools.cache
def circuit(family: str, layout: str) -> Found:
    """Every edge by headwater, position by position."""
    chosen = LAYOUTS[layout]
    return found(family, dictionaries(family, chosen), pairs(1), layout=chosen)


@functools.cache
def dense(family: str, layout: str) -> dict[tuple[Site, Site], Tensor]:
    """Every edge by dense Jacobians, [row, column] as `every` lists nodes."""
    sources = dictionaries(family, LAYOUTS[layout])
    slow = twin(family, sources, LAYOUTS[layout])
    return {
        (up, down): slow.edges(PAIR, up, down).flatten(2).flatten(0, 1)
        for place, down in enumerate(slow.sites)
        for up in slow.sites[:place]
    }


def by_node(block: Tensor) -> Tensor:
    """Sum the positions of a block of `dense` up."""
    rows, columns = (size // LENGTH for size in block.shape)
    return block.view(LENGTH, rows, LENGTH, columns).sum((0, 2))


# --- I0 ------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "layout"), FAMILIES_AND_LAYOUTS)
def test_i0_features_and_error_of_every_site_put_in_its_place_leave_the_logits(family, layout):
    model, sources = tiny_tasks.model(family), dictionaries(family, LAYOUTS[layout])
    ids = ids_of(PAIR.clean)
    seen: dict[Site, Tensor] = {}

    def put(site: Site):
        dictionary, read = sources[site], sources.reads(site)

        def tap(value: Tensor) -> Tensor:
            flat = value.flatten(2)
            features = dictionary.encode(seen[read] if read != site else flat)
            error = dictionary.error(features, flat)
            return (dictionary.decode(features) + error).view(value.shape)

        return tap

    taps = {site: put(site) for site in sources}
    taps |= {
        read: functools.partial(seen.__setitem__, read)
        for read in map(sources.reads, sources)
        if read not in sources
    }
    with torch.no_grad():
        close(model.forward(ids, taps=taps), model.forward(ids))


# --- I1 ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "layout"),
    [one for one in FAMILIES_AND_LAYOUTS if "resid_post" in LAYOUTS[one[1]].names],
)
def test_i1_edges_out_of_a_node_add_up_to_its_first_order_effect(family, layout):
    sources = dictionaries(family, LAYOUTS[layout])
    effects = twin(family, sources, LAYOUTS[layout]).effects(PAIR)
    fast = circuit(family, layout)
    for site in fast.nodes.sites[:-1]:
        close(fast.own(site), effects[site].flatten())
        close(fast.out_of(site), effects[site].flatten())


def test_i1_what_passes_no_other_node_is_the_edge_into_the_metric():
    layout = LAYOUTS["no residual"]
    whole = hw.feature_circuit(
        tiny_tasks.model("Llama"), pairs(), dictionaries("Llama", layout), estimator=hw.Gradient(),
        node_threshold=0, edge_threshold=0, slope="gradient", sites=layout.sites(),
    )  # fmt: skip
    for node in whole.nodes:
        out = sum(edge.weight for edge in whole.out_of(node.name))
        assert out == pytest.approx(node.effect, abs=1e-12)


# --- I2 ------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "aggregation"), [("gradient", "none"), ("secant", "sum")])
@pytest.mark.parametrize("family", [*FAMILIES, "Mamba"])
def test_i2_subtracting_what_passes_the_mediators_is_holding_them(family, slope, aggregation):
    layout = Layout(("mixer.out", "resid_post")) if family == "Mamba" else STANDARD
    how = {"layout": layout, "slope": slope, "aggregation": aggregation}
    sources = dictionaries(family, layout)
    held = found(family, sources, pairs(), **how).edges.blocks
    subtracted = found(family, sources, pairs(), subtract=True, **how).edges.blocks
    assert held.keys() == subtracted.keys()
    for ends, block in held.items():
        close(block.weights, subtracted[ends].weights)
        close(block.total, subtracted[ends].total)


@pytest.mark.parametrize("layout", ["whole attention", "layer norm", "transcoders"])
def test_i2_holds_whatever_the_dictionaries_of_the_mediators_are(layout):
    sources = dictionaries("Llama", LAYOUTS[layout])
    held, subtracted = (
        found("Llama", sources, pairs(), layout=LAYOUTS[layout], subtract=subtract).edges.blocks
        for subtract in (False, True)
    )
    for ends, block in held.items():
        close(block.weights, subtracted[ends].weights)


def test_i2_holds_for_residuals_in_the_middle_of_a_layer():
    layout = Layout(("attn.out", "resid_mid", "mlp.out", "resid_post"))
    sources = dictionaries("Llama", layout)
    held, subtracted = (
        found("Llama", sources, pairs(), layout=layout, subtract=subtract)
        for subtract in (False, True)
    )
    for ends, block in held.edges.blocks.items():
        close(block.weights, subtracted.edges.blocks[ends].weights)
    for site in held.nodes.sites[:-1]:
        close(held.out_of(site), held.own(site))


# --- I3 ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Llama", "Granite", "GPT-NeoX"])
def test_i3_an_edge_between_residuals_is_a_product_of_encoder_and_decoder(family):
    sources, first = dictionaries(family), Site(0, "resid_post")
    slow, fast = twin(family, sources), circuit(family, "standard")
    down, up = sources[LAST], sources[first]
    active = slow.coded(ids_of(PAIR.clean), [LAST])[0][LAST][0] > 0
    slope, change = slow.slopes(PAIR)[LAST], slow.change(PAIR)[first]
    block = fast.edges.blocks[first, LAST].weights
    block = block.view(LENGTH, down.features + 1, LENGTH, up.features + 1)
    for j in range(down.features):
        for i in range(up.features):
            inner = sum(
                float(down.encoder[k, j]) * float(up.decoder[i, k]) for k in range(up.d_out)
            )
            for at in range(LENGTH):
                edge = float(slope[at, j]) * bool(active[at, j]) * inner * float(change[at, i])
                assert float(block[at, j, at, i]) == pytest.approx(edge, abs=1e-12)


# --- I4 ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX", "Gemma 2"])
def test_i4_an_edge_is_the_slope_of_its_intervention_by_central_differences(family):
    sources = dictionaries(family)
    slow, fast = twin(family, sources), circuit(family, "standard")
    clean, _ = slow.coded(ids_of(PAIR.clean), slow.sites)
    step = 1e-5  # squared, and 1e-16 over it: both below 1e-9 of the largest edge
    for (up, down), block in fast.edges.blocks.items():
        features = sources[up].features
        weights = block.weights.view(LENGTH, -1, LENGTH, features + 1)
        largest = weights[..., :features].abs().sum((0, 1)).flatten().topk(2).indices.tolist()
        for position, i in (divmod(place, features) for place in largest):
            moved = torch.zeros_like(clean[up][0])
            moved[position, i] = step
            above, below = (
                slow.reached(PAIR, up, down, clean[up][0] + sign * moved) for sign in (1, -1)
            )
            rate = (above - below).detach() / (2 * step) * slow.slopes(PAIR)[down]
            own = sources[down].features
            rate = torch.cat([rate[:, :own], rate[:, own:].sum(-1, keepdim=True)], -1)
            estimate = rate * slow.change(PAIR)[up][position, i]
            close(weights[..., position, i], estimate, 1e-7)


# --- I5 ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["standard", "residuals alone", "heads and neurons"])
def test_i5_nothing_flows_from_a_later_position(layout):
    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    for block in circuit("Llama", layout).edges.blocks.values():
        rows, columns = (size // LENGTH for size in block.weights.shape)
        weights = block.weights.view(LENGTH, rows, LENGTH, columns).transpose(1, 2)
        assert not weights[later].any()


@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX"])
def test_i5_only_attention_moves_between_positions(family):
    apart = ~torch.eye(LENGTH, dtype=torch.bool)
    for (_, down), block in dense(family, "standard").items():
        rows, columns = (size // LENGTH for size in block.shape)
        crossing = block.view(LENGTH, rows, LENGTH, columns).transpose(1, 2)[apart]
        assert bool(crossing.any()) == (down.name == "attn.out" and bool(block.any()))


# --- I6 and I7 -----------------------------------------------------------------------


def identity(width: int) -> Dictionary:
    """Every coordinate is a feature that is always active."""
    shift, eye = 100.0, torch.eye(width, dtype=torch.float64)
    ones = torch.ones(width, dtype=torch.float64)
    return Dictionary(eye, shift * ones, eye, -shift * ones)


@pytest.mark.parametrize("family", FAMILIES)
def test_i6_with_identity_dictionaries_edges_into_a_residual_add_up_to_the_effect(family):
    width = tiny_tasks.model(family).anatomy().d_model
    sources = Dictionaries({site: identity(width) for site in STANDARD.sites()})
    fast = found(family, sources, pairs())
    for layer in (0, 1):
        site = Site(layer, "resid_post")
        close(fast.into(site), fast.own(site))


KINDS = {
    "relu": lambda n: {"activation": Relu()},
    "jump": lambda n: {"activation": JumpRelu(torch.full((n,), 0.2, dtype=torch.float64))},
    "gated": lambda n: {
        "activation": Gated(
            *(
                torch.linspace(low, high, n, dtype=torch.float64)
                for low, high in ((-0.3, 0.1), (-0.2, 0.2), (0.8, 1.4))
            )
        )
    },
    "layer norm": lambda n: {"scaling": "layer_norm"},
    "constant norm": lambda n: {"scaling": "constant_norm"},
}


@pytest.mark.parametrize("family", ["GPT-NeoX", "Granite"])
@pytest.mark.parametrize("kind", KINDS)
def test_i7_with_secant_slopes_edges_into_a_residual_add_up_for_any_dictionary(family, kind):
    plain = dictionaries(family)
    sources = Dictionaries(
        {
            site: Dictionary(
                one.encoder, one.encoder_bias, one.decoder, one.decoder_bias,
                **KINDS[kind](one.features),
            )
            for site, one in plain.items()
        }
    )  # fmt: skip
    slow = twin(family, sources)
    each = [slow.effects(pair) for pair in pairs().pairs]
    secant, gradient = (
        found(family, sources, pairs(), slope=slope) for slope in ("secant", "gradient")
    )
    for layer in (0, 1):
        site = Site(layer, "resid_post")
        effects = (sum(effects[site] for effects in each) / len(each)).flatten()
        # a secant divides by how far a pre-activation moved, which may be little
        close(secant.into(site), effects, 1e-9)
        assert (gradient.into(site) - effects).abs().max() > 0.05 * effects.abs().max()


# --- I8 ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["GPT-2", "GPT-NeoX", "Gemma 2"])
def test_i8_effects_along_a_sites_path_add_up_to_its_exact_change(family):
    sources = dictionaries(family)
    slow = twin(family, sources)
    exact = [
        sum(slow.exact(pair, site) for pair in pairs().pairs) / len(pairs().pairs)
        for site in slow.sites
    ]
    few, many = (
        found(
            family,
            sources,
            pairs(),
            estimator=hw.IntegratedGradients(steps=steps),
            aggregation="sum",
        )
        for steps in (2, 32)
    )
    for site, truth in zip(slow.sites, exact, strict=True):
        assert few.effects[site].exact == pytest.approx(truth, abs=1e-11)
        off, rest = (abs(float(one.own(site).sum()) - truth) for one in (few, many))
        # Gauss-Legendre: the error falls exponentially on a smooth path. Embeddings of these models
        # are so small that theirs goes by the singular point of the norm
        assert rest < (off if site == EMBED else 1e-3 * off)


# --- I9 ------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "layout"), FAMILIES_AND_LAYOUTS)
def test_i9_edges_are_entries_of_a_dense_jacobian(family, layout):
    chosen = LAYOUTS[layout]
    blocks = circuit(family, layout).edges.blocks
    summed = found(
        family, dictionaries(family, chosen), pairs(1), layout=chosen, aggregation="sum"
    ).edges.blocks
    for ends, expected in dense(family, layout).items():
        if ends not in blocks:
            assert not expected.any()
            continue
        close(blocks[ends].weights, expected)
        close(blocks[ends].total, expected.sum(1))
        close(summed[ends].weights, by_node(expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_reaches_the_mlp_of_its_layer_where_blocks_are_serial_and_only_there(family):
    reached = dense(family, "standard")[Site(0, "attn.out"), Site(0, "mlp.out")].any()
    assert bool(reached) == (family in SERIAL)
