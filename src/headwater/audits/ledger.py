"""Every exact run of a result that was ever made, by the set of components it closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from headwater.audits.interventions import Interventions

Columns = tuple[int, ...]

AT_ONCE = 64
"""Runs made before they are kept; killing the process loses at most these."""


@dataclass
class Ledger:
    """What the metric lost in each run, by pair; a set is never run twice.

    Args:
        lost: Runs of earlier calls.
        keep: Called with all runs whenever there are new ones.
    """

    lost: dict[Columns, Float[np.ndarray, " pair"]] = field(default_factory=dict)
    keep: Callable[[Mapping[Columns, Float[np.ndarray, " pair"]]], None] | None = None
    fresh: int = 0
    """Runs made by this ledger, not found in it."""

    def runs(
        self, exact: Interventions, sets: Sequence[Columns], title: str
    ) -> dict[Columns, Float[np.ndarray, " pair"]]:
        """Return what was lost by pair for each set of columns; runs only the new ones."""
        missing = [columns for columns in dict.fromkeys(sets) if columns not in self.lost]
        for start in range(0, len(missing), AT_ONCE):
            part = missing[start : start + AT_ONCE]
            values = exact.closed(part, title)
            self.lost |= dict(zip(part, values.T.copy(), strict=True))
            self.fresh += len(part)
            if self.keep is not None:
                self.keep(self.lost)
        return {columns: self.lost[columns] for columns in sets}
