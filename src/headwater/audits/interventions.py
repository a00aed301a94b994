"""Exact runs on the gates a result was scored with: any set of components closed together.

Whoever asks for runs again and again asks one `Interventions`: every batch, its off values and its
resting run are made once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headwater.audits.again import estimator_of, gated_again, model_of, refuse_other_numbers
from headwater.components import ComponentTable
from headwater.errors import NonFiniteError
from headwater.gates import Cost, End, GatedFunction, Move
from headwater.models import Model
from headwater.progress import progress_bar

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

Batch = tuple[Sequence[int], GatedFunction]
"""A gated function, and which pairs of the task it holds."""


class Interventions:
    """What the metric loses when components are closed, on every pair of a result.

    Args:
        batches: Returns the gated function of each batch, with the pairs it holds; called at the
            first run, so that nothing runs for results that are all known.
        pairs: Pairs in all.
        table: The components of a model; None for a gated function.
        end: Where effects are taken from.
        cost: What the functions count their passes in.
        progress: True, False, or None to show a bar only on a terminal.
        draws: How often each pair comes, with other off values each time; effects are averaged.
    """

    def __init__(
        self,
        batches: Callable[[], Iterable[Batch]],
        *,
        pairs: int,
        table: ComponentTable | None,
        end: End,
        cost: Cost,
        progress: bool | None = False,
        draws: int = 1,
    ) -> None:
        self._batches = batches
        self.pairs, self.table, self.end = pairs, table, end
        self.cost, self.progress = cost, progress
        self.draws = draws

    @cached_property
    def functions(self) -> list[tuple[Sequence[int], GatedFunction, Tensor]]:
        """The pairs and gated function of each batch, and the metric with all its gates at rest."""
        return [(rows, function, function.value()) for rows, function in self._batches()]

    @torch.no_grad()
    def closed(
        self, sets: Sequence[Sequence[int]], title: str = "exact runs"
    ) -> Float[np.ndarray, "pair set"]:
        """Return what the metric loses when each set of columns is closed together.

        At the corrupted end: what it gains when each set is restored together.

        Args:
            sets: Columns, at least one a set.
            title: What is being run, for the progress bar.

        Raises:
            NonFiniteError: If the metric is NaN or infinite in one of these runs.
            NestedComponentsError: If a set holds a component and one that lies inside it.
        """
        lost = np.zeros((self.pairs, len(sets)))
        if not sets:
            return lost
        moves = [Move(tuple(columns), 1.0) for columns in sets]
        started = time.perf_counter()
        total = self.pairs * self.draws * len(sets)
        with progress_bar(title, total, show=self.progress) as advance:
            self.cost.listener = advance
            try:
                for rows, function, resting in self.functions:
                    change = resting - function.moved(moves)
                    change = change if self.end == "clean" else -change
                    lost[list(rows)] += change.T.double().cpu().numpy() / self.draws
            finally:
                self.cost.listener = None
                self.cost.seconds += time.perf_counter() - started
        broken = (~np.isfinite(lost)).any(0)
        if broken.any():
            raise NonFiniteError(
                f"the metric is NaN or infinite in {int(broken.sum()):,} of {len(sets):,} exact "
                "runs.\nRun in a wider dtype (dtype='float32'), or leave these components out."
            )
        return lost


@contextmanager
def interventions(
    scores: Attribution,
    model: Model | GatedFunction | None = None,
    *,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Iterator[Interventions]:
    """Yield the exact runs of a result's components, on the gates it was scored with.

    Args:
        scores: The result of `hw.attribute`, or one read back from a folder.
        model: Needed when the result no longer has its model.
        batch_size: Most pairs in a forward; by default as in the estimate.
        progress: True, False, or None to show a bar only on a terminal.

    Raises:
        ModelGoneError: If the model is gone and none was given.
        ResultError: If the model is not the one the scores came from.
    """
    model = model_of(scores, model, "model=function, not a model")
    end = estimator_of(scores).end
    pairs = len(scores.scores)
    if isinstance(model, GatedFunction):
        model.cost = cost = Cost(pairs=pairs)
        yield Interventions(
            lambda: [(range(pairs), model.at(end))],
            pairs=pairs,
            table=None,
            end=end,
            cost=cost,
            progress=progress,
        )
        return
    cost = Cost()
    with gated_again(scores, model, cost, batch_size=batch_size) as gated:

        def batches() -> Iterator[Batch]:
            for batch, function in gated:
                function = function.at(end)
                refuse_other_numbers(scores, batch.pairs, function.clean_value())
                yield batch.pairs, function

        yield Interventions(
            batches,
            pairs=pairs,
            table=gated.table,
            end=end,
            cost=cost,
            progress=progress,
            draws=gated.draws,
        )
