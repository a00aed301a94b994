"""What every estimator is: a frozen dataclass with `scores`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from headwater.errors import MissingCapabilityError
from headwater.gates import End, GatedFunction


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

    @abstractmethod
    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return one score an example and component; positive supports the behavior."""

    @abstractmethod
    def forwards(self, shares: Sequence[float]) -> float:
        """Return the forwards a pair this takes beyond the reference's run.

        Args:
            shares: For each component, the share of a forward that one exact effect costs.
        """

    def check(self, function: GatedFunction) -> None:
        """Refuse a gated function that lacks a capability this estimator names.

        Raises:
            MissingCapabilityError: Naming what is missing and what the function offers.
        """
        missing = self.needs - function.capabilities
        if missing:
            offered = ", ".join(sorted(function.capabilities)) or "none"
            raise MissingCapabilityError(
                f"{type(self).__name__} needs {', '.join(sorted(missing))}; this gated function "
                f"offers {offered}.\nhw.Gradient() and hw.Exact() need nothing beyond f(m)."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return name and fields as plain data, for manifests."""
        return {"name": self.name} | {f.name: getattr(self, f.name) for f in fields(self)}
