"""Second order at one point: what one gate does alone, with its own curvature."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from headwater.errors import MissingCapabilityError
from headwater.estimators.choices import ENDS, refuse_below, refuse_unknown
from headwater.estimators.draws import RunningMean, generator
from headwater.estimators.estimator import ALONE, Estimate, Estimator
from headwater.gates import End, Family, GatedFunction

Product = Callable[[Float[Tensor, "batch component"]], Float[Tensor, "batch component"]]
"""The Hessian in gate space times a vector, for each example."""

_UNDERIVED = ("derivative for", "twice", "once_differentiable", "double backward")
"""What torch writes where a step has no second derivative."""


@dataclass(frozen=True, eq=False)
class Parabola:
    """The effect of each gate alone to second order, term by term."""

    slopes: Float[Tensor, "batch component"]
    """First order: what `Gradient` gives."""
    correction: Float[Tensor, "batch component"]
    """What the curvature adds."""
    errors: Float[Tensor, "batch component"] | None
    """Standard error of the correction; None if no probe was drawn."""


@dataclass(frozen=True)
class SecondOrder(Estimator):
    """Correct the gradient by the gate's own curvature: `df/dm_i - H_ii / 2`.

    That is the Taylor series of the leave-one-out effect `f(1) - f(1 - e_i)` to second order, so
    exact where f is quadratic in each gate. The diagonal of the Hessian in gate space comes from
    Hutchinson's estimator, the mean of `r * (H r)` over random signs r: unbiased, with variance
    `sum_{j != i} H_ij^2` a probe, which is itself a measure of how much i interacts with the rest.
    The scores carry the standard error that this leaves.

    Works where the metric is stationary (KL to the clean run), where it is the leading term. Does
    not repair deep saturation, where every derivative vanishes. Costs one forward-backward, and
    for each probe about two backwards through a graph that holds both; attention runs by plain
    matrix products meanwhile, because fused kernels have no second derivative.

    Source: Hutchinson, "A stochastic estimator of the trace" (1990); Bekas, Kokiopoulou and Saad,
    "An estimator for the diagonal of a matrix" (2007).
    """

    probes: int | Literal["exact"] = 16
    """Random sign vectors, at least 2. `"exact"` takes one product a component instead, and so
    does any number of probes that is not below the number of components: the error is then 0."""
    seed: int = 0
    """Seed of the signs; every pair draws its own, whatever the batch size."""
    at: End = "clean"
    """`"clean"`: leave one out. `"corrupted"`: add one in, `df/dm_i + H_ii / 2` with every gate
    closed; needs `reference=hw.Corrupted()`."""

    name: ClassVar[str] = "second-order"
    estimand: ClassVar[str] = ALONE

    def __post_init__(self) -> None:
        refuse_unknown(self, ENDS)
        refuse_below(self, "seed", 0, example=0)
        if self.probes != "exact":
            why = (
                "the standard error is taken from the spread of at least 2 "
                '(probes="exact" takes one product a component and leaves none)'
            )
            refuse_below(self, "probes", 2, example=16, why=why)

    @property
    def end(self) -> End:
        """The end at which the derivatives are taken, and the audit's intervention too."""
        return self.at

    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return `df/dm_i -+ H_ii / 2`, [batch, component]."""
        return self.estimate(function).scores

    def estimate(self, function: GatedFunction) -> Estimate:
        """Return the scores, and their standard errors if the diagonal was sampled.

        Raises:
            MissingCapabilityError: If a step of the function has no second derivative.
        """
        found = self.parabola(function)
        return Estimate(found.slopes + found.correction, found.errors)

    def parabola(self, function: GatedFunction) -> Parabola:
        """Return the two terms of the scores apart.

        Raises:
            MissingCapabilityError: If a step of the function has no second derivative.
        """
        function = function.at(self.at)
        with sdpa_kernel(SDPBackend.MATH):
            m = function.gates().requires_grad_()
            with torch.enable_grad():
                value = function(m)
                # asks for a gradient itself, so that steps which cannot be differentiated twice
                # leave their mark in the graph
                one = torch.ones_like(value).requires_grad_()
                slopes = _differentiated(value, m, one, create_graph=True)
            gradient = slopes[0]
            _refuse_marked(gradient)

            def product(vector: Tensor) -> Tensor:
                # back through the gradient's graph, and through the forward's below it
                function.cost.backwards += 2 * function.batch
                return _differentiated(
                    gradient, m, vector, retain_graph=True, materialize_grads=True
                )[0]

            if self._takes_exact(len(function.names)):
                diagonal, errors = _exact_diagonal(product, gradient), None
            else:
                diagonal, errors = self._sampled_diagonal(product, gradient, function.pairs)
        half = diagonal / 2 if self.at == "corrupted" else -diagonal / 2
        return Parabola(gradient.detach(), half, None if errors is None else errors / 2)

    def forwards(self, families: Sequence[Family]) -> float:
        """One run, differentiated twice; at the corrupted end one more for the clean values."""
        return 1.0 + (self.at == "corrupted")

    def _takes_exact(self, components: int) -> bool:
        return self.probes == "exact" or self.probes >= components

    def _sampled_diagonal(
        self, product: Product, gradient: Tensor, pairs: Sequence[int]
    ) -> tuple[Float[Tensor, "batch component"], Float[Tensor, "batch component"]]:
        """Return the mean of `r * (H r)` over the probes and the standard error of that mean."""
        assert isinstance(self.probes, int)
        generators = [generator(self.seed, pair) for pair in pairs]
        diagonal = RunningMean(gradient)
        for _ in range(self.probes):
            rows = [torch.randint(2, gradient.shape[1:], generator=one) for one in generators]
            signs = torch.stack(rows).to(gradient) * 2 - 1
            diagonal.add(signs * product(signs))
        return diagonal.mean, diagonal.standard_error()


def _exact_diagonal(product: Product, gradient: Tensor) -> Float[Tensor, "batch component"]:
    diagonal = torch.zeros_like(gradient)
    for column in range(diagonal.shape[1]):
        unit = torch.zeros_like(diagonal)
        unit[:, column] = 1.0
        diagonal[:, column] = product(unit)[:, column]
    return diagonal


def _refuse_marked(gradient: Tensor) -> None:
    """Refuse a gradient through a step marked `@once_differentiable`.

    Such a step is cut from the gates, so torch would never run into it: its curvature would
    silently be 0.
    """
    waiting, seen = [gradient.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().rpartition("::")[2] == "Error":
            raise _underived("one is marked @once_differentiable")
        waiting += [before for before, _ in node.next_functions]


def _differentiated(value: Tensor, m: Tensor, weights: Tensor, **options: Any) -> Tensor:
    """Return the derivative of `value * weights` in the gates; say what to do if there is none."""
    try:
        (found,) = torch.autograd.grad(value, m, weights, **options)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _UNDERIVED):
            raise
        raise _underived(str(error).splitlines()[0]) from error
    return found


def _underived(problem: str) -> MissingCapabilityError:
    return MissingCapabilityError(
        "hw.SecondOrder() differentiates twice, and a step of this function has no second "
        f"derivative: {problem}\n"
        'Load the model with attn_implementation="sdpa" or "eager" and without fused kernels, '
        "or use hw.Trapezoid(), which takes two first derivatives (of another estimand), or "
        "hw.Exact()."
    )
