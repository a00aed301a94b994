"""Whether rare input tokens are preserved in later layers more than common ones.

`R` is the rank of the token that was read at a position, `C` the rank of the same token at other
positions. A common token ranks high everywhere, so its `R` says little; the excess
`mean log C - mean log R` says how much higher it ranks where it was read. Types are sorted into
quantiles of their frequency, and count once each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
from jaxtyping import Float

from headwater.errors import UnknownOptionError
from headwater.lenses.intervals import Figure
from headwater.lenses.questions import resampling
from headwater.lenses.questions.frequency import Counts, Frequency, frequency, quantile_bins
from headwater.lenses.questions.rarity_result import (
    GROUPS,
    Bin,
    Correlation,
    Depth,
    Group,
    Rarity,
)
from headwater.lenses.tally.tally import Tally
from headwater.lenses.tally.types import ONCE, RECURS, Types


def rarity(
    tally: Tally,
    counts: Counts = "corpus",
    *,
    bins: int = 5,
    vocabulary: Mapping[int, str] | None = None,
    seed: int = 0,
) -> Rarity:
    """Return how much longer rare input tokens are preserved than common ones, base rate removed.

    Args:
        tally: Of a lens or a corpus, with controls.
        counts: How common tokens are: `"corpus"` (counts in what was read), `"tokenizer"` (the
            order of ids), a mapping from token texts or ids to counts, or a tensor `[vocab]`.
        bins: How many quantiles of types.
        vocabulary: Texts of tokens, for counts by text.
        seed: Of the intervals.

    Raises:
        UnknownOptionError: If no controls were ranked, or counts cannot be used.
    """
    types = tally.types
    if not len(types.tokens) or not float(types.of("control_count").sum()):
        raise UnknownOptionError(
            "no token of another position was ranked, so there is no base rate to compare with.\n"
            "Write controls=8, and give more than one token."
        )
    if bins < 1:
        raise UnknownOptionError(f"bins={bins}: there is at least one.\nWrite bins=5, for fifths.")
    found = frequency(types, counts, vocabulary)
    names = tuple(tally.names[row] for row in tally.stream)
    parts = [_Part(types, group, found, names, seed) for group in GROUPS]
    members = quantile_bins(found.values, bins)
    return Rarity(
        bins=tuple(one for part in parts for one in part.bins(members)),
        correlations=tuple(one for part in parts for one in part.correlations()),
        depths=tuple(one for part in parts for one in part.depths(members)),
        names=names,
        bounds=tally.bounds,
        source=found.source,
        note=found.note,
    )


class _Part:
    """The types of one group of positions, with their means."""

    def __init__(
        self, types: Types, group: Group, found: Frequency, names: tuple[str, ...], seed: int
    ) -> None:
        self.types, self.names, self.seed = types, names, seed
        self.group: Group = group
        self.found, self.frequency = found, found.values
        self.count = self._own("count")
        self.control_count = types.of("control_count").numpy()
        self.known = (self.count > 0) & (self.control_count > 0)
        """Types with a position of the group, and one where they are the control."""

    def bins(self, members: list[np.ndarray]) -> Iterator[Bin]:
        for number, inside in enumerate(members, start=1):
            inside = inside[self.known[inside]]
            if not len(inside):
                continue
            own, control = (self.means[key][inside] for key in ("log_rank", "control_log_rank"))
            excess = resampling.means(control - own, self.seed)
            for row in range(len(self.names)):
                yield self._bin(number, row, inside, excess[row])

    def _bin(self, number: int, row: int, inside: np.ndarray, excess: Figure) -> Bin:
        def of(key: str) -> Float[np.ndarray, " type"]:
            return self.means[key][inside, row]

        own, control = of("log_rank"), of("control_log_rank")
        common = self.frequency[inside] - self.found.added
        lowest, highest = float(common.min()), float(common.max())
        return Bin(
            group=self.group,
            number=number,
            row=self.names[row],
            types=len(inside),
            positions=int(self.count[inside].sum()),
            lowest=lowest,
            highest=highest,
            span=self.found.told(lowest, highest),
            own=resampling.geometric(own),
            control=resampling.geometric(control),
            own_median=float(np.exp(np.median(own))),
            control_median=float(np.exp(np.median(control))),
            excess=excess,
            kl_ref=float(of("kl_ref").mean()),
            kl_layer=float(of("kl_layer").mean()),
            kept=float(of("kept").mean()),
            control_kept=float(of("control_kept").mean()),
            kept_ref=float(of("kept_ref").mean()),
            kept_layer=float(of("kept_layer").mean()),
        )

    def correlations(self) -> Iterator[Correlation]:
        common = self.frequency[self.known]
        found = {key: value[self.known] for key, value in self.means.items()}
        excess = found["control_log_rank"] - found["log_rank"]
        naive = ("log_rank", "control_log_rank", "kl_ref", "kl_layer")
        rows = range(len(self.names))
        others = {(key, row): found[key][:, row] for key in naive for row in rows}
        own = resampling.spearman(common, {row: excess[:, row] for row in rows}, self.seed)
        whole = self.group == "all"
        beside = resampling.spearman(common, others, self.seed, intervals=whole)
        for row in rows:
            log_rank, control, kl_ref, kl_layer = (beside[key, row] for key in naive)
            yield Correlation(
                self.group, self.names[row], len(common), own[row], log_rank, control, kl_ref,
                kl_layer,
            )  # fmt: skip

    def depths(self, members: list[np.ndarray]) -> Iterator[Depth]:
        for number, inside in enumerate(members, start=1):
            inside = inside[self.known[inside]]
            if not len(inside):
                continue

            names = ("kept", "control_kept", "kept_ref", "kept_layer")
            kept = np.stack([self.means[key][inside].sum(-1) for key in names], axis=1)
            rows = float(len(self.names))
            own, control, ref, layer = resampling.means(kept, self.seed, least=0.0, most=rows)
            censored = float(self.means["kept"][inside, -1].mean())
            yield Depth(self.group, number, own, control, censored, ref, layer)

    @cached_property
    def means(self) -> dict[str, Float[np.ndarray, "type row"]]:
        """The mean of each type over its positions; of types without one it means nothing."""
        own = ("log_rank", "kl_ref", "kl_layer", "kept", "kept_ref", "kept_layer")
        count = np.maximum(self.count, 1)[:, None]
        elsewhere = np.maximum(self.control_count, 1)[:, None]
        found = {key: self._own(key) / count for key in own}
        for key in ("control_log_rank", "control_kept"):
            found[key] = self.types.of(key).numpy() / elsewhere
        return found

    def _own(self, key: str) -> np.ndarray:
        sums = self.types.of(key).numpy()
        if self.group == "all":
            return sums.sum(1)
        return sums[:, RECURS if self.group == "recurs" else ONCE]
