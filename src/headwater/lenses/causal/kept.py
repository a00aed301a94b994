"""The result of taking away tokens that recur: what their recurrence loses, row by row."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from headwater.audits.words import figure
from headwater.errors import UnknownOptionError, did_you_mean
from headwater.frames import frame
from headwater.lenses.causal.resampling import column, correlation, mean, ranked
from headwater.lenses.causal.words import ends, lines, number
from headwater.lenses.intervals import Figure
from headwater.lenses.rows import Row

if TYPE_CHECKING:
    import pandas

    from headwater.page.tables import TableData


@dataclass(frozen=True)
class Patched:
    """What one recurrence loses at one row, in nats of log-probability."""

    row: int
    prompt: int
    source: int
    """Where the token stands whose residual was replaced ..."""
    target: int
    """... and where it recurs."""
    token: int
    effect: float
    """f(clean) - f(replaced): positive where the residual supports the recurrence."""
    control: float
    """The same for a position nearby; NaN where there is none."""
    alike: float
    """The same for a token that does not recur, on what follows it at the same distance."""
    rank: float
    """The token's rank in the lens at the source."""
    noise: float
    """Change where the own value is put in."""


@dataclass(frozen=True)
class KeptRow:
    """How much recurrences lose at one row, with intervals."""

    row: str
    title: str
    cases: int
    effect: Figure
    control: Figure
    difference: Figure
    """Effect minus control, where there is a control."""
    alike: Figure
    more: Figure
    """Effect minus that of a token that does not recur."""
    visible: Figure
    """Spearman's correlation of how well the lens shows the token (a low rank) with the effect;
    NaN where no effect is larger than the noise."""
    noise: float
    """Largest change where the own value is put in, in nats."""

    @property
    def is_used(self) -> bool:
        """Whether the residual there supports the recurrence, beyond what damage does."""
        return self.difference.side() > 0


@dataclass(frozen=True, eq=False, repr=False)
class Kept:
    """Whether tokens that recur are kept for it."""

    figures: tuple[KeptRow, ...]
    """The rows, from the input on."""
    findings: tuple[Patched, ...]
    recurrences: int
    """How many there are in the prompts."""
    over: str
    """What intervals are over: `prompts`, or the different `tokens` of one prompt."""
    vocabulary: Mapping[int, str]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, row: str) -> KeptRow:
        """Return the figures of a row, by name.

        Raises:
            UnknownOptionError: If there is no such row.
        """
        by_name = {one.row: one for one in self.figures}
        if row not in by_name:
            raise UnknownOptionError(
                f"no row {row!r}.{did_you_mean(row, by_name)}\nRows: {', '.join(by_name)}."
            )
        return by_name[row]

    @property
    def sentences(self) -> list[str]:
        """What the figures say, in words."""
        return [_used(self), *_compared(self), *_seen(self)]

    def table(self) -> TableData:
        """Return the figures as text: title, caption, headings and rows."""
        interval = f"95 % over {self.over}"
        return {
            "title": "Is a token kept for later use?",
            "caption": " ".join(_CAPTION),
            "headings": [
                "row", "cases", "effect", "control", "difference", interval, "not recurring",
                "visible", interval,
            ],
            "rows": [
                [
                    one.row,
                    str(one.cases),
                    number(one.effect.value),
                    number(one.control.value),
                    number(one.difference.value),
                    ends(one.difference),
                    number(one.alike.value),
                    number(one.visible.value),
                    ends(one.visible),
                ]
                for one in reversed(self.figures)
            ],
        }  # fmt: skip

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping a row, with every figure and its ends."""
        for one in self.figures:
            plain: dict[str, Any] = {}
            for key, value in asdict(one).items():
                if isinstance(value, dict):
                    plain[key] = value["value"]
                    plain[f"{key}_low"], plain[f"{key}_high"] = value["low"], value["high"]
                else:
                    plain[key] = value
            yield plain

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a row of the lens, as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame(self.rows(), "kept.rows()")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "recurrences": self.recurrences,
            "over": self.over,
            "rows": list(self.rows()),
            "findings": [
                {
                    **asdict(one),
                    "row": self.figures[one.row].row,
                    "text": self.vocabulary[one.token],
                }
                for one in self.findings
            ],
            "sentences": self.sentences,
            "provenance": self.provenance,
        }

    def __repr__(self) -> str:
        model = self.provenance.get("model", {}).get("name", "a model")
        cases = len({(one.prompt, one.source) for one in self.findings})
        title = f"Tokens of {model} that recur: {cases} of {self.recurrences} looked at"
        return "\n".join([title, *_CAPTION, *lines(self.table()), *self.sentences])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


_CAPTION = (
    "effect: nats that a token's log-probability loses just before it recurs, when the residual",
    "where it was read is replaced; control: the same for a position nearby; not recurring: for a",
    "token that does not recur, and what follows it at the same distance; visible: rank",
    "correlation of how well the lens shows the token with the effect.",
)


def kept_rows(
    rows: Sequence[Row], found: Sequence[Patched], over: str, seed: int
) -> tuple[KeptRow, ...]:
    """Return the figures of every row.

    Args:
        rows: The rows.
        found: What was found at each.
        over: What intervals are over, `prompts` or `tokens`.
        seed: Of the resamples.
    """
    return tuple(
        _row(row, [one for one in found if one.row == number], over, seed)
        for number, row in enumerate(rows)
    )


def _row(row: Row, found: Sequence[Patched], over: str, seed: int) -> KeptRow:
    groups = [one.prompt if over == "prompts" else one.token for one in found]
    effect, control, alike = (column(found, name) for name in ("effect", "control", "alike"))
    noise = float(column(found, "noise").max())
    loud = effect if float(effect.abs().max()) > noise else torch.zeros_like(effect)
    return KeptRow(
        row=row.name,
        title=row.title,
        cases=len(found),
        effect=mean(effect, groups, seed),
        control=mean(control, groups, seed),
        difference=mean(effect - control, groups, seed),
        alike=mean(alike, groups, seed),
        more=mean(effect - alike, groups, seed),
        visible=correlation(ranked(-column(found, "rank")), ranked(loud), groups, seed),
        noise=noise,
    )


def _used(kept: Kept) -> str:
    used = [one for one in kept.figures if one.is_used]
    if not used:
        return (
            "At no row is the residual at a token shown to support its recurrence by more than a "
            "position nearby does."
        )
    most = max(used, key=lambda one: one.difference.value)
    return (
        f"Kept for later use at {', '.join(one.row for one in used)}: most at {most.row}, where "
        f"replacing the residual takes {figure(most.effect.value)} nats from the recurrence, a "
        f"position nearby {figure(most.control.value)} (difference "
        f"{figure(most.difference.value)} {ends(most.difference)})."
    )


def _compared(kept: Kept) -> list[str]:
    used = [one for one in kept.figures if one.is_used and not math.isnan(one.more.value)]
    if not used:
        return []
    most = max(used, key=lambda one: one.difference.value)
    told = "more" if most.more.side() > 0 else "not shown to be more"
    return [
        f"A token that does not recur supports what follows at the same distance by "
        f"{figure(most.alike.value)} nats at {most.row}: recurring ones are {told} "
        f"({figure(most.more.value)} {ends(most.more)})."
    ]


def _seen(kept: Kept) -> list[str]:
    """Return whether what the lens shows is what is used, at the rows where anything is."""
    used = [one for one in kept.figures if one.is_used and one.visible.has_interval]
    if not used:
        return []
    with_it = [one.row for one in used if one.visible.side() > 0]
    against = [one.row for one in used if one.visible.side() < 0]
    said = []
    if with_it:
        said.append(
            "Kept visible means used: tokens that the lens shows better lose more at "
            f"{', '.join(with_it)}."
        )
    if against:
        said.append(f"Tokens that the lens shows better lose less at {', '.join(against)}.")
    if not said:
        said.append(
            "Kept visible is not shown to mean used: how well the lens shows a token does not go "
            f"with what is lost, at {', '.join(one.row for one in used)}."
        )
    return said
