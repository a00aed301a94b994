"""The result of `attribute_logit`: rows that sum to the logit, and their audit."""

from __future__ import annotations

import html
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.directs.audit import LogitAudit
from headwater.directs.folder import FOLDER
from headwater.directs.parts import Part
from headwater.directs.rows import Row, rows_of
from headwater.errors import (
    ModelGoneError,
    ResultError,
    UnknownComponentError,
    did_you_mean,
)
from headwater.frames import frame
from headwater.models import Model

if TYPE_CHECKING:
    import pandas

SHOWN = 12
"""Rows of a printed result."""


class LogitAttribution:
    """What each part writes toward a token's logit; the parts sum to it.

    Attributes:
        parts: The rows: components asked for, every other sublayer whole, input, biases, and what
            the model's own rounding leaves.
        scores: Their contributions with the final norm's scale frozen, in float64.
        values: What they sum to: the model's own logit, or difference of logits, before a soft cap.
        capped: The same after the model's soft cap; None where it has none.
        checked: The last audit, if there was one.
        provenance: Model, prompts, components and versions.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        scores: Float[Tensor, "prompt part"],
        values: Float[Tensor, " prompt"],
        *,
        capped: Float[Tensor, " prompt"] | None,
        provenance: dict[str, Any],
        checked: LogitAudit | None = None,
        model: Model | None = None,
        owner: Model | None = None,
    ) -> None:
        self.parts = tuple(parts)
        self.scores, self.values, self.capped = scores, values, capped
        self.provenance, self.checked = provenance, checked
        self._places = {part.name: place for place, part in enumerate(self.parts)}
        # weakly, so that a kept result does not hold gigabytes; a copy made for it is its own
        self._model = None if model is None else weakref.ref(model)
        self._owner = owner

    @property
    def names(self) -> tuple[str, ...]:
        """The rows' names, in the order of the columns of `scores`."""
        return tuple(part.name for part in self.parts)

    @property
    def asked(self) -> tuple[str, ...]:
        """The components that were asked for, in the order in which they were."""
        return tuple(self.provenance["asked"])

    @property
    def rounding(self) -> Float[Tensor, " prompt"]:
        """What the model's own rounding leaves between the other rows' sum and the logit."""
        return self["rounding"]

    @property
    def model(self) -> Model:
        """The model the logits came from.

        Raises:
            ModelGoneError: If it is gone, or the result was read from a folder.
        """
        model = None if self._model is None else self._model()
        if model is None:
            raise ModelGoneError(
                f"this result came from {self.provenance['model'].get('name')!r}, which it does "
                "not hold (it was read from a folder, or the model is gone).\n"
                "Pass it: found.audit(model=model)."
            )
        return model

    def __getitem__(self, name: str) -> Float[Tensor, " prompt"]:
        """Return one row's contribution for each prompt.

        Raises:
            UnknownComponentError: If there is no row of that name.
        """
        if name not in self._places:
            raise UnknownComponentError(
                f"no row {name!r} among the {len(self.parts)} here."
                f"{did_you_mean(name, self.names)}\nAll names: `found.names`."
            )
        return self.scores[:, self._places[name]]

    def mean(self) -> Float[Tensor, " part"]:
        """Return each row's contribution over all prompts."""
        return self.scores.mean(0)

    def by_layer(self) -> Float[Tensor, "prompt layer"]:
        """Return what each layer contributes: its rows, summed."""
        layers = torch.tensor([-1 if one.layer is None else one.layer for one in self.parts])
        count = int(layers.max()) + 1
        return torch.stack([self.scores[:, layers == layer].sum(1) for layer in range(count)], 1)

    def rows(self) -> list[Row]:
        """Return every row in the order in which a forward pass writes it."""
        return rows_of(self, range(len(self.parts)))

    def top(self, count: int = 10) -> list[Row]:
        """Return the rows with the largest |mean contribution|, largest first.

        Raises:
            ResultError: If the count is negative.
        """
        if count < 0:
            raise ResultError(f"top({count}): there is no such number.\nType found.top(10).")
        order = self.mean().abs().argsort(descending=True, stable=True)[:count]
        return rows_of(self, order.tolist())

    def audit(
        self,
        sample: int = 32,
        *,
        model: Model | None = None,
        batch_size: int = 32,
        seed: int = 0,
        progress: bool | None = None,
    ) -> LogitAudit:
        """Compare the components' contributions with exact direct and total effects.

        Direct effects are exact for every component: the write is removed from the last residual
        and the norm computed anew, without a forward. Total effects set a component to zero at
        every position, as `hw.Exact()` with `hw.Zero()` does: one run a checked component.

        Args:
            sample: Components whose total effects are checked; at least as many as there are
                checks all.
            model: Needed when the result no longer has its model.
            batch_size: Most prompts in one forward.
            seed: Of the sample.
            progress: True, False, or None to show a bar only on a terminal.

        Raises:
            ModelGoneError: If the model is gone and none was given.
            ResultError: If the model is not the one the result came from, or `sample` is below 1.
        """
        from headwater.directs.check import check  # it makes results, and reads them

        self.checked = check(
            self,
            self.model if model is None else model,
            sample=sample,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
        return self.checked

    def title(self) -> str:
        """Return what was taken apart, on one line."""
        pairs = self.provenance["task"]["pairs"]
        prompts = f"{len(pairs)} prompts" if len(pairs) > 1 else "1 prompt"
        first = pairs[0]
        token = " or ".join(map(repr, first["answer"])) if len(pairs) == 1 else "the answer"
        against = ""
        if self.provenance["against"]:
            wrong = " or ".join(map(repr, first["wrong"])) if len(pairs) == 1 else "the wrong one"
            against = f" against {wrong}"
        position = self.provenance["position"]
        where = "the last position" if position == -1 else f"position {position}"
        return (
            f"Logit of {token}{against} on {self.provenance['model']['name']}: {prompts}, {where}"
        )

    def notes(self) -> list[str]:
        """Return what to know before believing the rows, in sentences."""
        if self.capped is None:
            return []
        return [
            f"the model caps its logits at {self.provenance['cap']:g}, which is not linear: the "
            f"rows sum to the logit before the cap, {float(self.values.mean()):+.4g}; after it the "
            f"model has {float(self.capped.mean()):+.4g}."
        ]

    def __repr__(self) -> str:
        shown = self.top(SHOWN)
        lines = [
            self.title(),
            f"{float(self.values.mean()):+.4g} = the sum of {len(self.parts):,} rows; rounding "
            f"{float(self.rounding.abs().max()):.1e}",
        ]
        columns = ["frozen"] + ([] if self.checked is None else ["direct", "total"])
        lines.append(f"{'part':<16}" + "".join(f"{name:>11}" for name in columns))
        for row in shown:
            numbers = [row.score, row.direct, row.total][: len(columns)]
            cells = ["-" if one is None else f"{one:+.4g}" for one in numbers]
            lines.append(f"{row.name:<16}" + "".join(f"{cell:>11}" for cell in cells))
        if len(self.parts) > len(shown):
            lines.append(f"... {len(self.parts) - len(shown):,} more in found.rows()")
        if self.checked is None:
            lines.append("not audited: found.audit() says how far these are from exact effects")
        else:
            lines += self.checked.sentences()
        return "\n".join(lines + [f"note: {one}" for one in self.notes()])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a part as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame((row.to_dict() for row in self.rows()), "found.rows()")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the prompts' single numbers as plain data."""
        return {
            "title": self.title(),
            "value": float(self.values.mean()),
            "capped": None if self.capped is None else float(self.capped.mean()),
            "rows": [row.to_dict() for row in self.rows()],
            "parts": [asdict(part) for part in self.parts],
            "notes": self.notes(),
            "audit": None if self.checked is None else self.checked.to_dict(),
            "provenance": self.provenance,
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `logits.json` and `contributions.safetensors`.

        Args:
            path: A folder; made if it does not exist.
            overwrite: Replace another result instead of refusing.

        Raises:
            RunFolderError: If it cannot be written, or holds other files or another result.
        """
        tensors = {"scores": self.scores, "values": self.values}
        if self.capped is not None:
            tensors["capped"] = self.capped
        if self.checked is not None:
            tensors |= {"direct": self.checked.direct, "total": self.checked.total}
        return FOLDER.write(Path(path), self.to_dict(), tensors, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> LogitAttribution:
        """Read what `save` wrote; the model is not needed.

        Raises:
            RunFolderError: If the folder holds no result that this release can read.
        """
        there = Path(path)
        data, tensors = FOLDER.read(there)
        with FOLDER.reading(there):
            audit, checked = data["audit"], None
            if audit is not None:
                checked = LogitAudit.from_dict(audit, tensors["direct"], tensors["total"])
            return cls(
                [Part(**part) for part in data["parts"]],
                tensors["scores"],
                tensors["values"],
                capped=tensors.get("capped"),
                provenance=data["provenance"],
                checked=checked,
            )
