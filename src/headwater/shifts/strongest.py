"""The features that a probe goes by, ready to be judged: by a person, or by a rule beforehand."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.attribution.checks import refuse_modes
from headwater.dictionaries.collection import Dictionaries
from headwater.estimators import Estimator
from headwater.models import Model
from headwater.references import Reference
from headwater.shifts.effects import ProbeEffects, probe_effects
from headwater.shifts.examples import Examples
from headwater.shifts.judging import THRESHOLD, Judged, judge, sides_of
from headwater.shifts.judgments import CONTEXTS, with_contexts, write_judgments
from headwater.shifts.pooling import Pooling
from headwater.shifts.probe import L2, Probe
from headwater.sites import Site

SHOWN = 20
"""Features of a printed result."""
WIDTH = 60
"""Characters of a context that is shown."""


@dataclass(frozen=True, eq=False, repr=False)
class Candidates:
    """The strongest features of a probe, with the places where each is strongest.

    Attributes:
        probe: The probe, fitted to all biased examples.
        effects: The effects of all features on its margin.
        judged: The strongest, those with the largest effects first.
    """

    probe: Probe
    effects: ProbeEffects
    judged: tuple[Judged, ...]

    def write(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the file in which they are judged; see `headwater.shifts.judgments`.

        Args:
            path: The file.
            overwrite: Replace a file, which somebody may have filled in, instead of refusing.

        Raises:
            RunFolderError: If there is a file already, or it cannot be written.
        """
        return write_judgments(self.judged, path, overwrite=overwrite)

    def __repr__(self) -> str:
        lines = [repr(self.probe), *_table(self.judged[:SHOWN])]
        if len(self.judged) > SHOWN:
            lines.append(f"... {len(self.judged) - SHOWN:,} more in candidates.judged")
        checked = self.effects.checked
        said = "not audited: candidates.effects.audit()" if checked is None else checked.sentence
        return "\n".join([*lines, f"Effects: {said}"])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Return them as plain data."""
        checked = self.effects.checked
        return {
            "probe": self.probe.to_dict(),
            "features": [one.to_dict() for one in self.judged],
            "audit": None if checked is None else checked.sentence,
        }


def candidates(
    model: Model,
    biased: Examples,
    dictionaries: Dictionaries,
    *,
    balanced: Examples | None = None,
    site: Site | str | None = None,
    pooling: Pooling = "mean",
    features: int = 50,
    threshold: float = THRESHOLD,
    estimator: Estimator | None = None,
    reference: Reference | None = None,
    sample: int = 100,
    audit: int = 32,
    contexts: int = CONTEXTS,
    l2: float = L2,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool | None = None,
) -> Candidates:
    """Fit a probe to biased examples, and show which features it goes by.

    Args:
        model: From `hw.load` or `hw.wrap`.
        biased: Examples in which label and spurious attribute go together.
        dictionaries: From `hw.load_dictionaries(model)`.
        balanced: Examples with their attributes, to judge beforehand by the rule; None leaves
            judgments empty.
        site: Where the probe reads; by default the residual in the middle of the model.
        pooling: `"mean"` over a text's tokens, or its `"last"` one.
        features: How many of the strongest.
        threshold: As for `hw.shift`.
        estimator: Of effects; `hw.IntegratedGradients(steps=10)` by default.
        reference: What a feature that is off is set to; `hw.Zero()` by default.
        sample: Examples that effects are measured on, of each set.
        audit: Effects to check by ablating each feature alone; 0 for none.
        contexts: Places shown of each feature.
        l2: Price of the probe's squared weights.
        batch_size: Most texts in one forward.
        seed: Of the samples.
        progress: True, False, or None to show a bar only on a terminal.

    Raises:
        PromptError: If the examples cannot be used.
        DictionaryError: If no dictionary lies before the probe, or one does not fit the model.
    """
    refuse_modes()
    probe = Probe.fit(
        model, biased, site, pooling=pooling, l2=l2, batch_size=batch_size, progress=progress
    )
    how: dict[str, Any] = {
        "estimator": estimator,
        "reference": reference,
        "batch_size": batch_size,
        "seed": seed,
        "progress": progress,
    }
    sides = None if balanced is None else sides_of(biased, balanced, probe.classes[1])
    effects = probe_effects(model, probe, biased.sample(sample, seed), dictionaries, **how)
    strongest = effects.top(features)
    if balanced is None or sides is None:
        judged = [Judged(one.name, one.effect, one.se) for one in strongest]
    else:
        beside = probe_effects(model, probe, balanced.sample(sample, seed), dictionaries, **how)
        judged = judge(strongest, beside, sides, threshold=threshold)
    shown = with_contexts(
        judged, model, effects.dictionaries, biased, count=contexts, batch_size=batch_size
    )
    if audit:
        effects.audit(audit, seed=seed, batch_size=batch_size, progress=progress)
    return Candidates(probe, effects, tuple(shown))


def _table(judged: Sequence[Judged]) -> list[str]:
    width = max([9, *(len(one.name) for one in judged)])
    lines = [f"{'feature':<{width}}{'effect':>9}{'se':>8}  {'judgment':<10} strongest at"]
    for one in judged:
        se = "" if one.se is None else f"{one.se:.3f}"
        where = one.contexts[0] if one.contexts else "-"
        at = where.find("[[")
        shown = where if at < WIDTH else f"...{where[at - WIDTH // 2 :]}"
        lines.append(
            f"{one.name:<{width}}{one.effect or 0:>+9.3f}{se:>8}  {one.judgment or '-':<10} "
            f"{shown[:WIDTH]}"
        )
    return lines
