"""The result of a gradient check: what was checked, the verdict in words, tables, files."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.frames import frame
from headwater.gradchecks import folder, tables, words
from headwater.gradchecks.result import Check
from headwater.gradchecks.verdicts import PASSES, Verdict
from headwater.gradchecks.view import page_data
from headwater.page.gradcheck import write_gradcheck

if TYPE_CHECKING:
    import pandas

_WORST: tuple[Verdict, ...] = (
    "disagree", "jump", "kink", "constant", "stationary", "unresolved", "ill-conditioned", "agree",
)  # fmt: skip
SHOWN = 8
"""Directions in a printed table."""


@dataclass(frozen=True, eq=False, repr=False)
class GradientReport:
    """Gradients at one value or at several that belong together, checked."""

    objective: str
    """What the gradient is of."""
    checks: tuple[Check, ...]
    """One a value; the one that was asked for comes first."""
    model: str = ""
    tokens: tuple[str, ...] = ()
    """Of the prompt."""
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

    def __getitem__(self, name: str) -> Check:
        """Return the check of a site, by its name.

        Raises:
            KeyError: If there is none.
        """
        return {one.name: one for one in self.checks}[name]

    def title(self) -> str:
        """Return what was checked, on one line."""
        first = self.checks[0]
        model = f" on {self.model}" if self.model else ""
        where = f", {first.where}" if first.where else ""
        return (
            f"Gradient check of {self.objective}{model} at {first.name}{where}: "
            f"{first.value.numel():,} entries, in {first.dtype}"
        )

    def sentences(self) -> list[str]:
        """Return verdict and findings of every check; those of a second site without its name."""
        found = []
        for place, check in enumerate(self.checks):
            verdict = words.verdict(check, self.objective)
            found.append(verdict if place == 0 else f"{check.name}: {verdict}")
            if place == 0:
                found += words.sentences(check)
        return found

    def __repr__(self) -> str:
        first = self.checks[0]
        return "\n".join(
            [
                self.title(),
                *self.sentences(),
                *tables.plain(tables.directions(first, SHOWN)),
                *(tables.plain(tables.sites(self.checks)) if len(self.checks) > 1 else ()),
            ]
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping a check and direction: slopes, bar, linear range, verdict, effects."""
        for check in self.checks:
            effects = {one.index: one for one in check.effects}
            for one in check.directions:
                found = one.difference
                row: dict[str, Any] = {
                    "site": check.name,
                    "direction": one.name,
                    "gradient": one.gradient,
                    "forward": one.forward,
                    "slope": found.slope,
                    "bar": found.bar,
                    "order": found.order,
                    "linear": found.linear,
                    "backward_slope": found.one_sided[0],
                    "forward_slope": found.one_sided[1],
                    "verdict": one.verdict,
                }
                effect = effects.get(one.index) if one.index is not None else None
                for name in ("activation", "adding", "scaling", "zeroing", "product", "score"):
                    row[name] = None if effect is None else getattr(effect, name)
                yield row

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a check and direction as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame(self.rows(), "report.rows()")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the tensors as plain data."""
        return {
            "objective": self.objective,
            "verdict": self.verdict,
            "sentences": self.sentences(),
            "model": self.model,
            "tokens": list(self.tokens),
            "checks": [one.to_dict() for one in self.checks],
            "provenance": self.provenance,
        }

    def page(self, path: str | Path) -> Path:
        """Write the check as one HTML file that loads nothing, and return its path."""
        return write_gradcheck(page_data(self), path)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `gradcheck.json`, and values and gradients as `gradients.safetensors`.

        Args:
            path: A folder; made if it does not exist.
            overwrite: Replace another check instead of refusing.

        Raises:
            RunFolderError: If it cannot be written, or holds other files or another check.
        """
        tensors = {
            f"{kind} at {one.name}": getattr(one, kind).contiguous().cpu()
            for one in self.checks
            for kind in ("value", "gradient")
        }
        return folder.write(Path(path), self.to_dict(), tensors, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> GradientReport:
        """Read what `save` wrote.

        Raises:
            RunFolderError: If the folder holds no check that this release can read.
        """
        data, checks = folder.read(Path(path))
        return cls(
            objective=data["objective"],
            checks=checks,
            model=data["model"],
            tokens=tuple(data["tokens"]),
            provenance=data["provenance"],
        )
