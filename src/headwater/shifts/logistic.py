"""Logistic regression: the one minimum of a convex loss, found to many digits.

    loss(w, b) = mean log(1 + exp(-y (z . w + b))) + l2 / 2 |w|^2        y = 1 or -1

`z` is the input with mean 0 and deviation 1 in every column. In float64 on the CPU, from zero, by
L-BFGS: no step size, no order of examples, hence no seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from headwater.errors import NonFiniteError, PromptError, UnknownOptionError

STEPS = 2000
"""Most iterations."""
FLAT = 1e-6
"""Largest slope of the loss at what counts as its minimum."""


@dataclass(frozen=True)
class Logistic:
    """What was fitted: `logit = (x - mean) / scale . weights + bias`."""

    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    weights: Float[Tensor, " d"]
    bias: float

    @property
    def direction(self) -> Float[Tensor, " d"]:
        """What multiplies the input itself."""
        return self.weights / self.scale

    @property
    def offset(self) -> float:
        """The logit at input 0."""
        return self.bias - float(self.mean @ self.direction)

    def logit(self, x: Float[Tensor, "*at d"]) -> Float[Tensor, "*at"]:
        """Return the logit of inputs, in their number type."""
        return x @ self.direction.to(x) + self.offset


def fit_logistic(
    x: Float[Tensor, "example d"], positive: Bool[Tensor, " example"], l2: float
) -> Logistic:
    """Fit a logistic regression.

    Args:
        x: Inputs.
        positive: Which examples are of the class that a positive logit means.
        l2: Price of the weights; above 0, or separable classes would have no minimum.

    Raises:
        UnknownOptionError: If the price is not above 0.
        PromptError: If all examples are of one class.
        NonFiniteError: If an input is NaN or infinite, or no minimum is reached.
    """
    if not (l2 > 0 and l2 != float("inf")):
        raise UnknownOptionError(
            f"l2={l2}: where the classes can be told apart without error, only a price on the "
            "weights keeps them finite.\nType l2=0.01."
        )
    if bool(positive.all()) or not bool(positive.any()):
        raise PromptError(
            f"all {len(positive)} examples are of one class, so there is nothing to tell apart.\n"
            "Give examples of two."
        )
    _refuse_non_finite(x)
    x = x.double().cpu()
    mean, scale = x.mean(0), x.std(0)
    # a column that does not vary says nothing, and is only moved to 0
    scale = torch.where(scale > 1e-12 * (1 + mean.abs()), scale, torch.ones_like(scale))
    found = _minimized((x - mean) / scale, positive.cpu(), l2)
    return Logistic(mean, scale, found[:-1].clone(), float(found[-1]))


def _minimized(z: Tensor, positive: Tensor, l2: float) -> Float[Tensor, " weight"]:
    sign = torch.where(positive, 1.0, -1.0).to(z)
    found = z.new_zeros(z.shape[1] + 1).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [found],
        max_iter=STEPS,
        max_eval=2 * STEPS,
        tolerance_grad=FLAT / 100,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        margin = sign * (z @ found[:-1] + found[-1])
        return softplus(-margin).mean() + l2 / 2 * found[:-1].square().sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        (slope,) = torch.autograd.grad(loss(), found)
    steepest = float(slope.abs().max())
    if not steepest <= FLAT:
        raise NonFiniteError(
            f"the probe's loss still has a slope of {steepest:.2g} after {STEPS:,} steps.\n"
            "Raise l2: with a higher price on the weights the minimum is closer."
        )
    return found.detach()


def _refuse_non_finite(x: Tensor) -> None:
    bad = (~torch.isfinite(x)).any(1).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(
            f"the activations of {len(bad)} examples are NaN or infinite (the first: example "
            f"{bad[0]}).\nRun in a wider dtype: hw.load(name, dtype='float32')."
        )
