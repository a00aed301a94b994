"""The result of an audit: what was checked, how well it agrees, and the worst cases by name."""

import html
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from headwater.audits.error_bars import Aim, ErrorBars
from headwater.audits.words import Counts, Statistic, effect, figure, name_list
from headwater.errors import ModelGoneError, ResultError
from headwater.frames import frame

if TYPE_CHECKING:
    import pandas

    from headwater.attribution.result import Attribution
    from headwater.audits.bound import Bound

SHOWN_ROWS = 10
"""Rows of a printed audit."""


@dataclass(frozen=True)
class AuditRow:
    """One checked component; estimate and exact effect are means over pairs."""

    name: str
    stratum: str
    """`top` `middle` `tail`: where the estimate put it."""
    weight: float
    """How many components it stands for."""
    estimate: float
    exact: float
    error: float
    """Estimate minus exact effect."""
    flags: tuple[str, ...] = ()
    """`wrong sign` `off by > 2x` `within noise`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self) | {"flags": list(self.flags)}


@dataclass(frozen=True, repr=False)
class Audit:
    """How far an estimate is from the exact effects, on the components that were checked."""

    agreement: str
    """What was checked, and how well it agrees, in one line of plain words."""
    verdict: str
    """What to trust, by the thresholds in `headwater.audits.words`."""
    figures: tuple[Statistic, ...]
    counts: Counts
    rows: tuple[AuditRow, ...]
    """The checked components, the strongest estimate first."""
    worst: tuple[str, ...]
    """The components with the largest |estimate - exact|, worst first."""
    wrong_signs: tuple[str, ...]
    """Components among the top whose estimate has the wrong sign."""
    seed: int
    confidence: float
    cost: str = ""
    """What the exact runs cost, in words."""
    pair_estimates: Float[Tensor, "pair index"] | None = field(default=None, compare=False)
    """Estimates of the checked components by pair, in the order of `rows`; not saved."""
    pair_effects: Float[Tensor, "pair index"] | None = field(default=None, compare=False)
    """Exact effects of the checked components by pair, in the order of `rows`; not saved."""
    flags: str = ""
    """What a diagnosis flagged, in words; empty if nobody has looked."""
    asked: Aim | None = None
    """The error bars that were asked for, by this audit or an earlier one of the same scores."""
    before: tuple[str, ...] = ()
    """Components whose effects were known before it drew, because somebody had picked them; they
    say nothing of the others."""
    source: Callable[[], Any] = field(default=lambda: None, compare=False)
    """The scores that were audited, while they live; not saved."""

    @property
    def sentence(self) -> str:
        """The audit in plain words: what agrees, and what was flagged."""
        return f"{self.agreement} Flags: {self.flags}." if self.flags else self.agreement

    @property
    def bars_at(self) -> float:
        """Confidence of the error bars that tables show."""
        return 0.9 if self.asked is None else self.asked.confidence

    def bars(self) -> ErrorBars:
        """Return the error bars that tables show: those asked for, else those at 90 %."""
        return self.intervals(self.bars_at, None if self.asked is None else self.asked.sure)

    @property
    def aim(self) -> str:
        """Which tolerance the error bars were asked to meet, and whether they do, in words.

        Empty if none was asked for, or the scores are gone.
        """
        if self.asked is None or self.source() is None:
            return ""
        return self.asked.met_by(self.bars())

    @property
    def statistics(self) -> list[dict[str, Any]]:
        """The figures as plain data: name, value, low, high, words."""
        return [statistic.to_dict() for statistic in self.figures]

    @property
    def recall(self) -> Statistic:
        """Which share of the truly strongest are among the estimated strongest."""
        return next(s for s in self.figures if s.name.startswith("recall"))

    def statistic(self, name: str) -> Statistic:
        """Return one figure by name.

        Raises:
            ResultError: If the audit has no figure of that name.
        """
        for statistic in self.figures:
            if statistic.name == name:
                return statistic
        known = ", ".join(repr(statistic.name) for statistic in self.figures)
        raise ResultError(f"the audit has no statistic {name!r}.\nIt has {known}.")

    def with_cost(self, cost: str) -> "Audit":
        """Return the same audit with what it cost, in words."""
        return replace(self, cost=cost)

    def of(self, scores: "Attribution", *, weakly: bool = True) -> "Audit":
        """Return the same audit, knowing the scores it is of.

        Scores keep their audit, so that one holds them weakly; the one handed to the user keeps
        them alive.
        """
        return replace(self, source=weakref.ref(scores) if weakly else lambda: scores)

    @property
    def scores(self) -> "Attribution":
        """The scores that were audited.

        Raises:
            ModelGoneError: If they are gone.
        """
        scores = self.source()
        if scores is None:
            raise ModelGoneError(
                "the scores of this audit are gone (saved audits and those of `scores.checked` "
                "hold them weakly).\nKeep them: scores = hw.attribute(...), or hw.Attribution.load("
                "folder); then use scores.checked."
            )
        return scores

    def bound(
        self, theta: float | None = None, confidence: float = 0.95, **options: Any
    ) -> "Bound":
        """Bound the effects of the components this audit did not check.

        Random subsets of them are closed together, several in one run; Welch's test then says of
        each how large its effect may be (AtP*, arXiv 2403.00745, diagnostics). The claim is about
        the largest of them: it is wrong only if the test is wrong for that one, so it needs no
        correction for their number (intersection-union, Berger 1982). What is bounded is
        |mean effect| over the pairs, or mean |effect| for estimators of magnitudes. It assumes
        that effects of unchecked components add up; the bound says whether that was seen to fail.

        Args:
            theta: The smallest effect that matters, in units of the metric; None only asks for
                the smallest that can be bounded.
            confidence: Of the bound.
            options: `subsets` (72): runs to spend. `seed` (0): of the subsets. `magnitudes`
                (None: as the estimator): whether to bound mean |effect|. `model`, `batch_size`,
                `progress`: as in `hw.audit`.

        Returns:
            The smallest theta bounded, whether `theta` holds, and the limit of each component.

        Raises:
            ResultError: If theta, confidence or subsets are out of range.
            ModelGoneError: If the scores or their model are gone.
        """
        from headwater.audits.bound import bound  # needs the estimators; this file is read by all

        return bound(self.scores, self, theta, confidence=confidence, **options)

    def intervals(self, confidence: float = 0.9, sure: float | None = None) -> ErrorBars:
        """Return an interval for the exact effect of every component; costs no run.

        Checked components have their exact effect. The others get split-conformal intervals after
        a regression of exact on estimate: of each group's unchecked components at least this share
        lies inside, on average over draws of the sample, whatever the effects are.

        Args:
            confidence: The share; 0.9 needs 9 checks in a group, 0.95 needs 19.
            sure: Instead of on average, with this probability over the draw: for whoever goes on
                until intervals are short. 0.9 of 0.9 needs 22 checks in a group.

        Raises:
            ResultError: If confidence or `sure` is not between 0 and 1.
            ModelGoneError: If the scores are gone.
        """
        from headwater.audits.conformal import error_bars
        from headwater.audits.population import population_of

        return error_bars(population_of(self.scores, self), confidence, sure)

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain data; `from_dict` reads it back, without the pair values."""
        return {
            "sentence": self.sentence,
            "agreement": self.agreement,
            "flags": self.flags,
            "verdict": self.verdict,
            "statistics": self.statistics,
            "counts": asdict(self.counts) | {"by_stratum": dict(self.counts.by_stratum)},
            "rows": [row.to_dict() for row in self.rows],
            "worst": list(self.worst),
            "wrong_signs": list(self.wrong_signs),
            "seed": self.seed,
            "confidence": self.confidence,
            "cost": self.cost,
            "before": list(self.before),
            "asked": None if self.asked is None else asdict(self.asked),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Audit":
        """Read an audit back from plain data.

        Raises:
            ResultError: If the data lack something or are no audit at all.
        """
        try:
            rows = tuple(AuditRow(**{**row, "flags": tuple(row["flags"])}) for row in data["rows"])
            return cls(
                agreement=data["agreement"],
                verdict=data["verdict"],
                figures=tuple(Statistic(**row) for row in data["statistics"]),
                counts=Counts(**data["counts"]),
                rows=rows,
                worst=tuple(data["worst"]),
                wrong_signs=tuple(data["wrong_signs"]),
                seed=data["seed"],
                confidence=data["confidence"],
                cost=data["cost"],
                flags=data["flags"],
                before=tuple(data["before"]),
                asked=None if data["asked"] is None else Aim(**data["asked"]),
            )
        except (KeyError, TypeError) as error:
            raise ResultError(
                f"these data are not an audit: {type(error).__name__}: {error}.\n"
                "Audit again: scores.audit()."
            ) from None

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row a checked component as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        table = (row.to_dict() | {"flags": ", ".join(row.flags)} for row in self.rows)
        return frame(table, "audit.rows")

    def __repr__(self) -> str:
        lines = [self.sentence, self.verdict, ""]
        for statistic in self.figures:
            value = "" if statistic.value is None else figure(statistic.value)
            lines.append(f"{statistic.name:<20}{value:>8}  {_span(statistic):<16}{statistic.words}")
        lines += ["", f"{'component':<16}{'estimate':>11}{'exact':>11}{'error':>11}  stratum"]
        lines += [
            f"{row.name:<16}{effect(row.estimate):>11}{effect(row.exact):>11}"
            f"{effect(row.error):>11}  {', '.join([row.stratum, *row.flags])}"
            for row in self.rows[:SHOWN_ROWS]
        ]
        if len(self.rows) > SHOWN_ROWS:
            lines.append(f"... {len(self.rows) - SHOWN_ROWS:,} more in audit.rows")
        if self.worst:
            lines.append(f"largest errors: {name_list(self.worst)}")
        if self.aim:
            lines.append(self.aim)
        if self.cost:
            lines.append(f"cost of the audit: {self.cost}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        figures = "".join(
            _html_row(s.name, "" if s.value is None else figure(s.value), _span(s), s.words)
            for s in self.figures
        )
        rows = "".join(
            _html_row(
                r.name,
                effect(r.estimate),
                effect(r.exact),
                effect(r.error),
                ", ".join([r.stratum, *r.flags]),
            )
            for r in self.rows[:SHOWN_ROWS]
        )
        more = len(self.rows) - SHOWN_ROWS
        rest = f"<p>{more:,} more in <code>audit.rows</code></p>" if more > 0 else ""
        head = _html_row("component", "estimate", "exact", "error", "stratum", cell="th")
        return (
            f"<p>{html.escape(self.sentence)}<br><b>{html.escape(self.verdict)}</b></p>"
            f"<table>{figures}</table><table>{head}{rows}</table>{rest}"
        )


def _span(statistic: Statistic) -> str:
    if statistic.low is None or statistic.high is None:
        return ""
    return f"[{figure(statistic.low)}, {figure(statistic.high)}]"


def _html_row(*values: str, cell: str = "td") -> str:
    return "<tr>" + "".join(f"<{cell}>{html.escape(v)}</{cell}>" for v in values) + "</tr>"
