"""Gated functions whose estimates and exact effects are chosen, each apart from the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

import headwater as hw
from headwater.audits.report import Audit, AuditRow
from headwater.audits.sampling import AuditSample, Stratum
from headwater.audits.words import Counts


def planted(
    estimate: np.ndarray,
    exact: np.ndarray,
    *,
    together: Sequence[Sequence[int]] = (),
    size: float = 0.0,
) -> hw.GatedFunction:
    """A function whose gradient at the clean end is `estimate` and whose exact effects are `exact`.

    `a m + h (1 - (1 - m)^2)` has derivative a at m = 1, and loses a + h when m goes to 0. Effects
    add up, unless components work `together`: closing any of such a set loses `size` once, and the
    derivative does not see it.

    Args:
        estimate: Gradients, [component] or [pair, component].
        exact: Exact effects, of the same shape.
        together: Sets of columns, each of which works only as a whole.
        size: What each such set contributes.
    """
    a, whole = torch.tensor(np.atleast_2d(estimate)), torch.tensor(np.atleast_2d(exact))

    def fn(m: torch.Tensor) -> torch.Tensor:
        value = (a * m + (whole - a) * (1 - (1 - m) ** 2)).sum(-1)
        for columns in together:
            value = value + size * (1 - (1 - m[..., list(columns)].prod(-1)) ** 2)
        return value

    names = [f"c{column}" for column in range(a.shape[1])]
    return hw.GatedFunction(fn, names, batch=len(a), dtype=torch.float64)


def counted(function: hw.GatedFunction) -> list[int]:
    """Count how many settings of its gates a function evaluates from now on; one number a call."""
    calls: list[int] = []
    inner = function.fn

    def fn(m: torch.Tensor) -> torch.Tensor:
        calls.append(len(m))
        return inner(m)

    function.fn = fn
    return calls


def population(
    seed: int, hidden: Sequence[int] = (), size: float = 0.0, error: float = 0.005
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and effects of 200 components: 20 strong ones, the rest near zero, `hidden` ones
    among them of which the estimate sees nothing."""
    draw = np.random.default_rng(seed)
    estimate = np.concatenate([draw.normal(0, 0.5, 20), draw.normal(0, error, 180)])
    exact = estimate + draw.normal(0, error, 200)
    exact[list(hidden)] = size
    return estimate, exact


def checked(scores: hw.Attribution, exact: np.ndarray, columns: Sequence[int]) -> Audit:
    """An audit that knows these components, made without its figures and their bootstraps."""
    chosen = AuditSample(len(scores.names), (Stratum("top", tuple(columns), tuple(columns)),))
    return sampled(scores, exact, chosen)


def sampled(scores: hw.Attribution, exact: np.ndarray, sample: AuditSample) -> Audit:
    """An audit of a sample, made without its figures and their bootstraps."""
    mean, effect = scores.mean().tolist(), np.atleast_2d(exact).mean(0).tolist()
    rows = tuple(
        AuditRow(scores.names[c], stratum, weight, mean[c], effect[c], mean[c] - effect[c])
        for c, stratum, weight in zip(sample.indices, sample.labels, sample.weights, strict=True)
    )
    counts = Counts(len(mean), len(rows), {}, True, 0, 0, None, False)
    audit = Audit("", "", (), counts, rows, (), (), 0, 0.95)
    scores.checked = audit.of(scores)
    return audit.of(scores, weakly=False)
