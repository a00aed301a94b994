"""A shift in words and one table, for terminal and notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from headwater.gates import Cost
from headwater.shifts.accuracy import Rate
from headwater.shifts.outcomes import Outcome, picked

if TYPE_CHECKING:
    from headwater.shifts.result import Shift

SHOWN = 10
"""Features of a printed result."""
CHANCE = 0.5
"""How often what is spurious agrees with one of two labels where they are independent."""
POOLED = {"mean": "mean over tokens", "last": "last token"}


def printed(shift: Shift) -> str:
    """Return one screen."""
    lines = [title(shift), *_about(shift), "", *_features(shift), "", *_table(shift), ""]
    return "\n".join([*lines, *sentences(shift), cost_in_words(shift.cost)])


def title(shift: Shift) -> str:
    """Return what it is of, on one line."""
    made = shift.provenance
    return (
        f"SHIFT of {made['biased']['name']} on {made['model']['name']}: a probe at "
        f"{shift.probe.site} ({POOLED[shift.probe.pooling]}) tells {shift.probe.classes[1]} from "
        f"{shift.probe.classes[0]}"
    )


def _about(shift: Shift) -> Iterator[str]:
    made = shift.provenance
    yield (
        f"{made['trained_on']} biased examples to train on, {made['held_out_biased']} held out; "
        f"{made['balanced']['count']} balanced, of which {made['judged_on']} to judge by and "
        f"{made['measured_on']} to measure on"
    )
    count = len(shift.ablated)
    yield f"{count} feature{'s' * (count != 1)} ablated, {made['judged_by']}"


def _features(shift: Shift) -> Iterator[str]:
    shown = shift.judged[:SHOWN]
    if not shown:
        return
    width = max([12, *(len(one.name) for one in shown)])
    yield f"{'feature':<{width}}{'effect':>9}{'se':>8}{'label':>9}{'spurious':>10}  judgment"
    for one in shown:
        cells = (one.effect, one.se, one.on_label, one.on_spurious)
        sizes = zip(cells, (9, 8, 9, 10), ("+.3f", ".3f", "+.3f", "+.3f"), strict=True)
        numbers = "".join(
            f"{'' if cell is None else format(cell, form):>{wide}}" for cell, wide, form in sizes
        )
        yield f"{one.name:<{width}}{numbers}  {one.judgment or '-'}"
    if len(shift.judged) > SHOWN:
        yield f"... {len(shift.judged) - SHOWN:,} more in shift.judged"


def _table(shift: Shift) -> Iterator[str]:
    rows = list(_rows(shift))
    head = ("accuracy, %", "biased", "balanced", "worst group", "as spurious")
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, *rows):
        yield "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
    yield "in brackets 95 % (Wilson), of random features the range over draws"
    yield "as spurious: how often it says the label that an example's attribute usually goes with"


def _rows(shift: Shift) -> Iterator[tuple[str, ...]]:
    count = len(shift.ablated)
    names = {
        "before": "before",
        "ablated": f"{count} judged, ablated",
        "strongest": f"{count} strongest, ablated",
        "random": f"{count} random, ablated",
        "oracle": "fitted to balanced examples",
    }
    for kind, name in names.items():
        for retrained in (False, True):
            found = picked(shift.outcomes, kind, retrained=retrained)  # pyright: ignore[reportArgumentType]
            if found:
                draws = f" ({len(found)} draws)" if kind == "random" and not retrained else ""
                yield (f"{name}{draws}" if not retrained else "  and retrained", *_cells(found))


def _cells(found: Sequence[Outcome]) -> Iterator[str]:
    yield _cell([one.biased.all for one in found])
    yield _cell([one.balanced.all for one in found])
    yield _cell([one.balanced.worst[1] for one in found])
    follows = [one.balanced.follows for one in found]
    yield _cell([one for one in follows if one is not None])


def _cell(rates: Sequence[Rate]) -> str:
    if not rates:
        return "-"
    if len(rates) == 1:
        low, high = rates[0].interval
        return f"{100 * rates[0].value:.1f} ({100 * low:.0f}-{100 * high:.0f})"
    values = [100 * rate.value for rate in rates]
    return f"{sum(values) / len(values):.1f} ({min(values):.0f}-{max(values):.0f})"


def sentences(shift: Shift) -> list[str]:
    """Return what came of it, and what to know before believing it."""
    found = [_what_it_goes_by(shift)]
    if shift.ablated:
        found += [_whether_it_helped(shift), *_against_baselines(shift)]
    else:
        found.append("No feature was judged to be ablated, so nothing was changed.")
    if shift.audit:
        found.append(f"Effects: {shift.audit}")
    return [sentence for sentence in found if sentence]


def _what_it_goes_by(shift: Shift) -> str:
    before = shift.outcome("before").balanced
    worst, rate = before.worst
    said = f"Before, the probe is right on {_share(before.all)} of the balanced examples"
    if len(before.groups) > 1:
        said += f", on {_share(rate)} of the group {worst}"
    if before.follows is None:
        return f"{said}."
    low, high = before.follows.interval
    if low > before.all.interval[1]:
        return f"{said}: it goes by what is spurious, on {_share(before.follows)}."
    if low <= CHANCE <= high:
        return f"{said}: it goes by the label, there is little to repair."
    return f"{said}: it goes by both, by what is spurious on {_share(before.follows)}."


def _whether_it_helped(shift: Shift) -> str:
    mean, low, high = shift.gained["before"]
    moved = f"{_points(mean)} points ({_points(low)} to {_points(high)})"
    verb = "helps" if low > 0 else "harms" if high < 0 else "does not help"
    return f"Ablating and retraining {verb}: {moved} on the balanced examples."


def _against_baselines(shift: Shift) -> Iterator[str]:
    others = {"random": "as many random features", "strongest": "as many of the strongest unjudged"}
    for kind, name in others.items():
        if kind not in shift.gained:
            continue
        mean, low, high = shift.gained[kind]
        ends = f"{_points(mean)} points ({_points(low)} to {_points(high)})"
        if low > 0:
            yield f"It is better than ablating {name}: {ends}."
        elif high < 0:
            yield f"Ablating {name} is better: the judgment makes it worse, {ends}."
        else:
            yield f"Ablating {name} does about as well: the judgment adds {ends}."


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def cost_in_words(cost: Cost) -> str:
    """Return what was run: passes over one text each."""
    return (
        f"cost: {cost.forwards:,.0f} forwards and {cost.backwards:,.0f} backwards of one text, "
        f"{cost.seconds:.2f} s"
    )


def _share(rate: Rate) -> str:
    return f"{100 * rate.value:.1f} %"
