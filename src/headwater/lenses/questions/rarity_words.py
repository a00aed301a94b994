"""Rarity in words and tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from headwater.lenses.intervals import FEWEST, Figure

if TYPE_CHECKING:
    from headwater.lenses.questions.rarity_result import Bin, Correlation, Rarity

_GROUPS = {
    "recurs": "token occurs again later in the prompt",
    "once": "token does not occur again",
}


def table(rarity: Rarity) -> list[str]:
    """Return the bins at the final row, the ratios along the rows, and the correlations."""
    last = rarity.names[-1]
    lines = [
        f"Rank of the input token by frequency ({rarity.source}), commonest types first",
        f"Ratio: how many times higher it ranks where it was read than elsewhere. Row {last}:",
        f"{'types':<22}{'positions':>10}{'own rank':>10}{'elsewhere':>11}"
        f"{'ratio (95 % over types)':>26}{'rows kept':>11}{'elsewhere':>11}",
    ]
    depths = {(one.group, one.number): one for one in rarity.depths}
    for one in rarity.of():
        depth = depths["all", one.number]
        lines.append(
            f"{_name(one):<22}{one.positions:>10,}{one.own.value:>10.4g}"
            f"{one.control.value:>11.4g}{one.ratio.told('.3g'):>26}"
            f"{depth.own.value:>11.2f}{depth.control.value:>11.2f}"
        )
    lines += ["", *_along(rarity)]
    if rarity.note:
        lines.append(rarity.note)
    return lines


def _name(one: Bin) -> str:
    return f"{one.types:,} of {one.span}"


def _along(rarity: Rarity) -> list[str]:
    numbers = sorted({one.number for one in rarity.of()})
    heads = "".join(f"{'bin ' + str(number):>8}" for number in numbers)
    lines = [
        f"{'row':<8}{'ratio:':<7}{heads}   {'Spearman(frequency, excess)':<30}naive, own rank",
    ]
    for found in reversed([one for one in rarity.correlations if one.group == "all"]):
        ratios = "".join(f"{one.ratio.value:>8.3g}" for one in rarity.of("all", found.row))
        lines.append(f"{found.row:<8}{'':<7}{ratios}   {found.excess.told():<30}{found.own.told()}")
    return lines


def sentences(rarity: Rarity) -> list[str]:
    """Return what the final row says, whether the naive figure agrees, and the splits."""
    final = {one.group: one for one in rarity.correlations if one.row == rarity.names[-1]}
    whole = final["all"]
    if whole.types < FEWEST:
        return [
            f"{_types(whole.types)} with a base rate: too few to tell whether rare ones are "
            f"preserved more ({FEWEST} at least)."
        ]
    if rarity.of()[0].highest == rarity.of()[-1].lowest:
        return [
            f"All {whole.types:,} token types are equally frequent ({rarity.source}), so it "
            "cannot be told whether rare ones are preserved more."
        ]
    return [
        _answer(whole),
        _along_rows(rarity),
        _naive(whole),
        _other_direction(whole),
        _ends(rarity),
        *(_split(final[group]) for group in _GROUPS if group in final),
    ]


def _types(count: int) -> str:
    return f"{count:,} token type" + ("" if count == 1 else "s")


def _answer(found: Correlation) -> str:
    told = {
        -1: "the rarer an input token, the more it is preserved",
        1: "the commoner an input token, the more it is preserved",
        0: "no dependence of preservation on rarity can be told",
    }[found.excess.side()]
    return (
        f"At {found.row}, {told}: Spearman of frequency with excess {_told(found.excess)} over "
        f"{found.types:,} types."
    )


def _told(figure: Figure) -> str:
    return "undefined (all types are level)" if math.isnan(figure.value) else figure.told()


def _along_rows(rarity: Rarity) -> str:
    behind = [one for one in rarity.correlations if one.group == "all"][1:]
    sides = [one.excess.side() for one in behind]
    return (
        f"Of {len(behind)} rows behind the input, rarer tokens are preserved more at "
        f"{sides.count(-1)}, commoner ones at {sides.count(1)}."
    )


def _naive(found: Correlation) -> str:
    return (
        f"Naive, confounded with the base rate: Spearman of frequency with the token's own rank "
        f"{_told(found.own)}; with its rank at other positions {_told(found.control)}."
    )


def _other_direction(found: Correlation) -> str:
    return (
        f"By divergence from the input row, without a control: Spearman of frequency with "
        f"KL(first||layer) {_told(found.kl_ref)}, with KL(layer||first) {_told(found.kl_layer)}."
    )


def _ends(rarity: Rarity) -> str:
    common, *others = rarity.of()
    ratio = f"x{common.ratio.told('.3g')} higher where they were read than elsewhere"
    if not others:
        return f"Token types rank {ratio}."
    return f"The commonest types rank {ratio}, the rarest x{others[-1].ratio.told('.3g')}."


def _split(found: Correlation) -> str:
    where = f"Where the {_GROUPS[found.group]}:"
    if found.types < FEWEST:
        return f"{where} {_types(found.types)}, too few to tell."
    return (
        f"{where} Spearman of frequency with excess {_told(found.excess)} over {found.types:,} "
        "types."
    )
