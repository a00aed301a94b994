"""Whether most of the layers are KL-close to both the input and the output.

KL is no metric: p close to q and q close to r says nothing about p and r. So the share of positions
at which a row is close to both ends is counted, position by position, and next to it the share at
which the two ends are close to each other, where closeness to both is no wonder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.lenses.intervals import Figure, interval_note, stretched
from headwater.lenses.questions.options import one_of
from headwater.lenses.tally.closeness import Case, Measure, thresholds
from headwater.lenses.tally.tally import Tally

_MEANING = {
    "ref||layer": "KL(first||layer) and KL(final||layer)",
    "layer||ref": "KL(layer||first) and KL(layer||final)",
    "both directions": "the larger of the two directions",
    "js": "Jensen-Shannon divergence",
}


@dataclass(frozen=True)
class Share:
    """The shares of positions at one row, by one measure and threshold."""

    measure: Measure
    threshold: float
    """Nats."""
    row: str
    both: Figure
    """Within the threshold of first and of final."""
    both_apart: Figure
    """The same, where first and final are not that close to each other."""
    first_only: Figure
    final_only: Figure
    ends: Figure
    """First and final are close to each other, whatever the row."""


@dataclass(frozen=True)
class Close:
    """How many positions are close to both ends, for every measure, threshold and row."""

    shares: tuple[Share, ...]
    prompts: int

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping a measure, threshold and row."""
        for one in self.shares:
            found: dict[str, Any] = {
                "measure": one.measure,
                "threshold": one.threshold,
                "row": one.row,
            }
            for name in ("both", "both_apart", "first_only", "final_only", "ends"):
                figure: Figure = getattr(one, name)
                found |= {
                    name: figure.value,
                    f"{name}_low": figure.low,
                    f"{name}_high": figure.high,
                }
            yield found

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        cases = ("both", "both_apart", "first_only", "final_only", "ends")
        shares = [
            {
                "measure": one.measure,
                "threshold": one.threshold,
                "row": one.row,
                **{name: getattr(one, name).to_dict() for name in cases},
            }
            for one in self.shares
        ]
        return {"shares": shares, "prompts": self.prompts, "sentences": self.sentences()}

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures that were computed."""
        return tuple(dict.fromkeys(one.measure for one in self.shares))

    def of(self, measure: Measure, threshold: float) -> list[Share]:
        """Return the shares at every row, by one measure and threshold.

        Raises:
            UnknownOptionError: If there is none.
        """
        one_of("measure", measure, self.measures)
        one_of("threshold", threshold, thresholds(measure))
        return [one for one in self.shares if one.measure == measure and one.threshold == threshold]

    def sentences(self) -> list[str]:
        """Return whether most inner rows are close to both, by every measure."""
        return [_told(measure, self.of(measure, _SHOWN[measure])) for measure in self.measures]

    def __repr__(self) -> str:
        several: list[Measure] = [one for one in self.measures if one != "js"]
        measures = several or list(self.measures)
        limits = [_SHOWN[one] for one in measures]
        columns = [self.of(one, limit) for one, limit in zip(measures, limits, strict=True)]
        lines = [
            "% of positions close to both first and final, to first only, to final only",
            f"{'row':<8}" + "".join(f"{one} <= {_SHOWN[one]:g}".rjust(26) for one in measures),
        ]
        for place in reversed(range(len(columns[0]))):
            cells = [
                f"{100 * figure.value:>{width}.1f}"
                for one in (column[place] for column in columns)
                for figure, width in ((one.both, 12), (one.first_only, 7), (one.final_only, 7))
            ]
            lines.append(f"{columns[0][place].row:<8}{''.join(cells)}")
        return "\n".join([*lines, interval_note(self.prompts), *self.sentences()])


_SHOWN = {"ref||layer": 1.0, "layer||ref": 1.0, "both directions": 1.0, "js": 0.1}
"""The threshold of tables and sentences, in nats."""


def close(tally: Tally, measure: Measure | None = None) -> Close:
    """Return at how many positions each row is close to both ends.

    Args:
        tally: Of a lens or a corpus.
        measure: `"ref||layer"`, `"layer||ref"`, `"both directions"` or `"js"`; None for all that
            were computed.

    Raises:
        UnknownOptionError: If there is no such measure, or it was not computed.
    """
    columns = tally.close_columns()
    known = tuple(dict.fromkeys(one.measure for one in columns))
    if measure == "js" and "js" not in known:
        tally.place("js(final)")  # refuses by name
    shares = tally.close()
    low, high = stretched(shares[0], shares[1:], tally.prompts)
    ends = torch.stack([shares[0], low.clamp(min=0), high.clamp(max=1)])
    found = []
    for one in one_of("measure", measure, known):
        for threshold in thresholds(one):
            places: dict[Case, int] = {
                column.case: place
                for place, column in enumerate(columns)
                if (column.measure, column.threshold) == (one, threshold)
            }
            found += [_share(tally, one, threshold, row, ends, places) for row in tally.stream]
    return Close(tuple(found), tally.prompts)


def _share(
    tally: Tally,
    measure: Measure,
    threshold: float,
    row: int,
    ends: Float[Tensor, "end column row"],
    places: dict[Case, int],
) -> Share:
    def of(case: Case) -> Figure:
        return Figure(*ends[:, places[case], row].tolist())

    return Share(
        measure,
        threshold,
        tally.names[row],
        both=of("both"),
        both_apart=of("both, ends apart"),
        first_only=of("first only"),
        final_only=of("final only"),
        ends=of("ends"),
    )


def _told(measure: Measure, shares: list[Share]) -> str:
    inner, ends = shares[1:-1], shares[0].ends
    within = f"within {shares[0].threshold:g} nat of"
    by = f"By {_MEANING[measure]},"
    if not inner:
        return (
            f"{by} first and final are {within} each other at {ends.percent()} of positions; there "
            "is no row between them."
        )
    largest = max(inner, key=lambda one: one.both.value)
    themselves = f"first and final are themselves that close at {ends.percent()}"
    if largest.both.value == 0:
        said = f"{by} no inner row is {within} both first and final at any position"
        return f"{said}; {themselves}." if ends.value else f"{said}."
    count = sum(one.both.value > 0.5 for one in inner)
    verb = "is" if count <= 1 else "are"
    same = largest.both_apart == largest.both
    apart = "" if same else f", {largest.both_apart.percent()} where the ends are apart"
    last = themselves if ends.value else "first and final never are that close themselves"
    return (
        f"{by} {count or 'none'} of {len(inner)} inner rows {verb} {within} both first and final "
        f"at more than half of the positions; at {largest.row}, the nearest, it is "
        f"{largest.both.percent()} of positions{apart}; {last}."
    )
