"""Several estimators on one task, side by side, against the same exact effects."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.attribution import attribute
from headwater.audits.advice import advice
from headwater.audits.compare import audit_scores
from headwater.audits.diagnose import diagnose
from headwater.audits.diagnosis import Diagnosis
from headwater.audits.estimands import about_estimand
from headwater.audits.interventions import Interventions, interventions
from headwater.audits.ledger import Ledger
from headwater.audits.report import Audit
from headwater.audits.words import figure
from headwater.components import Selection
from headwater.errors import ResultError
from headwater.estimators import Estimator, Exact, Gradient
from headwater.files import write_text
from headwater.frames import frame
from headwater.gates import End, GatedFunction
from headwater.metrics import Metric
from headwater.models import Model
from headwater.page.comparison import ComparedPoint, ComparisonData, write_comparison
from headwater.prompts import Task
from headwater.references import Reference

if TYPE_CHECKING:
    import pandas

    from headwater.attribution import Attribution

COLUMNS = ("r", "rho", "slope", "relative error", "sign agreement", "recall", "completeness gap")
"""Figures of a row, in the order they are shown."""


@dataclass(frozen=True)
class ComparedEstimator:
    """One estimator in a comparison."""

    name: str
    """As it was asked for."""
    kind: str
    """The estimator's own word: `gradient`, `exact`, ..."""
    forwards: float
    """A pair, the reference's included; a run from layer l of L counts (L - l) / L."""
    backwards: float
    seconds: float
    figures: Mapping[str, float | None]
    """By the names of `COLUMNS`; None where undefined or not known."""
    estimand: str
    verdict: str
    note: str = ""
    """What the estimator says of its scores: pieces that did not converge, jumps."""

    @property
    def passes(self) -> float:
        """Cost in forwards: a backward counts as two."""
        return self.forwards + 2 * self.backwards

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self) | {"figures": dict(self.figures)}


@dataclass(frozen=True, repr=False)
class Comparison:
    """Estimators side by side; rows in the order they were asked for."""

    title: str
    rows: tuple[ComparedEstimator, ...]
    advice: tuple[str, ...]
    """Which to use here and why, in sentences."""
    checked: int
    """Components whose exact effects are known."""
    components: int
    top: int
    """How many count as the strongest, for the recall."""
    runs: Mapping[str, Attribution] = field(compare=False)
    """The scores of each estimator, audited."""

    def __repr__(self) -> str:
        width = max(14, *(len(row.name) for row in self.rows)) + 2
        lines = [
            f"Comparison of {len(self.rows)} estimators: {self.title}",
            f"{'estimator':<{width}}{'F':>7}{'B':>6}"
            + "".join(f"{name:>9}" for name in self.headings()),
        ]
        for row in self.rows:
            cells = [cell(row.figures[name]) for name in COLUMNS]
            lines.append(
                f"{row.name:<{width}}{row.forwards:>7.3g}{row.backwards:>6.3g}"
                + "".join(f"{one:>9}" for one in cells)
            )
        lines.append(self.checked_words())
        return "\n".join([*lines, *self.advice])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def checked_words(self) -> str:
        """Return what the figures rest on."""
        return (
            f"{self.checked:,} of {self.components:,} components checked exactly. F, B: forwards "
            "and backwards a pair (in advice a backward counts as two forwards); signs: share with "
            f"the right sign; top {self.top}: share of the {self.top} strongest found; gap: the "
            "largest sum of scores minus its exact change, - where there is no sum to check."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return {
            "title": self.title,
            "checked": self.checked,
            "components": self.components,
            "top": self.top,
            "rows": [row.to_dict() for row in self.rows],
            "advice": list(self.advice),
        }

    def to_frame(self) -> pandas.DataFrame:
        """Return one row an estimator as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame(
            (
                {key: v for key, v in row.to_dict().items() if key != "figures"} | dict(row.figures)
                for row in self.rows
            ),
            "comparison.rows",
        )

    def page(self, path: str | Path) -> Path:
        """Write the table and one scatter of all estimates as a self-contained HTML file."""
        return write_comparison(self._page_data(), path)

    def _page_data(self) -> ComparisonData:
        return {
            "title": self.title,
            "advice": self.advice,
            "columns": ("forwards", "backwards", *self.headings()),
            "caption": self.checked_words(),
            "estimators": [
                {
                    "name": row.name,
                    "cells": (
                        f"{row.forwards:.3g}",
                        f"{row.backwards:.3g}",
                        *(cell(row.figures[name]) for name in COLUMNS),
                    ),
                    "estimand": row.estimand,
                    "verdict": row.verdict,
                    "points": _points(self.runs[row.name]),
                }
                for row in self.rows
            ],
        }

    def headings(self) -> tuple[str, ...]:
        """Return the names of the figures, as tables show them."""
        short = {"recall": f"top {self.top}", "relative error": "rel err"}
        short |= {"sign agreement": "signs", "completeness gap": "gap"}
        return tuple(short.get(name, name) for name in COLUMNS)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write each estimator's run into a folder of its own, and `comparison.json` beside them.

        Raises:
            RunFolderError: If one of them holds another run.
        """
        folder = Path(folder)
        for name, scores in self.runs.items():
            scores.save(folder / name.replace(":", "-"), overwrite=overwrite)
        write_text(folder / "comparison.json", json.dumps(self.to_dict(), indent=1))
        return folder


def _points(scores: Attribution) -> list[ComparedPoint]:
    """Return the checked components of a run, for its plot."""
    assert scores.checked is not None
    kinds = {row.name: row.kind for row in scores.rows()}
    return [
        {"name": row.name, "kind": kinds[row.name], "estimate": row.estimate, "exact": row.exact}
        for row in scores.checked.rows
    ]


def cell(value: float | None) -> str:
    """Return a figure for a table; `-` where it is undefined or not known."""
    return "-" if value is None else figure(value)


def compare(
    model: Model | GatedFunction,
    task: Task | None = None,
    components: Selection | None = None,
    estimators: Sequence[Estimator] | Mapping[str, Estimator] = (),
    *,
    reference: Reference | None = None,
    metric: Metric | type[Metric] | Callable[..., Tensor] | str | None = None,
    sample: int | None = None,
    diagnosis: bool = True,
    top: int = 10,
    confidence: float = 0.95,
    batch_size: int = 32,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison:
    """Score the same components with several estimators, and hold each against exact effects.

    Args:
        model: A model, or any gated function (then `task`, `components`, `reference` are left out).
        task: Prompt pairs and metric.
        components: What to score.
        estimators: A list, or by the names that rows are to have.
        reference: What a closed component is set to; `hw.Corrupted()` by default.
        metric: Replaces the task's metric.
        sample: Components to check exactly, drawn for each estimator as its audit draws them; None
            checks all. No exact run is made twice, and with `hw.Exact()` among the estimators its
            scores are the exact effects.
        diagnosis: Whether to look for what a gradient cannot see here, if it is compared: a
            forward and backward, half a backward a layer, and a few runs for jumps.
        top: How many count as the strongest.
        confidence: Of the audits' intervals.
        batch_size: Most pairs in one forward.
        dtype: Compute in this dtype, on a converted copy of the model.
        device: Compute on this device, on a copy.
        seed: Seeds samples and estimators.
        progress: True, False, or None to show bars only on a terminal.

    Returns:
        One row an estimator, and in words which to use here and why.

    Raises:
        ResultError: If no estimator is given, or one twice.
    """
    named = _named(estimators)
    if isinstance(model, Model) and (dtype is not None or device is not None):
        model = model.to(dtype=dtype, device=device)
    runs = {
        name: attribute(
            model,
            task,
            components,
            estimator,
            reference=reference,
            metric=metric,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
        for name, estimator in named.items()
    }
    with ExitStack() as stack:
        truth = _Truth(model, stack, progress)
        for name, estimator in named.items():
            if isinstance(estimator, Exact):
                truth.know(estimator.end, runs[name])
        for name, estimator in named.items():
            scores = runs[name]
            count = len(scores.names)
            checked = audit_scores(
                scores.names,
                scores.scores,
                truth.of(estimator.end, scores),
                sample=count if sample is None else sample,
                seed=seed,
                top=top,
                confidence=confidence,
                magnitudes=estimator.magnitudes,
                gaps=scores.gaps(),
            )
            scores.checked = about_estimand(checked, estimator).of(scores)
            truth.hand_to(estimator.end, scores)
    rows = tuple(_row(name, named[name], scores) for name, scores in runs.items())
    first = next(iter(runs.values()))
    components_in_all = len(first.names)
    checked = max(len(known) for known in truth.known.values())
    return Comparison(
        title=f"{first.subject()}, reference {first.provenance.reference['name']}",
        rows=rows,
        advice=advice(
            rows, runs, components_in_all, _diagnosis(named, runs, model) if diagnosis else None
        ),
        checked=checked,
        components=components_in_all,
        top=min(top, components_in_all),
        runs=runs,
    )


def _diagnosis(
    named: Mapping[str, Estimator],
    runs: Mapping[str, Attribution],
    model: Model | GatedFunction,
) -> Diagnosis | None:
    """Return what a diagnosis finds, if a gradient was compared."""
    first = next((name for name, one in named.items() if one == Gradient()), None)
    return None if first is None else diagnose(runs[first], model=model, progress=False)


class _Truth:
    """Exact effects that are run once, whoever asks for them.

    Args:
        model: What was scored.
        stack: Ends what was opened for the runs.
        progress: Whether bars are shown.
    """

    def __init__(
        self, model: Model | GatedFunction, stack: ExitStack, progress: bool | None
    ) -> None:
        self.model, self.stack, self.progress = model, stack, progress
        self.known: dict[End, dict[int, Float[Tensor, " pair"]]] = {}
        self._runs: dict[End, Interventions] = {}

    def know(self, end: End, exact: Attribution) -> None:
        """Take over effects that were computed as scores."""
        columns = range(exact.scores.shape[1])
        self.known.setdefault(end, {}).update({i: exact.scores[:, i] for i in columns})

    def of(self, end: End, scores: Attribution) -> Callable[[Sequence[int]], Tensor]:
        """Return a function from columns to exact effects [pair, index] at one end."""

        def effects(columns: Sequence[int]) -> Float[Tensor, "pair index"]:
            known = self.known.setdefault(end, {})
            missing = [column for column in columns if column not in known]
            if missing:
                lost = self._at(end, scores).closed([(column,) for column in missing])
                part = torch.from_numpy(lost).to(scores.scores)
                known |= {column: part[:, i] for i, column in enumerate(missing)}
            return torch.stack([known[column] for column in columns], 1)

        return effects

    def hand_to(self, end: End, scores: Attribution) -> None:
        """Enter what is known at an end into the ledger of a result."""
        alone = {(c,): lost.double().numpy() for c, lost in self.known[end].items()}
        scores.ledger.merge(Ledger(alone))

    def _at(self, end: End, scores: Attribution) -> Interventions:
        if end not in self._runs:
            opened = interventions(scores, self.model, progress=self.progress)
            self._runs[end] = self.stack.enter_context(opened)
        return self._runs[end]


def _named(estimators: Sequence[Estimator] | Mapping[str, Estimator]) -> dict[str, Estimator]:
    if isinstance(estimators, Mapping):
        named = dict(estimators)
    else:
        names = [estimator.name for estimator in estimators]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ResultError(
                f"{names.count(twice[0])} estimators are called {twice[0]!r}, so their rows could "
                "not be told apart.\nName them: "
                'estimators={"ig 4": hw.IntegratedGradients(steps=4), ...}.'
            )
        named = dict(zip(names, estimators, strict=True))
    if not named:
        raise ResultError(
            "no estimator to compare.\nType estimators=[hw.Gradient(), hw.AtPStar(), hw.Exact()]."
        )
    return named


def _row(name: str, estimator: Estimator, scores: Attribution) -> ComparedEstimator:
    audit = scores.checked
    assert audit is not None
    cost, pairs = scores.cost, max(scores.cost.pairs, 1)
    figures = {one: _figure(audit, one) for one in COLUMNS}
    return ComparedEstimator(
        name=name,
        kind=estimator.name,
        forwards=cost.forwards / pairs,
        backwards=cost.backwards / pairs,
        seconds=cost.seconds,
        figures=figures,
        estimand=estimator.estimand,
        verdict=audit.verdict,
        note=" ".join(scores.parts.notes[:3]),
    )


def _figure(audit: Audit, name: str) -> float | None:
    found = audit.recall if name == "recall" else audit.statistic(name)
    return found.value
