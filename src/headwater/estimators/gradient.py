"""First order at one point: attribution patching (AtP)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import StationaryMetricError
from headwater.estimators.choices import ENDS, refuse_unknown
from headwater.estimators.estimator import ALONE, Estimator
from headwater.gates import End, Family, GatedFunction, refuse_flat


@dataclass(frozen=True)
class Gradient(Estimator):
    """Score every gate by the derivative of the metric there: `df/dm_i`.

    With `x_i` the component's value and `r_i` its reference this is `(x_i - r_i) . df/dx_i`, the
    first-order estimate of the leave-one-out effect. Two forwards and one backward for all
    components together. Blind to saturation, cancellation and thresholds: audit it.

    Source: Nanda, "Attribution patching" (2023); Kramár et al., "AtP*" (arXiv 2403.00745),
    equation 4, with the opposite sign (theirs is the change of the metric, ours what it loses).
    """

    at: End = "clean"
    """`"clean"`: the derivative in the clean run (gates at 1). `"corrupted"`: in the corrupted
    prompt's run (gates at 0), an estimate of adding the component in; needs
    `reference=hw.Corrupted()`."""

    name: ClassVar[str] = "gradient"
    estimand: ClassVar[str] = ALONE

    def __post_init__(self) -> None:
        refuse_unknown(self, ENDS)

    @property
    def end(self) -> End:
        """The end at which the derivative is taken, and the audit's intervention too."""
        return self.at

    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return `df/dm` at the chosen end, [batch, component].

        Raises:
            StationaryMetricError: If that derivative is zero by construction.
        """
        refuse_stationary(function, self.at)
        function = function.at(self.at)
        m = function.gates().requires_grad_()
        with torch.enable_grad():
            value = function(m)
            refuse_flat(value)
            (gradient,) = torch.autograd.grad(value.sum(), m)
        return gradient[0]

    def forwards(self, families: Sequence[Family]) -> float:
        """One run, differentiated; at the corrupted end one more for the clean values."""
        return 1.0 + (self.at == "corrupted")


def refuse_stationary(function: GatedFunction, end: End) -> None:
    """Refuse to differentiate where the derivative is zero by construction.

    Raises:
        StationaryMetricError: Saying what to use instead.
    """
    if end in function.stationary:
        raise StationaryMetricError(
            "the metric is the KL divergence to the clean run: at the clean end it is at its "
            "maximum, so every gradient there is exactly 0.\n"
            "Use hw.SecondOrder(), which takes the curvature there, hw.Exact(), "
            'hw.IntegratedGradients(), hw.Gradient(at="corrupted"), or another metric such as '
            "hw.logit_diff()."
        )
