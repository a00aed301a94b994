"""Second order by two gradients: the mean of the slopes at both ends of the joint path."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.estimators.estimator import TOGETHER, Estimate, Estimator, Gaps
from headwater.gates import Family, GatedFunction, Move


@dataclass(frozen=True)
class Trapezoid(Estimator):
    """Average the gradient with every gate open and with every gate closed.

    `(df/dm_i(1) + df/dm_i(0)) / 2` is the trapezoid rule for `int df/dm_i(t 1) dt`, so it
    estimates the `joint` path (Aumann-Shapley: all components closed together, the change split
    among them), and not what one component does alone. Exact where f is quadratic in the gates;
    the gap between its sum and `f(1) - f(0)` is reported. Two forward-backwards for all
    components together. Needs no second derivative; compare `hw.SecondOrder`.

    Source: `clean-corrupted` in Hanna et al., "Have faith in faithfulness" (arXiv 2403.17806).
    """

    name: ClassVar[str] = "trapezoid"
    estimand: ClassVar[str] = TOGETHER

    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return the mean of both ends' gradients, [batch, component]."""
        return self.estimate(function).scores

    def estimate(self, function: GatedFunction) -> Estimate:
        """Return the scores and how far they are from summing to `f(1) - f(0)`.

        Raises:
            NestedComponentsError: If one component lies inside another: both are closed at once.
        """
        function = function.at("clean")
        every = tuple(range(len(function.names)))
        open_, closed = function.slopes([Move(every, 0.0), Move(every, 1.0)])
        scores = torch.lerp(open_.gradient, closed.gradient, 0.5)
        gap = scores.sum(1) - (open_.value - closed.value)
        return Estimate(scores, gaps=Gaps(("all components",), gap[:, None]))

    def forwards(self, families: Sequence[Family]) -> float:
        """One run at rest, and one from the lowest component on, differentiated, at either end."""
        return 1.0 + 2 * max(family.share for family in families)
