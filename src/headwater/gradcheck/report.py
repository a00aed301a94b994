"""The result of a gradient check: what was checked, and the verdict in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headwater.gradcheck.result import Check
from headwater.gradcheck.verdicts import PASSES, Verdict

_WORST: tuple[Verdict, ...] = (
    "disagree", "jump", "kink", "constant", "stationary", "unresolved", "ill-conditioned", "agree",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class GradientReport:
    """Gradients at one value or at several that belong together, checked."""

    objective: str
    checks: tuple[Check, ...]
    model: str = ""
    prompt: str = ""
    tokens: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of its checks."""
        found = {one.verdict for one in self.checks}
        return next(one for one in _WORST if one in found)

    @property
    def passed(self) -> bool:
        """Whether every gradient is the slope, as far as any difference can tell."""
        return self.verdict in PASSES
