"""How far frozen contributions are from exact effects: direct ones, and those of ablation."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headwater.audits import Audit, audit_scores
from headwater.directs.removed import Ablations

STEPS = {
    "direct": "frozen norm against exact direct effects (the write removed, the norm computed "
    "anew)",
    "paths": "exact direct effects against total ones (set to zero at every position)",
    "total": "frozen norm against exact total effects",
}
"""The comparisons, in order: what freezing the norm costs, what later layers change, and both."""
DETOURS = "Both are exact: what differs acts through later layers."
"""What there is to say of the second."""


@dataclass(frozen=True, repr=False)
class LogitAudit:
    """The three comparisons of a logit's contributions with exact effects."""

    audits: Mapping[str, Audit]
    """`direct`, `paths` and `total`: estimate and truth as `STEPS` says."""
    direct: Float[Tensor, "prompt component"] = field(compare=False)
    """Exact direct effects of the components that were asked for."""
    total: Float[Tensor, "prompt component"] = field(compare=False)
    """Exact total effects; NaN where not checked."""

    def __getitem__(self, name: str) -> Audit:
        """Return one comparison: `direct`, `paths` or `total`.

        Raises:
            KeyError: If there is none of that name.
        """
        return self.audits[name]

    def sentences(self) -> list[str]:
        """Return each comparison in words."""
        found = []
        for name, said in STEPS.items():
            audit = self.audits[name]
            verdict = DETOURS if name == "paths" else audit.verdict
            found.append(f"{said}: {audit.sentence} Sign agreement {_share(audit)}. {verdict}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the comparisons as plain data."""
        return {name: audit.to_dict() for name, audit in self.audits.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], direct: Tensor, total: Tensor) -> LogitAudit:
        """Read the comparisons back.

        Raises:
            ResultError: If the data are no audits.
        """
        audits = {name: Audit.from_dict(data[name]) for name in STEPS}
        return cls(audits, direct, total)

    def __repr__(self) -> str:
        return "\n".join(self.sentences())

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def audited(
    names: tuple[str, ...],
    frozen: Float[Tensor, "prompt component"],
    direct: Float[Tensor, "prompt component"],
    ablations: Ablations,
    *,
    noise: float,
    sample: int,
    seed: int,
) -> LogitAudit:
    """Compare contributions with exact effects.

    Args:
        names: Of the components that were asked for.
        frozen: Their contributions.
        direct: Their exact direct effects, all of them: they cost no forward.
        ablations: Returns total effects, one run a component.
        noise: Mean total effects up to this size are indistinguishable from rounding.
        sample: Components whose total effects are checked.
        seed: Of the samples and their intervals.

    Raises:
        NonFiniteError: If an effect is NaN or infinite.
        ResultError: If `sample` is out of range.
    """
    checks: dict[str, Any] = {"sample": sample, "seed": seed, "noise_floor": noise}
    audits = {
        "direct": audit_scores(
            names, frozen, lambda columns: direct[:, list(columns)], sample=len(names), seed=seed
        ),
        "paths": audit_scores(names, direct, ablations, **checks),
        "total": audit_scores(names, frozen, ablations, **checks),
    }
    total = torch.full_like(direct, np.nan)
    for column, effects in ablations.found.items():
        total[:, column] = effects
    return LogitAudit(audits, direct, total)


def _share(audit: Audit) -> str:
    value = audit.statistic("sign agreement").value
    return "unknown" if value is None else f"{100 * value:.0f} %"
