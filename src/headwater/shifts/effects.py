"""Which features a probe goes by: effects on its margin, each audited against ablating it."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.attribution import Attribution, attribute
from headwater.audits import Audit, audit_scores
from headwater.audits.again import estimator_of
from headwater.audits.estimands import about_estimand
from headwater.components.selectors import features
from headwater.dictionaries.collection import Dictionaries
from headwater.estimators import Estimator, IntegratedGradients
from headwater.frames import frame
from headwater.gates import Cost, GatedTask
from headwater.gates.averages import Averages
from headwater.models import Model
from headwater.progress import progress_bar
from headwater.references import Reference, Zero
from headwater.shifts.ablate import up_to
from headwater.shifts.examples import Examples
from headwater.shifts.probe import Probe
from headwater.shifts.probed import ProbedModel
from headwater.shifts.words import cost_in_words

if TYPE_CHECKING:
    import pandas


SHOWN = 10
"""Features of a printed result."""


@dataclass(frozen=True)
class FeatureEffect:
    """What a feature does for a probe's margin, mean over examples, both labels alike."""

    name: str
    effect: float
    """What the margin of the right class loses when the feature is at its reference."""
    se: float | None
    """Standard error over examples; None where a label has a single one."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"feature": self.name, "effect": self.effect, "se": self.se}


@dataclass(eq=False, repr=False)
class ProbeEffects:
    """The effects of features on a probe's margin.

    The margin is the probe's logit toward the example's own label, so a feature with a positive
    effect helps the probe to be right on these examples - on biased ones also by what it should not
    go by.

    Attributes:
        scores: Everything about the estimate, as `hw.attribute` returns it.
        model: The model with the probe as its output.
        examples: The texts, in the order of the rows of `scores.scores`.
        dictionaries: Those that lie before the probe.
        checked: The last audit, if there was one.
    """

    scores: Attribution
    model: ProbedModel
    probe: Probe
    examples: Examples
    dictionaries: Dictionaries
    checked: Audit | None = None

    def top(self, count: int | None = None, *, errors: bool = False) -> list[FeatureEffect]:
        """Return the features with the largest effects in size, largest first.

        Args:
            count: How many; None for all that have an effect.
            errors: Whether errors are among them; they are no features that could be judged.
        """
        mean, se = self._weighed(self.scores.scores)
        order = mean.abs().argsort(descending=True, stable=True).tolist()
        names = self.scores.names
        found = [
            FeatureEffect(names[i], float(mean[i]), None if se is None else float(se[i]))
            for i in order
            if float(mean[i]) != 0 and (errors or not names[i].endswith(".error"))
        ]
        return found[:count]

    def contributions(self, names: Sequence[str]) -> Float[Tensor, "example feature"]:
        """Return what features add to the probe's logit (not its margin) on each example.

        Args:
            names: Which features.
        """
        columns = {name: column for column, name in enumerate(self.scores.names)}
        signs = torch.tensor(
            [1.0 if row.label == self.probe.classes[1] else -1.0 for row in self.examples]
        )
        picked = self.scores.scores[:, [columns[name] for name in names]]
        return picked.double().cpu() * signs[:, None].double()

    def audit(
        self,
        sample: int = 32,
        *,
        seed: int = 0,
        top: int = 10,
        confidence: float = 0.95,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Audit:
        """Compare a sample of the effects with ablating each feature alone, on all examples.

        Args:
            sample: How many; stratified over the top, middle and tail of the effects.
            seed: Which ones.
            top: How many of the strongest count as the top.
            confidence: Of the intervals.
            batch_size: Most texts in one forward; by default as in the estimate.
            progress: True, False, or None to show a bar only on a terminal.

        Returns:
            The audit; it also becomes `checked`.
        """
        cost, started = Cost(), time.perf_counter()
        mean, _ = self._weighed(self.scores.scores)

        def exact(columns: Sequence[int]) -> Float[Tensor, "one index"]:
            lost = Averages(len(self.examples), torch.float64)
            with progress_bar(
                f"exact effects of {len(columns):,} features",
                len(columns) * len(self.examples),
                show=progress,
            ) as cost.listener, self.model.frozen():  # fmt: skip
                gated = GatedTask(
                    self.model,
                    self.probe.task(self.examples),
                    features(self.dictionaries),
                    self.scores.reference or Zero(),
                    batch_size=batch_size or self.scores.provenance.batch_size,
                    cost=cost,
                )
                for batch, function in gated:
                    lost.add(batch, function.effects(columns).T)
            return self._weighed(lost.mean())[0][None]

        found = audit_scores(
            self.scores.names, mean[None], exact,
            sample=sample, seed=seed, top=top, confidence=confidence,
        )  # fmt: skip
        cost.listener, cost.seconds = None, time.perf_counter() - started
        self.checked = about_estimand(found, estimator_of(self.scores)).with_cost(str(cost))
        return self.checked

    def _weighed(
        self, scores: Float[Tensor, "example component"]
    ) -> tuple[Float[Tensor, " component"], Float[Tensor, " component"] | None]:
        """Return mean and standard error, both labels counting the same.

        What a feature adds to every logit alike then cancels, and is no part of the error.
        """
        scores = scores.double().cpu()
        parts = [
            scores[[row.label == label for row in self.examples]] for label in self.probe.classes
        ]
        parts = [part for part in parts if len(part)]
        mean = torch.stack([part.mean(0) for part in parts]).mean(0)
        if min(map(len, parts)) < 2:
            return mean, None
        variance = torch.stack([part.var(0) / len(part) for part in parts]).sum(0)
        return mean, variance.sqrt() / len(parts)

    def __repr__(self) -> str:
        shown = self.top(SHOWN)
        lines = [
            f"Effects on the margin of the {self.probe!r}".replace("the Probe", "the probe"),
            f"{len(self.scores.names):,} features and errors, {len(self.examples)} examples of "
            f"{self.examples.name}; mean margin {float(self.scores.parts.clean.mean()):+.3f}",
            *table(shown),
        ]
        said = "not audited: effects.audit()" if self.checked is None else self.checked.sentence
        return "\n".join([*lines, said, cost_in_words(self.scores.cost)])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a feature as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame((one.to_dict() for one in self.top(errors=True)), "effects.top()")

    def to_dict(self) -> dict[str, Any]:
        """Return the effects as plain data."""
        return {
            "probe": self.probe.to_dict(),
            "examples": self.examples.to_dict(),
            "estimator": self.scores.provenance.estimator,
            "reference": self.scores.provenance.reference,
            "features": [one.to_dict() for one in self.top(errors=True)],
            "audit": None if self.checked is None else self.checked.sentence,
        }


def table(shown: Sequence[FeatureEffect]) -> list[str]:
    """Return features with their effects, a heading first."""
    width = max([9, *(len(one.name) for one in shown)])
    lines = [f"{'feature':<{width}}{'effect':>9}{'se':>8}"]
    for one in shown:
        se = "" if one.se is None else f"{one.se:.3f}"
        lines.append(f"{one.name:<{width}}{one.effect:>+9.3f}{se:>8}")
    return lines


def probe_effects(
    model: Model,
    probe: Probe,
    examples: Examples,
    dictionaries: Dictionaries,
    *,
    estimator: Estimator | None = None,
    reference: Reference | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool | None = None,
) -> ProbeEffects:
    """Estimate what every feature before a probe does for its margin.

    Args:
        model: The model that the probe was fitted to.
        probe: The probe.
        examples: Texts with the probe's labels.
        dictionaries: From `hw.load_dictionaries(model, ...)`; those behind the probe are left out.
        estimator: `hw.IntegratedGradients(steps=10)` by default, whose path is each site's own.
        reference: What a feature that is off is set to; `hw.Zero()` by default.
        batch_size: Most texts in one forward.
        seed: Seeds whatever draws random numbers.
        progress: True, False, or None to show a bar only on a terminal.

    Returns:
        The effects, positive where a feature supports the right label.

    Raises:
        DictionaryError: If no dictionary lies before the probe, or one does not fit the model.

    Source: Marks et al., "Sparse feature circuits" (arXiv 2403.19647), section 4 and equation 4.
    """
    before = up_to(dictionaries, probe.site)
    probed = probe.on(model)
    scores = attribute(
        probed,
        probe.task(examples),
        features(before),
        IntegratedGradients(steps=10) if estimator is None else estimator,
        reference=Zero() if reference is None else reference,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    return ProbeEffects(scores, probed, probe, examples, before)
