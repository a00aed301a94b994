"""How right a probe is under one treatment: what was done, on which sets it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headwater.shifts.accuracy import Accuracies

Kind = Literal["before", "ablated", "strongest", "random", "oracle"]
"""Nothing is done; the judged features are ablated; as many of the strongest; as many drawn at
random of those that have an effect; the probe is fitted to balanced examples instead."""


@dataclass(frozen=True)
class Outcome:
    """One treatment, measured on biased examples that were held out and on balanced ones."""

    kind: Kind
    retrained: bool
    """Whether the probe was fitted again, to biased examples with the same features ablated."""
    ablated: tuple[str, ...]
    biased: Accuracies
    balanced: Accuracies
    draw: int = 0
    """Of random features, which draw."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "kind": self.kind,
            "retrained": self.retrained,
            "draw": self.draw,
            "ablated": list(self.ablated),
            "biased": self.biased.to_dict(),
            "balanced": self.balanced.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outcome:
        """Return what `to_dict` described."""
        return cls(
            kind=data["kind"],
            retrained=data["retrained"],
            draw=data["draw"],
            ablated=tuple(data["ablated"]),
            biased=Accuracies.from_dict(data["biased"]),
            balanced=Accuracies.from_dict(data["balanced"]),
        )


def picked(outcomes: Sequence[Outcome], kind: Kind, *, retrained: bool) -> list[Outcome]:
    """Return the outcomes of one treatment: one, or of random features one a draw."""
    return [one for one in outcomes if one.kind == kind and one.retrained == retrained]
