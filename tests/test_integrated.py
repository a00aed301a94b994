"""Integrated gradients: closed forms, completeness, jumps, and the model's own paths by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from headwater.errors import MissingCapabilityError, UnknownOptionError
from headwater.estimators import Estimate
from headwater.estimators.quadrature import Rule
from headwater.gates import Family
from headwater.sites import Site
from shape_checks import unchecked
from tiny_tasks import gated, model, one_of_each, task

DOUBLE = torch.float64
PATHS = ("family", "component", "joint")


def function(fn, *names: str, families: tuple[Family, ...] = ()) -> hw.GatedFunction:
    return hw.GatedFunction(fn, names, families=families, dtype=DOUBLE)


def estimate(f: hw.GatedFunction, **options) -> Estimate:
    return hw.IntegratedGradients(**options).estimate(f)


# --- rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gauss", "midpoint", "left"])
@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_weights_of_every_rule_sum_to_one(name, steps):
    rule = Rule.of(name, steps)
    assert len(rule.points) == steps
    assert sum(rule.weights) == pytest.approx(1, abs=1e-14)


@given(steps=st.integers(1, 8), powers=st.lists(st.floats(-3, 3), min_size=1, max_size=16))
def test_gauss_is_exact_up_to_degree_two_n_minus_one(steps, powers):
    powers = powers[: 2 * steps]
    rule = Rule.of("gauss", steps)
    found = sum(w * np.polyval(powers, p) for w, p in zip(rule.weights, rule.points, strict=True))
    exact = np.polyval(np.polyint(powers), 1.0)
    assert found == pytest.approx(exact, abs=1e-12)


def test_left_takes_the_left_ends_and_midpoint_the_middles():
    assert Rule.of("left", 4).points == (0, 0.25, 0.5, 0.75)
    assert Rule.of("midpoint", 2).points == (0.25, 0.75)


# --- paths of gates -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", ["gauss", "midpoint", "left"])
def test_a_linear_function_scores_its_weights_on_every_path(path, rule):
    weights = torch.tensor([3.0, -1.0, 0.25], dtype=DOUBLE)
    f = function(lambda m: (m * weights).sum(-1) + 7, "a", "b", "c")
    found = estimate(f, path=path, rule=rule, steps=3)
    assert_close(found.scores[0], weights)
    assert found.gaps is not None
    assert_close(found.gaps.values, torch.zeros_like(found.gaps.values), rtol=0, atol=1e-12)


def test_the_path_of_one_gate_is_the_exact_effect_and_the_joint_path_splits():
    f = function(lambda m: m[..., 0] * m[..., 1], "a", "b")  # AND
    assert_close(estimate(f, path="component").scores[0], torch.ones(2, dtype=DOUBLE))
    assert_close(estimate(f, path="joint").scores[0], torch.full((2,), 0.5, dtype=DOUBLE))


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_midpoints_in_a_saturated_softmax_are_what_the_formula_says(steps):
    gap = 10.0
    f = function(lambda m: torch.tanh(gap * (2 * m[..., 0] - 1) / 2) / 2, "query")
    found = estimate(f, path="component", rule="midpoint", steps=steps)
    # df/dm = gap / 2 sech^2(gap (2 m - 1) / 2), at the middles of equal cells
    middles = [(k + 0.5) / steps for k in range(steps)]
    slopes = [gap / 2 / math.cosh(gap * (2 * m - 1) / 2) ** 2 for m in middles]
    assert found.scores.item() == pytest.approx(sum(slopes) / steps, rel=1e-12)


def test_a_family_sums_to_the_effect_of_closing_it_and_others_stay_at_rest():
    families = (Family("one", (0, 2)), Family("two", (1,)))
    f = function(lambda m: m[..., 0] * m[..., 1] * m[..., 2] ** 2, "a", "b", "c", families=families)
    found = estimate(f, path="family", steps=4)
    # int_0^1 of (1-t)^2 and of 2 (1-t) (1-t), b at rest
    assert_close(found.scores[0], torch.tensor([1 / 3, 1.0, 2 / 3], dtype=DOUBLE))
    assert found.gaps is not None
    assert found.gaps.names == ("one", "two")


def test_a_gap_is_what_the_points_miss():
    f = function(lambda m: m[..., 0] ** 3, "a")
    found = estimate(f, path="component", rule="left", steps=2)
    # slopes 3 and 3/4 at gates 1 and 1/2, each with weight 1/2; the exact change is 1
    assert found.scores.item() == pytest.approx(1.875)
    assert found.gaps is not None
    assert found.gaps.values.item() == pytest.approx(0.875)


def step(m: Tensor) -> Tensor:
    """Two ReLUs: 0 up to a gate of 0.45, 1 from 0.55 on."""
    return (10 * (m[..., 0] - 0.45)).clamp(0, 1)


def test_a_sharp_step_needs_pieces_and_gets_them():
    f = function(step, "a")
    blind = estimate(f, path="component", rule="midpoint", steps=8)
    assert blind.scores.item() == 0
    found = estimate(f, path="component", rule="midpoint", steps=8, tolerance=1e-3)
    assert found.notes == ()
    assert found.scores.item() == pytest.approx(1, abs=1e-3)


@given(
    where=st.floats(0.05, 0.95),
    sharpness=st.floats(1, 200),
    tolerance=st.sampled_from([1e-1, 1e-2, 1e-4]),
)
def test_what_is_called_converged_is_within_tolerance_of_the_exact_effect(
    where, sharpness, tolerance
):
    f = function(lambda m: torch.tanh(sharpness * (m[..., 0] - where)), "a")
    found = estimate(f, path="component", steps=4, tolerance=tolerance)
    exact = math.tanh(sharpness * (1 - where)) - math.tanh(-sharpness * where)
    assert found.notes == ()
    assert abs(found.scores.item() - exact) <= tolerance + 1e-12


def test_a_jump_is_never_called_converged():
    f = function(lambda m: m[..., 0] + (m[..., 0] > 0.3).to(m.dtype), "router", "other")
    found = estimate(f, path="component", tolerance=1e-3)
    (note,) = found.notes
    assert note.startswith("router: the metric jumps near gate 0.3")
    assert "not converged" in note
    assert found.gaps is not None
    assert found.gaps.values[0, 0].item() == pytest.approx(-1, abs=1e-3)
    assert found.scores[0, 0].item() == pytest.approx(1, abs=1e-3)


def test_jumps_that_cancel_in_the_sum_are_jumps_all_the_same():
    def up_and_down(m: Tensor) -> Tensor:
        window = (m[..., 0] > 0.3) & (m[..., 0] < 0.7)
        # the steep part makes it halve the path: over the whole of it the jumps are not seen
        return torch.tanh(100 * (m[..., 0] - 0.45)) + window.to(m.dtype)

    found = estimate(function(up_and_down, "router"), path="component", tolerance=1e-3)
    (note,) = found.notes
    assert note.startswith("router: the metric jumps near gate 0.3, 0.7")
    assert "a gap of 1 stays" in note


def steep(places: Sequence[float], heights: Sequence[float], sharpness: float):
    """A sum of smooth steps."""
    where, height = (torch.tensor(x, dtype=DOUBLE) for x in (places, heights))
    return lambda m: (height * (torch.tanh(sharpness * (m - where)) + 1) / 2).sum(-1)


def test_where_pieces_run_out_the_largest_gap_is_halved_and_not_the_smallest():
    # a step of height 1 among 100 of 0.001: all are far narrower than 1 / 128
    small = [(k + 0.5) / 100 for k in range(100)]
    f = steep([0.371, *small], [1.0, *[0.001] * 100], 2000.0)
    found = estimate(function(f, "a"), path="component", tolerance=1e-3)
    (note,) = found.notes
    pieces = re.search(r"after (\d+) pieces", note)
    assert pieces is not None
    assert int(pieces[1]) <= 128
    # whatever is missed of the small ones: together they are 0.1
    assert found.gaps is not None
    assert found.gaps.values.abs().item() < 0.1
    assert found.scores.item() == pytest.approx(1.1, abs=0.1)


def test_a_sum_that_closes_is_called_converged_though_pieces_ran_out():
    # 64 steps up and down in turn, each at the same place of its piece: what is missed cancels
    f = steep([(k + 0.37) / 64 for k in range(64)], [0.1, -0.1] * 32, 2000.0)
    found = estimate(function(f, "a"), path="component", tolerance=1e-3)
    assert found.gaps is not None
    assert found.gaps.values.abs().item() < 1e-9
    assert found.notes == ()


def test_rounding_is_not_called_a_jump_and_ends_the_halving():
    f = hw.GatedFunction(lambda m: 1000 * torch.tanh(3 * m[..., 0]), ["a"])  # float32
    with f.counting() as cost:
        found = estimate(f, path="component", tolerance=1e-7)
    (note,) = found.notes
    assert "jump" not in note
    assert found.gaps is not None
    assert note == (
        f"a: not converged to 1e-07: the gap is up to {found.gaps.values.abs().item():.2g} on a "
        "pair, which rounding in float32 alone can make. Use dtype='float64', or raise tolerance=."
    )
    # a few halvings, not all of the 128 pieces
    assert cost.backwards <= 16 * 8


def test_a_model_in_half_precision_is_not_halved_into_its_rounding():
    runner = hw.load("tiny", dtype="bfloat16")
    found = hw.attribute(
        runner,
        hw.task("ioi")[:2],
        hw.heads(layers=1),
        hw.IntegratedGradients(tolerance=1e-4),
        progress=False,
    )
    assert found.cost.backwards / 2 <= 16 * 8
    (note,) = found.parts.notes
    assert note.startswith("heads of layer 1: not converged to 0.0001: the gap is up to ")
    assert "which rounding in bfloat16 alone can make. Use dtype='float32'" in note


def test_a_jump_is_told_from_rounding_by_its_size_in_any_precision():
    def jumping(height: float):
        def f(m: Tensor) -> Tensor:
            return 3 + m[..., 0] + height * (m[..., 0] > 0.3).to(m.dtype)

        return hw.GatedFunction(f, ["router"])  # float32

    (note,) = estimate(jumping(0.01), path="component", tolerance=1e-4).notes
    assert "jumps near gate 0.3" in note
    (note,) = estimate(jumping(2e-6), path="component", tolerance=1e-7).notes
    assert "which rounding in float32 alone can make" in note


# --- a model's gates ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Llama", "GPT-2", "Gemma 2", "Mixtral", "Mamba"])
def test_the_path_of_one_gate_converges_to_the_exact_effects_of_a_model(family):
    runner, pairs = model(family), task(5, 4)
    components = one_of_each(runner)
    exact = hw.attribute(runner, pairs, components, hw.Exact())
    own = hw.IntegratedGradients(path="component", steps=8, tolerance=1e-7)
    found = hw.attribute(runner, pairs, components, own)
    jumping = {note.partition(":")[0] for note in found.parts.notes}
    smooth = [i for i, name in enumerate(found.names) if name not in jumping]
    if family != "Mixtral":
        assert not jumping
    assert_close(found.scores[:, smooth], exact.scores[:, smooth], rtol=0, atol=2e-7)


def test_a_family_of_a_model_sums_to_the_effect_of_closing_it():
    runner, pairs = model("Llama"), task(5, 5)
    components = hw.heads() + hw.queries() + hw.mlps()
    found = hw.attribute(runner, pairs, components, hw.IntegratedGradients(tolerance=1e-8))
    assert not found.parts.notes
    for layer in range(2):
        for kind, select in (("head", hw.heads), ("query", hw.queries), ("mlp", hw.mlps)):
            parts = enumerate(found.parts.components)
            columns = [i for i, part in parts if (part.kind, part.layer) == (kind, layer)]
            function = gated(runner, pairs, select(layers=layer))
            with torch.no_grad():
                change = function.value() - function(torch.zeros_like(function.gates()))[0]
            assert_close(found.scores[:, columns].sum(1), change, rtol=0, atol=1e-7)


# --- the path of the layer-0 input --------------------------------------------------------------


def input_path_by_hand(runner, function, name: str, layer: int, shares) -> list[Tensor]:
    """Slopes at a site while the input moves: [batch, pos, ...] for each share."""
    rows = function.rows
    embeds: dict[str, Tensor] = {}
    for side in ("clean", "corrupted"):
        taps = {Site(None, "embed"): lambda value, side=side: embeds.__setitem__(side, value)}
        with torch.no_grad():
            runner.forward(getattr(rows, side), taps=taps)
    slopes = []
    for share in shares:
        leaf = (share * embeds["clean"] + (1 - share) * embeds["corrupted"]).requires_grad_()
        kept: list[Tensor] = []
        taps = {
            Site(None, "embed"): lambda _, leaf=leaf: leaf,
            Site(layer, name): lambda value, kept=kept: kept.append(value),
        }
        logits = runner.forward(rows.clean, taps=taps, read=rows.read)
        (slope,) = torch.autograd.grad(function.metric(logits, rows).sum(), kept[0])
        slopes.append(slope)
    return slopes


def site_values(runner, ids: Tensor, name: str, layer: int) -> Tensor:
    kept: list[Tensor] = []
    with torch.no_grad():
        runner.forward(ids, taps={Site(layer, name): lambda value: kept.append(value.clone())})
    return kept[0]


@pytest.mark.parametrize("rule", ["left", "midpoint", "gauss"])
def test_the_input_path_is_that_of_eap_ig(rule):
    runner, pairs = model("GPT-2"), task(6, 6)
    components = hw.heads(layers=1) + hw.mlps(layers=0)
    function = gated(runner, pairs, components)
    found = estimate(function, path="inputs", rule=rule, steps=5)
    for name, layer, columns in (("attn.z", 1, slice(0, 4)), ("mlp.out", 0, slice(4, 5))):
        change = site_values(runner, function.rows.clean, name, layer) - site_values(
            runner, function.rows.corrupted, name, layer
        )
        points = Rule.of(rule, 5)
        if rule == "left":  # EAP-IG's points k / n, k = 0 .. n - 1, from the corrupted end
            assert points.points == (0, 0.2, 0.4, 0.6, 0.8)
        slopes = input_path_by_hand(runner, function, name, layer, points.points)
        mean = sum(w * s for w, s in zip(points.weights, slopes, strict=True))
        product = change * mean
        by_unit = product.sum((1, 3)) if product.ndim == 4 else product.sum((1, 2))[:, None]
        assert_close(found.scores[:, columns], by_unit, rtol=1e-9, atol=1e-13)


def test_conductance_sums_to_the_whole_effect_over_any_cut():
    runner, pairs = model("Llama"), task(6, 6)
    for cut in (hw.tokens(positions="all"), hw.residual(layers=0, positions="all")):
        function = gated(runner, pairs, cut)
        options = {"path": "inputs", "rule": "midpoint", "increments": "path"}
        whole = function.clean_value() - function.corrupted_value()
        coarse = estimate(function, steps=8, **options)
        fine = estimate(function, steps=32, **options)
        errors = [(found.scores.sum(1) - whole).abs().max().item() for found in (coarse, fine)]
        assert errors[1] < errors[0] / 8  # second order: 16 times smaller for 4 times the steps


def test_conductance_multiplies_slopes_by_how_far_the_value_itself_moves():
    runner, pairs = model("GPT-2"), task(6, 6)
    function = gated(runner, pairs, hw.mlps(layers=0))
    options = {"path": "inputs", "rule": "midpoint", "increments": "path"}
    found = estimate(function, steps=3, **options)
    rows = function.rows
    embeds = [site_values(runner, ids, "resid_pre", 0) for ids in (rows.corrupted, rows.clean)]

    def at(share: float) -> Tensor:
        kept: list[Tensor] = []
        moved = torch.lerp(embeds[0], embeds[1], share)
        taps = {
            Site(None, "embed"): lambda _: moved,
            Site(0, "mlp.out"): lambda value: kept.append(value.clone()),
        }
        with torch.no_grad():
            runner.forward(rows.clean, taps=taps)
        return kept[0]

    edges = [at(k / 3) for k in range(4)]
    slopes = input_path_by_hand(runner, function, "mlp.out", 0, (1 / 6, 1 / 2, 5 / 6))
    steps = [after - before for before, after in pairwise(edges)]
    expected = sum((s * d).sum((1, 2)) for s, d in zip(slopes, steps, strict=True))
    assert_close(found.scores[:, 0], expected, rtol=1e-9, atol=1e-13)


def test_the_input_path_checks_the_inputs_own_integral_and_calls_it_quadrature():
    runner, pairs = model("Llama"), task(6, 4)
    function = gated(runner, pairs, hw.heads())
    coarse, fine = (
        estimate(function, path="inputs", rule="midpoint", steps=steps) for steps in (64, 256)
    )
    assert coarse.gaps is not None
    assert fine.gaps is not None
    assert fine.gaps.names == ("layer-0 input (quadrature only)",)
    # second order: a gap 16 times smaller for 4 times the points
    assert (fine.gaps.values.abs() < coarse.gaps.values.abs() / 8).all()
    assert fine.gaps.values.abs().max() < 1e-3


def test_the_input_path_needs_corrupted_prompts():
    with pytest.raises(MissingCapabilityError) as refused:
        hw.attribute(
            model("Llama"),
            task(5),
            hw.heads(),
            hw.IntegratedGradients(path="inputs"),
            reference=hw.Zero(),
        )
    assert str(refused.value) == (
        "IntegratedGradients moves the layer-0 input from the corrupted prompt's to the clean "
        "one's, and this reference is not the corrupted prompts.\n"
        "Write reference=hw.Corrupted()."
    )


# --- what it costs and refuses -------------------------------------------------------------------


def test_the_input_path_costs_a_forward_and_backward_a_point():
    scores = hw.attribute(
        model("Llama"), task(5, 5), hw.tokens(), hw.IntegratedGradients(path="inputs", steps=6)
    )
    assert scores.cost.forwards / 2 == 2 + 6  # the reference's run, the clean run
    assert scores.cost.backwards / 2 == 6


def test_a_family_starts_at_its_layer():
    scores = hw.attribute(
        model("Llama"), task(5, 5), hw.mlps(layers=1), hw.IntegratedGradients(steps=4)
    )
    assert scores.cost.backwards / 2 == pytest.approx(4 * 0.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps=0 is no whole number from 1 on: they are the points of the integral"),
        ({"path": "imputs"}, "path='imputs' is unknown. Closest: 'inputs'"),
        ({"rule": "simpson"}, "rule='simpson' is unknown"),
        ({"steps": "8"}, "steps='8' is no whole number from 1 on"),
        ({"tolerance": 0.0}, "tolerance=0.0 is no number above 0"),
        ({"tolerance": -1.0}, "tolerance=-1.0 is no number above 0"),
        ({"tolerance": "0.1"}, "tolerance='0.1' is no number above 0"),
        ({"tolerance": True}, "tolerance=True is no number above 0"),
        ({"steps": 2.5}, "steps=2.5 is no whole number from 1 on"),
        ({"rule": "left", "tolerance": 0.1}, 'rule="left" with tolerance='),
        ({"path": "inputs", "tolerance": 0.1}, "tolerance= needs a sum to check"),
        ({"path": "joint", "increments": "path"}, 'increments="path" goes with path="inputs"'),
        (
            {"path": "inputs", "increments": "path"},
            'Gauss points have no cells.\nType rule="midpoint".',
        ),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(options, said):
    with unchecked(), pytest.raises(UnknownOptionError) as refused:
        hw.IntegratedGradients(**options)
    assert said in str(refused.value)


def test_the_gap_of_a_saved_run_is_read_back(tmp_path):
    scores = hw.attribute(
        hw.load("tiny"), hw.task("ioi")[:4], hw.heads(), hw.IntegratedGradients(path="joint")
    )
    scores.save(tmp_path / "run")
    again = hw.Attribution.load(tmp_path / "run")
    assert again.gaps() == pytest.approx(scores.gaps())
    assert again.gaps().keys() == {"all components"}
