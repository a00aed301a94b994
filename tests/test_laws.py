"""Laws that scores obey for every function of gates, tried on random functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from headwater.attribution import attribute
from headwater.estimators import (
    ESTIMATORS,
    Estimator,
    IntegratedGradients,
    SecondOrder,
    Shapley,
    Trapezoid,
)
from headwater.gates import Family, GatedFunction

COUNT, BATCH = 3, 2
NAMES = ("a", "b", "c")
OWN, JOINT = IntegratedGradients("component"), IntegratedGradients("joint")
ALONE = (hw.Gradient(), hw.Exact(), SecondOrder("exact"), OWN)
"""Estimators of each component's own effect."""
SHARED = (JOINT, IntegratedGradients(), Trapezoid(), Shapley())
"""Estimators that share out the effect of several."""
RANKINGS = {"trained-mask"}
"""Estimators whose scores are no effects."""

seeds = st.integers(0, 2**32 - 1)
several = settings(max_examples=15, deadline=None)


def gated(fn: Callable[[Tensor], Tensor], names=NAMES, batch: int = BATCH) -> GatedFunction:
    return GatedFunction(fn, names, batch=batch, dtype=torch.float64)


def scores(f: GatedFunction, estimator: Estimator) -> Tensor:
    return attribute(f, estimator=estimator).scores


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Polynomial:
    """`sum_k c_k prod_i m_i^p_ki`, with other coefficients on every example."""

    coefficients: Tensor
    powers: Tensor

    @staticmethod
    def draw(seed: int, degree: int, terms: int = 5) -> Polynomial:
        generator = torch.Generator().manual_seed(seed)
        powers = torch.randint(degree + 1, (terms, COUNT), generator=generator)
        return Polynomial(normal(seed + 1, BATCH, terms), powers)

    def __call__(self, m: Tensor) -> Tensor:
        return (self.coefficients * (m[..., None, :] ** self.powers).prod(-1)).sum(-1)


@dataclass(frozen=True)
class Network:
    """Two layers of tanh, without any symmetry."""

    into: Tensor
    bias: Tensor
    out: Tensor

    @staticmethod
    def draw(seed: int) -> Network:
        return Network(
            normal(seed, 4, COUNT), normal(seed + 1, BATCH, 4), normal(seed + 2, BATCH, 4)
        )

    def __call__(self, m: Tensor) -> Tensor:
        return (torch.tanh(m @ self.into.T + self.bias) * self.out).sum(-1)


def quantity(f: GatedFunction, *gates: float) -> Tensor:
    """F where the gates of all examples are set, in float64."""
    m = torch.tensor(gates, dtype=torch.float64).expand(1, BATCH, len(gates))
    return f(m)[0]


# --- where nothing interacts ------------------------------------------------------------


def everywhere() -> list:
    """One of each kind that runs on a bare function and whose scores are effects."""
    kinds = [kind() for word, kind in ESTIMATORS.items() if word not in RANKINGS]
    return [pytest.param(one, id=one.name) for one in kinds if not one.needs]


@pytest.mark.parametrize("estimator", everywhere())
@given(seed=seeds)
@several
def test_on_a_linear_function_every_estimator_gives_the_weights(estimator, seed):
    weights, bias = normal(seed, BATCH, COUNT), normal(seed + 1, BATCH)
    f = gated(lambda m: (m * weights).sum(-1) + bias)
    assert_close(scores(f, estimator), weights, rtol=1e-10, atol=1e-10)


@given(seed=seeds)
@several
def test_on_a_sum_over_gates_every_integral_and_either_exact_end_agree(seed):
    powers = torch.tensor([1, 3, 4])
    c = normal(seed, BATCH, COUNT)
    f = gated(lambda m: (c * m**powers).sum(-1))
    for estimator in (hw.Exact(), hw.Exact(at="corrupted"), OWN, JOINT, Shapley()):
        assert_close(scores(f, estimator), c, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("estimator", everywhere())
@given(seed=seeds)
@several
def test_a_gate_that_the_function_does_not_read_scores_zero(estimator, seed):
    network = Network.draw(seed)
    f = gated(
        lambda m: network(torch.stack((m[..., 0], m[..., 1], torch.ones_like(m[..., 2])), -1))
    )
    found = scores(f, estimator)
    assert_close(found[:, 2], torch.zeros(BATCH, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(found[:, :2].abs().max()) > 1e-6  # else nothing was tried


# --- the degree in a gate ------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@given(seed=seeds)
@several
def test_the_gradient_of_a_homogeneous_part_is_its_degree_times_its_effect(degree, seed):
    # Euler's theorem: homogeneous in gate a alone, whatever the others do
    network = Network.draw(seed)

    def fn(m: Tensor) -> Tensor:
        others = torch.cat((torch.ones_like(m[..., :1]), m[..., 1:]), -1)
        return m[..., 0] ** degree * network(others)

    f = gated(fn)
    gradient, exact = scores(f, hw.Gradient()), scores(f, hw.Exact())
    assert_close(gradient[:, 0], degree * exact[:, 0], rtol=1e-10, atol=1e-12)


@given(seed=seeds)
@several
def test_second_order_is_exact_where_every_gate_is_at_most_squared(seed):
    f = gated(Polynomial.draw(seed, degree=2))
    assert_close(scores(f, SecondOrder("exact")), scores(f, hw.Exact()), rtol=1e-10, atol=1e-10)


@given(seed=seeds)
@several
def test_the_trapezoid_is_the_joint_path_where_the_function_is_quadratic(seed):
    square, slope = normal(seed, BATCH, COUNT, COUNT), normal(seed + 1, BATCH, COUNT)

    def fn(m: Tensor) -> Tensor:
        return torch.einsum("sbi,bij,sbj->sb", m, square, m) + (m * slope).sum(-1)

    f = gated(fn)
    assert_close(scores(f, Trapezoid()), scores(f, JOINT), rtol=1e-10, atol=1e-10)


# --- integrals ------------------------------------------------------------


@given(seed=seeds)
@several
def test_a_gate_s_own_path_integrates_to_its_exact_effect(seed):
    f = gated(Polynomial.draw(seed, degree=6))
    assert_close(scores(f, OWN), scores(f, hw.Exact()), rtol=1e-9, atol=1e-9)


@given(seed=seeds, steepness=st.sampled_from([1, 6, 300]), tolerance=st.sampled_from([1e-2, 1e-5]))
@several
def test_a_tolerance_holds_or_the_component_is_named(seed, steepness, tolerance):
    network = Network.draw(seed)
    f = gated(lambda m: network(steepness * m))
    found = IntegratedGradients("component", "midpoint", 3, tolerance=tolerance).estimate(f)
    gaps = (found.scores - scores(f, hw.Exact())).abs().amax(0)
    missed = {name for name, gap in zip(NAMES, gaps.tolist(), strict=True) if gap > tolerance}
    assert missed <= {note.split(":")[0] for note in found.notes}
    assert steepness > 1 or tolerance < 1e-2 or not found.notes


@pytest.mark.parametrize("estimator", [JOINT, Shapley()], ids=["joint", "shapley"])
@given(seed=seeds)
@several
def test_shares_of_closing_everything_sum_to_the_whole_change(estimator, seed):
    f = gated(Polynomial.draw(seed, degree=4))
    whole = quantity(f, 1, 1, 1) - quantity(f, 0, 0, 0)
    assert_close(scores(f, estimator).sum(1), whole, rtol=1e-9, atol=1e-9)


@given(seed=seeds)
@several
def test_a_family_s_shares_sum_to_the_effect_of_closing_it(seed):
    f = gated(Polynomial.draw(seed, degree=4))
    f.families = (Family("first two", (0, 1)), Family("last", (2,)))
    found = scores(f, IntegratedGradients("family"))
    open_ = quantity(f, 1, 1, 1)
    assert_close(found[:, :2].sum(1), open_ - quantity(f, 0, 0, 1), rtol=1e-9, atol=1e-9)
    assert_close(found[:, 2], open_ - quantity(f, 1, 1, 0), rtol=1e-9, atol=1e-9)


def by_all_orders(f: GatedFunction) -> Tensor:
    """Shapley values: each gate's effect when it closes, averaged over every order."""
    total = torch.zeros(BATCH, COUNT, dtype=torch.float64)
    for order in itertools.permutations(range(COUNT)):
        m = f.gates()
        for column in order:
            before = f(m.clone())[0]
            m[..., column] = 0.0
            total[:, column] += before - f(m.clone())[0]
    return total / math.factorial(COUNT)


@given(seed=seeds)
@several
def test_on_a_multilinear_function_the_joint_path_gives_shapley_values(seed):
    f = gated(Polynomial.draw(seed, degree=1, terms=8))
    assert_close(scores(f, JOINT), by_all_orders(f), rtol=1e-10, atol=1e-10)


# --- gradients ------------------------------------------------------------


@given(seed=seeds)
@several
def test_gradients_sum_to_the_slope_of_closing_all_gates_together(seed):
    f = gated(Network.draw(seed))
    step = 1e-5
    slope = (quantity(f, *[1 + step] * 3) - quantity(f, *[1 - step] * 3)) / (2 * step)
    assert_close(scores(f, hw.Gradient()).sum(1), slope, rtol=1e-7, atol=1e-8)


@given(seed=seeds, positions=st.integers(1, 4))
@several
def test_gradients_by_position_sum_to_the_gradient_of_the_shared_gate(seed, positions):
    network = Network.draw(seed)
    weights = normal(seed + 3, positions)

    def read(m: Tensor) -> Tensor:
        """Gate a at every position, summed over positions after a bend; b and c as they are."""
        bent = (torch.sin(m[..., :positions]) * weights).sum(-1, keepdim=True)
        return network(torch.cat((bent, m[..., positions:]), -1))

    names = (*(f"a@{t}" for t in range(positions)), "b", "c")
    by_position = gated(read, names)
    shared = gated(
        lambda m: read(torch.cat((m[..., :1].expand(*m.shape[:2], positions), m[..., 1:]), -1))
    )
    parts, whole = scores(by_position, hw.Gradient()), scores(shared, hw.Gradient())
    assert_close(parts[:, :positions].sum(1), whole[:, 0], rtol=1e-10, atol=1e-12)
    assert_close(parts[:, positions:], whole[:, 1:], rtol=1e-10, atol=1e-12)


@given(seed=seeds, share=st.floats(0.1, 0.9))
@several
def test_splitting_a_component_leaves_the_sum_of_gradients_and_not_of_effects(seed, share):
    # a component of value 3 against two of 3 share and 3 (1 - share) at the same place
    network = Network.draw(seed)
    whole = gated(lambda m: network(torch.cat((3 * m[..., :1], m[..., 1:]), -1)))

    def halves(m: Tensor) -> Tensor:
        value = 3 * (share * m[..., :1] + (1 - share) * m[..., 1:2])
        return network(torch.cat((value, m[..., 2:]), -1))

    parts = gated(halves, ("a1", "a2", "b", "c"))
    one, two = scores(whole, hw.Gradient()), scores(parts, hw.Gradient())
    assert_close(two[:, :2].sum(1), one[:, 0], rtol=1e-10, atol=1e-12)
    one, two = scores(whole, hw.Exact()), scores(parts, hw.Exact())
    assert float((two[:, :2].sum(1) - one[:, 0]).abs().max()) > 1e-9


# --- what every estimator shares ------------------------------------------------------------


@pytest.mark.parametrize("estimator", [*ALONE, *SHARED], ids=repr)
@given(seed=seeds, factor=st.floats(-3, 3))
@several
def test_scores_are_linear_in_the_metric(estimator, seed, factor):
    first, second = Polynomial.draw(seed, 3), Network.draw(seed + 7)
    both = scores(gated(lambda m: first(m) + factor * second(m)), estimator)
    apart = scores(gated(first), estimator) + factor * scores(gated(second), estimator)
    assert_close(both, apart, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", [*ALONE, JOINT, Trapezoid()], ids=repr)
@given(seed=seeds, order=st.permutations(range(COUNT)))
@several
def test_scores_follow_their_components_whatever_the_order(estimator, seed, order):
    network = Network.draw(seed)
    back = torch.tensor(order).argsort()
    as_they_are = scores(gated(network), estimator)
    reordered = scores(gated(lambda m: network(m[..., back])), estimator)
    assert_close(reordered, as_they_are[:, list(order)], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [hw.Gradient, hw.Exact, SecondOrder])
@given(seed=seeds)
@several
def test_the_corrupted_end_is_the_clean_end_of_the_function_turned_around(kind, seed):
    # f(e_i) - f(0) is what -f(1 - m) loses when its gate i closes
    network = Network.draw(seed)
    turned = gated(lambda m: -network(1 - m))
    assert_close(
        scores(gated(network), kind(at="corrupted")), scores(turned, kind()), rtol=1e-9, atol=1e-9
    )
