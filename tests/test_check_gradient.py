"""Every verdict of a gradient check, on functions of which it is known, and what torch says.

The twins are torch's own: `torch.autograd.gradcheck`, `torch.autograd.functional`, plain hooks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck as torch_gradcheck
from torch.autograd.functional import jacobian

import headwater as hw
from headwater.errors import (
    GradcheckError,
    ModelStateError,
    NonFiniteError,
    NoPathError,
    UnknownOptionError,
)
from headwater.gradchecks import check as checking
from headwater.gradchecks import tables
from headwater.gradchecks.report import GradientReport
from headwater.gradchecks.result import Check
from headwater.gradchecks.view import page_data
from headwater.models import Model
from headwater.precision import true_float64
from shape_checks import unchecked
from tiny_models import build
from tiny_tasks import tokenizer

F = Callable[[Tensor], Tensor]
SIZE, WORDS = 12, 40


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = drawn(SIZE, seed=1)
DOWN, UNEMBED = drawn(20, SIZE, seed=2) / 3, drawn(WORDS, 20, seed=3) / 2
RARE = 7


def logits(z: Tensor) -> Tensor:
    """A layer and an unembedding; works on stacked points as well."""
    out = torch.tanh(z @ DOWN.T.to(z.dtype)) @ UNEMBED.T.to(z.dtype)
    return out - 9.0 * nn.functional.one_hot(torch.tensor(RARE), WORDS)


TARGET = int(logits(X).argmax())


def prob(z: Tensor, token: int = TARGET, sharper: float = 1.0) -> Tensor:
    return (sharper * logits(z)).softmax(-1)[..., token]


def logprob(z: Tensor, token: int = TARGET, sharper: float = 1.0) -> Tensor:
    return (sharper * logits(z)).log_softmax(-1)[..., token]


def rare(z: Tensor) -> Tensor:
    return prob(z, RARE)


def slope_of(f: F, x: Tensor = X) -> Tensor:
    return jacobian(f, x)  # type: ignore[return-value]


def checked(f: F, x: Tensor = X, **options: object) -> Check:
    return hw.check_gradient(f, x, **options).checks[0]  # type: ignore[arg-type]


def ratios(check: Check) -> list[float]:
    return [one.gradient / one.difference.slope for one in check.directions]


class Flipped(torch.autograd.Function):
    """The identity, with the gradient's sign flipped on the way back."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        return -grad_outputs[0]


def flipped(z: Tensor) -> Tensor:
    return Flipped.apply(z)  # type: ignore[return-value]


class FlippedBothWays(Flipped):
    """With a forward mode that is right: only the backward is broken."""

    @staticmethod
    def jvp(ctx, *grad_inputs: Tensor) -> Tensor:
        return grad_inputs[0].clone()


# a tiny random Llama


PROMPT = "w5 w9 w17 w40 w22 w8 w31 w12 w44"


def token_ids() -> Tensor:
    return torch.tensor([[int(word[1:]) for word in PROMPT.split()]])


@functools.cache
def llama(dtype: torch.dtype) -> Model:
    return hw.wrap(build("Llama", dtype=dtype), tokenizer())


@functools.cache
def as_shipped() -> nn.Module:
    """Converted by `.double()`: its norms and its softmax still compute in float32."""
    return build("Llama", dtype=torch.float64, attention="eager").requires_grad_(False)


def embeddings() -> Tensor:
    return as_shipped().get_input_embeddings()(token_ids())[0].detach()  # type: ignore[operator]


def run_embeddings(points: Tensor) -> Tensor:
    """Logits of all positions, from stacked embeddings [points, positions, d_model]."""
    return as_shipped()(inputs_embeds=points, use_cache=False).logits


READS: dict[str, F] = {
    "logit": lambda z: run_embeddings(z)[:, -1, 17],
    "logprob": lambda z: run_embeddings(z)[:, -1].log_softmax(-1)[:, 17],
    "prob": lambda z: run_embeddings(z)[:, -1].softmax(-1)[:, 17],
}


def gradient_by_hooks(module: nn.Module, read: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient of a number at the last position's FFN activation, by a plain hook."""
    leaves: list[Tensor] = []

    def put(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        leaves.append(args[0].detach().clone().requires_grad_())
        return (leaves[0],)

    handle = module.model.layers[1].mlp.down_proj.register_forward_pre_hook(put)  # type: ignore
    try:
        read(module(token_ids()).logits[0, -1]).backward()
    finally:
        handle.remove()
    assert leaves[0].grad is not None
    return leaves[0].grad[0, -1]


METRICS = {
    "logit": hw.metric(lambda row, _: row[:, 17], name="logit"),
    "logprob": hw.logprob("w17"),
    "prob": hw.prob("w17"),
}


def at_ffn(model: Model, metric: object, **options: object) -> GradientReport:
    return hw.gradcheck(model, PROMPT, site="layers.1.mlp.post", metric=metric, **options)  # type: ignore[arg-type]


# a right gradient


@pytest.mark.parametrize("metric", METRICS)
def test_in_true_float64_the_gradient_agrees_to_the_bar_and_the_order_is_two(metric):
    found = at_ffn(llama(torch.float32), METRICS[metric])
    assert found.passed
    for check in found.checks:
        clear = [one for one in check.directions if one.verdict == "agree"]
        assert len(clear) > 0.9 * len(check.directions)
        for one in clear:
            assert abs(one.gradient - one.difference.slope) <= 4 * one.difference.bar
            # a central difference is good to eps^(2/3) of the steepest, and 2^-52 is 2e-16
            assert one.difference.bar <= 1e-8 * abs(check["gradient"].gradient)
            assert one.difference.order == pytest.approx(2, abs=0.1)
        assert check["gradient"].apart < 1e-9
        assert max(one.difference.noise for one in check.directions) < 1e-13 * max(
            1, abs(check.objective)
        )


def test_the_gradient_is_the_one_of_plain_hooks():
    module = build("Llama", dtype=torch.float64)
    with true_float64():
        expected = gradient_by_hooks(module, lambda row: row.log_softmax(-1)[17])
    found = at_ffn(hw.wrap(module, tokenizer()), METRICS["logprob"]).checks[0]
    torch.testing.assert_close(found.gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("read", READS)
def test_as_shipped_the_gradient_agrees_and_the_noise_is_told(read):
    found = hw.check_gradient(READS[read], embeddings(), dtype="native", batched=True)
    assert found.verdict == "agree"
    assert found.checks[0]["gradient"].apart < 1e-3
    assert "an operation inside runs in lower precision" in "\n".join(found.sentences())
    assert found.checks[0]["gradient"].difference.noise > 1e4 * 2e-16 * abs(
        found.checks[0].objective
    )


@pytest.mark.parametrize("read", READS)
def test_with_the_casts_dropped_the_noise_is_that_of_float64(read):
    found = hw.check_gradient(READS[read], embeddings(), batched=True)
    assert found.verdict == "agree"
    assert "lower precision" not in "\n".join(found.sentences())
    noise = max(one.difference.noise for one in found.checks[0].directions)
    assert noise < 1e-13 * max(1, abs(found.checks[0].objective))


@pytest.mark.parametrize("read", ["logit", "logprob"])
def test_torch_gradcheck_rejects_the_right_gradient_as_shipped_and_accepts_it_in_true_float64(read):
    point = embeddings()[None].requires_grad_()
    f = READS[read]
    assert torch_gradcheck(f, point, raise_exception=False, fast_mode=True) is False
    with true_float64():
        assert torch_gradcheck(f, point, fast_mode=True)


def test_in_float32_the_gradient_agrees_to_a_thousandth():
    found = at_ffn(llama(torch.float32), METRICS["logprob"], dtype="native")
    assert found.passed
    check = found.checks[0]
    assert check.dtype == "float32"
    assert check["gradient"].apart < 1e-3
    assert check["gradient"].difference.bar < 1e-2 * abs(check["gradient"].gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_compares_the_models_own_gradient_with_the_one_in_float64(dtype):
    model = llama(dtype)
    check = at_ffn(model, METRICS["logit"]).checks[0]
    assert check.verdict == "agree"  # correctness is judged in float64
    own, right = gradient_by_hooks(model.module, lambda row: row[17]).double(), check.gradient
    assert check.precision is not None
    assert check.precision.dtype == str(dtype).removeprefix("torch.")
    # in float32 the order of sums in a kernel is as large as the error itself
    tight = 1e-6 if dtype is torch.bfloat16 else 0.5
    largest = float((own - right).abs().max() / right.abs().max())
    assert check.precision.largest == pytest.approx(largest, rel=tight)
    cosine = float(own @ right / own.norm() / right.norm())
    assert check.precision.cosine == pytest.approx(cosine, abs=1e-6)
    signs = float((own.sign() == right.sign()).double().mean())
    assert check.precision.signs == pytest.approx(signs, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_in_bfloat16_nothing_passes(metric):
    found = at_ffn(llama(torch.bfloat16), METRICS[metric], dtype="native")
    assert found.verdict == "unresolved"
    assert not found.passed
    assert "no check" in found.sentences()[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(8))
def test_coarse_formats_never_accuse_a_right_gradient(dtype, seed):
    x = drawn(SIZE, seed=100 + seed).to(dtype)
    for f in (prob, logprob):
        found = hw.check_gradient(f, x, dtype="native", batched=True)
        assert found.verdict == "unresolved"


def test_thirty_two_coordinates_all_agree():
    found = at_ffn(llama(torch.float32), METRICS["prob"], coordinates=16).checks[0]
    single = [one for one in found.directions if one.kind == "coordinate"]
    assert len(single) == 32
    assert {one.verdict for one in single} == {"agree"}
    steepest = [one.index for one in single[:16]]
    assert steepest == found.gradient.abs().argsort(descending=True)[:16].tolist()
    # the prototype's worst of 32 was 6e-10
    assert max(one.apart for one in single) < 1e-7


def test_of_100_random_directions_all_lie_within_four_bars():
    model = llama(torch.float32)
    width = at_ffn(model, METRICS["prob"], coordinates=[0]).checks[0].value.numel()
    found = at_ffn(model, METRICS["prob"], directions=drawn(120, width, seed=9)).checks[0]
    assert len(found.directions) == 120
    off = []
    for one in found.directions:
        assert one.forward is not None
        off.append(abs(one.forward - one.difference.slope) / one.difference.bar)
    assert sum(bars <= 4 for bars in off) >= 119
    assert sum(bars <= 1 for bars in off) >= 100


# a constant objective


def test_the_sum_of_a_softmax_is_constant_and_torch_gradcheck_passes_it():
    def whole(z: Tensor) -> Tensor:
        return logits(z).softmax(-1).sum(-1)

    found = hw.check_gradient(whole, X)
    assert found.verdict == "constant"
    assert not found.passed
    assert "A softmax summed over the whole vocabulary?" in found.checks[0].hint
    assert torch_gradcheck(whole, X.clone().requires_grad_())


def test_ones_as_grad_outputs_of_a_whole_softmax_is_the_constant_objective():
    found = hw.check_gradient(lambda z: logits(z).softmax(-1), X, grad_outputs="ones")
    assert found.verdict == "constant"
    assert "the entries sum to a constant" in found.checks[0].hint


def test_the_sum_of_a_models_softmax_is_constant():
    found = at_ffn(llama(torch.float32), lambda row, _: row.softmax(-1).sum(-1))
    assert found.verdict == "constant"
    assert "A softmax summed over the whole vocabulary?" in found.checks[0].hint


def test_the_sum_of_a_softmax_that_is_rounded_to_float32_is_constant_too():
    found = hw.check_gradient(
        lambda z: logits(z).float().softmax(-1).sum().double(), X, dtype="native"
    )
    assert found.verdict == "constant"


@pytest.mark.parametrize("value", [0.0, 3.7])
def test_an_objective_that_does_not_depend_on_x_is_constant(value):
    found = checked(lambda z: 0 * z.sum() + value)
    assert found.verdict == "constant"
    assert "does not depend on this value" in found.hint


def test_an_objective_too_rough_for_any_step_is_not_constant():
    found = checked(lambda z: (1e13 * z).sin().sum().detach() + 0 * z.sum())
    assert found.verdict == "ill-conditioned"


def test_an_objective_of_value_zero_is_not_constant():
    at_zero = logits(X)[3]
    assert checked(lambda z: logits(z)[3] - at_zero).verdict == "agree"


# a wrong gradient


def test_a_flipped_backward_of_a_target_disagrees_and_torch_gradcheck_raises():
    def f(z: Tensor) -> Tensor:
        return prob(flipped(z))

    check = checked(f)
    assert check.verdict == "disagree"
    assert ratios(check) == pytest.approx([-1] * len(check.directions), rel=1e-6)
    assert "the sign is flipped" in check.hint
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch_gradcheck(f, X.clone().requires_grad_())


def test_a_flipped_backward_of_a_rare_token_disagrees_where_torch_gradcheck_passes_it():
    def f(z: Tensor) -> Tensor:
        return rare(flipped(z))

    assert 1e-7 < float(rare(X)) < 1e-5
    check = checked(f)
    assert check.verdict == "disagree"
    assert ratios(check) == pytest.approx([-1] * len(check.directions), rel=1e-6)
    assert check.hint.startswith("the sign is flipped")
    assert torch_gradcheck(f, X.clone().requires_grad_())  # its absolute tolerance is 1e-5


def test_a_flipped_backward_inside_a_model_disagrees():
    class FlippedSilu(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return nn.functional.silu(flipped(z))

    module = build("Llama")
    module.model.layers[1].mlp.act_fn = FlippedSilu()  # type: ignore[index, union-attr]
    found = hw.gradcheck(
        hw.wrap(module, tokenizer()), PROMPT, site="layers.1.mlp.gate", metric=METRICS["prob"]
    )
    assert found.verdict == "disagree"
    assert found["layers.1.mlp.gate"].hint.startswith("the sign is flipped")
    assert found["layers.1.mlp.post"].verdict == "agree"  # what follows the broken operation


def test_the_flipped_sign_of_one_coordinate_is_found_among_many_that_are_right():
    gradient = slope_of(rare)
    gradient[4] *= -1
    check = checked(rare, gradient=gradient, coordinates="all")
    assert check.verdict == "disagree"
    assert check["[4]"].verdict == "disagree"
    others = [
        one.verdict for one in check.directions if one.kind == "coordinate" and one.index != 4
    ]
    assert "disagree" not in others


def test_flat_coordinates_do_not_hide_a_flipped_one():
    weight = torch.full((SIZE,), 1e-13, dtype=torch.float64)
    weight[:2] = torch.tensor([3.0, 0.01])
    right = weight * X.cos()
    claimed = right * torch.where(torch.arange(SIZE) == 1, -1, 1)
    check = checked(lambda z: 5 + (weight * z.sin()).sum(), gradient=claimed, coordinates="all")
    assert check["[1]"].verdict == "disagree"
    assert check.verdict == "disagree"
    assert check["[5]"].verdict == "flat"


@pytest.mark.parametrize(
    "f",
    [lambda z: prob(z.detach()), lambda z: prob(z.detach()) + 0 * z.sum()],
    ids=["no graph at all", "a graph that carries nothing"],
)
def test_a_detached_value_disagrees_with_ratio_0(f):
    check = checked(f)
    assert check.verdict == "disagree"
    assert ratios(check) == pytest.approx([0] * len(check.directions), abs=1e-9)
    assert "the graph is cut" in check.hint


@pytest.mark.parametrize(
    "through", [torch.round, torch.sign, lambda z: (z * 127).round() / 127],
    ids=["round", "sign", "8 bit"],
)  # fmt: skip
def test_a_straight_through_estimator_disagrees(through):
    check = checked(lambda z: prob(z + (through(z) - z).detach()))
    assert check.verdict == "disagree"
    wrong = [one for one in check.directions if one.verdict == "disagree"]
    assert len(wrong) > len(check.directions) / 2
    # between the steps of a staircase nothing moves
    assert all(one.difference.slope == 0 for one in wrong if one.kind == "coordinate")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda g, _: -g, "the sign is flipped"),
        (lambda g, _: 2 * g, "a factor of two"),
        (lambda g, _: g / 2, "a factor of a half"),
        (lambda g, _: SIZE * g, f"a sum over {SIZE} entries of x where the objective is a mean"),
        (lambda g, _: g / SIZE, f"a mean over {SIZE} entries of x where the objective is a sum"),
        (lambda g, x: x * g, "this is activation times gradient"),
        (lambda g, x: -x * g, "minus activation times gradient"),
        (lambda g, _: g.abs(), "the size of the gradient, without its sign"),
        (lambda g, _: 0 * g, "the graph is cut"),
    ],
    ids=["-g", "2 g", "g/2", "n g", "g/n", "a g", "-a g", "|g|", "0"],
)
def test_the_hint_names_what_a_wrong_gradient_is(wrong, words):
    check = checked(rare, gradient=wrong(slope_of(rare), X))
    assert check.verdict == "disagree"
    assert words in check.hint


def test_the_gradients_of_probability_and_log_probability_are_told_apart():
    p = float(rare(X))
    g_p, g_logp = slope_of(rare), slope_of(lambda z: logprob(z, RARE))
    torch.testing.assert_close(g_p, p * g_logp, rtol=1e-12, atol=1e-20)
    mixed = checked(rare, gradient=g_logp)
    assert mixed.verdict == "disagree"
    assert ratios(mixed) == pytest.approx([1 / p] * len(mixed.directions), rel=1e-6)
    assert "the log-probability where the objective is the probability" in mixed.hint
    other = checked(lambda z: logprob(z, RARE), gradient=g_p)
    assert ratios(other) == pytest.approx([p] * len(other.directions), rel=1e-6)
    assert "the probability where the objective is the log-probability" in other.hint


def test_a_flipped_sign_at_a_probability_near_1_is_only_a_flipped_sign():
    # 1 / p is 1 within the hint's tolerance
    f = functools.partial(prob, sharper=12.0)
    assert 0.999 < float(f(X)) < 1
    assert checked(f, gradient=-slope_of(f)).hint == "the sign is flipped"


def test_an_unrelated_gradient_gets_no_hint():
    check = checked(rare, gradient=drawn(SIZE, seed=8) * 1e-6)
    assert check.verdict == "disagree"
    assert check.hint == ""


def test_forward_mode_tells_that_the_backward_is_what_is_broken():
    found = hw.check_gradient(lambda z: prob(FlippedBothWays.apply(z)), X)  # type: ignore[arg-type]
    assert found.verdict == "disagree"
    assert "the backward of an operation is wrong" in found.checks[0].hint
    for one in found.checks[0].directions:
        assert one.forward == pytest.approx(one.difference.slope, rel=1e-6)


def test_an_operation_without_forward_mode_is_noted_and_changes_nothing_else():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z: Tensor) -> Tensor:
            return 2 * z

        @staticmethod
        def backward(ctx, *grad_outputs: Tensor) -> Tensor:
            return 2 * grad_outputs[0]

    without = checked(lambda z: prob(Doubled.apply(z)))  # type: ignore[arg-type]
    with_it = checked(lambda z: prob(2 * z))
    assert all(one.forward is None for one in without.directions)
    assert any("no third opinion by forward mode" in note for note in without.notes)
    assert not with_it.notes
    assert without.verdict == with_it.verdict == "agree"
    assert [one.gradient for one in without.directions] == [
        one.gradient for one in with_it.directions
    ]


# positions


def test_a_site_after_the_position_that_is_read_has_no_path():
    metric = hw.metric(lambda rows, _: rows[:, 0, 17], positions=[-4])
    with pytest.raises(NoPathError, match="position 8"):
        at_ffn(llama(torch.float32), metric, position=8)
    assert at_ffn(llama(torch.float32), metric, position=5).passed


def test_reading_one_position_too_far_lets_the_gradient_reach_the_token_itself():
    def read_at(position: int, **options: object) -> Check:
        return checked(
            lambda z: run_embeddings(z)[:, position, 17], embeddings(), batched=True, **options
        )

    right, late = read_at(5), read_at(6)
    assert right.verdict == late.verdict == "agree"
    assert not right.gradient[6:].any()
    assert late.gradient[6].norm() > 0.01 * late.gradient.norm()
    assert read_at(5, gradient=late.gradient).verdict == "disagree"


def test_the_gradient_of_another_position_is_named():
    model = llama(torch.float32)
    site = "layers.0.mlp.post"
    other = hw.gradcheck(model, PROMPT, site=site, metric=METRICS["prob"], position=6)
    found = hw.gradcheck(
        model, PROMPT, site=site, metric=METRICS["prob"], position=8,
        gradient=other.checks[0].gradient,
    )  # fmt: skip
    assert found.verdict == "disagree"
    assert "this is the gradient at position 6 ('w31')" in found.checks[0].hint


# saturation


def test_a_saturated_softmax_agrees_and_its_ablation_is_out_of_reach():
    # half of x: zeroing leads through the middle of the softmax
    f = functools.partial(prob, sharper=16.0)
    found = hw.check_gradient(f, X)
    check = found.checks[0]
    assert float(f(X)) > 0.999
    assert check.verdict == "agree"
    assert check.reach is not None
    exact = float(f(X) - f(torch.zeros(SIZE, dtype=torch.float64)))
    assert check.reach.exact == pytest.approx(exact, rel=1e-9)
    assert exact > 0.9
    assert abs(check.reach.estimate) < 0.05
    assert check.reach.linear is not None
    assert check.reach.linear < 0.05
    assert "outside the gradient's reach" in "\n".join(found.sentences())


@pytest.mark.parametrize("f", [prob, logprob], ids=["prob", "logprob"])
def test_a_softmax_saturated_beyond_rounding_is_ill_conditioned_and_says_so(f):
    found = hw.check_gradient(functools.partial(f, sharper=300.0), X)
    assert found.verdict == "ill-conditioned"
    assert not found.passed
    assert "saturated, not unimportant" in found.sentences()[0]


def test_a_probability_that_underflows_is_ill_conditioned_and_not_stationary():
    f = functools.partial(prob, token=int(logits(X).topk(WORDS - 1).indices[-1]), sharper=300.0)
    assert float(f(X)) == 0
    assert checked(f).verdict == "ill-conditioned"


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda z: (z * z).sum(), torch.zeros(SIZE)),
        (lambda z: (z**4).sum(), torch.zeros(SIZE)),
        (lambda z: 1 + (z**4).sum(), torch.zeros(SIZE)),
        (
            lambda z: nn.functional.kl_div(
                logits(z).log_softmax(-1), logits(X).log_softmax(-1), log_target=True,
                reduction="sum",
            ),
            X,
        ),
    ],
    ids=["square", "flat quartic", "quartic on an offset", "divergence from itself"],
)  # fmt: skip
def test_an_extremum_is_stationary(f, x):
    found = hw.check_gradient(f, x)
    assert found.verdict == "stationary"
    assert not found.passed


def test_a_wrong_gradient_at_an_extremum_disagrees():
    found = checked(lambda z: (z * z).sum(), torch.zeros(SIZE), gradient=drawn(SIZE))
    assert found.verdict == "disagree"


# kinks and jumps


def rectified(z: Tensor) -> Tensor:
    return (torch.relu(z) * DOWN[0]).sum()


def with_entry(index: int, value: float) -> Tensor:
    x = X.clone()
    x[index] = value
    return x


def test_a_relu_at_0_is_a_kink_with_both_slopes():
    check = checked(rectified, with_entry(3, 0.0), coordinates=[3, 4])
    assert check.verdict == "kink"
    assert check["[3]"].verdict == "kink"
    assert check["[3]"].difference.one_sided == pytest.approx((0, float(DOWN[0, 3])), abs=1e-9)
    assert check["[4]"].verdict in ("agree", "flat")
    assert "a subgradient" in check.hint


def test_one_direction_of_21_at_a_kink_is_a_kink():
    check = checked(rectified, with_entry(3, 0.0), directions=torch.eye(SIZE, dtype=torch.float64))
    assert [one.verdict for one in check.directions].count("kink") == 1
    assert check.verdict == "kink"


def test_a_gradient_outside_the_two_slopes_of_a_kink_disagrees():
    x = with_entry(3, 0.0)
    claimed = torch.where(x > 0, DOWN[0], 0.0)
    claimed[3] = 2 * DOWN[0, 3]
    check = checked(rectified, x, gradient=claimed, coordinates=[3])
    assert check["[3]"].verdict == "disagree"
    assert check.verdict == "disagree"


@pytest.mark.parametrize("distance", [1e-4, -1e-4, 1e-9, -1e-9])
def test_a_relu_beside_0_agrees_and_is_linear_up_to_it(distance):
    check = checked(rectified, with_entry(3, distance), coordinates=[3])
    assert check.verdict == "agree"
    if distance > 0:
        linear = check["[3]"].difference.linear
        assert linear is not None
        assert distance / math.sqrt(10) < linear <= 1.3 * distance


DECODER = drawn(30, SIZE, seed=11)
DECODED = drawn(SIZE, seed=12)


def code(z: Tensor) -> Tensor:
    """The five largest activations of a dictionary, the others 0."""
    acts = torch.relu(DECODER @ z)
    top = acts.topk(5)
    return torch.zeros_like(acts).scatter(-1, top.indices, top.values)


def beside_a_tie(distance: float) -> Tensor:
    """A point at which the fifth and the sixth activation differ by so much."""
    order = (DECODER @ X).argsort(descending=True)
    apart = DECODER[order[4]] - DECODER[order[5]]
    return X + (distance - apart @ X) / (apart @ apart) * apart


def test_a_topk_code_at_a_tie_has_a_kink_in_its_norm():
    check = checked(lambda z: code(z).norm(), beside_a_tie(0.0))
    assert check.verdict == "kink"


def test_a_topk_code_at_a_tie_jumps_where_it_is_decoded():
    def f(z: Tensor) -> Tensor:
        return code(z) @ DECODER @ DECODED

    tie = beside_a_tie(0.0)
    check = checked(f, tie)
    assert check.verdict == "jump"
    # which of the two is kept decides: their activation times the difference of what they write
    order = (DECODER @ X).argsort(descending=True)
    swap = (DECODER[order[4]] - DECODER[order[5]]) @ DECODED * (DECODER[order[4]] @ tie)
    jumps = [one.difference.jump for one in check.directions if one.verdict == "jump"]
    assert jumps == pytest.approx([abs(float(swap))] * len(jumps), rel=0.02)


@pytest.mark.parametrize("read", [lambda c: c.norm(), lambda c: c @ DECODER @ DECODED],
                         ids=["norm", "decoded"])  # fmt: skip
def test_a_topk_code_beside_a_tie_agrees_and_is_linear_up_to_it(read):
    apart = DECODER[(DECODER @ X).argsort(descending=True)[4:6]]
    across = (apart[0] - apart[1])[None]
    check = checked(lambda z: read(code(z)), beside_a_tie(1e-4), directions=across)
    assert check.verdict == "agree"
    linear = check.directions[0].difference.linear
    across = across / across.abs().max()
    reach = 1e-4 / float(((apart[0] - apart[1]) * across).sum())
    assert linear is not None
    assert reach / math.sqrt(10) < linear <= 1.3 * reach


# vectors


def test_entries_carry_their_own_slopes_and_the_share_that_goes_the_other_way():
    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ DOWN[:6].T)

    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, -0.1, 0.0], dtype=torch.float64)
    lines = drawn(50, SIZE, seed=21)
    check = checked(f, grad_outputs=weights, directions=lines)
    assert check.verdict == "agree"
    own = jacobian(f, X)
    along = (lines / lines.abs().amax(1, keepdim=True)) @ own.T  # type: ignore[operator]
    total = along @ weights
    assert [one.gradient for one in check.directions] == pytest.approx(total.tolist(), rel=1e-10)
    assert [one.weight for one in check.entries] == weights.tolist()
    for entry in check.entries:
        assert entry.value == pytest.approx(float(f(X)[entry.index]), rel=1e-12)
        assert entry.slopes == pytest.approx(along[:, entry.index].tolist(), rel=1e-9, abs=1e-12)
        other_way = (along[:, entry.index].sign() != total.sign()).double().mean()
        assert entry.opposite == pytest.approx(float(other_way))


def test_entries_without_forward_mode_have_the_same_slopes_by_backward_passes():
    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z: Tensor) -> Tensor:
            return z.clone()

        @staticmethod
        def backward(ctx, *grad_outputs: Tensor) -> Tensor:
            return grad_outputs[0]

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ DOWN[:6].T)

    plain = checked(f, grad_outputs="ones", seed=3)
    custom = checked(lambda z: f(Plain.apply(z)), grad_outputs="ones", seed=3)  # type: ignore[arg-type]
    for one, other in zip(plain.entries, custom.entries, strict=True):
        assert one.slopes == pytest.approx(other.slopes, rel=1e-9, abs=1e-12)


# reproducibility, batches, directions


def test_batched_is_the_same_as_one_by_one():
    one, all_at_once = checked(logprob), checked(logprob, batched=True)
    for single, many in zip(one.directions, all_at_once.directions, strict=True):
        assert single.gradient == pytest.approx(many.gradient, rel=1e-12)
        assert single.verdict == many.verdict
        apart = abs(single.difference.slope - many.difference.slope)
        assert apart <= 4 * (single.difference.bar + many.difference.bar)


def test_a_seed_fixes_the_directions_and_another_changes_the_random_ones_alone():
    first, again, other = (checked(prob, seed=seed) for seed in (5, 5, 6))
    assert [one.to_dict() for one in first.directions] == [
        one.to_dict() for one in again.directions
    ]
    assert first["gradient"].gradient == other["gradient"].gradient
    assert first["random 1"].gradient != other["random 1"].gradient


@pytest.mark.parametrize(
    ("coordinates", "indices"),
    [("all", list(range(SIZE))), ([3, -1, 3], [3, SIZE - 1]), (0, []), ([], [])],
    ids=["all", "a list", "none", "an empty list"],
)
def test_coordinates_are_chosen_as_asked(coordinates, indices):
    check = checked(prob, coordinates=coordinates)
    assert [one.index for one in check.directions if one.kind == "coordinate"] == indices


def test_a_number_of_coordinates_is_that_many_steepest_and_that_many_others():
    check = checked(prob, coordinates=3)
    indices = [one.index for one in check.directions if one.kind == "coordinate"]
    assert indices[:3] == slope_of(prob).abs().argsort(descending=True)[:3].tolist()
    assert len(set(indices)) == 6


@pytest.mark.parametrize("coordinates", [-1, [SIZE], [-SIZE - 1]])
def test_coordinates_that_do_not_exist_are_refused(coordinates):
    with pytest.raises(UnknownOptionError, match="coordinate"):
        checked(prob, coordinates=coordinates)


@pytest.mark.parametrize("stack", [1, 4])
def test_given_directions_replace_the_usual_ones(stack):
    lines = drawn(stack, SIZE)
    check = checked(prob, directions=lines if stack > 1 else lines[0])
    assert [one.name for one in check.directions] == [f"direction {n}" for n in range(stack)]
    expected = (lines / lines.abs().amax(1, keepdim=True)) @ slope_of(prob)
    assert [one.gradient for one in check.directions] == pytest.approx(expected.tolist(), rel=1e-10)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (torch.zeros(SIZE), "is zero"),
        (torch.full((SIZE,), math.inf), "is not finite"),
        (torch.ones(3), r"have shape \[3\]"),
        (torch.ones(0, SIZE), "there are none"),
    ],
)
def test_directions_that_lead_nowhere_are_refused(lines, words):
    with pytest.raises(UnknownOptionError, match=words):
        checked(prob, directions=lines)


@pytest.mark.parametrize(
    ("f", "x", "slope"),
    [
        (lambda z: 1 / (z - 0.5), 0.75, -16.0),
        (lambda z: torch.exp(500 * z), 0.75, 500 * math.exp(375)),
    ],
    ids=["pole", "infinite beyond 710"],
)
def test_a_long_step_that_leaves_the_function_or_overflows_is_left_out(f, x, slope):
    check = checked(f, torch.tensor(x))
    assert check.verdict == "agree"
    assert check["gradient"].difference.slope == pytest.approx(
        math.copysign(slope, check["gradient"].gradient), rel=1e-6
    )


@pytest.mark.parametrize("unit", [1e-200, 1e-30, 1e-9, 1e12, 1e200])
def test_units_of_the_objective_do_not_matter(unit):
    assert checked(lambda z: unit * rare(z)).verdict == "agree"
    assert checked(lambda z: unit * rare(flipped(z))).verdict == "disagree"


def test_in_float32_inside_a_coordinate_below_the_noise_is_not_called_wrong():
    weak = torch.tensor([1.0] * 6 + [1e-9] * 6)

    def f(z: Tensor) -> Tensor:
        return logits((z * weak).float()).double()[3]

    check = checked(f, dtype="native", coordinates="all")
    assert check.verdict == "agree"
    assert {one.verdict for one in check.directions if one.index is not None and one.index > 5} == {
        "flat"
    }


# bad input


def test_a_random_function_is_refused():
    with pytest.raises(ModelStateError, match="random"):
        checked(lambda z: (z + torch.rand(SIZE)).sum())


def test_an_objective_that_is_not_a_number_is_refused():
    with pytest.raises(NonFiniteError, match="nan"):
        checked(lambda z: z.sum() * math.nan)


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(NonFiniteError, match=r"at \[0\] of x"):
        checked(lambda z: z.sqrt().sum(), torch.zeros(2), directions=torch.ones(2))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.arange(3), "torch.int64"),
        (torch.zeros(3, dtype=torch.complex64), "complex"),
        (torch.zeros(0), "no entries"),
    ],
    ids=["integers", "complex", "empty"],
)
def test_a_point_without_derivatives_is_refused(x, words):
    with pytest.raises(GradcheckError, match=words):
        hw.check_gradient(lambda z: z.sum(), x)


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda z: float(z.sum()), "f returned float"),
        (lambda z: z, "a gradient is of one"),
        (lambda z: z @ torch.ones(SIZE), "f failed at x"),
    ],
    ids=["a float", "a vector", "an error"],
)
def test_a_function_that_cannot_be_differentiated_is_refused(f, words):
    with pytest.raises(GradcheckError, match=words):
        hw.check_gradient(f, X)


def test_a_function_that_does_not_use_x_has_no_path():
    with pytest.raises(NoPathError, match="no path from x"):
        hw.check_gradient(lambda z: torch.tensor(3.0), X)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_check_works_where_gradients_are_off(mode):
    with mode():
        found = hw.check_gradient(prob, X.clone())
    assert found.passed


def test_a_single_number_can_be_checked():
    check = checked(torch.sin, torch.tensor(1.0))
    assert check.verdict == "agree"
    assert check["gradient"].difference.slope == pytest.approx(math.cos(1.0), rel=1e-9)


def test_steps_reach_from_every_entry_to_zero_so_that_a_line_holds_all_the_way():
    x = torch.tensor([1.0, 0.5, -7.0], dtype=torch.float64)
    check = checked(lambda z: (z * torch.tensor([2.0, 4.0, 8.0])).sum(), x)
    assert check.reach.linear >= 1
    assert all(one.reach >= 1 for one in check.effects)
    assert check.reach.exact == pytest.approx(check.reach.estimate, rel=1e-14)  # a line


def test_the_share_of_the_way_on_which_a_slope_holds_is_where_it_bends():
    # sides of z + z^3 at 1 along the way to 0: slope 4, off by a tenth where 3 t + t^2 = 0.4
    bent = (math.sqrt(9 + 1.6) - 3) / 2
    check = checked(lambda z: (z + z**3).sum(), torch.ones(1, dtype=torch.float64))
    assert bent / math.sqrt(10) < check.reach.linear <= bent


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gradient_in_a_coarser_format_is_held_to_what_that_format_can_hold(dtype):
    right = checked(prob).gradient
    check = checked(prob, gradient=right.to(dtype))
    assert check.verdict == "agree"
    assert any(str(dtype).removeprefix("torch.") in note for note in check.notes)
    assert checked(prob, gradient=-right.to(dtype)).hint == "the sign is flipped"
    assert checked(prob, gradient=1.2 * right.to(dtype)).verdict == "disagree"


def test_a_function_that_changes_its_argument_is_refused():
    with pytest.raises(GradcheckError, match="changes x in place"):
        hw.check_gradient(lambda z: z.mul_(2).sum(), torch.ones(3))


# what is said of it


def test_the_rounding_of_a_zero_gradient_is_no_wrong_gradient():
    x = X.float()
    rounding = slope_of(lambda z: logits(z).softmax(-1).sum(), x)
    assert rounding.any()
    assert rounding.abs().max() < 1e-6

    def whole(z: Tensor) -> Tensor:
        return logits(z).softmax(-1).sum()

    assert checked(whole, x, gradient=rounding).verdict == "constant"
    assert checked(whole, x, gradient=1e-3 * X).verdict == "disagree"
    of_one = checked(prob, x, gradient=rounding)
    assert of_one.verdict == "disagree"
    assert "a whole softmax summed" in of_one.hint


def test_a_wrong_given_gradient_says_nothing_of_the_functions_backward():
    found = hw.check_gradient(prob, X, gradient=drawn(SIZE, seed=40))
    assert found.verdict == "disagree"
    assert "backward" not in "\n".join(found.sentences())


@pytest.mark.parametrize(
    "f",
    [
        lambda z: prob(z.detach() + (z - z.detach()) * 0.5),
        lambda z: prob(z + (torch.round(4 * z) / 4 - z).detach()),
    ],
    ids=["half detached", "straight through"],
)
def test_forward_mode_that_repeats_a_wrong_gradient_does_not_support_it(f):
    found = hw.check_gradient(f, X)
    assert found.verdict == "disagree"
    said = "\n".join(found.sentences())
    assert "detached, straight-through or rounded" in said or "0.5 times" in said
    assert "gives the same slopes" not in said


def test_a_disagreement_is_told_along_the_entry_that_is_wrong():
    claimed = slope_of(prob)
    claimed[5] = -claimed[5]
    found = hw.check_gradient(prob, X, gradient=claimed, coordinates="all")
    assert "Along [5] it says" in found.sentences()[0]
    assert ": -1 times" in found.sentences()[0]


def test_rows_that_do_not_pass_come_first_where_not_all_are_shown():
    x = with_entry(11, 0.0)
    found = hw.check_gradient(rectified, x, coordinates="all")
    assert found.verdict == "kink"
    assert "along [11] the slope is" in found.checks[0].hint
    rows = [line for line in repr(found).splitlines() if line.startswith("[11]")]
    assert [row.split()[-1] for row in rows] == ["kink"]
    assert "all the way" not in "\n".join(found.sentences())


def test_a_staircase_is_not_called_saturated():
    found = hw.check_gradient(lambda z: torch.round(4 * z).sum(), 0.05 + X)
    assert found.verdict == "ill-conditioned"
    assert "a staircase" in found.sentences()[0]
    assert "saturated, not unimportant" not in found.sentences()[0]


def test_a_logarithm_near_0_is_not_taken_for_lower_precision():
    found = hw.check_gradient(lambda z: z.log().sum(), torch.tensor([1e-4, 0.5, 2.0]))
    assert found.verdict == "agree"
    assert "lower precision" not in "\n".join(found.sentences())


def test_the_order_is_the_power_by_which_the_error_falls_or_none():
    # the error of the sine's difference at 0 starts with the square, of x**5 with the fourth power
    for f, x, order in ((torch.sin, 0.3, 2), (lambda z: z + z**5, 0.0, 4)):
        found = checked(f, torch.tensor(x))["gradient"].difference
        assert found.order == pytest.approx(order, abs=0.1)
    wave = checked(lambda z: torch.sin(3e5 * z).sum(), X)
    orders = [one.difference.order for one in wave.directions]
    assert all(one is None or 0 < one <= 8 for one in orders)


# what does not fit


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda z: prob(z).sum(), "returned a single number"),
        (lambda z: prob(z).repeat(2), r"returned \[2\] for one point"),
        (lambda z: prob(z - z.mean(0, keepdim=True) * 0.1), "changes with the points beside it"),
    ],
    ids=["a number", "too many rows", "rows mixed"],
)
def test_a_function_that_is_not_batched_as_it_says_is_refused(f, words):
    with pytest.raises(GradcheckError, match=words):
        hw.check_gradient(f, X, batched=True)


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (None, {}, "x is left out"),
        (X.numpy(), {}, r"x is ndarray, not a tensor.*\nGive a tensor: torch.as_tensor\(x\)"),
        (with_entry(4, math.nan), {}, "x is nan at entry 4"),
        (X, {"gradient": X.numpy()}, r"Write gradient=torch.as_tensor\(gradient\)"),
        (X, {"directions": [[1.0] * SIZE]}, "directions is list, not a tensor"),
    ],
    ids=["no point", "numpy", "not finite", "a gradient of numpy", "a list of directions"],
)  # fmt: skip
def test_what_is_no_finite_tensor_is_refused_with_what_to_write(x, options, words):
    with unchecked(), pytest.raises(GradcheckError, match=words):
        hw.check_gradient(prob, x, **options)


@pytest.mark.parametrize("coordinates", [3.5, [0, 1.5]])
def test_coordinates_are_whole_numbers(coordinates):
    with unchecked(), pytest.raises(UnknownOptionError, match=r"write .all., a number, or a list"):
        checked(prob, coordinates=coordinates)


def test_progress_is_told_in_points_that_ran(monkeypatch):
    told: list[float] = []

    @contextmanager
    def bar(title: str, total: float, *, show: bool | None):
        assert title == "changing x"
        assert show
        told.append(-total)
        yield lambda work, note="": told.append(work)

    monkeypatch.setattr(checking, "progress_bar", bar)
    checked(prob, coordinates=[1, 2], progress=True)
    # seven lines of 24 steps, three changes of every entry; the middle once more for the changes
    assert told[0] == -(7 * 49 + 3 * SIZE)
    assert sum(told) == 1


def test_kinks_beside_the_point_are_none_at_the_point():
    weight, bias, out = drawn(100, 6, seed=50) / 4, drawn(100, seed=60), drawn(100, seed=70)

    def f(z: Tensor) -> Tensor:
        return torch.relu(z @ weight.T + bias) @ out

    for seed in range(30):
        found = checked(f, drawn(6, seed=100 + seed), batched=True, coordinates=4, seed=seed)
        assert "kink" not in {one.verdict for one in found.directions}, seed


# scales, formats and ends of functions


@pytest.mark.parametrize("seed", range(20))
def test_of_a_linear_function_the_slope_holds_all_the_way_to_zero(seed):
    weights = drawn(6, seed=seed)
    found = hw.check_gradient(lambda z: z @ weights, drawn(6, seed=100 + seed), batched=True)
    assert found.checks[0].reach is not None
    assert found.checks[0].reach.is_inside
    assert all(one.is_inside for one in found.checks[0].effects)
    assert "The slope holds all the way." in "\n".join(found.sentences())


def test_a_right_gradient_is_not_accused_where_the_output_is_coarser_than_x():
    weights = drawn(SIZE, SIZE, seed=30)

    def rounded(z: Tensor) -> Tensor:
        return (weights.bfloat16() @ z.bfloat16()).tanh().sum()

    def offset(z: Tensor) -> Tensor:
        return (1e4 + 1e-4 * torch.tanh(weights.float() @ z.float()).sum()).double()

    coarse = hw.check_gradient(rounded, X.float(), dtype="native")
    assert coarse.verdict == "unresolved"
    assert "in bfloat16" in coarse.title()
    for seed in range(6):
        found = hw.check_gradient(offset, drawn(SIZE, seed=seed), dtype="native")
        assert found.verdict == "constant"
        assert "round" in found.sentences()[0]
        assert "softmax" not in found.sentences()[0]


def test_a_small_jump_at_the_point_is_not_said_to_move_nothing():
    def f(z: Tensor) -> Tensor:
        return 5 + 1e-6 * (z > 0).to(z).sum() + 0 * z.sum()

    ahead = torch.ones(1, 3, dtype=torch.float64)
    found = hw.check_gradient(f, torch.zeros(3), directions=ahead)
    assert found.verdict == "constant"
    assert "by more than 3.0e-06, which the rounding" in found.sentences()[0]
    assert "softmax" not in found.sentences()[0]


@pytest.mark.parametrize(
    ("large", "small", "dtype"),
    [(1e6, 1e-3, torch.float64), (1e4, 1e-2, torch.float32)],
    ids=str,
)
@pytest.mark.parametrize("seed", range(12))
def test_entries_of_other_units_do_not_blur_a_step(large, small, dtype, seed):
    x = torch.tensor([large, small]) * (1 + 0.3 * drawn(2, seed=seed))
    found = hw.check_gradient(
        lambda z: torch.sin(z[0] / large) * torch.exp(-z[1] / small), x.to(dtype), dtype="native"
    )
    assert found.verdict == "agree"


@pytest.mark.parametrize("unit", [1e200, 1e-200])
def test_units_of_the_point_do_not_matter(unit):
    check = checked(lambda z: (z / unit).sin().sum(), unit * X)
    assert check.verdict == "agree"
    assert check.size == pytest.approx(unit * float(X.square().mean().sqrt()))


@pytest.mark.parametrize(
    ("f", "x", "slope"),
    [
        (
            lambda s: torch.distributions.Normal(0.0, s, validate_args=True).log_prob(
                torch.tensor(1.0, dtype=torch.float64)
            ),
            2.0,
            1 / 2.0**3 - 1 / 2.0,
        ),
        (lambda d: torch.linalg.cholesky(torch.diag(d.reshape(1))).log().sum(), 2.0, 0.25),
    ],
    ids=["a scale below zero", "a matrix that is not positive"],
)
def test_a_step_to_where_the_function_raises_is_left_out(f, x, slope):
    found = checked(f, torch.tensor(x))
    assert found.verdict == "agree"
    steepest = found["gradient"]
    assert steepest.gradient == pytest.approx(abs(slope), rel=1e-12)


def test_a_batched_function_may_return_a_column():
    found = hw.check_gradient(lambda z: logprob(z)[:, None], X, batched=True)
    assert found.verdict == "agree"
    assert found.checks[0].gradient.allclose(slope_of(logprob))


def test_a_value_whose_scaling_changes_nothing_is_not_said_to_bend_at_once():
    weights = drawn(SIZE, seed=31).float()
    found = hw.check_gradient(
        lambda z: (z / (z.norm() + 1e-9)) @ weights, X.float(), dtype="native"
    )
    assert found.verdict == "agree"
    said = "\n".join(found.sentences())
    assert "No step resolves the slope along the value itself." in said
    assert "loses" in said


def test_a_wrong_gradient_of_a_function_whose_own_is_wrong_too_is_told_by_its_slopes():
    def f(z: Tensor) -> Tensor:
        return flipped(z).sin().sum()

    for factor, hint in ((2.0, "a factor of two"), (-1.0, "the sign is flipped")):
        check = checked(f, gradient=factor * X.cos())
        assert check.verdict == "disagree"
        assert check.hint.startswith(hint)
        assert check.hint.endswith("autograd's own gradient is not the slope either")


def test_a_doubled_gradient_of_a_half_is_a_factor_of_two():
    unit = X / X.norm()
    check = checked(lambda z: (z * z).sum() / 2, unit, gradient=2 * unit)
    assert check.hint.startswith("a factor of two")


def test_signs_are_not_counted_where_there_is_no_slope():
    report = hw.check_gradient(lambda z: 1 + (z**4).sum(), torch.zeros(SIZE))
    assert report.verdict == "stationary"
    assert not report.checks[0].tells_signs
    (row,) = tables.sites(report.checks).rows
    assert row[4] == "-"
    assert page_data(report)["sites"][0]["signs"] is None


def test_the_steps_that_are_shown_are_of_a_direction_that_passes_where_the_check_does():
    weak = torch.tensor([1.0] * 11 + [1e-14], dtype=torch.float64)
    check = checked(lambda z: 5 + logprob(z * weak), coordinates="all")
    assert check.verdict == "agree"
    assert check.steepest.verdict == "agree"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": "24"}, r"steps='24' is not a whole number.\nWrite steps=24"),
        ({"steps": 24.5}, "steps=24.5 is not a whole number"),
        ({"seed": None}, "seed=None is not a whole number"),
        ({"rtol": "a"}, "is not a relative difference"),
        ({"rtol": -1.0}, "is not a relative difference"),
        ({"rtol": math.nan}, "is not a relative difference"),
        ({"gradient": torch.ones(SIZE, dtype=torch.long)}, r"Write gradient=gradient.double\(\)"),
        ({"gradient": torch.ones(SIZE, dtype=torch.complex64)}, "real floating-point numbers"),
        ({"directions": "random"}, "directions is str, not a tensor"),
        ({"grad_outputs": "ones"}, "f returned one number.\nLeave it out"),
        ({"grad_outputs": "mean"}, 'write "ones", or give a tensor'),
    ],
)
def test_an_option_without_meaning_is_refused(options, words):
    with unchecked(), pytest.raises(GradcheckError, match=words):
        hw.check_gradient(prob, X, **options)


@pytest.mark.parametrize(
    ("f", "x", "words"),
    [
        (torch.sum, X.to_sparse(), "give a dense tensor"),
        (torch.sum, X.to("meta"), "give a dense tensor"),
        (
            lambda z: torch.autograd.grad((z**3).sum(), z)[0].sum(),
            X,
            "write it with torch.func.grad",
        ),
        (lambda z: {}["logits"], X, "f failed at x: 'logits'"),
    ],
    ids=["sparse", "meta", "a gradient inside", "any error"],
)
def test_what_cannot_be_run_is_refused_with_what_to_do(f, x, words):
    with pytest.raises(GradcheckError, match=words):
        hw.check_gradient(f, x)


def test_a_gradient_inside_can_be_written_so_that_it_is_checked():
    check = checked(lambda z: torch.func.grad(lambda y: (y**3).sum())(z).sum())
    assert check.verdict == "agree"
    assert check.gradient.allclose(6 * X)


@pytest.mark.parametrize("seed", range(6))
def test_a_wave_shorter_than_every_step_is_not_called_a_wrong_gradient(seed):
    x = 1 + 0.1 * drawn(3, seed=seed)
    found = hw.check_gradient(lambda z: torch.sin(1e11 * z).sum(), x)
    assert found.verdict == "ill-conditioned"
    assert "swings at the shortest steps" in found.sentences()[0]
    slower = hw.check_gradient(lambda z: torch.sin(1e8 * z).sum(), x)
    assert slower.verdict == "agree"


@pytest.mark.parametrize("seed", range(12))
def test_entries_ten_decades_apart_agree(seed):
    units = torch.logspace(-5, 5, 8, dtype=torch.float64)
    check = checked(lambda z: (z * units).tanh().sum(), drawn(8, seed=seed) / units)
    assert check.verdict == "agree"


def test_what_a_coarse_gradient_cannot_tell_is_not_called_flat():
    found = hw.check_gradient(prob, X, gradient=slope_of(prob).bfloat16())
    assert found.verdict == "agree"
    assert "flat" in {one.verdict for one in found.checks[0].directions}
    assert "number format can tell" in found.sentences()[0]
    assert "too flat" not in found.sentences()[0]


def test_a_gradient_a_thousand_times_too_small_is_no_rounding():
    check = checked(prob, gradient=8e-4 * slope_of(prob).flip(0))
    assert check.verdict == "disagree"
    assert "softmax" not in check.hint
