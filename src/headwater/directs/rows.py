"""One part of a decomposed logit in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from headwater.directs.parts import Part

if TYPE_CHECKING:
    from headwater.directs.result import LogitAttribution


@dataclass(frozen=True, kw_only=True)
class Row(Part):
    """A part, and what was found of it."""

    score: float
    """Contribution with the norm frozen, mean over prompts."""
    spread: float
    """Standard deviation over prompts; 0 for one prompt."""
    direct: float | None = None
    """Exact direct effect, mean over prompts; None before an audit and for what was not asked."""
    total: float | None = None
    """Exact total effect, likewise; only where checked."""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


def rows_of(result: LogitAttribution, places: Sequence[int]) -> list[Row]:
    """Return the rows of a result at `places`."""
    scores = result.scores.double()
    means, spreads = scores.mean(0).tolist(), scores.std(0, correction=0).tolist()
    exact: dict[str, dict[str, float]] = {"direct": {}, "total": {}}
    if result.checked is not None:
        for kind, found in exact.items():
            effects: torch.Tensor = getattr(result.checked, kind).mean(0)
            named = zip(result.asked, effects.tolist(), strict=True)
            found.update({name: one for name, one in named if one == one})
    return [
        Row(
            **asdict(part),
            score=means[place],
            spread=spreads[place],
            direct=exact["direct"].get(part.name),
            total=exact["total"].get(part.name),
        )
        for place, part in ((place, result.parts[place]) for place in places)
    ]
