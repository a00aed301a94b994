"""Effects that cancel in the gradient: two paths, a norm, a softmax that sums to one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headwater.errors import HeadwaterError, NonFiniteError
from headwater.estimators import (
    AtPStar,
    Estimator,
    Exact,
    Gradient,
    IntegratedGradients,
    Shapley,
    Trapezoid,
)
from headwater.gates import ATTENTION, DROPS, GatedFunction, Linearized, Slopes
from headwater.zoo.truths.formulas import closed_forms, table
from headwater.zoo.truths.truth import Fact, Truth

SHIFTS = (0.5, 2.0)
"""How far the reference is from the clean value, 0."""


def _second_layer(residual: Tensor, *, dropped: bool = False) -> Tensor:
    write = -torch.tanh(residual)
    return residual + (write.detach() if dropped else write)


def _shifted(m: Tensor) -> Tensor:
    return (1 - m[..., 0]) * torch.tensor(SHIFTS, dtype=torch.float64)


class TwoLayers(GatedFunction):
    """The first layer writes d, the second -tanh d; the metric falls with what is left.

    There is no attention in it, so it offers that there are no rows to fix.
    """

    def linearized(self, *, attention: bool, drops: bool) -> Linearized:
        """Return slopes, also with either layer's write held constant."""
        return Linearized(
            depth=2,
            inside=[0],
            rows={},
            replaced=[],
            slopes=Slopes(_gradient(dropped=False), {}),
            dropped=lambda layer: Slopes(
                _gradient(dropped=True) if layer == 1 else torch.zeros_like(_gradient()), {}
            ),
        )


def cancelling() -> TwoLayers:
    """Return the two layers as a function of a gate on what the first one writes."""
    return TwoLayers(
        lambda m: -_second_layer(_shifted(m)),
        ("a0",),
        batch=len(SHIFTS),
        capabilities=frozenset({ATTENTION, DROPS}),
        dtype=torch.float64,
    )


def _gradient(*, dropped: bool = False) -> Tensor:
    """df/dm at the clean end, with layer 1 held constant or not, [batch, component]."""
    m = torch.ones(1, len(SHIFTS), 1, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        metric = -_second_layer(_shifted(m), dropped=dropped)
    (gradient,) = torch.autograd.grad(metric.sum(), m)
    return gradient[0]


def _cancelling_slope(t: float) -> list[list[float]]:
    # f = tanh d - d at d = (1 - t) D, so df/dt = D (1 - sech^2 d) = D tanh^2 d
    return [[shift * math.tanh((1 - t) * shift) ** 2] for shift in SHIFTS]


CANCELLATION = Truth(
    name="cancellation",
    shows="A later layer undoes what an earlier one writes, to first order: the gradient is 0, "
    "the effect is not, and with the later layer cut the gradient is back (GradDrop).",
    formulas=(
        "r1 = d, r2 = r1 - tanh r1, f = -r2; clean d = 0, reference d = D",
        "exact = D - tanh D; gradient = 0; with layer 1 cut it is D, which is the GradDrop score",
    ),
    names=("a0",),
    build=cancelling,
    examples=tuple(f"D = {shift:g}" for shift in SHIFTS),
    expected=closed_forms(
        exact=[[shift - math.tanh(shift)] for shift in SHIFTS],
        gradient=[[0.0] for _ in SHIFTS],
        curvature=[[0.0] for _ in SHIFTS],
        shapley=[[shift - math.tanh(shift)] for shift in SHIFTS],
        own=_cancelling_slope,
        joint=_cancelling_slope,
    )
    # two layers, one of them the component's own: the mean over one dropped layer
    | {AtPStar(): table([[shift] for shift in SHIFTS])},
)


A, B = 3.0, 1.0


def normed() -> GatedFunction:
    """The first of two values after an RMS norm without epsilon."""

    def first(m: Tensor) -> Tensor:
        x = m * torch.tensor([A, B], dtype=torch.float64)
        return torch.nn.functional.rms_norm(x, (2,), eps=0.0)[..., 0]

    return GatedFunction(first, ("a", "b"), dtype=torch.float64)


def _normed_slope(t: float) -> list[list[float]]:
    # f = sqrt(2) a / sqrt(a^2 + b^2), so df/da = sqrt(2) b^2 / r^3 and df/db = -sqrt(2) a b / r^3
    of_a = A * math.sqrt(2) * B**2 / math.hypot(t * A, B) ** 3
    of_b = B * -math.sqrt(2) * A * (t * B) / math.hypot(A, t * B) ** 3
    return [[of_a, of_b]]


def _sum_of_gradients() -> Tensor:
    m = torch.ones(1, 1, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(normed()(m).sum(), m)
    return gradient.sum()


_WITHOUT_ZERO: dict[Estimator, type[HeadwaterError]] = {
    Gradient(at="corrupted"): NonFiniteError,
    Exact(at="corrupted"): NonFiniteError,
    Trapezoid(): NonFiniteError,
    Shapley(): NonFiniteError,
    IntegratedGradients(): NonFiniteError,
    IntegratedGradients("joint", "midpoint", 10): NonFiniteError,
}

RMS_NORM = Truth(
    name="rms-norm",
    shows="A norm makes the metric scale-free, so with zero as the reference all gradients sum to "
    "0 whatever the metric is: the gradient of the part that is everything is ten times too small.",
    formulas=(
        "f = a / rms(a, b), a = 3, b = 1, reference zero",
        "gradient = +-0.3 / sqrt 5, sum 0; exact_a = 3 / sqrt 5, exact_b = 3 / sqrt 5 - sqrt 2",
        "with every gate at 0 it is 0 / 0: refused",
    ),
    names=("a", "b"),
    build=normed,
    expected=closed_forms(
        exact=[[3 / math.sqrt(5), 3 / math.sqrt(5) - math.sqrt(2)]],
        gradient=[[0.3 / math.sqrt(5), -0.3 / math.sqrt(5)]],
        # f_aa = -3 sqrt 2 a b^2 / r^5 and f_bb = -sqrt 2 a (r^2 - 3 b^2) / r^5, times a^2 and b^2
        curvature=[[-81 * math.sqrt(2) / 10**2.5, -21 * math.sqrt(2) / 10**2.5]],
        own=_normed_slope,
    ),
    refused=_WITHOUT_ZERO,
    facts=(Fact("sum of all gradients", torch.zeros((), dtype=torch.float64), _sum_of_gradients),),
)


LOGITS = (2.0, 0.5, -1.0, 0.0)


def probabilities() -> GatedFunction:
    """On the first example all probabilities together, on the second the first one alone."""
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    chosen = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    return GatedFunction(
        lambda m: ((m * logits).softmax(-1) * chosen).sum(-1),
        tuple(f"logit {k}" for k in range(4)),
        batch=2,
        dtype=torch.float64,
    )


def _softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(logit) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def _first_slopes(logits: list[float], which: int) -> float:
    """dp_0 / dm_i: `z_i p_0 (delta_0i - p_i)`."""
    p = _softmax(logits)
    return LOGITS[which] * p[0] * ((which == 0) - p[which])


def _first_alone(t: float) -> list[list[float]]:
    row = []
    for i in range(4):
        logits = [t * z if k == i else z for k, z in enumerate(LOGITS)]
        row.append(_first_slopes(logits, i))
    return [[0.0] * 4, row]


def _first_together(t: float) -> list[list[float]]:
    return [[0.0] * 4, [_first_slopes([t * z for z in LOGITS], i) for i in range(4)]]


def _first_left_out(i: int) -> float:
    without = [0.0 if k == i else z for k, z in enumerate(LOGITS)]
    return _softmax(list(LOGITS))[0] - _softmax(without)[0]


def _first_restored(i: int) -> float:
    return _softmax([z if k == i else 0.0 for k, z in enumerate(LOGITS)])[0] - 1 / 4


def _jacobian() -> Tensor:
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    rows = torch.autograd.functional.jacobian(lambda z: z.softmax(-1), logits)
    assert isinstance(rows, Tensor)
    return rows


_P = _softmax(list(LOGITS))


def _first_bend(i: int) -> float:
    """d2p_0 / dm_i2: `z_0^2 p_0 (1 - p_0) (1 - 2 p_0)`, and `-z_i^2 p_0 p_i (1 - 2 p_i)`."""
    bend = _P[0] * (1 - _P[0]) if i == 0 else -_P[0] * _P[i]
    return LOGITS[i] ** 2 * bend * (1 - 2 * _P[i])


SUM_OF_SOFTMAX = Truth(
    name="sum-of-softmax",
    shows="The sum of all probabilities is 1 whatever the logits are: every score is 0, and what "
    "a gradient shows is rounding. One probability has gradients of both signs.",
    formulas=(
        "p = softmax(z), z = (2, 1/2, -1, 0), gates on the logits; f = p_0 + .. + p_3, or f = p_0",
        "sum: gradient = exact = 0; p_0: gradient = z_i p_0 (delta_0i - p_i)",
        "dp_k / dz_i = p_k (delta_ki - p_i)",
    ),
    names=tuple(f"logit {k}" for k in range(4)),
    build=probabilities,
    examples=("sum", "p_0"),
    expected=closed_forms(
        exact=[[0.0] * 4, [_first_left_out(i) for i in range(4)]],
        gradient=[[0.0] * 4, [LOGITS[i] * _P[0] * ((i == 0) - _P[i]) for i in range(4)]],
        restored=[[0.0] * 4, [_first_restored(i) for i in range(4)]],
        curvature=[[0.0] * 4, [_first_bend(i) for i in range(4)]],
        own=_first_alone,
        joint=_first_together,
    ),
    facts=(
        Fact(
            "dp_k / dz_i",
            table([[_P[k] * ((k == i) - _P[i]) for i in range(4)] for k in range(4)]),
            _jacobian,
        ),
    ),
)
