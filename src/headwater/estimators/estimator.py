"""What every estimator is: a frozen dataclass with `scores`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from headwater.estimators.trained_circuit import TrainedCircuit
from headwater.gates import End, Family, GatedFunction, lacking

ALONE = "each component alone, by intervention"
"""The estimand of most: the effect of one gate, `f(1) - f(1 - e_i)`, which audits perform."""
TOGETHER = "all components together, split among them (Aumann-Shapley)"
"""The estimand along the joint path, on which every gate closes: shares of `f(1) - f(0)`."""


@dataclass(frozen=True)
class Gaps:
    """How far sums of scores are from the exact changes that they should sum to."""

    names: tuple[str, ...]
    """What is summed: a component, a family of components, or everything."""
    values: Float[Tensor, "batch sum"]
    """Sum of the scores minus the exact change, on each example."""


@dataclass(frozen=True)
class Estimate:
    """What an estimator found for one batch."""

    scores: Float[Tensor, "batch component"]
    errors: Float[Tensor, "batch component"] | None = None
    """Standard error of each score, for estimators that draw at random."""
    gaps: Gaps | None = None
    """Completeness gaps, for estimators that have a sum to check."""
    exact: tuple[int, ...] = ()
    """Columns whose scores are exact effects, by intervention."""
    notes: tuple[str, ...] = ()
    """What a reader must know before believing the scores, in sentences."""
    circuit: TrainedCircuit | None = None
    """The subset kept, for estimators that choose one."""


@dataclass(frozen=True)
class Estimator(ABC):
    """One way to estimate `f(1) - f(1 - e_i)` for every gate i.

    Subclasses are frozen dataclasses; their fields are saved with the scores.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """Capabilities of the gated function this estimator cannot do without."""
    name: ClassVar[str]
    """The command line's word."""
    estimand: ClassVar[str]
    """The intervention this estimates, in words; the audit performs exactly that one."""

    @property
    def end(self) -> End:
        """The end at which the audit takes exact effects."""
        return "clean"

    def fitted(
        self, functions: Iterable[GatedFunction], *, progress: bool | None = False
    ) -> "Estimator":
        """Return an estimator that has seen every batch, for those that must; itself by default.

        Args:
            functions: Every batch of the task; may be iterated over again and again.
            progress: True, False, or None to show a bar only on a terminal.
        """
        return self

    @abstractmethod
    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return one score an example and component; positive supports the behavior."""

    def estimate(self, function: GatedFunction) -> Estimate:
        """Return scores with whatever else is known of them; the scores alone by default."""
        return Estimate(self.scores(function))

    @property
    def leaves_one_out(self) -> bool:
        """Whether the estimand is the effect of each component alone, as an audit performs it."""
        return self.estimand == ALONE

    @property
    def uses_slopes(self) -> bool:
        """Whether scores are made of the metric's slopes, and doubtful where slopes are."""
        return True

    @property
    def are_effects(self) -> bool:
        """Whether scores are effects in units of the metric, which have a size to compare."""
        return True

    @property
    def magnitudes(self) -> bool:
        """Whether a score is the size of an effect, with a sign attached.

        An audit then compares |score| with the mean over pairs of |exact|.
        """
        return False

    @abstractmethod
    def forwards(self, families: Sequence[Family]) -> float:
        """Return the forwards a pair that attributing a model takes beyond the reference's run.

        One is a run of the whole model over one prompt, differentiated or not; a run from layer l
        of L counts (L - l) / L, as in `Cost`. The clean run that the metric's value is read from is
        among them. Where what is found decides how many, these are the most.

        Args:
            families: The components, those of one kind and layer together; each knows the share
                of a forward that a run costs in which only its components are moved.
        """

    def __str__(self) -> str:
        """Return it as it is written in Python, without the options that are at their default."""
        options = ", ".join(
            f"{entry.name}={getattr(self, entry.name)!r}"
            for entry in fields(self)
            if getattr(self, entry.name) != entry.default
        )
        return f"{type(self).__name__}({options})"

    def check(self, function: GatedFunction) -> None:
        """Refuse a gated function that lacks a capability this estimator names.

        Raises:
            MissingCapabilityError: Naming what is missing and what the function offers.
        """
        missing = self.needs - function.capabilities
        if missing:
            raise lacking(missing, function.capabilities, type(self).__name__)

    def to_dict(self) -> dict[str, Any]:
        """Return name and fields as plain data, for manifests."""
        return {"name": self.name} | {f.name: getattr(self, f.name) for f in fields(self)}
