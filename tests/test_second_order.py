"""SecondOrder and Trapezoid: closed forms, sampled curvature, and real second derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.testing import assert_close

import headwater as hw
from headwater.attribution import attribute
from headwater.errors import MissingCapabilityError, NestedComponentsError, UnknownOptionError
from headwater.estimators import ESTIMATORS
from shape_checks import unchecked
from tiny_tasks import gated, model, task

GATES = 6


def function(fn, count: int, batch: int = 1) -> hw.GatedFunction:
    names = [f"g{i}" for i in range(count)]
    return hw.GatedFunction(fn, names, batch=batch, dtype=torch.float64)


def quadratic(count: int = GATES, batch: int = 1) -> tuple[hw.GatedFunction, Tensor, Tensor]:
    """`b m + m A m / 2` with random b and symmetric A, whose Hessian is A."""
    draw = torch.Generator().manual_seed(1)
    b = torch.randn(count, generator=draw, dtype=torch.float64)
    half = torch.randn(count, count, generator=draw, dtype=torch.float64)
    a = half + half.T

    def fn(m: Tensor) -> Tensor:
        return m @ b + torch.einsum("sbi,ij,sbj->sb", m, a, m) / 2

    return function(fn, count, batch), a, b


# --- second order ------------------------------------------------------------


@pytest.mark.parametrize("end", ["clean", "corrupted"])
def test_the_exact_diagonal_makes_quadratics_exact_at_both_ends(end):
    f, _, _ = quadratic()
    found = attribute(f, estimator=hw.SecondOrder("exact", at=end))
    assert_close(found.scores, attribute(f, estimator=hw.Exact(at=end)).scores)
    assert found.parts.errors is None


@pytest.mark.parametrize(("power", "score"), [(1, 1.0), (2, 1.0), (3, 0.0), (4, -2.0)])
def test_of_a_power_it_takes_the_first_two_terms_of_the_series(power, score):
    # m^k at 1: slope k, curvature k (k - 1), so k - k (k - 1) / 2; the effect is 1
    f = function(lambda m: m[..., 0] ** power, 1)
    assert attribute(f, estimator=hw.SecondOrder()).scores.item() == pytest.approx(score)


def test_it_knows_a_gate_alone_so_and_stays_two_and_or_stays_none():
    both = function(lambda m: m[..., 0] * m[..., 1], 2)
    either = function(lambda m: m.sum(-1) - m[..., 0] * m[..., 1], 2)
    assert attribute(both, estimator=hw.SecondOrder()).scores.tolist() == [[1.0, 1.0]]
    assert attribute(either, estimator=hw.SecondOrder()).scores.tolist() == [[0.0, 0.0]]


def test_a_linear_function_has_no_curvature_and_no_error():
    weights = torch.tensor([3.0, -1.0, 0.25, 0.0], dtype=torch.float64)
    f = function(lambda m: (m * weights).sum(-1), 4)
    found = attribute(f, estimator=hw.SecondOrder(probes=2))
    assert torch.equal(found.scores[0], weights)
    assert found.parts.errors is not None
    assert torch.equal(found.parts.errors[0], torch.zeros(4, dtype=torch.float64))


PAIRS, PROBES = 4000, 4


def sampled() -> tuple[hw.Attribution, Tensor, Tensor]:
    """Scores of many pairs of one quadratic, the exact effects, and A."""
    f, a, b = quadratic(batch=PAIRS)
    # f(1) - f(1 - e_i) = b_i + (A 1)_i - A_ii / 2
    exact = b + a.sum(1) - a.diagonal() / 2
    return attribute(f, estimator=hw.SecondOrder(probes=PROBES)), exact, a


def test_the_sampled_diagonal_is_unbiased_with_the_variance_it_reports():
    found, exact, a = sampled()
    # one probe of H_ii has variance sum_{j != i} A_ij^2; the score has a quarter of it
    variance = (a.square().sum(1) - a.diagonal().square()) / 4 / PROBES
    off = found.scores - exact
    assert bool((off.mean(0).abs() < 4 * (variance / PAIRS).sqrt()).all())
    assert_close(off.square().mean(0), variance, rtol=0.1, atol=0)
    assert found.parts.errors is not None
    assert_close(found.parts.errors.square().mean(0), variance, rtol=0.1, atol=0)


def test_the_error_of_the_mean_over_pairs_is_that_of_independent_draws():
    found, exact, a = sampled()
    variance = (a.square().sum(1) - a.diagonal().square()) / 4 / PROBES
    errors = torch.tensor([row.draw_se for row in found.rows()], dtype=torch.float64)
    assert_close(errors, (variance / PAIRS).sqrt(), rtol=0.05, atol=0)
    assert bool(((found.mean() - exact).abs() < 4 * errors).all())


def test_probes_that_are_not_fewer_than_the_gates_are_spent_on_the_exact_diagonal():
    f, _, _ = quadratic()
    found = attribute(f, estimator=hw.SecondOrder(probes=GATES))
    assert found.parts.errors is None
    assert torch.equal(found.scores, attribute(f, estimator=hw.SecondOrder("exact")).scores)
    sampled = attribute(f, estimator=hw.SecondOrder(probes=GATES - 1))
    assert sampled.parts.errors is not None


def test_another_seed_draws_other_signs_and_the_same_seed_the_same():
    f, _, _ = quadratic(batch=3)
    first, again, other = (
        attribute(f, estimator=hw.SecondOrder(probes=3, seed=seed)).scores for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not bool(torch.isclose(first, other).any())
    assert not bool(torch.isclose(first[0], first[1]).any())  # every pair draws its own


def test_each_probe_counts_two_backwards():
    f, _, _ = quadratic(batch=3)
    cost = attribute(f, estimator=hw.SecondOrder(probes=4)).cost
    assert (cost.forwards, cost.backwards) == (3 * 2, 3 * (1 + 2 * 4))


# --- second order of models ------------------------------------------------------------

FAMILIES = ["GPT-2", "Llama", "Gemma 2", "gpt-oss", "Falcon", "Mamba"]
SELECTIONS = {"Mamba": hw.mixers()}
STEP = 1e-4
"""A second difference over it has an error of 1e-8 and a rounding of 1e-15 / STEP^2 = 1e-7."""


@pytest.mark.parametrize("family", FAMILIES)
def test_curvature_equals_second_differences_in_float64(family):
    components = SELECTIONS.get(family, hw.heads(layers=0) + hw.mlps())
    f = gated(model(family), task(5, 5), components)
    ours = hw.SecondOrder("exact").scores(f) - hw.Gradient().scores(f)
    with torch.no_grad():
        for column in range(len(f.names)):
            at = f.gates(3)
            at[0, :, column] -= STEP
            at[2, :, column] += STEP
            low, middle, high = f(at)
            curvature = (low - 2 * middle + high) / STEP**2
            assert_close(ours[:, column], -curvature / 2, rtol=1e-5, atol=1e-6)


def test_it_goes_through_the_models_own_fused_attention_and_leaves_it_switched_on():
    two = task(5, 5)
    single = model("Llama", torch.float32)
    config: Any = single.module.config
    assert config._attn_implementation == "sdpa"
    before = torch.backends.cuda.flash_sdp_enabled()
    found = hw.SecondOrder("exact").scores(gated(single, two, hw.heads()))
    assert torch.backends.cuda.flash_sdp_enabled() is before
    exact = hw.SecondOrder("exact").scores(gated(model("Llama"), two, hw.heads()))
    assert_close(found.double(), exact, rtol=1e-3, atol=1e-4)


def test_where_kl_is_stationary_half_the_curvature_is_what_is_left():
    chosen, two = model("GPT-2"), task(5, 5).with_metric(hw.kl)
    f = gated(chosen, two, hw.heads())
    scores = hw.SecondOrder("exact").scores(f)
    # KL is at least 0, so f = -KL falls whichever gate moves
    assert bool((scores > 0).all())
    with torch.no_grad():
        at = f.gates(len(f.names))
        at[torch.arange(len(f.names)), :, torch.arange(len(f.names))] -= 1e-3
        fallen = -f(at).T / 1e-3**2
    assert_close(scores, fallen, rtol=1e-2, atol=0)


def test_scores_do_not_depend_on_how_pairs_are_batched():
    chosen, four = model("GPT-2"), task(5, 5, 5, 5)
    together, apart = (
        attribute(chosen, four, hw.heads(), hw.SecondOrder(probes=3), batch_size=size)
        for size in (4, 1)
    )
    assert_close(together.scores, apart.scores, rtol=1e-9, atol=1e-12)
    assert_close(together.parts.errors, apart.parts.errors, rtol=1e-9, atol=1e-12)


class Square(torch.autograd.Function):
    """A step whose author gave no second derivative."""

    @staticmethod
    def forward(ctx, x):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return 2 * x * slope


def test_a_step_without_second_derivative_is_refused_with_what_to_type():
    f = function(lambda m: Square.apply(m).sum(-1), 2)
    assert attribute(f, estimator=hw.Gradient()).scores.tolist() == [[2.0, 2.0]]
    with pytest.raises(MissingCapabilityError) as refused:
        attribute(f, estimator=hw.SecondOrder())
    said = str(refused.value)
    assert said.startswith(
        "hw.SecondOrder() differentiates twice, and a step of this function has no second "
        "derivative: one is marked @once_differentiable\n"
    )
    assert said.endswith(
        'Load the model with attn_implementation="sdpa" or "eager" and without fused kernels, or '
        "use hw.Trapezoid(), which takes two first derivatives (of another estimand), or "
        "hw.Exact()."
    )


def test_other_failures_of_the_function_stay_what_they_are():
    def broken(m: Tensor) -> Tensor:
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match=r"^out of paper$"):
        attribute(function(broken, 2), estimator=hw.SecondOrder())


def test_a_failure_that_sounds_like_a_missing_derivative_stays_what_it_is():
    def broken(m: Tensor) -> Tensor:
        raise RuntimeError("the lookup for the derivative for row 3 was read twice")

    with pytest.raises(RuntimeError, match=r"^the lookup for the derivative for row 3") as raised:
        attribute(function(broken, 2), estimator=hw.SecondOrder())
    assert type(raised.value) is RuntimeError


@pytest.mark.parametrize(
    ("probes", "said"),
    [
        (0, "probes=0"),
        (1, "probes=1"),
        (4.0, "probes=4.0"),
        (True, "probes=True"),
        ("all", "probes='all'"),
    ],
)
def test_probes_that_give_no_error_are_refused(probes, said):
    with unchecked(), pytest.raises(UnknownOptionError) as refused:
        hw.SecondOrder(probes=probes)
    assert str(refused.value) == (
        f"{said} is no whole number from 2 on: the standard error is taken from the spread of at "
        'least 2 (probes="exact" takes one product a component and leaves none).\nType probes=16.'
    )


@pytest.mark.parametrize("seed", ["a", 1.5, -1, True])
def test_a_seed_that_draws_nothing_is_refused(seed):
    with unchecked(), pytest.raises(UnknownOptionError) as refused:
        hw.SecondOrder(seed=seed)
    assert str(refused.value) == f"seed={seed!r} is no whole number from 0 on.\nType seed=0."


# --- trapezoid ------------------------------------------------------------


def test_the_trapezoid_of_a_quadratic_is_its_joint_integral_and_sums_to_the_whole():
    f, a, b = quadratic()
    found = attribute(f, estimator=hw.Trapezoid())
    # int b + A t 1 dt = b + A 1 / 2
    assert_close(found.scores[0], b + a.sum(1) / 2)
    whole = f(f.gates())[0] - f(torch.zeros_like(f.gates()))[0]
    assert_close(found.scores.sum(1), whole)
    assert found.parts.gap_names == ("all components",)
    assert_close(found.parts.gaps, torch.zeros(1, 1, dtype=torch.float64))


def test_and_and_or_are_split_in_halves():
    both = function(lambda m: m[..., 0] * m[..., 1], 2)
    either = function(lambda m: m.sum(-1) - m[..., 0] * m[..., 1], 2)
    for f in (both, either):
        assert attribute(f, estimator=hw.Trapezoid()).scores.tolist() == [[0.5, 0.5]]


def test_what_two_points_cannot_see_is_in_the_gap():
    # m^3: slopes 3 and 0, mean 1.5; the change is 1
    found = attribute(function(lambda m: m[..., 0] ** 3, 1), estimator=hw.Trapezoid())
    assert found.scores.tolist() == [[1.5]]
    assert found.parts.gaps is not None
    assert found.parts.gaps.tolist() == [[0.5]]


def test_it_names_the_estimand_of_the_joint_path():
    assert hw.Trapezoid.estimand == hw.IntegratedGradients(path="joint").estimand
    assert hw.Trapezoid.estimand != hw.SecondOrder.estimand == hw.Gradient.estimand
    assert hw.SecondOrder().leaves_one_out
    assert not hw.Trapezoid().leaves_one_out


def test_the_trapezoid_of_a_model_is_the_mean_of_finite_differences_at_both_ends():
    f = gated(model("GPT-2"), task(5, 5), hw.heads())
    ours = hw.Trapezoid().scores(f)
    with torch.no_grad():
        for column in range(len(f.names)):
            slopes = []
            for end in (1.0, 0.0):
                at = torch.full_like(f.gates(2), end)
                at[0, :, column] += 1e-5
                at[1, :, column] -= 1e-5
                above, below = f(at)
                slopes.append((above - below) / 2e-5)
            assert_close(ours[:, column], (slopes[0] + slopes[1]) / 2, rtol=1e-6, atol=1e-8)


def test_nested_components_cannot_be_closed_together():
    with pytest.raises(NestedComponentsError, match="lies inside"):
        attribute(model("GPT-2"), task(5), hw.attentions() + hw.heads(), hw.Trapezoid())


def test_the_command_line_knows_both():
    assert ESTIMATORS["second-order"] is hw.SecondOrder
    assert ESTIMATORS["trapezoid"] is hw.Trapezoid
