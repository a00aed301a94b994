"""Gated functions whose scores can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from headwater.attribution import attribute
from headwater.errors import (
    GateError,
    MissingCapabilityError,
    NonFiniteError,
    StationaryMetricError,
    UnknownOptionError,
)
from headwater.estimators import Estimator, Exact, Gradient
from shape_checks import unchecked

ENDS = ["clean", "corrupted"]


def function(fn, *names: str, batch: int = 1) -> hw.GatedFunction:
    return hw.GatedFunction(fn, names, batch=batch, dtype=torch.float64)


def scores(f: hw.GatedFunction, estimator: Estimator) -> list[float]:
    return attribute(f, estimator=estimator).scores[0].tolist()


# --- linear: everything is the weight -----------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("estimator", [Gradient, Exact])
def test_a_linear_function_scores_its_weights(estimator, end):
    weights = torch.tensor([3.0, -1.0, 0.25, 0.0], dtype=torch.float64)
    f = function(lambda m: (m * weights).sum(-1) + 7, "a", "b", "c", "d")
    assert scores(f, estimator(at=end)) == weights.tolist()


def test_each_example_keeps_its_own_scores():
    weights = torch.tensor([[3.0, -1.0], [0.5, 2.0], [0.0, 1.0]], dtype=torch.float64)
    f = function(lambda m: (m * weights).sum(-1), "a", "b", batch=3)
    for estimator in (Gradient(), Exact()):
        assert torch.equal(attribute(f, estimator=estimator).scores, weights)


# --- one gate, not linear ------------------------------------------------------------


def saturated(gap: float) -> hw.GatedFunction:
    """The first of two softmax weights minus the second; the gate turns the gap around."""
    return function(lambda m: torch.tanh((2 * m[..., 0] - 1) * gap / 2), "a")


def test_a_saturated_softmax_hides_from_the_gradient():
    gap = 10.0
    sigmoid = 1 / (1 + math.exp(-gap))
    (gradient,) = scores(saturated(gap), Gradient())
    (exact,) = scores(saturated(gap), Exact())
    # d/dm tanh((2m - 1) s/2) at 1 is s (1 - tanh(s/2)^2) = 4 s sig(s) sig(-s)
    assert gradient == pytest.approx(4 * gap * sigmoid * (1 - sigmoid), rel=1e-9)
    assert exact == pytest.approx(2 * math.tanh(gap / 2), rel=1e-12)


@pytest.mark.parametrize("end", ENDS)
def test_a_step_between_the_ends_has_no_gradient_and_its_whole_height_as_effect(end):
    def step(m: Tensor) -> Tensor:
        # two rectifiers: 0 up to .45, a ramp, 1 from .55 on
        return (torch.relu(m - 0.45) - torch.relu(m - 0.55))[..., 0] * 10

    f = function(step, "a")
    assert scores(f, Gradient(at=end)) == [0.0]
    assert scores(f, Exact(at=end)) == pytest.approx([1.0])


# --- two gates that need or replace each other --------------------------------------------------


def test_and_needs_both_and_or_needs_neither():
    both = function(lambda m: m[..., 0] * m[..., 1], "a", "b")
    either = function(lambda m: m.sum(-1) - m[..., 0] * m[..., 1], "a", "b")
    assert scores(both, Gradient()) == scores(both, Exact()) == [1.0, 1.0]
    assert scores(both, Gradient(at="corrupted")) == [0.0, 0.0]
    assert scores(both, Exact(at="corrupted")) == [0.0, 0.0]
    assert scores(either, Gradient()) == scores(either, Exact()) == [0.0, 0.0]
    assert scores(either, Gradient(at="corrupted")) == [1.0, 1.0]
    assert scores(either, Exact(at="corrupted")) == [1.0, 1.0]


def test_a_normed_sum_has_gradients_that_cancel_and_effects_that_do_not():
    values = torch.tensor([3.0, 1.0], dtype=torch.float64)

    def first_after_rmsnorm(m: Tensor) -> Tensor:
        x = m * values
        return x[..., 0] / x.square().mean(-1).sqrt()

    f = function(first_after_rmsnorm, "a", "b")
    a, b = scores(f, Gradient())
    # f = a / rms(a, b) does not change when both are scaled, so value times gradient sums to 0
    assert (a, b) == pytest.approx((0.3 / 5**0.5, -0.3 / 5**0.5))
    # without a it is 0; without b it is a / (|a| / sqrt 2)
    assert scores(f, Exact()) == pytest.approx([3 / 5**0.5, 3 / 5**0.5 - 2**0.5])


# --- laws ------------------------------------------------------------


def test_splitting_a_component_leaves_the_sum_of_gradients():
    whole = function(lambda m: torch.sin(3 * m[..., 0]), "a")
    halves = function(lambda m: torch.sin(1 * m[..., 0] + 2 * m[..., 1]), "a", "b")
    assert sum(scores(halves, Gradient())) == pytest.approx(scores(whole, Gradient())[0])
    assert sum(scores(halves, Exact())) != pytest.approx(scores(whole, Exact())[0])


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_the_gradient_of_a_homogeneous_part_is_its_degree_times_its_effect(degree):
    f = function(lambda m: 5 * m[..., 0] ** degree, "a")
    assert scores(f, Gradient()) == [degree * scores(f, Exact())[0]]


def test_effects_do_not_depend_on_how_many_are_asked_for_at_once():
    f = function(lambda m: torch.sin(m @ torch.arange(6.0).double()), *"abcdef")
    every = f.effects(range(6))
    assert_close(torch.cat([f.effects([i]) for i in range(6)]), every)
    assert f.effects([]).shape == (0, 1)


# --- what is refused ------------------------------------------------------------


def test_a_value_that_is_not_finite_is_refused_with_its_examples():
    f = function(lambda m: torch.log(m[..., 0] - 1), "a", batch=2)
    with pytest.raises(NonFiniteError) as refused:
        attribute(f, estimator=Exact())
    assert str(refused.value) == (
        "the function is NaN or infinite for examples [0, 1] with every gate at rest.\n"
        "Look at what it computes there; if numbers overflow, compute in a wider dtype."
    )


def test_a_value_that_is_not_finite_names_the_gates_that_led_there():
    f = function(lambda m: torch.log(m[..., 0] - 0.5) * m[..., 1], "a", "b")
    with pytest.raises(NonFiniteError, match="with a away from rest"):
        attribute(f, estimator=Exact())


def test_a_function_that_autograd_cannot_follow_is_refused_with_what_to_use():
    f = function(lambda m: (m[..., 0] > 0.4).double(), "a")
    assert scores(f, Exact()) == [1.0]
    for estimator in (Gradient(), hw.IntegratedGradients()):
        with pytest.raises(GateError, match="it has no slope"):
            attribute(f, estimator=estimator)


def test_a_gradient_that_is_not_finite_is_refused_by_component():
    f = function(lambda m: m[..., 0] + torch.sqrt((1 - m[..., 1]).clamp(min=0)), "a", "b")
    with pytest.raises(NonFiniteError) as refused:
        attribute(f, estimator=Gradient())
    assert str(refused.value) == (
        "1 of 2 scores are NaN or infinite: b.\nRun in a wider dtype: dtype='float32'."
    )


def test_a_result_of_the_wrong_shape_is_refused_with_both_shapes():
    f = function(lambda m: m.sum(), "a", "b")
    with pytest.raises(GateError) as refused:
        f(f.gates())
    assert str(refused.value) == (
        "the gated function returned shape () for gates (1, 1, 2); expected [setting, batch] = "
        "(1, 1)."
    )


def test_an_end_that_does_not_exist_is_refused():
    f = function(lambda m: m.sum(-1), "a")
    with unchecked(), pytest.raises(UnknownOptionError) as refused:
        f.at("dirty")  # pyright: ignore[reportArgumentType]
    assert str(refused.value) == 'at=\'dirty\' is unknown. Write "clean" or "corrupted".'


def test_the_gradient_of_a_stationary_function_is_refused_where_it_is_zero():
    f = function(lambda m: -((1 - m) ** 2).sum(-1), "a")
    f.stationary = frozenset({"clean"})
    with pytest.raises(StationaryMetricError):
        attribute(f, estimator=Gradient())
    assert scores(f, Exact()) == [1.0]


class Curvature(Gradient):
    needs = frozenset({"second-derivative"})


def test_an_estimator_that_needs_more_than_the_function_offers_is_refused():
    f = function(lambda m: m.sum(-1), "a")
    f.capabilities = frozenset({"families"})
    with pytest.raises(MissingCapabilityError) as refused:
        attribute(f, estimator=Curvature())
    assert str(refused.value) == (
        "Curvature needs second-derivative; this gated function offers families.\n"
        "hw.Gradient() and hw.Exact() need nothing beyond f(m)."
    )
