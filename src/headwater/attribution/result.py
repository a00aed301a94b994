"""The result of `attribute()`: scores that keep their names, their pairs and their provenance."""

from __future__ import annotations

import html
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from headwater import page as pages
from headwater.attribution import folders
from headwater.attribution.bootstrap import Bootstrap, bootstrap, table_resamples
from headwater.attribution.extras import Extras
from headwater.attribution.later import Later
from headwater.attribution.manifest import Manifest, Provenance, planned, saved_task
from headwater.attribution.rows import Row, rows_of, warnings_of
from headwater.attribution.scores import Scores
from headwater.audits import Audit
from headwater.audits.ledger import Ledger
from headwater.audits.words import figure
from headwater.components import Selection
from headwater.errors import (
    ModelGoneError,
    ResultError,
    UnknownComponentError,
    did_you_mean,
)
from headwater.estimators.trained_circuit import TrainedCircuit
from headwater.frames import frame
from headwater.gates import Cost, GatedFunction
from headwater.metrics import Metric
from headwater.models import Model
from headwater.prompts import Task
from headwater.references import Reference, reference_from_dict

if TYPE_CHECKING:
    import pandas


class Attribution(Later):
    """One score a pair and component. Positive: the component supports the behavior.

    Attributes:
        scores: Scores, [pair, component], in the order of the task's pairs.
        names: The components' names.
        cost: Forwards, backwards and seconds spent.
        provenance: Model, estimator, reference and components, as written to the manifest.
        checked: The last audit, if there was one.
        ledger: Every exact run that was made of these components; none is made twice.
    """

    def __init__(
        self,
        *,
        scores: Scores,
        provenance: Provenance,
        task: Task | None,
        model: Model | GatedFunction | None = None,
        owner: Model | GatedFunction | None = None,
        reference: Reference | None = None,
        selection: Selection | None = None,
        manifest: Manifest | None = None,
        checked: Audit | None = None,
        extras: Extras | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.parts = scores
        self.provenance = provenance
        self.task = task
        self.reference = reference
        self._selection = selection
        self.checked = None if checked is None else checked.of(self)
        self.extras = Extras() if extras is None else extras
        self.ledger = Ledger() if ledger is None else ledger
        self._manifest = manifest
        super().__init__()
        self._bootstraps: dict[tuple[float, ...], Bootstrap] = {}
        # The user's model is kept weakly, so that a saved result does not hold gigabytes; a copy
        # made for this run (another dtype or device) belongs to the result.
        self._model = None if model is None else weakref.ref(model)
        self._owner = owner

    @property
    def scores(self) -> Float[Tensor, "pair component"]:
        """One score a pair and component."""
        return self.parts.values

    @property
    def names(self) -> tuple[str, ...]:
        """The components' names, in the order of the columns of `scores`."""
        return self.parts.names

    @property
    def cost(self) -> Cost:
        """Forwards, backwards and seconds spent."""
        return self.parts.cost

    @property
    def trained_circuit(self) -> TrainedCircuit | None:
        """The subset that `hw.TrainedMask` kept, with its exact faithfulness; else None."""
        return self.parts.circuit

    @property
    def model(self) -> Model | GatedFunction:
        """The model the scores came from.

        Raises:
            ModelGoneError: If it is gone, or the scores were read from a folder.
        """
        model = None if self._model is None else self._model()
        if model is None:
            raise ModelGoneError(
                f"these scores came from {self.provenance.model.get('name')!r}, which this result "
                "does not hold (it was read from a folder, or the model is gone: results keep it "
                "by weak reference).\n"
                "Pass it as model=, for example scores.audit(model=model) or hw.verify(scores, "
                "theta=..., model=model); give hw.interaction the model and task themselves."
            )
        return model

    def selection(self) -> Selection:
        """Return what was scored: as it was given, or read back from what the manifest says.

        Raises:
            DictionaryError: If the scores were read from a folder, and the file of a dictionary has
                changed or is gone, or there never was one.
        """
        if self._selection is None:
            self._selection = Selection.from_list(self.provenance.components)
        return self._selection

    def mean(self) -> Float[Tensor, " component"]:
        """Return the score of each component over all pairs.

        The mean: the effect on the mean metric. Of scores that are magnitudes (`hw.AtPStar()`) the
        mean magnitude, with the sign of the mean.
        """
        return self.parts.mean()

    def abs_mean(self) -> Float[Tensor, " component"]:
        """Return the mean over pairs of |score|: effects of either sign do not cancel."""
        return self.scores.abs().mean(0)

    def __getitem__(self, name: str) -> Float[Tensor, " pair"]:
        """Return one component's score for each pair.

        Raises:
            UnknownComponentError: If no component of that name was scored.
        """
        if name not in self.names:
            raise UnknownComponentError(
                f"no component {name!r} among the {len(self.names)} scored here."
                f"{did_you_mean(name, self.names)}\nAll names: `scores.names`."
            )
        return self.scores[:, self.names.index(name)]

    def rows(self, columns: Sequence[int] | None = None) -> list[Row]:
        """Return score, spread, size, exact effect and flags of components, all by default."""
        return rows_of(self, columns)

    def top(self, count: int = 10) -> list[Row]:
        """Return the strongest components by |mean score over pairs|, strongest first.

        Raises:
            ResultError: If the count is negative.
        """
        if count < 0:
            raise ResultError(f"top({count}): there is no such number.\nType scores.top(10).")
        strength = self.mean().abs()
        order = strength.argsort(descending=True, stable=True)[:count]
        return rows_of(self, order.tolist())

    def bootstrap(
        self, resamples: int = 1000, seed: int = 0, confidence: float = 0.95, top: int = 10
    ) -> Bootstrap:
        """Resample the pairs: standard errors, rank intervals, and how stable the top is.

        Args:
            resamples: How many; the same seed draws the same ones.
            seed: Of the resamples.
            confidence: Of the intervals.
            top: How many of the strongest are the top.

        Raises:
            ResultError: If there is one pair only, or an option is out of range.
        """
        options = (resamples, seed, confidence, top)
        if options not in self._bootstraps:
            self._bootstraps[options] = bootstrap(
                self.scores,
                self.names,
                magnitudes=self.parts.magnitudes,
                resamples=resamples,
                seed=seed,
                confidence=confidence,
                top=top,
            )
        return self._bootstraps[options]

    def resampled(self) -> Bootstrap | None:
        """Return the bootstrap that tables show; None where pairs have no scores of their own.

        So it is with one pair, and with a mask: that was trained on all pairs together, and what
        it would be on other pairs only training again can tell.
        """
        pairs, count = self.scores.shape
        if pairs < 2 or self.trained_circuit is not None:
            return None
        return self.bootstrap(table_resamples(count))

    def stability(self) -> str:
        """Return in words how stable the strongest components are over resampled pairs."""
        if self.trained_circuit is not None:
            return (
                "one mask, trained on all pairs together: no standard errors and no rank "
                "intervals. Train on other pairs, or with another seed, to see what stays"
            )
        resampled = self.resampled()
        if resampled is None:
            return "one pair: no standard errors and no rank intervals"
        return resampled.sentence

    def warnings(self) -> list[str]:
        """Return what to know before believing the scores, in sentences; often none."""
        return warnings_of(self)

    def audit(self, sample: int = 32, **options: Any) -> Audit:
        """Compare a sample of the scores with exact effects; see `hw.audit`."""
        from headwater.audits.run import audit  # a peer on this floor that reads results

        return audit(self, sample=sample, **options)

    # --- looking at it ---------------------------------------------------------------------

    def subject(self) -> str:
        """Return what was scored: task and model."""
        if self.task is None:
            return "a gated function"
        return f"{self.task.name} on {self.provenance.model['name']}"

    @property
    def is_exact(self) -> bool:
        """Whether every score is an exact effect, by intervention."""
        return len(self.parts.exact) == len(self.names)

    def gap_sizes(self) -> dict[str, float] | None:
        """Return how far each sum of scores misses its exact change, mean over pairs of the size.

        By what is summed; None where the estimator knows no sum.
        """
        sizes = self.parts.gap_sizes()
        if sizes is None:
            return None
        return dict(zip(self.parts.gap_names, sizes.mean(0).tolist(), strict=True))

    def sums(self) -> str | None:
        """Return in words how far the worst sum of scores misses its exact change."""
        gaps, sizes = self.gap_sizes(), self.parts.gap_sizes()
        if not gaps or sizes is None:
            return None
        worst = max(gaps, key=lambda name: gaps[name])
        largest = float(sizes[:, self.parts.gap_names.index(worst)].max())
        of = "" if len(gaps) == 1 else f" (the worst of {len(gaps):,} sums)"
        beyond = f", on one pair by {figure(largest)}" if len(sizes) > 1 else ""
        return (
            f"completeness: {worst}{of} misses its exact change by {figure(gaps[worst])}{beyond}; "
            f"the whole effect is {figure(self.parts.whole_effect)}"
        )

    def gaps(self) -> dict[str, float] | None:
        """Return the mean over pairs of every completeness gap the estimator found, by its sum."""
        if self.parts.gaps is None:
            return None
        means = self.parts.gaps.double().mean(0).tolist()
        return dict(zip(self.parts.gap_names, means, strict=True))

    def title(self) -> str:
        """Return one line: task, model, estimator, reference."""
        said = self.provenance
        end = ", at the corrupted end" if said.estimator.get("at") == "corrupted" else ""
        return (
            f"{self.subject()}: {said.estimator['name']}, reference {said.reference['name']}{end}"
        )

    def __repr__(self) -> str:
        pairs, count = self.scores.shape
        lines = [
            f"Attribution of {self.title()}",
            f"{count:,} components x {pairs} pairs; clean metric {self.parts.clean.mean():+.4g}"
            + (
                ""
                if self.parts.corrupted is None
                else f", corrupted {self.parts.corrupted.mean():+.4g}"
            ),
        ]
        strongest = self.top(10)
        truths = [row.truth("+.4g") for row in strongest]
        wide = max(10, *(len(truth) + 2 for truth in truths))
        lines.append(
            f"{'component':<16}{'score':>10}{'se':>8}{'ranks':>9}{'exact':>{wide}}{'size':>8}"
        )
        for row, exact in zip(strongest, truths, strict=True):
            size = "" if row.size is None else f"{row.size:.3g}"
            flags = f"  {', '.join(row.flags)}" if row.flags else ""
            se = "-" if row.se is None else f"{row.se:.2g}"
            lines.append(
                f"{row.name:<16}{row.score:>+10.4g}{se:>8}{row.ranks or '-':>9}{exact:>{wide}}"
                f"{size:>8}{flags}"
            )
        lines.append(self.stability())
        lines += filter(None, [self.sums()])
        lines += self.said_of_truth() or [
            "exact effects, by intervention"
            if self.is_exact
            else "not audited: scores.audit() says how far these are from the truth"
        ]
        if self.trained_circuit is not None:
            lines.append(f"the mask {self.trained_circuit}")
        lines += [f"note: {warning}" for warning in self.warnings()]
        lines.append(f"cost: {self.cost}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        if self.task is None:
            return f"<pre>{html.escape(repr(self))}</pre>"
        return pages.fragment(self.page_data())

    def page_data(self) -> dict[str, Any]:
        """Return what the page shows, as plain data."""
        from headwater.attribution.view import page_data

        return page_data(self)

    def page(self, path: str | Path) -> Path:
        """Write one self-contained HTML page and return its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        pages.write(self.page_data(), path)
        return path

    def to_dict(self) -> dict[str, Any]:
        """Return scores by component and everything the manifest holds, as plain data."""
        return {
            "title": self.title(),
            "provenance": self.provenance.model_dump(),
            "cost": self._cost_dict(),
            "warnings": self.warnings(),
            "circuit": None if self.trained_circuit is None else self.trained_circuit.to_dict(),
            "components": [row.to_dict() for row in self.rows()],
            "stability": self.stability(),
            "gaps": self.gap_sizes(),
            "audit": None if self.checked is None else self.checked.to_dict(),
            "diagnosis": None if self.diagnosis is None else self.diagnosis.to_dict(),
            "curves": [curve.to_dict() for curve in self.extras.curves.values()],
        }

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a component as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame((row.to_dict() for row in self.rows()), "scores.rows()")

    # --- saving ----------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        """Return what is written to `run.json`."""
        if self._manifest is None:
            circuit = self.trained_circuit
            self._manifest = planned(self.provenance, self.task).model_copy(
                update={
                    "names": list(self.names),
                    "is_cut": self.parts.is_cut,
                    "tokens": list(self.parts.tokens),
                    "gap_names": list(self.parts.gap_names),
                    "notes": list(self.parts.notes),
                    "magnitudes": self.parts.magnitudes,
                    "exact": sorted(self.parts.exact),
                    "circuit": None if circuit is None else circuit.to_dict(),
                    "cost": self._cost_dict(),
                }
            )
        return self._manifest

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write scores (safetensors), manifest and audit (JSON) into a folder.

        Args:
            folder: Made if it does not exist.
            overwrite: Replace a run of another specification instead of refusing.

        Raises:
            RunFolderError: If the folder cannot be written, or holds a run of another
                specification or other files.
        """
        folder = Path(folder)
        if not overwrite:
            folders.claim(folder, self.manifest())
        folder.mkdir(parents=True, exist_ok=True)
        folders.write(folder, self.manifest(), self.parts, self.checked)
        self.ledger.merge(folders.read_ledger(folder, self.manifest()))
        folders.write_ledger(folder, self.manifest(), self.ledger)
        self.extras.write(folder)
        return folder

    @staticmethod
    def load(
        folder: str | Path, *, metric: Metric | Callable[..., Tensor] | None = None
    ) -> Attribution:
        """Read a result back; the model is not needed.

        Args:
            folder: What `save` wrote.
            metric: The metric again, where it was a function and more is to be computed with it.

        Raises:
            RunFolderError: If the folder holds no run, or a broken one.
        """
        manifest, scores, checked = folders.read(Path(folder))
        return Attribution(
            scores=scores,
            provenance=manifest.provenance,
            task=saved_task(manifest, metric),
            manifest=manifest,
            checked=checked,
            extras=Extras.read(Path(folder)),
            ledger=folders.read_ledger(Path(folder), manifest),
            reference=_kept_reference(manifest, scores),
        )

    def _cost_dict(self) -> dict[str, int | float]:
        cost = self.cost
        return {
            "forwards": cost.forwards,
            "backwards": cost.backwards,
            "seconds": round(cost.seconds, 4),
            "pairs": cost.pairs,
        }


def _kept_reference(manifest: Manifest, scores: Scores) -> Reference | None:
    """Return the reference of a run whose off values were saved, because nothing else has them."""
    if not scores.off_values:
        return None
    return reference_from_dict(manifest.provenance.reference, scores.off_values)
