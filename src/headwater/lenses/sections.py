"""The questions' answers as tables and pictures of a page."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.lenses.questions import Close, Jumps, Rarity
from headwater.lenses.tally.closeness import Measure
from headwater.page.lens_schema import BinData, RarityData
from headwater.page.tables import TableData

WITHIN = 1.0
"""Nats within which a row counts as close, in the page's table."""
_SIZES = {1: "all", 2: "half", 3: "third", 4: "quarter", 5: "fifth", 10: "tenth"}


def jumps_table(jumps: Jumps) -> TableData:
    """Return every curve's largest step and first step."""
    return {
        "title": "Jumps between layers",
        "caption": "The largest change from one row to the next as a share of all changes of the "
        "mean curve, and the first one's (input to the row after layer 0). Ranks are on a "
        "logarithmic scale.",
        "headings": ["curve", "against", "largest step", "from", "to", "first step", "its size"],
        "rows": [
            [
                one.title,
                one.against,
                one.largest.percent(),
                one.at[0],
                one.at[1],
                one.first.percent(),
                one.first_size.told(),
            ]
            for one in jumps.jumps
        ],
    }


def close_tables(close: Close) -> list[TableData]:
    """Return one table a measure: who is close to first, to final, to both."""
    measures: dict[Measure, None] = {one.measure: None for one in close.shares}
    return [
        {
            "title": f"Positions close to both ends, by KL {measure}",
            "caption": f"Shares of positions within {WITHIN:g} nat. KL is no metric: a row may be "
            "close to both ends though these are far apart, which the second column counts.",
            "headings": ["row", "both", "both, ends apart", "first only", "final only", "ends"],
            "rows": [
                [one.row]
                + [
                    figure.percent()
                    for figure in (
                        one.both,
                        one.both_apart,
                        one.first_only,
                        one.final_only,
                        one.ends,
                    )
                ]
                for one in reversed(close.of(measure, WITHIN))
            ],
        }
        for measure in measures
        if measure != "js"
    ]


def rarity_data(rarity: Rarity) -> RarityData:
    """Return the ranks of input tokens by frequency, own and control, for all positions."""
    known = [one for one in rarity.bins if one.group == "all"]
    numbers = sorted({one.number for one in known})
    bins: list[BinData] = []
    for number in numbers:
        inside = [one for one in known if one.number == number]
        first = inside[0]
        bins.append(
            {
                "label": _label(number, numbers, first.span),
                "types": first.types,
                "own": [one.own_median for one in inside],
                "control": [one.control_median for one in inside],
                "excess": [one.excess.value for one in inside],
                "low": [one.excess.low for one in inside],
                "high": [one.excess.high for one in inside],
            }
        )
    return {
        "bins": bins,
        "rows": list(rarity.names),
        "caption": "Median rank of the token that was read, and of the same tokens where they were "
        "not read (the base rate). Excess: mean logarithm of the second by the first; above 0 the "
        "token is more visible than its base rate. Bands: 95 % over token types.",
    }


def _label(number: int, numbers: Sequence[int], span: str) -> str:
    size = _SIZES.get(len(numbers), f"1/{len(numbers)}")
    name = {numbers[0]: f"commonest {size}", numbers[-1]: f"rarest {size}"}
    return f"{name.get(number, f'{size} {number}')} ({span})"
