"""One component of a result in a row: score, spread, size, exact effect, flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from headwater.attribution.flags import flags_by_name, output_warning
from headwater.attribution.scores import Scores
from headwater.audits.compare import flags as flags_of

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

SMALL_CAUSE = 0.02
"""A change below this share of the residual's norm is small ..."""
LARGE_EFFECT = 0.10
"""... and an effect above this share of the clean metric's change (or size) is large."""


@dataclass(frozen=True)
class Row:
    """One component."""

    name: str
    kind: str
    layer: int | None
    index: int | None
    position: int | None
    score: float
    """Mean over pairs."""
    spread: float
    """Standard deviation over pairs; 0 for one pair."""
    size: float | None
    """Mean over pairs of |x - reference| / |residual|."""
    exact: float | None
    """Exact effect, mean over pairs; only where checked, or where the score is exact itself."""
    stratum: str | None
    """Which part of the audit's sample it was drawn for; `asked` where it was checked beyond it."""
    flags: tuple[str, ...] = ()
    se: float | None = None
    """Standard error of the score over pairs; None for one pair.or a mask."""
    ranks: str | None = None
    """Interval of the rank by |score| over resampled pairs, as in `1-3`; None if `se` is."""
    draw_se: float | None = None
    """Standard error of the score over draws, from estimators and references that draw at random.
    """
    low: float | None = None
    """Lower end of the error bar of an audited result (`scores.error_bars()`), which says where its
    exact effect is; the effect itself if checked, None if nothing can be said."""
    high: float | None = None
    """Upper end of the error bar."""

    def truth(self, form: str) -> str:
        """Return the exact effect, else its error bar in brackets, else nothing, for a table."""
        if self.exact is not None:
            return format(self.exact, form)
        if self.low is None or self.high is None:
            return ""
        return f"[{self.low:{form}}, {self.high:{form}}]"

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self) | {"flags": list(self.flags)}


def rows_of(result: Attribution, columns: Sequence[int] | None) -> list[Row]:
    """Return the rows of a result, in the order of `columns` (all by default)."""
    parts = result.parts
    columns = range(len(parts.components)) if columns is None else columns
    mean = parts.mean().tolist()
    spread = parts.values.std(0, correction=0).tolist()
    errors = None if parts.errors is None else parts.mean_errors().tolist()
    sizes = None if parts.sizes is None else parts.sizes.tolist()
    checked, known, found_bars = result.checked, result.known(), result.error_bars()
    bars = {} if found_bars is None else {bar.name: bar for bar in found_bars.rows}
    audited = {} if checked is None else {row.name: row for row in checked.rows}
    floor = 0.0 if checked is None else checked.counts.noise_floor or 0.0
    scale, more = parts.whole_effect, flags_by_name(result)
    resampled = result.resampled()
    rows = []
    for column in columns:
        component = parts.components[column]
        bare = isinstance(component, str)
        name = component if bare else component.name
        found, effect = audited.get(name), known.get(column)
        exact = mean[column] if column in parts.exact else effect
        if found is not None:
            flags, stratum = tuple(found.flags), found.stratum
        elif effect is not None and not result.is_exact:
            flags, stratum = flags_of(mean[column], effect, floor), "asked"
        else:
            flags, stratum = (), None
        size = None if sizes is None else sizes[column]
        if size is not None and size < SMALL_CAUSE and abs(mean[column]) > LARGE_EFFECT * scale:
            flags = (*flags, "small cause, large effect")
        flags = (*flags, *more.get(name, ()))
        bar = bars.get(name)
        rows.append(
            Row(
                name=name,
                kind="gate" if bare else component.kind,
                layer=None if bare else component.layer,
                index=None if bare else component.index,
                position=None if bare else component.position,
                score=mean[column],
                spread=spread[column],
                size=size,
                exact=exact,
                stratum=stratum,
                flags=flags,
                se=None if resampled is None else float(resampled.se[column]),
                ranks=None if resampled is None else resampled.ranks(column),
                draw_se=None if errors is None else errors[column],
                low=exact if bar is None else bar.low,
                high=exact if bar is None else bar.high,
            )
        )
    return rows


_SEES_ALL = ("gradient", "exact", "atp-star", "ig")
"""Estimators whose score of exactly 0 means that nothing gets through, not a sum that is 0."""


def warnings_of(result: Attribution) -> list[str]:
    """Return what a reader should know before believing the scores, in sentences."""
    values, parts = result.parts.values, result.parts
    said = [*_about_metric(parts), *parts.notes]
    if parts.magnitudes and parts.circuit is None:
        said.append(
            "these scores are magnitudes: the mean over pairs of |effect|, with the sign of the "
            "mean; exact effects beside them are taken in the same way."
        )
    if parts.errors is not None:
        errors = parts.mean_errors()
        worst = int(errors.argmax())
        said.append(
            f"drawn at random: the largest standard error of a score is {float(errors[worst]):.2g} "
            f"({_some(result, [worst])}), beside the spread over pairs; scores.to_frame() has all."
        )
    if output := output_warning(result):
        said.append(output)
    if result.extras.diagnosis is not None:
        said += result.extras.diagnosis.notes
    dead = (values == 0).all(0).nonzero().flatten().tolist()
    if dead and result.task is not None and result.provenance.estimator["name"] in _SEES_ALL:
        said.append(
            f"{len(dead):,} of {values.shape[1]:,} components have a score of exactly 0 on every "
            f"pair ({_some(result, dead)}): nothing they do reaches a position the metric reads, "
            "or the prompts do not change them."
        )
    if result.parts.sizes is not None:
        small = (result.parts.sizes < SMALL_CAUSE) & (
            parts.mean().abs() > LARGE_EFFECT * parts.whole_effect
        )
        columns = small.nonzero().flatten().tolist()
        if columns:
            said.append(
                f"small cause, large effect ({_some(result, columns)}): closing the gate changes "
                f"the site by less than {SMALL_CAUSE:.0%} of the residual, and the metric by more "
                f"than {LARGE_EFFECT:.0%} of the whole."
            )
    return said


def _about_metric(parts: Scores) -> list[str]:
    if parts.corrupted is None:
        return []
    clean, corrupted = float(parts.clean.mean()), float(parts.corrupted.mean())
    if bool((parts.clean == parts.corrupted).all()):
        return [
            f"the metric is the same for clean and corrupted prompts ({clean:.4g}): it does not "
            "see what the corruption changes, so no score means anything."
        ]
    if clean < corrupted:
        return [
            f"the clean metric ({clean:.4g}) is below the corrupted one ({corrupted:.4g}): the "
            "behavior is absent, or answer and wrong are swapped; signs read the other way round."
        ]
    return []


def _some(result: Attribution, columns: Sequence[int]) -> str:
    names = [result.names[column] for column in columns[:5]]
    return ", ".join(names) + (f" and {len(columns) - 5:,} more" if len(columns) > 5 else "")
