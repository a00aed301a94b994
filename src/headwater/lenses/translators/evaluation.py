"""The result of judging a translator: KL(final || row) of lenses and controls, and what it says."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import UnknownOptionError, did_you_mean
from headwater.frames import frame
from headwater.lenses.translators import folder

if TYPE_CHECKING:
    import pandas

CLEAR = 2.0
"""Standard errors by which a difference has to be away from 0."""
CONTROLS = {
    "marginal": "not better than one distribution for every position, which reads no prompt",
    "shuffled": "not better than least squares on residuals of other positions",
    "bias only": "not better than a shift, the same at every position",
    "logit lens": "not better than no translator at all",
}
"""What a translator has to beat, and what it means if it does not."""


@dataclass(frozen=True)
class Average:
    """A mean over tokens and its standard error over prompts."""

    mean: float
    error: float
    """NaN of a single prompt."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """KL(final || row) in nats of a translator and of the controls it has to beat."""

    rows: tuple[str, ...]
    """The rows, the final one last: there every lens reads the model's own prediction."""
    sums: Mapping[str, Float[Tensor, "row prompt"]]
    """Sums over a prompt's tokens, by lens or control."""
    tokens: Float[Tensor, " prompt"]
    """Tokens of each prompt."""
    method: str
    """How the translator was fitted."""
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def lenses(self) -> tuple[str, ...]:
        """The names of lenses and controls."""
        return tuple(self.sums)

    def kl(self, lens: str = "translator", row: str = "input") -> Average:
        """Return the mean over tokens of KL(final || row), with its standard error over prompts.

        Args:
            lens: `"translator"`, `"logit lens"`, or a control.
            row: The row's name.

        Raises:
            UnknownOptionError: If there is no such lens or row.
        """
        return self._average(self._sums(lens, row))

    def less(self, control: str, row: str) -> Average:
        """Return by how much the translator's KL is below a control's; errors are of pairs.

        Args:
            control: Its name, such as `"bias only"`.
            row: The row's name.

        Raises:
            UnknownOptionError: If there is no such control or row.
        """
        return self._average(self._sums(control, row) - self._sums("translator", row))

    def verdicts(self) -> list[str]:
        """Return in words where the translator is no better than a control, worst first."""
        found, mapped = [], self.rows[:-1]
        for control, words in CONTROLS.items():
            rows = [row for row in mapped if not self._beats(control, row)]
            if rows:
                found.append(f"At {', '.join(rows)}: {words}.")
        if not found and mapped:
            found.append(
                "Better than every control at every row, by more than "
                f"{CLEAR:g} standard errors of the difference."
            )
        return found + self._of_untrained()

    def table(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping a row of the model and lens: mean KL and its standard error."""
        for row in self.rows:
            for lens in self.lenses:
                found = self.kl(lens, row)
                yield {"row": row, "lens": lens, "kl": found.mean, "standard error": found.error}

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a row of the model and lens, as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame(self.table(), "evaluation.table()")

    def to_dict(self) -> dict[str, Any]:
        """Return the table, the verdicts and where they come from, as plain data."""
        return {
            "method": self.method,
            "rows": list(self.rows),
            "lenses": list(self.lenses),
            "table": list(self.table()),
            "verdicts": self.verdicts(),
            "notes": list(self.notes),
            "provenance": self.provenance,
        }

    def save(self, path: str | Path) -> Path:
        """Write it into a folder, which may be the translator's.

        Args:
            path: The folder; made if there is none. An earlier evaluation is replaced.

        Returns:
            The folder.

        Raises:
            RunFolderError: If the folder cannot be written, or holds something else.
        """
        there = Path(path)
        judged = self.provenance.get("options", {}).get("translator", {})
        folder.claim_evaluation(there, judged.get("sha256"))
        tensors = {f"sums.{name}": value for name, value in self.sums.items()}
        return folder.OF_EVALUATION.write(
            there, self.to_dict(), {**tensors, "tokens": self.tokens}, overwrite=True
        )

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read one from a folder.

        Args:
            path: The folder.

        Raises:
            RunFolderError: If there is none that this release can read.
        """
        there = Path(path)
        data, tensors = folder.OF_EVALUATION.read(there)
        with folder.OF_EVALUATION.reading(there):
            return cls(
                rows=tuple(data["rows"]),
                sums={name: tensors[f"sums.{name}"] for name in data["lenses"]},
                tokens=tensors["tokens"],
                method=data["method"],
                notes=tuple(data["notes"]),
                provenance=data["provenance"],
            )

    def __repr__(self) -> str:
        return "\n".join(self._told())

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def _told(self) -> list[str]:
        """Return the printed lines."""
        name = self.provenance.get("model", {}).get("name", "a model")
        lines = [
            f"KL(final || row) of {name} in nats, mean over tokens +- standard error over prompts"
        ]
        width = max(len(one) for one in (*self.lenses, f"translator ({self.method})")) + 1
        lines.append("".join([" " * width, *(f"{row:>18}" for row in self.rows)]))
        for lens in self.lenses:
            cells = [f"{_cell(self.kl(lens, row)):>18}" for row in self.rows]
            shown = f"{lens} ({self.method})" if lens == "translator" else lens
            lines.append("".join([f"{shown:<{width}}", *cells]))
        return [*lines, *self.verdicts(), *self.notes]

    def _sums(self, lens: str, row: str) -> Float[Tensor, " prompt"]:
        for name, known in ((lens, self.lenses), (row, self.rows)):
            if name not in known:
                raise UnknownOptionError(
                    f"{name!r} was not judged.{did_you_mean(name, known)}\n"
                    f"There are {', '.join(known)}."
                )
        return self.sums[lens][self.rows.index(row)]

    def _average(self, sums: Float[Tensor, " prompt"]) -> Average:
        """Return a ratio of sums over prompts, and the error of the ratio."""
        prompts, total = len(sums), float(self.tokens.sum())
        mean = float(sums.sum()) / total
        if prompts < 2:
            return Average(mean, torch.nan)
        scatter = float((sums - mean * self.tokens).square().sum())
        return Average(mean, (scatter * prompts / (prompts - 1)) ** 0.5 / total)

    def _beats(self, control: str, row: str) -> bool:
        less = self.less(control, row)
        return less.mean > 0 and not less.mean <= CLEAR * less.error

    def _of_untrained(self) -> list[str]:
        """Say what a small KL of an untrained model means."""
        lens, marginal = "untrained: least squares", "untrained: marginal"
        if lens not in self.sums:
            return []
        at = min(self.rows[:-1], key=lambda row: self.kl(lens, row).mean)
        low = self.kl(lens, at).mean
        blind, own = self.kl(marginal, self.rows[0]).mean, self.kl("marginal", self.rows[0]).mean
        return [
            "A small KL alone is no success: an untrained copy of the model is read with "
            f"{low:.2g} at {at}, and one distribution for every position comes within "
            f"{blind:.2g} of it ({own:.2g} of this model)."
        ]


def _cell(found: Average) -> str:
    return f"{found.mean:.4f} +- {found.error:.4f}"
