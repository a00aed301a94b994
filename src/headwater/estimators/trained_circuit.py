"""The subset that a trained mask keeps, and how well it does the whole's work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TrainedCircuit:
    """Components that a trained mask keeps, run once with all others at their reference.

    Every value is exact, by intervention, and a mean over the task's pairs.
    """

    kept: tuple[str, ...]
    """Names of the components kept, in gate order."""
    components: int
    """How many there were to choose from."""
    value: float
    """The metric with only these open."""
    clean: float
    """The metric with every component open: the clean run."""
    closed: float
    """The metric with every component closed. It is that of the corrupted prompts only where the
    components leave no other way from the prompt to the logits."""
    steps: int
    """Training steps taken."""
    settled: bool
    """Whether training ended because nothing changed any more, not because steps ran out."""

    @property
    def sparsity(self) -> float:
        """Share of the components that are closed."""
        return 1 - len(self.kept) / self.components

    @property
    def faithfulness(self) -> float | None:
        """`(value - closed) / (clean - closed)`: 1 does all of the work; None if there is none."""
        whole = self.clean - self.closed
        return None if whole == 0 else (self.value - self.closed) / whole

    def __str__(self) -> str:
        worth = self.faithfulness
        said = "undefined" if worth is None else f"{worth:.2f}"
        return (
            f"keeps {len(self.kept):,} of {self.components:,} components "
            f"({self.sparsity:.0%} closed): metric {self.value:+.4g} of {self.clean:+.4g} "
            f"({self.closed:+.4g} with all closed), faithfulness {said}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return fields, sparsity and faithfulness as plain data."""
        derived = {"sparsity": self.sparsity, "faithfulness": self.faithfulness}
        return asdict(self) | {"kept": list(self.kept)} | derived

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> TrainedCircuit:
        """Return the circuit that `to_dict` described."""
        fields = dict(data)
        for derived in ("sparsity", "faithfulness"):
            fields.pop(derived, None)
        fields["kept"] = tuple(fields["kept"])
        return TrainedCircuit(**fields)
