"""One accumulator for everything that is asked of a corpus.

`Tally.add` takes what a batch measured and keeps sums: moments and quantiles of every statistic,
their means in replicates of the corpus, closeness, and a table by token type. Memory is bounded by
rows, statistics and the vocabulary in use, whatever the length of the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.errors import UnknownOptionError
from headwater.lenses.intervals import CONFIDENCE, stretched
from headwater.lenses.measure import INPUT, Measured, Plan
from headwater.lenses.rows import Row
from headwater.lenses.statistics import BY_KEY, TARGETS, columns, not_computed
from headwater.lenses.tally import closeness
from headwater.lenses.tally.limits import limits
from headwater.lenses.tally.moments import Moments
from headwater.lenses.tally.replicates import Replicates
from headwater.lenses.tally.sketch import ACCURACY, Sketch
from headwater.lenses.tally.types import Seen, Types, recurring


@dataclass(frozen=True)
class Bounds:
    """Until when a token counts as kept along the rows."""

    rank: float = 10
    """As long as its rank is at most this."""
    kl: float = 1.0
    """As long as the row's prediction is within so many nats of the input row's."""


class Tally:
    """Sums over the positions of a corpus.

    Prompts are numbered from 0 without gaps; the parts of one prompt have its number.

    Args:
        plan: What is measured.
        bounds: Until when a token counts as kept.
    """

    def __init__(self, plan: Plan, bounds: Bounds = Bounds()) -> None:
        self.rows: tuple[Row, ...] = plan.rows
        self.stream = [number for number, row in enumerate(plan.rows) if row.is_stream]
        """The rows of the residual stream: all but single writes to it."""
        self.bounds, self.seed = Bounds(float(bounds.rank), float(bounds.kl)), plan.seed
        self.given = len(plan.tokens)
        self.prompts = self.positions = 0
        self.types = Types(len(self.stream), bounds.rank, bounds.kl)
        self._sums: _Sums | None = None

    def add(self, measured: Measured) -> None:
        """Take in what a batch says; its prompts must stand whole and one after another."""
        values = valued(measured)
        if self._sums is None:
            self._sums = _Sums.empty(tuple(values), self.seed, len(self.rows))
        prompts = measured.prompt.cpu()
        self._sums.add(prompts, values)
        self.types.add(self._seen(measured, values))
        self.prompts = max(self.prompts, int(prompts.max()) + 1)
        self.positions += len(prompts)

    def _seen(self, measured: Measured, values: Mapping[str, Tensor]) -> Seen:
        token = measured.targets[:, INPUT].cpu()
        controls = slice(len(TARGETS) + self.given, None)
        control = measured.targets[:, controls].cpu()
        # a token's rank where it was read itself is no base rate
        other = control != token[:, None]
        strict, ties = (one[..., controls].cpu() for one in (measured.strict, measured.ties))
        ranks = (strict.double() + ties.double() / 2)[:, self.stream]
        return Seen(
            token=token,
            recurs=recurring(token, measured.place.cpu()),
            log_rank=values["log rank(input)"][:, self.stream],
            kl_ref=values["kl(first||layer)"][:, self.stream],
            kl_layer=values["kl(layer||first)"][:, self.stream],
            control=control[other],
            control_log_rank=ranks.transpose(1, 2)[other].log(),
        )

    # what was found

    @property
    def names(self) -> tuple[str, ...]:
        """The rows' names."""
        return tuple(row.name for row in self.rows)

    @property
    def keys(self) -> tuple[str, ...]:
        """The statistics that were computed; ranks have their logarithm too."""
        return self._found.keys

    def count(self, key: str) -> Float[Tensor, " row"]:
        """Return at how many positions a statistic has a finite value."""
        return self._found.moments.count[self.place(key)]

    def infinite(self, key: str) -> Int[Tensor, " row"]:
        """Return at how many positions a statistic is infinite; means leave these out."""
        return self._found.sketch.infinite(self.place(key))

    def mean(self, key: str) -> Float[Tensor, " row"]:
        """Return the mean over positions."""
        return self._found.moments.means(self.place(key))

    def deviation(self, key: str) -> Float[Tensor, " row"]:
        """Return the standard deviation over positions."""
        return self._found.moments.deviations(self.place(key))

    def quantile(self, key: str, share: float) -> Float[Tensor, " row"]:
        """Return the value that this share of positions does not exceed, good to 1 %."""
        if not 0 <= share <= 1:
            raise UnknownOptionError(
                f"quantile({key!r}, {share}): a share is from 0 to 1.\nThe median is 0.5."
            )
        found = self._found.sketch.quantile(share, self.place(key))
        if key in BY_KEY and BY_KEY[key].group == "rank":
            # ranks are halves: where bins are narrower than that, the rank itself is known
            return torch.where(found < 1 / (4 * ACCURACY), (2 * found).round() / 2, found)
        return found

    def interval(
        self, key: str, confidence: float = CONFIDENCE
    ) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """Return the ends of the mean's interval over prompts; NaN if there is one prompt."""
        found = self.replicates(key)
        low, high = stretched(found[0], found[1:], self.prompts, confidence)
        least, most = limits(key)
        # rounding takes a KL of nothing below 0, but no end beyond its mean
        return low.clamp(min=least).minimum(found[0]), high.clamp(max=most).maximum(found[0])

    def replicates(self, key: str) -> Float[Tensor, "replicate row"]:
        """Return the mean over the corpus, then over each replicate of it."""
        return self._found.curves.means(self.place(key))

    def close(self) -> Float[Tensor, "replicate column row"]:
        """Return the shares of positions for `closeness.columns`, corpus first."""
        return self._found.close.means()

    def close_columns(self) -> tuple[closeness.Column, ...]:
        """Return what the columns of `close` are."""
        return closeness.columns("js(final)" in self.keys)

    def place(self, key: str) -> int:
        """Return the number of a statistic.

        Raises:
            UnknownOptionError: If there is none, or it was not computed.
        """
        if key in self.keys:
            return self.keys.index(key)
        raise not_computed(key, self.keys)

    @property
    def _found(self) -> _Sums:
        if self._sums is None:
            raise UnknownOptionError("nothing was read yet.\nAdd a batch first.")
        return self._sums

    # saving

    def state(self) -> dict[str, Tensor]:
        """Return everything as tensors, by name."""
        parts = {"types": self.types, **self._found.parts()}
        found = {
            f"{name}.{key}": value.contiguous()
            for name, part in parts.items()
            for key, value in part.state().items()
        }
        return {**found, "read": torch.tensor([self.prompts, self.positions])}

    @classmethod
    def restored(
        cls, rows: Sequence[Row], keys: Sequence[str], state: Mapping[str, Tensor]
    ) -> Tally:
        """Return the tally that `state` was of.

        Args:
            rows: Its rows.
            keys: Its statistics.
            state: What `state` returned.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            part, _, key = name.partition(".")
            parts.setdefault(part, {})[key] = value
        types = Types.restored(parts["types"])
        sums = _Sums(
            tuple(keys),
            Moments.restored(parts["moments"]),
            Sketch.restored(parts["sketch"]),
            Replicates.restored(parts["curves"]),
            Replicates.restored(parts["close"]),
        )
        bounds = Bounds(types.kept_rank, types.kept_kl)
        found = cls(Plan(tuple(rows), seed=sums.curves.seed), bounds)
        found.types, found._sums = types, sums
        found.prompts, found.positions = state["read"].tolist()
        return found


@dataclass(eq=False)
class _Sums:
    """What is known once the statistics are."""

    keys: tuple[str, ...]
    moments: Moments
    sketch: Sketch
    curves: Replicates
    close: Replicates
    _names: tuple[str, ...] = field(default=("moments", "sketch", "curves", "close"), repr=False)

    @classmethod
    def empty(cls, keys: tuple[str, ...], seed: int, rows: int) -> _Sums:
        counted = len(closeness.columns("js(final)" in keys))
        size = len(keys), rows
        return cls(
            keys,
            Moments.empty(*size),
            Sketch.empty(*size),
            Replicates.empty(seed, *size),
            Replicates.empty(seed, counted, rows),
        )

    def add(self, prompts: Tensor, values: Mapping[str, Tensor]) -> None:
        stacked = torch.stack([values[key] for key in self.keys])
        self.moments.add(stacked)
        self.sketch.add(stacked)
        self.curves.add(prompts, stacked)
        self.close.add(prompts, closeness.closeness(values))

    def parts(self) -> dict[str, Moments | Sketch | Replicates]:
        return {name: getattr(self, name) for name in self._names}


def valued(measured: Measured) -> dict[str, Float[Tensor, "position row"]]:
    """Return every statistic in float64, ranks on a logarithmic scale too, by key."""
    found = {key: value.cpu().double() for key, value in columns(measured).items()}
    ranks = {f"log {key}": found[key].log() for key in found if BY_KEY[key].group == "rank"}
    return {**found, **ranks}
