"""Slopes that are flat where the run is and steep where it is not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headwater.estimators import AtPStar, Estimator, IntegratedGradients
from headwater.gates import (
    ATTENTION,
    DROPS,
    AttentionRows,
    GatedFunction,
    Linearized,
    Replaced,
    Slopes,
    lacking,
)
from headwater.zoo.truths.formulas import closed_forms, table
from headwater.zoo.truths.truth import Truth

GAPS = (2.0, 10.0, 20.0, 40.0)
"""How far the query scores the first key above the second."""
RAMP = (0.45, 0.55)


_KEYS = torch.tensor([0.5, -0.5], dtype=torch.float64)
_VALUES = torch.tensor([1.0, 0.0], dtype=torch.float64)


def _scores(m: Tensor) -> Tensor:
    """Attention scores of the two keys: the gate turns the query from -s round to s."""
    gaps = torch.tensor(GAPS, dtype=torch.float64)
    return torch.lerp(-gaps, gaps, m[..., 0])[..., None] * _KEYS


class OneQuery(GatedFunction):
    """One query over two keys, of which the first holds 1 and the second 0."""

    def linearized(self, *, attention: bool, drops: bool) -> Linearized:
        """Return the one row of attention, as it is and with the query at its off value."""
        if drops:
            raise lacking({DROPS}, self.capabilities)
        m = self.gates().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self(m).sum(), m)

        def row(scores: Tensor) -> Tensor:
            return scores[0, :, None, None, :]  # [batch, head, query, key]

        clean, off = row(_scores(self.gates())), row(_scores(0 * self.gates()))
        return Linearized(
            depth=1,
            inside=[0],
            rows={0: AttentionRows(clean.softmax(-1), clean, None)},
            replaced=[Replaced(slice(0, 1), "query", 0, off, None, 1)],
            slopes=Slopes(gradient[0], {0: _VALUES.expand_as(clean)}),
            dropped=lambda _: Slopes(torch.zeros_like(gradient[0]), {}),
        )


def attention() -> OneQuery:
    """Return the attended value as a function of a gate on the query."""
    return OneQuery(
        lambda m: _scores(m).softmax(-1) @ _VALUES,
        ("query",),
        batch=len(GAPS),
        capabilities=frozenset({ATTENTION}),
        dtype=torch.float64,
    )


def _saturation(s: float) -> float:
    """sig(s) sig(-s)."""
    return math.exp(-s) / (1 + math.exp(-s)) ** 2


def _attention_slope(t: float) -> list[list[float]]:
    # df/dm = 2 s sig(u) sig(-u) at u = (2t - 1) s, and sig(u) sig(-u) = 1 / (4 cosh(u/2)^2)
    return [[s / (2 * math.cosh((2 * t - 1) * s / 2) ** 2)] for s in GAPS]


SATURATED_SOFTMAX = Truth(
    name="saturated-softmax",
    shows="A gradient is blind to a query whose softmax is saturated, and an integral of it needs "
    "more steps the larger the score gap is.",
    formulas=(
        "f = first weight of softmax(s, 0) at the clean end, of softmax(-s, 0) at the corrupted",
        "exact = tanh(s/2); gradient = 2 s sig(s) sig(-s); the query fix of AtP* = exact",
    ),
    names=("query",),
    build=attention,
    examples=tuple(f"s = {s:g}" for s in GAPS),
    expected=closed_forms(
        exact=[[math.tanh(s / 2)] for s in GAPS],
        gradient=[[2 * s * _saturation(s)] for s in GAPS],
        # the derivative of sig sig(-) at s is -tanh(s/2) times it
        curvature=[[-4 * s**2 * _saturation(s) * math.tanh(s / 2)] for s in GAPS],
        shapley=[[math.tanh(s / 2)] for s in GAPS],
        own=_attention_slope,
        joint=_attention_slope,
    )
    # the query fix computes the softmax itself
    | {AtPStar(grad_drop=False): table([[math.tanh(s / 2)] for s in GAPS])},
)


def step() -> GatedFunction:
    """Two rectifiers: 0 up to .45, a ramp, 1 from .55 on."""
    low, high = RAMP

    def ramp(m: Tensor) -> Tensor:
        return ((torch.relu(m - low) - torch.relu(m - high)) / (high - low))[..., 0]

    return GatedFunction(ramp, ("a",), dtype=torch.float64)


def _step_slope(t: float) -> list[list[float]]:
    return [[1 / (RAMP[1] - RAMP[0]) if RAMP[0] < t < RAMP[1] else 0.0]]


_ADAPTIVE: Estimator = IntegratedGradients("component", "midpoint", 8, tolerance=0.01)

SHARP_STEP = Truth(
    name="sharp-step",
    shows="A few steps of an integral can all miss a threshold; a tolerance makes it look until "
    "the sum closes.",
    formulas=(
        "f = (relu(m - .45) - relu(m - .55)) / .1",
        "exact = 1; gradient = 0 at both ends; midpoints: 10 x the share of points on the ramp",
    ),
    names=("a",),
    build=step,
    # ten midpoints would lie on the corners themselves, where there is no slope
    expected=closed_forms(
        exact=[[1.0]],
        gradient=[[0.0]],
        curvature=[[0.0]],
        shapley=[[1.0]],
        own=_step_slope,
        joint=_step_slope,
        steps=(4, 5, 8, 20),
    )
    | {_ADAPTIVE: table([[1.0]])},
)
