"""Sampled Shapley values and the exact interaction of two components."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from headwater.attribution import attribute
from headwater.errors import (
    GateError,
    NestedComponentsError,
    PromptError,
    UnknownComponentError,
    UnknownOptionError,
)
from headwater.estimators import ESTIMATORS
from shape_checks import unchecked
from tiny_tasks import gated, model, task


def function(fn, count: int, batch: int = 1) -> hw.GatedFunction:
    names = [f"g{i}" for i in range(count)]
    return hw.GatedFunction(fn, names, batch=batch, dtype=torch.float64)


def both(m: Tensor) -> Tensor:
    return m[..., 0] * m[..., 1]


def either(m: Tensor) -> Tensor:
    return m.sum(-1) - m[..., 0] * m[..., 1]


def crooked(m: Tensor) -> Tensor:
    """Four gates with interactions of every order."""
    a, b, c, d = m.unbind(-1)
    return 3 * a - b + 2 * a * b * c + torch.sin(2 * c + d) * b + torch.exp(a - d)


def by_all_orders(fn, count: int) -> Tensor:
    """Shapley values as they are defined: the mean over every order, one run at a time."""
    total = torch.zeros(count, dtype=torch.float64)
    for order in itertools.permutations(range(count)):
        m = torch.zeros(1, 1, count, dtype=torch.float64)
        for gate in order:
            before = fn(m).item()
            m[..., gate] = 1
            total[gate] += fn(m).item() - before
    return total / math.factorial(count)


# --- closed forms ------------------------------------------------------------


@pytest.mark.parametrize("fn", [both, either])
def test_and_and_or_are_split_in_halves(fn):
    assert attribute(function(fn, 2), estimator=hw.Shapley()).scores.tolist() == [[0.5, 0.5]]


def test_a_linear_function_scores_its_weights_without_error():
    weights = torch.tensor([3.0, -1.0, 0.25, 0.0], dtype=torch.float64)
    f = function(lambda m: (m * weights).sum(-1) + 7, 4)
    for antithetic in (True, False):
        found = attribute(f, estimator=hw.Shapley(permutations=4, antithetic=antithetic))
        assert_close(found.scores[0], weights)
        assert_close(found.parts.errors, torch.zeros(1, 4, dtype=torch.float64))


def test_a_single_component_gets_the_whole_change():
    f = function(lambda m: torch.exp(m[..., 0]), 1)
    assert attribute(f, estimator=hw.Shapley()).scores.item() == pytest.approx(math.e - 1)


def test_reversed_orders_make_pairwise_interactions_exact():
    # of i's predecessors in an order and in its reverse every j is one exactly once
    draw = torch.Generator().manual_seed(2)
    a = torch.randn(6, 6, generator=draw, dtype=torch.float64).triu(1)
    f = function(lambda m: torch.einsum("sbi,ij,sbj->sb", m, a, m), 6)
    found = attribute(f, estimator=hw.Shapley(permutations=4))
    assert_close(found.scores[0], (a + a.T).sum(1) / 2)
    assert_close(found.parts.errors, torch.zeros(1, 6, dtype=torch.float64))
    plain = attribute(f, estimator=hw.Shapley(permutations=4, antithetic=False))
    assert plain.parts.errors is not None
    assert bool((plain.parts.errors > 1e-3).all())


# --- sampling ------------------------------------------------------------


@pytest.mark.parametrize("antithetic", [True, False])
def test_scores_sum_to_the_whole_change_however_few_orders_there_are(antithetic):
    f = function(crooked, 4, batch=5)
    found = attribute(f, estimator=hw.Shapley(permutations=4, antithetic=antithetic))
    whole = crooked(torch.ones(1, 1, 4).double()) - crooked(torch.zeros(1, 1, 4).double())
    assert_close(found.scores.sum(1), whole.expand(1, 5)[0])


PAIRS = 800


@pytest.mark.parametrize(("antithetic", "permutations"), [(True, 64), (False, 32)])
def test_standard_errors_cover_the_values_by_all_orders(antithetic, permutations):
    # 32 independent draws each: 1.96 standard errors cover by Student's t 94.1 %
    estimator = hw.Shapley(permutations=permutations, antithetic=antithetic)
    found = attribute(function(crooked, 4, batch=PAIRS), estimator=estimator)
    truth = by_all_orders(crooked, 4)
    assert found.parts.errors is not None
    covered = (found.scores - truth).abs() < 1.96 * found.parts.errors
    for share in covered.double().mean(0).tolist():
        assert 0.91 < share < 0.97
    rows = found.rows()
    for row, value in zip(rows, truth.tolist(), strict=True):
        assert row.draw_se is not None
        assert abs(row.score - value) < 4 * row.draw_se


def test_a_seed_draws_the_same_orders_and_another_seed_others():
    f = function(crooked, 4, batch=3)
    first, again, other = (
        attribute(f, estimator=hw.Shapley(permutations=4, seed=seed)).scores for seed in (0, 0, 5)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])  # every pair draws its own


def test_it_costs_what_it_says():
    f = function(crooked, 4, batch=3)
    estimator = hw.Shapley(permutations=6)
    cost = attribute(f, estimator=estimator).cost
    # and one more run for the clean value of the result
    assert cost.forwards == 3 * (1 + estimator.forwards(f.families)) == 3 * (1 + 2 + 6 * 3)


# --- models ------------------------------------------------------------


def test_shapley_of_a_model_equals_all_orders_one_run_at_a_time():
    f = gated(model("GPT-2"), task(5), hw.mlps() + hw.heads(layers=0, positions=[-1]))
    keep = torch.tensor([0, 1, 2])

    def three(m: Tensor) -> Tensor:
        whole = f.gates(len(m)).detach().clone()
        whole[..., keep] = m
        return f(whole)

    truth = by_all_orders(lambda m: three(m).detach(), 3)
    small = hw.GatedFunction(three, ["a", "b", "c"], dtype=torch.float64)
    found = attribute(small, estimator=hw.Shapley(permutations=40))
    assert found.parts.errors is not None
    assert bool(((found.scores[0] - truth).abs() < 4 * found.parts.errors[0] + 1e-12).all())
    assert float(truth.abs().max()) > 1e-3  # else nothing was tested


def test_scores_do_not_depend_on_how_pairs_are_batched():
    chosen, four = model("GPT-2"), task(5, 5, 5, 5)
    together, apart = (
        attribute(chosen, four, hw.mlps(), hw.Shapley(permutations=4), batch_size=size)
        for size in (4, 1)
    )
    assert_close(together.scores, apart.scores, rtol=1e-9, atol=1e-12)


def test_nested_components_cannot_be_closed_together():
    with pytest.raises(NestedComponentsError, match="lies inside"):
        attribute(model("GPT-2"), task(5), hw.attentions() + hw.heads(), hw.Shapley())


def test_standard_errors_are_saved_with_the_scores(tmp_path):
    found = attribute(model("GPT-2"), task(5, 5), hw.heads(), hw.Shapley(permutations=4))
    back = hw.Attribution.load(found.save(tmp_path / "run"))
    assert back.parts.errors is not None
    assert found.parts.errors is not None
    assert torch.equal(back.parts.errors, found.parts.errors)
    assert back.rows()[0].draw_se == found.rows()[0].draw_se


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"permutations": 0},
            "permutations=0 is no whole number from 4 on: a standard error takes at least two "
            "antithetic pairs of orders.\nType permutations=16.",
        ),
        (
            {"permutations": 1, "antithetic": False},
            "permutations=1 is no whole number from 2 on: a standard error takes at least two "
            "orders.\nType permutations=16.",
        ),
        (
            {"permutations": 4.0},
            "permutations=4.0 is no whole number from 4 on: a standard error takes at least two "
            "antithetic pairs of orders.\nType permutations=16.",
        ),
        (
            {"permutations": "8", "antithetic": False},
            "permutations='8' is no whole number from 2 on: a standard error takes at least two "
            "orders.\nType permutations=16.",
        ),
        ({"seed": None}, "seed=None is no whole number from 0 on.\nType seed=0."),
        (
            {"antithetic": "no"},
            "antithetic='no' is neither True nor False.\nType antithetic=True or antithetic=False.",
        ),
        (
            {"permutations": 7},
            "permutations=7 is odd, and antithetic orders come in pairs.\n"
            "Type permutations=8, or antithetic=False.",
        ),
    ],
)
def test_options_that_have_no_meaning_are_refused(options, said):
    with unchecked(), pytest.raises(UnknownOptionError) as refused:
        hw.Shapley(**options)
    assert str(refused.value) == said


def test_the_command_line_knows_it():
    assert ESTIMATORS["shapley"] is hw.Shapley


# --- interaction of two ------------------------------------------------------------


def test_and_interacts_by_one_or_by_minus_one_and_a_sum_not_at_all():
    expected = {both: 1.0, either: -1.0, lambda m: 3 * m[..., 0] - m[..., 1]: 0.0}
    for fn, value in expected.items():
        found = hw.interaction(function(fn, 2), a="g0", b="g1")
        assert found.values.tolist() == [value]


def test_it_holds_the_effects_it_is_made_of():
    found = hw.interaction(function(crooked, 4), a="g1", b="g2")
    ones = torch.ones(1, 1, 4, dtype=torch.float64)

    def without(*gates: int) -> float:
        m = ones.clone()
        m[..., list(gates)] = 0
        return (crooked(ones) - crooked(m)).item()

    assert found.effect_a.item() == pytest.approx(without(1))
    assert found.effect_b.item() == pytest.approx(without(2))
    assert found.effect_both.item() == pytest.approx(without(1, 2))
    assert found.mean == pytest.approx(without(1) + without(2) - without(1, 2))
    assert found.standard_error is None  # one pair


def test_mean_and_standard_error_are_over_pairs():
    weights = torch.tensor([1.0, 4.0, 7.0], dtype=torch.float64)
    found = hw.interaction(function(lambda m: both(m) * weights, 2, batch=3), a="g0", b="g1")
    assert found.values.tolist() == weights.tolist()
    assert found.mean == 4.0
    assert found.standard_error == pytest.approx(3 / math.sqrt(3))  # standard deviation 3
    assert repr(found).startswith("Interaction of g0 and g1: +4 +- 1.7 over 3 pairs (they work")


@pytest.mark.parametrize(("a", "b"), [("a0.h1", "m1"), ("m0", "a1.h0"), ("a0.h1", "a0.h2@-1")])
def test_the_interaction_in_a_model_equals_four_whole_runs(a, b):
    chosen, two = model("GPT-2"), task(5, 5)
    found = hw.interaction(chosen, two, a, b, batch_size=1)
    components = hw.heads(positions="all") + hw.heads(positions=[-1]) + hw.mlps()
    f = gated(chosen, two, components)
    m = f.gates(4)
    m[1, :, f.names.index(a)] = 0
    m[2, :, f.names.index(b)] = 0
    m[3, :, [f.names.index(a), f.names.index(b)]] = 0
    with torch.no_grad():
        whole, first, second, neither = f(m)
    assert_close(found.values, whole - first - second + neither, rtol=1e-9, atol=1e-12)
    assert float(found.values.abs().max()) > 1e-4  # else nothing was tested


def test_a_result_lends_its_model_task_and_reference():
    chosen, two = model("GPT-2"), task(5, 5)
    scores = attribute(chosen, two, hw.heads(), hw.Gradient(), reference=hw.Zero())
    found = hw.interaction(scores, a="a0.h1", b="a1.h1")
    direct = hw.interaction(chosen, two, "a0.h1", "a1.h1", reference=hw.Zero())
    assert torch.equal(found.values, direct.values)
    other = hw.interaction(chosen, two, "a0.h1", "a1.h1")
    assert not torch.allclose(found.values, other.values)


def test_components_that_are_not_two_are_refused():
    f = function(both, 2)
    with pytest.raises(GateError, match="a='g0' and b='g0' are not two components"):
        hw.interaction(f, a="g0", b="g0")
    with pytest.raises(GateError, match="a and b are missing: not two components"):
        hw.interaction(f)
    with pytest.raises(UnknownComponentError, match="no component 'g7' here"):
        hw.interaction(f, a="g0", b="g7")
    with pytest.raises(NestedComponentsError, match=r"a0\.h1 lies inside a0"):
        hw.interaction(model("GPT-2"), task(5), "a0", "a0.h1")


def test_a_result_does_not_take_another_task():
    scores = attribute(model("GPT-2"), task(5), hw.heads(), hw.Gradient())
    with pytest.raises(PromptError, match="task was given, but a result"):
        hw.interaction(scores, task(6), "a0.h1", "a1.h1")
