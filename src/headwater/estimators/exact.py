"""The truth: move one gate at a time and run again (activation patching)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from headwater.estimators.choices import ENDS, refuse_unknown
from headwater.estimators.estimator import ALONE, Estimate, Estimator
from headwater.gates import End, Family, GatedFunction


@dataclass(frozen=True)
class Exact(Estimator):
    """Switch each component off, run again, and take the difference.

    At the clean end the score is `f(1) - f(1 - e_i)`: what the metric loses when component i is
    set to its reference (leave one out, "noising"). At the corrupted end it is
    `f(e_i) - f(0)`: what the metric gains when component i alone is restored in the corrupted
    prompt's run (add one in, "denoising"). Costs one run from the component's layer on for each
    component, about half a forward.
    """

    at: End = "clean"
    """`"clean"`: leave one out. `"corrupted"`: add one in, needs `reference=hw.Corrupted()`."""

    name: ClassVar[str] = "exact"
    estimand: ClassVar[str] = ALONE

    def __post_init__(self) -> None:
        refuse_unknown(self, ENDS)

    @property
    def end(self) -> End:
        """The end at which the gates are moved."""
        return self.at

    @property
    def uses_slopes(self) -> bool:
        """Interventions only."""
        return False

    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return exact effects, [batch, component]."""
        return function.at(self.at).effects(range(len(function.names))).T

    def estimate(self, function: GatedFunction) -> Estimate:
        """Return exact effects, and that they are."""
        return Estimate(self.scores(function), exact=tuple(range(len(function.names))))

    def forwards(self, families: Sequence[Family]) -> float:
        """One run at rest, then one from its layer on for each component."""
        return 1.0 + (self.at == "corrupted") + sum(family.one_by_one for family in families)
