"""Compare estimates with exact effects: draw the sample, get its exact effects, judge.

Knows no model: the exact effects come from a function. It is called once, with the sampled columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headwater.audits import statistics, words
from headwater.audits.checks import refuse_no_share
from headwater.audits.intervals import Measure, intervals
from headwater.audits.report import Audit, AuditRow
from headwater.audits.sampling import TOP, AuditSample
from headwater.audits.words import Counts, Statistic
from headwater.errors import NonFiniteError, ResultError

WORST = 5
"""Components named as the largest errors."""

FACTOR = 2.0
"""An estimate further off than this factor is flagged."""

BOUNDS = {
    "r": (-1.0, 1.0),
    "rho": (-1.0, 1.0),
    "relative error": (0.0, np.inf),
    "sign agreement": (0.0, 1.0),
    "recall": (0.0, 1.0),
}
"""What figures can be."""


def audit_scores(
    names: Sequence[str],
    estimate: Float[Tensor, "pair component"],
    exact: Callable[[Sequence[int]], Float[Tensor, "pair index"]],
    *,
    sample: int = 32,
    seed: int = 0,
    top: int = 10,
    confidence: float = 0.95,
    noise_floor: float | None = None,
    total: Float[Tensor, " pair"] | None = None,
    magnitudes: bool = False,
    gaps: Mapping[str, float] | None = None,
) -> Audit:
    """Check a sample of estimates against exact effects, both averaged over pairs.

    Args:
        names: Of the components.
        estimate: Estimated effects.
        exact: From columns to their exact effects on the same pairs; called once.
        sample: Components to check; at least as many as there are checks all of them.
        seed: The same seed draws the same sample and the same intervals.
        top: How many of the strongest count as "the top" for signs and recall.
        confidence: Of the intervals.
        noise_floor: Mean effects up to this size are indistinguishable from rounding.
        total: `f(1) - f(0)` on each pair, if the components are a cut: the estimates should sum
            to it. None if they are not.
        magnitudes: Whether estimates are sizes of effects with a sign attached: then |estimate| is
            compared with |exact effect|, each averaged over pairs, and signs apart from that.
        gaps: By what is summed, the mean over pairs of |sum of scores - exact change|, where the
            estimator has checked its own sums.

    Returns:
        The audit, in words and figures.

    Raises:
        NonFiniteError: If an estimate or an exact effect is NaN or infinite, by name.
        ResultError: If `sample`, `top` or `confidence` is out of range, or shapes do not fit.
    """
    refuse_no_share("confidence", confidence, 0.95)
    _refuse_misfit(names, estimate)
    _refuse_non_finite("estimate", names, estimate)
    sizes = estimate.abs() if magnitudes else estimate
    means = _numbers(sizes.double().mean(0))
    drawn = AuditSample.draw(means, sample=sample, seed=seed, top=top)
    columns = list(drawn.indices)
    effects = exact(columns)
    if tuple(effects.shape) != (len(estimate), len(columns)):
        raise ResultError(
            f"exact effects of shape {list(effects.shape)} for {len(estimate)} pairs and "
            f"{len(columns)} components.\nReturn one row a pair and one column a component."
        )
    checked_names = [names[column] for column in columns]
    _refuse_non_finite("exact effect", checked_names, effects)
    case = _Case(
        sample=drawn,
        names=checked_names,
        estimate=means,
        exact=_numbers((effects.abs() if magnitudes else effects).double().mean(0)),
        signs=_signs(estimate[:, columns], effects) if magnitudes else None,
        floor=noise_floor or 0.0,
        most=min(top, len(names)),
    )
    figures, has_intervals = _figures(case, confidence, seed)
    figures += _checks(case, total, gaps, confidence)
    counts = _counts(case, noise_floor, has_intervals)
    wrong = tuple(row.name for row in case.rows if row.stratum == TOP and "wrong sign" in row.flags)
    by_error = sorted(case.rows, key=lambda row: -abs(row.error))
    return Audit(
        agreement=words.sentence(counts, figures, wrong),
        verdict=words.verdict(counts, figures, wrong),
        figures=tuple(figures),
        counts=counts,
        rows=case.rows,
        worst=tuple(row.name for row in by_error[:WORST] if row.error != 0),
        wrong_signs=wrong,
        seed=seed,
        confidence=confidence,
        pair_estimates=estimate[:, columns].detach().cpu(),
        pair_effects=effects.detach().cpu(),
    )


@dataclass(frozen=True)
class _Case:
    """What is compared."""

    sample: AuditSample
    names: list[str]
    """Of the checked components."""
    estimate: np.ndarray
    """Of all components."""
    exact: np.ndarray
    """Of the checked ones."""
    floor: float
    most: int
    """How many count as strongest."""
    signs: np.ndarray | None = None
    """Of magnitudes: the signs that go with the checked estimates and exact effects."""

    @property
    def checked(self) -> np.ndarray:
        """Estimates of the checked components."""
        return self.estimate[list(self.sample.indices)]

    @property
    def top_checked(self) -> bool:
        """Whether all of the strongest `most` were checked."""
        return self.sample.complete or self.sample.checked(TOP) >= self.most

    @property
    def within_noise(self) -> int:
        """How many of the checked have an exact effect that rounding could make."""
        return sum("within noise" in row.flags for row in self.rows)

    @property
    def _signed(self) -> tuple[np.ndarray, np.ndarray]:
        """Estimates and exact effects of the checked components, with their signs."""
        if self.signs is None:
            return self.checked, self.exact
        return self.signs[0] * self.checked, self.signs[1] * self.exact

    @property
    def right_signs(self) -> float:
        """The weighted share of right signs among effects above the noise floor."""
        weight = np.array(self.sample.weights)
        return float(statistics.sign_agreement(weight, *self._signed, self.floor))

    @property
    def rows(self) -> tuple[AuditRow, ...]:
        """One row a checked component, the strongest first."""
        estimates, effects = self._signed
        numbers = zip(
            self.names,
            self.sample.labels,
            self.sample.weights,
            estimates.tolist(),
            effects.tolist(),
            strict=True,
        )
        return tuple(
            AuditRow(name, label, weight, x, y, x - y, flags(x, y, self.floor))
            for name, label, weight, x, y in numbers
        )


def flags(estimate: float, exact: float, floor: float = 0.0) -> tuple[str, ...]:
    """Return what a reader should know of one estimate before quoting it."""
    if abs(exact) <= floor:
        return ("within noise",) if floor > 0 else ()
    if estimate * exact < 0:
        return ("wrong sign",)
    ratio = abs(estimate / exact)
    return ("off by > 2x",) if ratio > FACTOR or ratio < 1 / FACTOR else ()


def _figures(case: _Case, confidence: float, seed: int) -> tuple[list[Statistic], bool]:
    """Return the figures of agreement, and whether the sample allows intervals."""
    measures = _measures(case)
    weight = np.array(case.sample.weights)
    missing = _undefined(case)
    # magnitudes have no sign that a replicate could draw
    fixed = set(missing) if case.signs is None else {*missing, "sign agreement"}
    spans = intervals(
        {name: measure for name, measure in measures.items() if name not in fixed},
        case.sample,
        case.estimate,
        case.exact,
        confidence=confidence,
        seed=seed,
    )
    figures = []
    for name, measure in measures.items():
        if name in missing:
            figures.append(Statistic(name, None, None, None, missing[name]))
            continue
        value = float(measure(weight, case.checked, case.exact))
        span = spans.get(name)
        low, high = (None, None) if span is None else _around(name, value, *span)
        figures.append(Statistic(name, value, low, high, _meaning(name, value, case)))
    return figures, any(span is not None for span in spans.values())


def _around(name: str, value: float, low: float, high: float) -> tuple[float, float]:
    """Widen an interval to its own value, within what the figure can be."""
    least, most = BOUNDS.get(name.partition(" at ")[0], (-np.inf, np.inf))
    return max(least, min(low, value)), min(most, max(high, value))


def _measures(case: _Case) -> dict[str, Measure]:
    """Return the figures of agreement, in the order they are read."""
    first = case.most if case.top_checked else 0

    def sign(weight: np.ndarray, estimate: np.ndarray, exact: np.ndarray) -> np.ndarray | float:
        return statistics.sign_agreement(weight, estimate, exact, case.floor)

    def recall(weight: np.ndarray, estimate: np.ndarray, exact: np.ndarray) -> np.ndarray | float:
        # The strongest estimates come first, in the sample and in every completion of it.
        chosen = np.arange(exact.shape[-1]) < first
        return statistics.recall(weight, exact, chosen, case.most)

    def signs_apart(weight: np.ndarray, estimate: np.ndarray, exact: np.ndarray) -> float:
        return case.right_signs

    return {
        "r": statistics.pearson,
        "rho": statistics.spearman,
        "slope": statistics.slope,
        "relative error": statistics.relative_error,
        "sign agreement": sign if case.signs is None else signs_apart,
        f"recall at {case.most}": recall,
    }


def _undefined(case: _Case) -> dict[str, str]:
    """Return, by figure, why it cannot be given."""
    estimate, exact = case.checked, case.exact
    recall = f"recall at {case.most}"
    missing: dict[str, str] = {}
    line = _no_line(estimate, exact)
    if line:
        missing |= dict.fromkeys(("r", "rho"), f"undefined: {line}")
    if not exact.any():
        zero = "undefined: all exact effects are zero"
        missing |= dict.fromkeys(("slope", "relative error", "sign agreement", recall), zero)
    elif not (np.abs(exact) > case.floor).any():
        missing["sign agreement"] = "undefined: all exact effects are within the noise floor"
    if case.sample.count <= case.most:
        missing[recall] = f"undefined: all {case.sample.count:,} components are the top"
        if case.sample.count == 1:
            missing[recall] = "undefined: there is one component"
    elif not case.sample.covers or not case.top_checked:
        checked = case.sample.checked(TOP)
        missing[recall] = (
            f"unknown: the sample checks {checked} of the {case.most} strongest; raise sample="
            if case.sample.covers
            else "unknown: the tail was not sampled; raise sample="
        )
    return missing


def _no_line(estimate: np.ndarray, exact: np.ndarray) -> str | None:
    """Return why these points have no correlation."""
    if len(exact) == 1:
        return "one component was checked"
    if len(exact) == 2:
        return "two components always lie on a line"
    if np.ptp(exact) == 0:
        return "all exact effects are equal"
    if np.ptp(estimate) == 0:
        return "all estimates are equal"
    return None


def _meaning(name: str, value: float, case: _Case) -> str:
    """Return what a figure says, in words."""
    if name.startswith("recall"):
        found = f"{value * case.most:.0f} of the {case.most}"
        about = "" if case.sample.complete else "about "
        return f"{about}{found} strongest exact effects are among the estimated top {case.most}"
    percent = f"{100 * value:.2g}" if value < 0.1 else f"{100 * value:,.0f}"
    above = "above the noise floor" if case.floor > 0 else "that are not zero"
    return {
        "r": "Pearson correlation of estimate and exact effect: the strong ones decide it",
        "rho": "Spearman correlation of the ranks: every component counts alike",
        "slope": words.size_words(value),
        "relative error": f"the error is {percent} % of the exact effects, in root mean square",
        "sign agreement": f"share with the right sign, of the effects {above}",
    }[name]


def _checks(
    case: _Case, total: Tensor | None, gaps: Mapping[str, float] | None, confidence: float
) -> list[Statistic]:
    """Return the completeness gap, the share within noise, and what the tail may hide."""
    figures = [_own_sums(gaps) if gaps else _completeness(case, total)]
    if case.floor > 0:
        weight = np.array(case.sample.weights)
        inside = np.abs(case.exact) <= case.floor
        share = float((weight * inside).sum() / weight.sum())
        text = (
            f"{int(inside.sum()):,} of {len(inside):,} checked have an exact effect within the "
            f"noise floor {case.floor:.2g}"
        )
        figures.append(Statistic("within noise", share, None, None, text))
    hidden = _hidden(case, confidence)
    return figures if hidden is None else [*figures, hidden]


def _completeness(case: _Case, total: Tensor | None) -> Statistic:
    if total is None:
        reason = "not a cut: these components need not sum to the whole effect"
        return Statistic("completeness gap", None, None, None, reason)
    together, whole = float(case.estimate.sum()), float(total.double().mean())
    text = (
        f"the estimates sum to {words.effect(together)}, the whole effect is {words.effect(whole)}"
    )
    return Statistic("completeness gap", together - whole, None, None, text)


def _own_sums(gaps: Mapping[str, float]) -> Statistic:
    """Return the largest gap among the sums that the estimator checked itself."""
    name = max(gaps, key=lambda one: gaps[one])
    of = "" if len(gaps) == 1 else f"the worst of {len(gaps):,} sums: "
    text = f"{of}{name} misses its exact change by {words.figure(gaps[name])}, mean over pairs"
    return Statistic("completeness gap", gaps[name], None, None, text)


def _hidden(case: _Case, confidence: float) -> Statistic | None:
    """Return a bound, without assumptions, on how many unchecked components may be strong.

    If more than a share s of a stratum exceeded the largest effect drawn, n draws would all have
    missed them with probability below (1 - s)^n.
    """
    tail = case.sample.strata[-1]
    if tail.complete or not case.sample.covers:
        return None
    checked = len(tail.checked)
    share = 1 - (1 - confidence) ** (1 / checked)
    largest = float(np.abs(case.exact[-checked:]).max())
    most = min(int(share * len(tail.members)), len(tail.members) - checked)
    sure = f"at {100 * confidence:g} % confidence"
    text = (
        f"{sure} at most {most:,} of the {len(tail.members):,} in the tail "
        f"exceed {largest:.3g}, the largest |exact effect| of the {checked} checked there"
    )
    return Statistic("hidden in the tail", float(most), None, None, text)


def _counts(case: _Case, noise_floor: float | None, has_intervals: bool) -> Counts:
    by_stratum = {stratum.name: len(stratum.checked) for stratum in case.sample.strata}
    return Counts(
        components=case.sample.count,
        checked=len(case.exact),
        by_stratum=by_stratum,
        covers=case.sample.covers,
        top=min(case.most, case.sample.checked(TOP)),
        within_noise=case.within_noise,
        noise_floor=noise_floor,
        intervals=has_intervals,
    )


def _signs(estimate: Float[Tensor, "pair index"], exact: Float[Tensor, "pair index"]) -> np.ndarray:
    """Return the signs of the means, 1 for zero, of estimates and of exact effects."""
    means = torch.stack([estimate, exact.to(estimate)]).double().mean(1)
    return _numbers(torch.where(means < 0, -1.0, 1.0))


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def _refuse_misfit(names: Sequence[str], estimate: Tensor) -> None:
    if estimate.ndim != 2 or estimate.shape[1] != len(names) or len(estimate) == 0:
        raise ResultError(
            f"estimates of shape {list(estimate.shape)} for {len(names)} names.\n"
            "Pass one row a pair (at least one) and one column a name."
        )


def _refuse_non_finite(what: str, names: Sequence[str], values: Tensor) -> None:
    """Refuse NaN and infinity, naming the components."""
    broken: list[int] = (~values.isfinite()).any(0).nonzero().flatten().tolist()
    if not broken:
        return
    who = words.name_list([names[column] for column in broken])
    raise NonFiniteError(
        f"the {what} is NaN or infinite at {who} ({len(broken):,} of {len(names):,} components).\n"
        "An audit of such numbers means nothing. Run in a wider dtype (dtype='float32'), or leave "
        "these components out."
    )
