"""Exact runs on the gates a result was scored with: any set of components closed together.

`closed` runs what it is asked for; `runs` looks into the result's ledger first.

Whoever asks for runs again and again asks one `Interventions` that holds its batches: each, with
its off values and its resting run, is made once. Whoever asks once has them go by one at a time,
which takes the memory of one.
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
from headwater.audits.ledger import Columns, Ledger
from headwater.components import ComponentTable
from headwater.errors import NonFiniteError
from headwater.gates import Cost, End, GatedFunction, ModelGates, Move
from headwater.models import Model
from headwater.progress import progress_bar

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

AT_ONCE = 64
"""Runs made before they are kept; killing the process loses at most these."""

Batch = tuple[Sequence[int], GatedFunction]
"""A gated function, and which pairs of the task it holds."""
Resting = tuple[Sequence[int], GatedFunction, Tensor]
"""The same, with the metric while every gate rests."""


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
        hold: Whether batches are kept for the next call.
        ledger: Where runs are kept and looked up.
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
        hold: bool = True,
        ledger: Ledger | None = None,
    ) -> None:
        self._batches, self._hold = batches, hold
        self.ledger = Ledger() if ledger is None else ledger
        self.fresh = 0
        """Runs made for `runs`, not found in the ledger."""
        self.pairs, self.table, self.end = pairs, table, end
        self.cost, self.progress = cost, progress
        self.draws = draws

    @cached_property
    def _held(self) -> list[Resting]:
        return list(self._made())

    def _made(self) -> Iterator[Resting]:
        return ((rows, function, function.value()) for rows, function in self._batches())

    @property
    def functions(self) -> Iterable[Resting]:
        """The pairs and gated function of each batch, and the metric with all its gates at rest."""
        return self._held if self._hold else self._made()

    def noise_floor(self, columns: Sequence[int]) -> float | None:
        """Return how far rounding moves the metric's mean over the first batch's pairs.

        None for a gated function: how it rounds is not known.
        """
        _, function, _ = next(iter(self.functions))
        return float(function.noise(columns).mean()) if isinstance(function, ModelGates) else None

    def runs(
        self, sets: Sequence[Columns], title: str, *, chosen: bool = False
    ) -> dict[Columns, Float[np.ndarray, " pair"]]:
        """Return what was lost by pair for each set of columns; runs only what never was.

        Args:
            sets: Columns closed together, by set.
            title: What is being run, for the progress bar.
            chosen: Whether these were picked by what earlier runs showed.
        """
        ledger = self.ledger
        missing = [columns for columns in dict.fromkeys(sets) if columns not in ledger.lost]
        if chosen:
            ledger.chosen.update(missing)
        else:
            ledger.chosen.difference_update(sets)
        for start in range(0, len(missing), AT_ONCE):
            part = missing[start : start + AT_ONCE]
            ledger.lost |= dict(zip(part, self.closed(part, title).T.copy(), strict=True))
            self.fresh += len(part)
            if ledger.keep is not None:
                ledger.keep()
        return {columns: ledger.lost[columns] for columns in sets}

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
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    hold: bool = True,
    ledger: Ledger | None = None,
) -> Iterator[Interventions]:
    """Yield the exact runs of a result's components, on the gates it was scored with.

    Args:
        scores: The result of `hw.attribute`, or one read back from a folder.
        model: Needed when the result no longer has its model.
        batch_size: Most pairs in a forward; by default as in the estimate.
        progress: True, False, or None to show a bar only on a terminal.
        dtype: Compute in this dtype, on a converted copy; such runs stay out of the ledger.
        device: Compute on this device, on a copy; the same.
        hold: Whether batches are kept for the next call; False where there will be one call.
        ledger: Where runs are kept and looked up, instead of the result's own.

    Raises:
        ModelGoneError: If the model is gone and none was given.
        ResultError: If the model is not the one the scores came from.
    """
    model = model_of(scores, model, "model=function, not a model")
    end = estimator_of(scores).end
    pairs = len(scores.scores)
    # what another function does, or the same weights in another dtype, is not in the ledger
    other = isinstance(model, GatedFunction) and model is not scores._owner
    own = scores.ledger if dtype is None and device is None and not other else Ledger()
    ledger = own if ledger is None else ledger
    if isinstance(model, GatedFunction):
        function = model.at(end)
        with function.counting(pairs) as cost:
            yield Interventions(
                lambda: [(range(pairs), function)],
                pairs=pairs,
                table=None,
                end=end,
                cost=cost,
                progress=progress,
                ledger=ledger,
            )
        return
    if dtype is not None or device is not None:
        model = model.to(dtype=dtype, device=device)
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
            hold=hold or len(gated.batches) * gated.draws == 1,
            ledger=ledger,
        )
