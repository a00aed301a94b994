"""A check in words and as tables of text, for terminals, notebooks and pages alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headwater.audits.words import figure
from headwater.errors import UnknownOptionError, did_you_mean
from headwater.lenses.causal.claims import Claim
from headwater.lenses.causal.figures import LEAST_R, ClaimRow, ExchangeRow
from headwater.lenses.intervals import Figure

if TYPE_CHECKING:
    from headwater.lenses.causal.result import LensCheck
    from headwater.page.tables import TableData

Row = ClaimRow | ExchangeRow


def told(check: LensCheck) -> list[str]:
    """Return the lines of the printed result."""
    model = check.provenance.get("model", {}).get("name", "a model")
    places = f"{check.places} place" + ("s" if check.places != 1 else "")
    title = f"Lens of {model} put to the test at {places}, how={check.how!r}"
    return [title, *_explained(check), *lines(table(check)), *summary(check)]


def summary(check: LensCheck) -> list[str]:
    """Return what the rows say together."""
    inner = [one for one in check.figures if one.row != check.final]
    followed = [one.row for one in inner if one.is_followed]
    others = [one.row for one in inner if not one.is_followed]
    said = []
    if followed:
        said.append(f"The output follows the lens at {', '.join(followed)}.")
    if others:
        claims = check.how == "claim"
        more = "by more than a random move changes it" if claims else f"(r under {LEAST_R})"
        said.append(f"Not shown to follow {more}: {', '.join(others)}.")
    examples = [one for one in inner if one.is_followed] or inner
    if examples:
        said.append(sentence(check, examples[0]))
    apart = identity(check)
    if apart is not None:
        said.append(
            f"{check.final} is the model's own prediction: predicted and actual differ by at most "
            f"{apart:.1e} nats there."
        )
    noise = max(one.noise for one in check.figures)
    said.append(f"Noise (the own value put in): at most {noise:.1e} nats at the output.")
    return said


def sentence(check: LensCheck, row: Row) -> str:
    """Return what one row's figures say."""
    if isinstance(row, ClaimRow):
        return _claimed(check, row)
    if math.isnan(row.slope.value):
        return f"{row.title}: the lens predicts no change, so there is nothing to compare."
    return (
        f"Another position's {row.title} changes the output's best tokens by "
        f"{figure(row.slope.value)} {ends(row.slope)} of what the lens says (r "
        f"{figure(row.correlation)}; {figure(row.kl_output)} nats KL where the lens changes by "
        f"{figure(row.kl_lens)})."
    )


def _claimed(check: LensCheck, row: ClaimRow) -> str:
    if not row.cells:
        return (
            f"No move of the {row.title} makes the lens give up its token by {row.nats:g} "
            f"{_nats(row.nats)}."
        )
    change = row.slope.value * row.nats
    scaled = Figure(change, row.slope.low * row.nats, row.slope.high * row.nats)
    verb, shown = "lowers", scaled
    if change < 0:
        verb, shown = "raises", Figure(-change, -scaled.high, -scaled.low)
    return (
        f"Moving the {row.title} so that the lens gives up its token by {row.nats:g} "
        f"{_nats(row.nats)} {verb} the output's by {figure(shown.value)} nats {ends(shown)}; a "
        f"random move of the same length changes it by {figure(row.random)}."
    )


def table(check: LensCheck) -> TableData:
    """Return one row of text a row of the lens."""
    claims = check.how == "claim"
    headings = ["row", "places", "slope", f"95 % over {check.over}", "r", "right sign", "size"]
    headings += ["if unread", "random", "linear to"] if claims else ["KL lens", "KL output"]
    return {
        "title": "Does the output follow the lens?",
        "caption": " ".join(_explained(check)),
        "headings": headings,
        "rows": [_cells(one) for one in reversed(check.figures)],
    }


def _cells(row: Row) -> list[str]:
    cells = [
        row.row,
        str(row.cells),
        number(row.slope.value),
        ends(row.slope),
        number(row.correlation),
        "-" if math.isnan(row.right_sign) else f"{row.right_sign:.0%}".replace("%", " %"),
        number(row.size),
    ]
    if isinstance(row, ExchangeRow):
        return [*cells, number(row.kl_lens), number(row.kl_output)]
    linear = "-" if math.isnan(row.linear) else f"{row.linear:g}"
    return [*cells, number(row.direct), number(row.random), linear]


def _explained(check: LensCheck) -> list[str]:
    if check.how == "claim":
        return [
            f"The residual is moved until the lens gives its best token {check.nats:g} "
            f"{_nats(check.nats)} less; the model runs on.",
            "slope: nats that the output's log-probability of the token falls a nat in the lens;",
            "if unread: the same, had no layer read the move; random: nats by random moves as far;",
            "size: length of the move by that of the residual; linear to: fall in nats up to which",
            "the slope holds.",
        ]
    return [
        "The residual is replaced by that of another position; the model runs on from there.",
        "slope: change of centered log-probabilities at the output by that in the lens, over the",
        "best tokens of both; KL(before || after); size: length of the difference by that of the",
        "residual.",
    ]


def found(check: LensCheck, row: str) -> Row:
    """Return the figures of a row.

    Raises:
        UnknownOptionError: If it was not tested.
    """
    by_name = {one.row: one for one in check.figures}
    if row not in by_name:
        raise UnknownOptionError(
            f"row {row!r} was not tested.{did_you_mean(row, by_name)}\nRows: {', '.join(by_name)}."
        )
    return by_name[row]


def identity(check: LensCheck) -> float | None:
    """Return the largest difference of predicted and actual at the model's own last row."""
    last = len(check.figures) - 1
    if check.final is None or check.figures[last].row != check.final:
        return None
    row = max(one.cell.row for one in check.findings)
    apart = 0.0
    for one in check.findings:
        if one.cell.row != row:
            continue
        if isinstance(one, Claim):
            pairs = zip(one.predicted, one.actual, strict=True)
            known = [abs(given - got) for given, got in pairs if not math.isnan(given)]
        else:
            known = (one.predicted - one.actual).abs().tolist()
        apart = max([apart, *known])
    return apart


def lines(table: TableData) -> list[str]:
    """Return a table as aligned lines."""
    every = [
        list(map(str, table["headings"])),
        *([str(cell) for cell in row] for row in table["rows"]),
    ]
    widths = [max(len(row[place]) for row in every) for place in range(len(every[0]))]
    return [_line(row, widths) for row in every]


def number(value: float) -> str:
    """Return a figure, or a dash where there is none."""
    return "-" if math.isnan(value) else figure(value)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join([first.strip().ljust(widths[0]), *others]).rstrip()


def ends(interval: Figure) -> str:
    """Return the ends of an interval."""
    if math.isnan(interval.low):
        return "[no interval]"
    return f"[{figure(interval.low)}, {figure(interval.high)}]"


def _nats(count: float) -> str:
    return "nat" if count == 1 else "nats"
