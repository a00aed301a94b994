"""SHIFT: fit a probe to biased examples, judge the features it goes by, ablate, and measure.

Source: Marks et al., "Sparse feature circuits" (arXiv 2403.19647), section 4.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from headwater.attribution.checks import refuse_modes
from headwater.attribution.manifest import describe_model, versions
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import PromptError
from headwater.estimators import Estimator, IntegratedGradients
from headwater.folders import without_versions
from headwater.gates import Cost
from headwater.models import Model
from headwater.references import Reference, Zero
from headwater.shifts.ablate import Ablation, place_of, up_to
from headwater.shifts.accuracy import accuracies, gained
from headwater.shifts.asked import Asked, given
from headwater.shifts.effects import FeatureEffect, ProbeEffects, probe_effects
from headwater.shifts.examples import Examples
from headwater.shifts.judging import ABLATE, THRESHOLD, Judged, judge, sides_of
from headwater.shifts.outcomes import Kind, Outcome, picked
from headwater.shifts.pooling import Pooling, site_of
from headwater.shifts.probe import L2, Probe, positives, read_at, two_classes
from headwater.shifts.result import FOLDER, Shift
from headwater.sites import Site

STEPS = 10
"""Points of integrated gradients, as in the paper."""


def shift(
    model: Model,
    biased: Examples,
    balanced: Examples,
    dictionaries: Dictionaries,
    ablate: Iterable[str] | str | Path | None = None,
    *,
    site: Site | str | None = None,
    pooling: Pooling = "mean",
    features: int = 50,
    threshold: float = THRESHOLD,
    estimator: Estimator | None = None,
    reference: Reference | None = None,
    sample: int = 100,
    audit: int = 32,
    draws: int = 5,
    held_out: float = 0.2,
    judge_share: float = 0.5,
    l2: float = L2,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool | None = None,
    out: str | Path | None = None,
) -> Shift:
    """Remove what a classifier should not go by, by ablating features judged irrelevant.

    A linear probe is fitted to biased examples; features of the dictionaries before it are ranked
    by their effect on its margin; those judged irrelevant to the label are ablated wherever they
    are active; the probe is fitted again to the same biased examples with them ablated. Beside it
    stand as many random features, as many of the strongest, and a probe fitted to balanced
    examples.

    Args:
        model: From `hw.load` or `hw.wrap`.
        biased: Examples in which label and spurious attribute go together.
        balanced: Examples in which they do not, with the attribute of each. A part of it judges
            (unless judgments are given) and is what the oracle is fitted to; accuracy is measured
            on the rest.
        dictionaries: From `hw.load_dictionaries(model)`.
        ablate: Features to ablate: names, or a file of judgments. None: those of the strongest
            that tell the spurious attribute better than the label on balanced examples.
        site: Where the probe reads; by default the residual in the middle of the model.
        pooling: `"mean"` over a text's tokens, or its `"last"` one.
        features: How many of the strongest are judged.
        threshold: Ablate a feature if this share of what it tells is about the attribute.
        estimator: Of effects; `hw.IntegratedGradients(steps=10)` by default.
        reference: What an ablated feature is set to: `hw.Zero()` by default, or
            `hw.Mean(over="clean")`, its mean over biased examples. Effects are taken against it.
        sample: Examples that effects are measured on, of each set.
        audit: Effects to check by ablating each feature alone; 0 for none.
        draws: Sets of random features to compare with; 0 leaves out both baselines.
        held_out: Share of the biased examples that nothing is fitted to.
        judge_share: Share of the balanced examples to judge by.
        l2: Price of the probe's squared weights, beside the mean loss.
        batch_size: Most texts in one forward.
        seed: Of the splits, the samples, the random features.
        progress: True, False, or None to show a bar only on a terminal.
        out: Folder to save the result in; refused before anything is computed if it cannot.

    Returns:
        Accuracy on biased and balanced examples before and after, what was judged and how.

    Raises:
        PromptError: If the examples are not of the same two classes, or cannot be judged by.
        DictionaryError: If no dictionary lies before the probe, or one does not fit the model.
        UnknownComponentError: If a name to ablate is of no feature before the probe.
        UnknownOptionError: If an option has a value it cannot have.
        RunFolderError: If `out` cannot take this result.

    Example:
        >>> import headwater as hw
        >>> from headwater.zoo.biased import biased
        >>> model = hw.load("tiny")
        >>> found = hw.load_dictionaries(model)
        >>> result = hw.shift(model, *biased("gender-by-number", 80), found, features=10)
        >>> result.outcome("before").balanced.all.total
        40
    """
    refuse_modes()
    asked = Asked(
        site=site_of(model, site),
        pooling=pooling,
        features=features,
        threshold=threshold,
        estimator=IntegratedGradients(steps=STEPS) if estimator is None else estimator,
        reference=Zero() if reference is None else reference,
        sample=sample,
        audit=audit,
        draws=draws,
        held_out=held_out,
        judge_share=judge_share,
        l2=l2,
        batch_size=batch_size,
        seed=seed,
        given=None if ablate is None else given(ablate),
    )
    dictionaries = up_to(dictionaries, asked.site)
    for one in asked.given or ():
        place_of(one.name, dictionaries)
    run = _Run(model, biased, balanced, dictionaries, asked, progress)
    if out is not None:
        FOLDER.claim(Path(out), without_versions(run.provenance))
    result = run.result()
    if out is not None:
        result.save(out)
    return result


class _Run:
    """One shift: the sets, what is read of them, and every treatment."""

    def __init__(
        self,
        model: Model,
        biased: Examples,
        balanced: Examples,
        dictionaries: Dictionaries,
        asked: Asked,
        progress: bool | None,
    ) -> None:
        self.model, self.dictionaries, self.asked = model, dictionaries, asked
        self.progress = progress
        self.classes = two_classes(biased)
        _refuse_other_classes(balanced, self.classes)
        self.usual = biased.stands_for()
        self.train, self.test = biased.split(1 - asked.held_out, asked.seed)
        self.judging, self.measuring = balanced.split(asked.judge_share, asked.seed)
        if asked.given is None:
            self.sides = sides_of(biased, balanced, self.classes[1])
        self.cost = Cost(pairs=len(biased) + len(balanced))
        self.provenance: dict[str, Any] = {
            "model": describe_model(model),
            "biased": biased.to_dict(),
            "balanced": balanced.to_dict(),
            "trained_on": len(self.train),
            "held_out_biased": len(self.test),
            "judged_on": len(self.judging),
            "measured_on": len(self.measuring),
            "judged_by": self._judged_by(),
            "dictionaries": dictionaries.to_list(),
            **asked.to_dict(),
            "versions": versions(),
        }

    def result(self) -> Shift:
        """Run everything."""
        started = time.perf_counter()
        read = self._read(None)
        probe = self._fitted(read, self.train)
        outcomes = [self._outcome("before", probe, read, ())]
        effects = self._effects(probe, self.train)
        judged = self._judged(probe, effects)
        ablated = tuple(one.name for one in judged if one.judgment == ABLATE)
        said = "" if not self.asked.audit else self._audited(effects)
        retrained = probe
        if ablated:
            retrained, found = self._treated("ablated", probe, ablated)
            outcomes += [*found, *self._baselines(probe, effects, len(ablated))]
        oracle = self._fitted(read, self.judging)
        outcomes.append(self._outcome("oracle", oracle, read, ()))
        self.cost.seconds = time.perf_counter() - started
        return Shift(
            probe=probe,
            retrained=retrained,
            judged=tuple(judged),
            ablated=ablated,
            outcomes=tuple(outcomes),
            gained=_gained(outcomes),
            audit=said,
            cost=self.cost,
            provenance=self.provenance,
        )

    def _judged_by(self) -> str:
        if self.asked.given is None:
            return (
                f"of the {self.asked.features} strongest those that tell the attribute better "
                "than the label"
            )
        return "as judgments say that were given"

    def _read(self, ablation: Ablation | None) -> dict[int, Float[Tensor, "example d"]]:
        """Return what a probe reads of each set, by its identity."""
        sets = [self.train, self.test, self.measuring]
        if ablation is None:
            sets.append(self.judging)  # for the oracle, which ablates nothing
        reader = partial(
            read_at, self.model, self.asked.site, self.asked.pooling,
            taps=None if ablation is None else ablation.taps,
            batch_size=self.asked.batch_size, progress=self.progress,
        )  # fmt: skip
        for one in sets:
            self.cost.ran(len(one))
        return {id(one): reader(examples=one) for one in sets}

    def _fitted(self, read: dict[int, Tensor], examples: Examples) -> Probe:
        return Probe.of(
            self.model, examples, self.asked.site, read[id(examples)],
            pooling=self.asked.pooling, classes=self.classes, l2=self.asked.l2,
        )  # fmt: skip

    def _outcome(
        self,
        kind: Kind,
        probe: Probe,
        read: dict[int, Tensor],
        names: Sequence[str],
        *,
        retrained: bool = False,
        draw: int = 0,
    ) -> Outcome:
        biased, balanced = (
            accuracies(probe.logits(read[id(one)]) > 0, one, self.classes, self.usual)
            for one in (self.test, self.measuring)
        )
        return Outcome(kind, retrained, tuple(names), biased, balanced, draw)

    def _treated(
        self, kind: Kind, probe: Probe, names: Sequence[str], draw: int = 0
    ) -> tuple[Probe, list[Outcome]]:
        """Ablate features, and measure the probe as it is and fitted again."""
        ablation = Ablation(
            self.model, self.dictionaries, names, reference=self.asked.reference,
            examples=self.train, batch_size=self.asked.batch_size,
        )  # fmt: skip
        read = self._read(ablation)
        again = self._fitted(read, self.train)
        return again, [
            self._outcome(kind, one, read, names, retrained=one is again, draw=draw)
            for one in (probe, again)
        ]

    def _baselines(self, probe: Probe, effects: ProbeEffects, count: int) -> list[Outcome]:
        """Ablate as many others: the strongest, and random ones of those that have an effect."""
        if not self.asked.draws:
            return []
        active = [one.name for one in effects.top()]
        count = min(count, len(active))
        found = self._treated("strongest", probe, active[:count])[1]
        drawn = random.Random(f"random features {self.asked.seed}")
        for draw in range(self.asked.draws):
            found += self._treated("random", probe, drawn.sample(active, count), draw)[1]
        return found

    def _effects(self, probe: Probe, examples: Examples) -> ProbeEffects:
        found = probe_effects(
            self.model,
            probe,
            examples.sample(self.asked.sample, self.asked.seed),
            self.dictionaries,
            estimator=self.asked.estimator,
            reference=self.asked.reference,
            batch_size=self.asked.batch_size,
            seed=self.asked.seed,
            progress=self.progress,
        )
        self.cost.forwards += found.scores.cost.forwards
        self.cost.backwards += found.scores.cost.backwards
        return found

    def _judged(self, probe: Probe, effects: ProbeEffects) -> list[Judged]:
        measured = {one.name: one for one in effects.top(errors=True)}
        if self.asked.given is not None:
            return [_beside(one, measured.get(one.name)) for one in self.asked.given]
        return judge(
            effects.top(self.asked.features),
            self._effects(probe, self.judging),
            self.sides,
            threshold=self.asked.threshold,
        )

    def _audited(self, effects: ProbeEffects) -> str:
        checked = effects.audit(
            self.asked.audit,
            seed=self.asked.seed,
            batch_size=self.asked.batch_size,
            progress=self.progress,
        )
        self.cost.ran(checked.counts.checked * len(effects.examples))
        return checked.sentence


def _gained(outcomes: Sequence[Outcome]) -> dict[str, tuple[float, float, float]]:
    """Return what ablating and retraining gains over doing nothing, and over the baselines."""
    found = {}
    for after in picked(outcomes, "ablated", retrained=True):
        beside = {
            "before": picked(outcomes, "before", retrained=False),
            "random": picked(outcomes, "random", retrained=True),
            "strongest": picked(outcomes, "strongest", retrained=True),
        }
        for name, others in beside.items():
            if others:
                found[name] = gained([one.balanced for one in others], after.balanced)
    return found


def _beside(one: Judged, measured: FeatureEffect | None) -> Judged:
    """Return a judgment that was given, with the effect measured here."""
    effect, se = (None, None) if measured is None else (measured.effect, measured.se)
    return Judged(
        one.name, effect, se, one.judgment, one.on_label, one.on_spurious, one.contexts, one.note
    )


def _refuse_other_classes(balanced: Examples, classes: tuple[str, str]) -> None:
    positives(balanced, classes)
    if balanced.classes != classes:
        raise PromptError(
            f"{balanced.name} holds only {', '.join(map(repr, balanced.classes))}, and is to hold "
            f"{classes[0]!r} and {classes[1]!r}.\nGive examples of both."
        )
