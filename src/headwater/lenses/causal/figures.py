"""The figures of a check, one set a row: what single places say, put together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.lenses.causal.claims import Claim
from headwater.lenses.causal.exchanges import Exchange
from headwater.lenses.causal.resampling import column, correlation, ratio, slope
from headwater.lenses.intervals import Figure
from headwater.lenses.rows import Row

LINEAR = 0.25
"""Share by which slopes may differ from that of the smallest move and still count as one line."""

LEAST_R = 0.5
"""Correlation from which the output is said to follow the lens where residuals are exchanged."""


@dataclass(frozen=True)
class RowCheck:
    """How far the output follows the lens at one row."""

    row: str
    title: str
    cells: int
    """Places at which it was tested."""
    slope: Figure
    """Change at the output a nat of change in the lens: the line through 0 over all places."""
    correlation: float
    """Of predicted and actual changes."""
    right_sign: float
    """Share of changes that have the sign that was predicted."""
    size: float
    """Median length of the change of the residual, as a share of the residual's."""
    noise: float
    """Largest change at the output where the own value was put in."""


@dataclass(frozen=True)
class ClaimRow(RowCheck):
    """The same for moves along the lens's own gradient."""

    nats: float = 1.0
    """How far the lens's log-probability fell."""
    direct: float = math.nan
    """The slope, had no layer read the move."""
    random: float = math.nan
    """Mean size of the change at the output by random moves as long."""
    random_lens: float = math.nan
    """The same in the lens."""
    slopes: tuple[tuple[float, float], ...] = ()
    """Slope of each change that was asked for, in nats."""
    linear: float = math.nan
    """The largest fall up to which the slope is that of the smallest, within a quarter."""
    unreached: int = 0
    """Places where no move makes the lens fall so far."""

    @property
    def is_followed(self) -> bool:
        """Whether the output falls with the lens, and by more than a random move changes it."""
        return self.slope.side() > 0 and self.slope.value * self.nats > self.random


@dataclass(frozen=True)
class ExchangeRow(RowCheck):
    """The same for residuals put in from elsewhere."""

    kl_lens: float = math.nan
    """Mean KL(before || after) of the lens, in nats ..."""
    kl_output: float = math.nan
    """... and of the output."""

    @property
    def is_followed(self) -> bool:
        """Whether the output changes as the lens does."""
        return self.slope.side() > 0 and self.correlation >= LEAST_R


@dataclass(frozen=True)
class Groups:
    """Which cells belong together when they are drawn again."""

    over: str
    """`prompts`, or `positions` where all cells are of one prompt."""
    seed: int = field(default=0)

    def of(self, cells: Sequence[Claim | Exchange]) -> list[int]:
        """Return the group of each cell."""
        if self.over == "prompts":
            return [one.cell.prompt for one in cells]
        return [one.cell.position for one in cells]


def claim_row(row: Row, claims: Sequence[Claim], nats: float, groups: Groups) -> ClaimRow:
    """Return the figures of the claims at one row.

    Args:
        row: The row.
        claims: What was found at each place.
        nats: The main fall that was asked for.
        groups: How places are drawn again.
    """
    predicted, actual = column(claims, "predicted"), column(claims, "actual")
    known = predicted[:, 0].isfinite()
    some = [one for one, is_known in zip(claims, known.tolist(), strict=True) if is_known]
    given, found = predicted[known, 0], actual[known, 0]
    belong = groups.of(some)
    asked = claims[0].asked if claims else ()
    slopes = tuple(
        (change, _slope(predicted[:, place], actual[:, place]))
        for place, change in enumerate(asked)
    )
    every = predicted.isfinite()
    flat = (predicted[every], actual[every])
    return ClaimRow(
        row=row.name,
        title=row.title,
        cells=len(some),
        slope=slope(given, found, belong, groups.seed),
        correlation=correlation(*flat, [0] * len(flat[0]), groups.seed).value,
        right_sign=_mean((given * found > 0).to(torch.float64)),
        size=_median([one.size[0] for one in some]),
        noise=max((one.noise for one in claims), default=math.nan),
        nats=nats,
        direct=_slope(given, column(some, "direct")),
        random=_mean(column(some, "random")),
        random_lens=_mean(column(some, "random_lens")),
        slopes=tuple(sorted(slopes)),
        linear=_linear(slopes),
        unreached=len(claims) - len(some),
    )


def exchange_row(row: Row, exchanges: Sequence[Exchange], groups: Groups) -> ExchangeRow:
    """Return the figures of the exchanges at one row; arguments as for `claim_row`."""
    pairs = [(one.predicted, one.actual) for one in exchanges]
    signs = torch.cat([(given * found > 0).to(torch.float64) for given, found in pairs])
    within = [correlation(given, found, [0] * len(given), 0).value for given, found in pairs]
    known = [one for one in within if not math.isnan(one)]
    return ExchangeRow(
        row=row.name,
        title=row.title,
        cells=len(exchanges),
        slope=ratio(
            torch.stack([given @ found for given, found in pairs]),
            torch.stack([given @ given for given, _ in pairs]),
            groups.of(exchanges),
            groups.seed,
        ),
        correlation=sum(known) / len(known) if known else math.nan,
        right_sign=_mean(signs),
        size=_median([one.size for one in exchanges]),
        noise=max(one.noise for one in exchanges),
        kl_lens=_mean(column(exchanges, "kl_lens")),
        kl_output=_mean(column(exchanges, "kl_output")),
    )


def _linear(slopes: Sequence[tuple[float, float]]) -> float:
    falls = sorted((-change, slope) for change, slope in slopes if change < 0)
    known = [(fall, slope) for fall, slope in falls if not math.isnan(slope)]
    reach = math.nan
    for fall, one in known:
        if abs(one - known[0][1]) > LINEAR * abs(known[0][1]):
            break
        reach = fall
    return reach


def _slope(given: Float[Tensor, " case"], found: Float[Tensor, " case"]) -> float:
    known = given.isfinite() & found.isfinite()
    if not bool(known.any()):
        return math.nan
    return float((given[known] @ found[known]) / given[known].square().sum())


def _mean(values: Float[Tensor, " case"]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _median(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).median()) if values else math.nan
