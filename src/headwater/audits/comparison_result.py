"""The result of `hw.compare`: a table of estimators, which to use here, and every run."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.audits import comparison_folder
from headwater.audits.words import counted, figure
from headwater.frames import frame
from headwater.gates import End
from headwater.page.comparison import ComparedPoint, ComparisonData, write_comparison

if TYPE_CHECKING:
    import pandas

    from headwater.attribution import Attribution

FIGURES = ("r", "rho", "slope", "relative error", "sign agreement", "recall", "completeness gap")
"""Figures of a row, in the order they are shown."""
WIDTHS = {"F": 7, "B": 6, "end": 11}
"""Of printed columns; the others take 9."""


@dataclass(frozen=True)
class ComparedEstimator:
    """One estimator in a comparison."""

    name: str
    """As it was asked for."""
    kind: str
    """The estimator's own word: `gradient`, `exact`, ..."""
    end: End
    """Where its effects are taken from; it is held against exact effects of that end."""
    checked: int
    """Components whose exact effects its figures rest on."""
    forwards: float
    """A pair, the reference's included; a run from layer l of L counts (L - l) / L."""
    backwards: float
    seconds: float
    figures: Mapping[str, float | None]
    """By the names of `FIGURES`; None where undefined or not known."""
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
    components: int
    top: int
    """How many count as the strongest, for the recall."""
    runs: Mapping[str, Attribution] = field(compare=False)
    """The scores of each estimator, audited."""

    @property
    def checked(self) -> int:
        """Components that every row was checked on, at least."""
        return min(row.checked for row in self.rows)

    # --- looking at it ---------------------------------------------------------------------

    def headings(self) -> tuple[str, ...]:
        """Return the names of the columns behind the estimator's name."""
        short = {"recall": f"top {self.top}", "relative error": "rel err"}
        short |= {"sign agreement": "signs", "completeness gap": "gap"}
        ends = ("end",) if self._several_ends else ()
        return (*ends, "F", "B", *(short.get(name, name) for name in FIGURES))

    def cells(self, row: ComparedEstimator) -> tuple[str, ...]:
        """Return what stands in a row under the headings; `-` for a figure that is not known."""
        ends = (row.end,) if self._several_ends else ()
        figures = (row.figures[name] for name in FIGURES)
        shown = ("-" if value is None else figure(value) for value in figures)
        return (*ends, f"{row.forwards:.3g}", f"{row.backwards:.3g}", *shown)

    def checked_words(self) -> str:
        """Return what the figures rest on."""
        ends = ""
        if self._several_ends:
            ends = "end: each row is held against the exact effects of its own end; "
        return (
            f"{self._how_many()} checked exactly. {ends}F, B: forwards and backwards a pair (in "
            "advice a backward counts as two forwards); signs: share with the right sign; top "
            f"{self.top}: share of the {self.top} strongest found; gap: how far the worst sum of "
            "scores misses its exact change, mean over pairs, - where there is no sum to check."
        )

    def __repr__(self) -> str:
        headings = self.headings()
        wide = [WIDTHS.get(name, 9) for name in headings]
        first = max(14, *(len(row.name) for row in self.rows)) + 2
        table = [("estimator", headings), *((row.name, self.cells(row)) for row in self.rows)]
        return "\n".join(
            [
                f"Comparison of {len(self.rows)} estimators: {self.title}",
                *(
                    f"{name:<{first}}"
                    + "".join(f"{one:>{width}}" for one, width in zip(cells, wide, strict=True))
                    for name, cells in table
                ),
                self.checked_words(),
                *self.advice,
            ]
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

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

    # --- saving ----------------------------------------------------------------------------

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write each estimator's run into a folder of its own, and `comparison.json` beside them.

        A run's folder is called as the estimator, in characters that any disk takes;
        `comparison.json` says under `runs` which is which.

        Args:
            folder: Made if it does not exist.
            overwrite: Replace another comparison instead of refusing.

        Raises:
            RunFolderError: If the folder cannot be written, or holds another comparison or run.
        """
        folder = Path(folder)
        estimators = {name: run.provenance.estimator for name, run in self.runs.items()}
        if overwrite:
            comparison_folder.clear(folder, estimators)
        else:
            comparison_folder.claim(folder, estimators)
        for name, run in comparison_folder.run_folders(self.runs).items():
            self.runs[name].save(folder / run, overwrite=overwrite)
        comparison_folder.write(folder, self.to_dict(), estimators)
        return folder

    @property
    def _several_ends(self) -> bool:
        """Whether a reader must be told the end: not all rows are at the clean one."""
        return any(row.end != "clean" for row in self.rows)

    def _how_many(self) -> str:
        """Return how many components were checked, at each end where that differs."""
        of = counted(self.components, "component")
        counts = {row.end: row.checked for row in self.rows}
        if len(set(counts.values())) > 1:
            (first, most), (second, more) = counts.items()
            return (
                f"{most:,} of {of} at the {first} end and {more:,} of {self.components:,} at the "
                f"{second} end"
            )
        drawn = "" if self.checked == self.components else ", drawn for each estimator,"
        return f"{self.checked:,} of {of}{drawn}"

    def _page_data(self) -> ComparisonData:
        return {
            "title": self.title,
            "advice": self.advice,
            "columns": self.headings(),
            "caption": self.checked_words(),
            "estimators": [
                {
                    "name": row.name,
                    "cells": self.cells(row),
                    "estimand": row.estimand,
                    "verdict": row.verdict,
                    "points": _points(self.runs[row.name]),
                }
                for row in self.rows
            ],
        }


def _points(scores: Attribution) -> list[ComparedPoint]:
    """Return the checked components of a run, for its plot."""
    assert scores.checked is not None
    kinds = {row.name: row.kind for row in scores.rows()}
    return [
        {"name": row.name, "kind": kinds[row.name], "estimate": row.estimate, "exact": row.exact}
        for row in scores.checked.rows
    ]
