"""Every exact run of a result that was ever made, by the set of components it closed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

Columns = tuple[int, ...]


@dataclass
class Ledger:
    """What the metric lost in each run; whoever asks for a set that was run gets it from here.

    Args:
        lost: By pair, for each set of columns that was closed together.
        chosen: Sets that `hw.verify` picked by what it saw of other runs. A later verify spends
            its budget on them again, without running them: its confidence is that of one procedure
            from its start.
        keep: Called whenever there are new runs.
    """

    lost: dict[Columns, Float[np.ndarray, " pair"]] = field(default_factory=dict)
    chosen: set[Columns] = field(default_factory=set)
    keep: Callable[[], None] | None = None

    def alone(self, *, chosen: bool = True) -> dict[int, Float[np.ndarray, " pair"]]:
        """Return the effect by pair of every component that was closed alone, by column.

        Args:
            chosen: Whether those that `hw.verify` picked are among them.
        """
        return {
            columns[0]: lost
            for columns, lost in self.lost.items()
            if len(columns) == 1 and (chosen or columns not in self.chosen)
        }

    def merge(self, other: Ledger) -> None:
        """Take over the runs of another ledger of the same result."""
        # what one of the two did not pick by looking is known to any procedure
        unchosen = (self.lost.keys() - self.chosen) | (other.lost.keys() - other.chosen)
        self.chosen = (self.chosen | other.chosen) - unchosen
        self.lost = other.lost | self.lost
