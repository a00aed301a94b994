"""Whether predictions change steadily along the layers, or jump at one of them.

The curve D is the mean over positions of a distance to the first or the final row. Of all it moves,
`sum |D[l+1] - D[l]|`, a jump is the share of its largest step. The first step, from the residual
entering layer 0 to the one behind it, is looked at by name: against the final row it is large, and
the question is whether it remains when rows are compared with the input instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.lenses.intervals import Figure, interval_note, number
from headwater.lenses.questions.options import one_of
from headwater.lenses.tally.tally import Tally

Against = Literal["final", "first"]
Of = Literal["kl", "rank"]
Direction = Literal["ref||layer", "layer||ref"]

_AGAINST: tuple[Against, ...] = ("final", "first")
_OF: tuple[Of, ...] = ("kl", "rank")
_DIRECTIONS: tuple[Direction, ...] = ("ref||layer", "layer||ref")
_TOKEN = {"final": "final", "first": "input"}


@dataclass(frozen=True)
class Jump:
    """One curve along the layers, and how much of it is one step."""

    of: Of
    against: Against
    direction: Direction | None
    """None for ranks."""
    rows: tuple[str, ...]
    """The residual rows, input first."""
    curve: tuple[float, ...]
    """Mean over positions at each row: nats, or the logarithm of the reference token's rank."""
    largest: Figure
    """The largest step's share of all steps."""
    at: tuple[str, str]
    """The rows of the largest step."""
    same_at: float
    """In how many of the replicates the largest step is there too."""
    first: Figure
    """The first step's share of all steps."""
    first_size: Figure
    """The size of the first step, in the curve's unit."""

    @property
    def title(self) -> str:
        """What the curve is of, in words."""
        if self.of == "rank":
            return f"log rank({_TOKEN[self.against]})"
        return _key(self.of, self.against, self.direction).replace("kl", "KL")

    @property
    def even(self) -> float:
        """The share that each step would have if all were the same."""
        return 1 / (len(self.rows) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "of": self.of,
            "against": self.against,
            "direction": self.direction,
            "rows": list(self.rows),
            "curve": [number(one) for one in self.curve],
            "largest": self.largest.to_dict(),
            "at": list(self.at),
            "same_at": number(self.same_at),
            "first": self.first.to_dict(),
            "first_size": self.first_size.to_dict(),
            "even": self.even,
        }


@dataclass(frozen=True)
class Jumps:
    """Curves along the layers, and what they say of the first step."""

    jumps: tuple[Jump, ...]
    comparisons: tuple[tuple[Jump, Jump, Figure], ...]
    """The same quantity against final and against first, and how much smaller the latter's first
    step is."""
    prompts: int

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping a curve."""
        for one in self.jumps:
            yield {
                "curve": one.title,
                "against": one.against,
                "largest": one.largest.value,
                "largest_low": one.largest.low,
                "largest_high": one.largest.high,
                "from": one.at[0],
                "to": one.at[1],
                "first": one.first.value,
                "first_low": one.first.low,
                "first_high": one.first.high,
                "first_size": one.first_size.value,
            }

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "jumps": [one.to_dict() for one in self.jumps],
            "prompts": self.prompts,
            "sentences": self.sentences(),
        }

    def sentences(self) -> list[str]:
        """Return what the first step is against the input, compared with the final row."""
        if self.comparisons and len(rows := self.jumps[0].rows) == 2:
            return [
                f"{rows[0]} -> {rows[1]} is the only step that was read: it is all of the change, "
                "so whether there is a jump cannot be told."
            ]
        return [_compared(*one) for one in self.comparisons]

    def __repr__(self) -> str:
        head = f"{'':<20}{'against':<9}{'largest step':<22}{'at':<16}"
        lines = [
            "Steps along the residual rows, as shares of all that the mean curve moves",
            f"{head}{'first step':<22}{'its size':<24}",
        ]
        for one in self.jumps:
            lines.append(
                f"{one.title:<20}{one.against:<9}{one.largest.percent():<22}"
                f"{' -> '.join(one.at):<16}{one.first.percent():<22}{one.first_size.told():<24}"
            )
        even = self.jumps[0].even
        notes = [f"Even steps would be {100 * even:.0f} % each."] if even < 1 else []
        notes.append(interval_note(self.prompts))
        return "\n".join([*lines, " ".join(notes), *self.sentences()])


def jumps(
    tally: Tally,
    against: Against | None = None,
    of: Of | None = None,
    direction: Direction | None = None,
) -> Jumps:
    """Return how much of each curve along the layers is one step.

    Args:
        tally: Of a lens or a corpus.
        against: The row that all are compared with: `"final"` or `"first"`; None for both.
        of: `"kl"`, or `"rank"`: of the final row's best token against final, of the token read
            against first; None for both.
        direction: Of KL: `"ref||layer"` or `"layer||ref"`; None for both.

    Raises:
        UnknownOptionError: If an option is none of these.
    """
    chosen = one_of("against", against, _AGAINST)
    found = []
    for what in one_of("of", of, _OF):
        ways = one_of("direction", direction, _DIRECTIONS) if what == "kl" else (None,)
        found += [_jump(tally, what, row, way) for way in ways for row in chosen]
    pairs = zip(found[::2], found[1::2], strict=True) if len(chosen) == 2 else ()
    compared = tuple((final, first, _difference(tally, final, first)) for final, first in pairs)
    return Jumps(tuple(found), compared, tally.prompts)


def _key(of: Of, against: Against, direction: Direction | None) -> str:
    if of == "rank":
        return f"log rank({_TOKEN[against]})"
    return f"kl({against}||layer)" if direction == "ref||layer" else f"kl(layer||{against})"


def _curves(
    tally: Tally, of: Of, against: Against, direction: Direction | None
) -> tuple[list[int], Float[Tensor, "replicate row"]]:
    """Return the rows after whole layers, and the curve along them in every replicate."""
    whole = [n for n, row in enumerate(tally.rows) if row.kind in ("input", "residual")]
    return whole, tally.replicates(_key(of, against, direction))[:, whole]


def _jump(tally: Tally, of: Of, against: Against, direction: Direction | None) -> Jump:
    rows, curves = _curves(tally, of, against, direction)
    steps = curves.diff(dim=-1).abs()
    shares = steps / steps.sum(-1, keepdim=True)
    largest, at = shares.max(-1)
    known = shares[1:].isfinite().all(-1)
    here = int(at[0])
    same = (at[1:] == here)[known].double().mean() if known.any() else torch.tensor(torch.nan)
    names = tuple(tally.names[row] for row in rows)
    return Jump(
        of=of,
        against=against,
        direction=direction,
        rows=names,
        curve=tuple(curves[0].tolist()),
        largest=_figure(largest, tally.prompts, most=1.0),
        at=(names[here], names[here + 1]),
        same_at=float(same),
        first=_figure(shares[:, 0], tally.prompts, most=1.0),
        first_size=_figure(steps[:, 0], tally.prompts),
    )


def _difference(tally: Tally, final: Jump, first: Jump) -> Figure:
    """Return how much smaller the first step is against first, replicate by replicate."""
    sizes = [
        _curves(tally, one.of, one.against, one.direction)[1].diff(dim=-1)[:, 0].abs()
        for one in (final, first)
    ]
    return _figure(sizes[0] - sizes[1], tally.prompts, least=-math.inf)


def _figure(
    values: Float[Tensor, " replicate"],
    prompts: int,
    *,
    least: float = 0.0,
    most: float = math.inf,
) -> Figure:
    return Figure.of(float(values[0]), values[1:], prompts, least=least, most=most)


def _compared(final: Jump, first: Jump, smaller: Figure) -> str:
    if math.isnan(first.first.value):
        return f"{first.title}: the curve does not move, so it has no jump."
    side = smaller.side(0.0)
    if not smaller.has_interval:
        side = (smaller.value > 0) - (smaller.value < 0)
    size = {1: "is smaller", -1: "is larger", 0: "is as large as can be told"}[side]
    above = first.first.side(first.even)
    if not first.first.has_interval:
        above = 1 if first.first.value > first.even else -1
    remains = {1: "remains", -1: "does not remain", 0: "may or may not remain"}[above]
    unit = "" if final.of == "rank" else " nats"
    step = f"{first.rows[0]} -> {first.rows[1]}"
    return (
        f"{first.title}: against the input the jump at {step} {remains} "
        f"({first.first.percent()} of all change; an even step is {100 * first.even:.0f} %) and "
        f"{size}: {first.first_size.told()}{unit}, against the final row "
        f"{final.first_size.told()}{unit} ({final.first.percent()})."
    )
