"""A translator: one affine map a row, applied to the residual stream before it is read.

A map is kept as its difference to the identity, `T(r) = r + r W^T + b`: where W and b are 0, what
comes out is what went in, bit for bit.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.errors import ResultError, did_you_mean
from headwater.lenses.rows import Row
from headwater.lenses.translators import folder, tuned_lens
from headwater.lenses.translators.identity import refuse_other
from headwater.models import Model

if TYPE_CHECKING:
    from headwater.lenses.translators.evaluation import Evaluation
    from headwater.prompts.streams import Dataset

METHODS = {
    "lstsq": "least squares to the final residual",
    "kl": "affine, trained on KL(final || row)",
    "bias": "a shift, trained on KL(final || row)",
    "jacobian": "mean Jacobian of the final residual",
    "tuned-lens": "affine, from a checkpoint of tuned-lens",
}


@dataclass(frozen=True, eq=False, repr=False)
class Translator:
    """What is applied to the residual stream of each row before norm and head."""

    method: str
    """`lstsq`, `kl`, `bias`, `jacobian`, or `tuned-lens` for a checkpoint of that package."""
    weights: Mapping[str, Float[Tensor, "d_model d_model"] | None]
    """W of `T(r) = r + r W^T + b` by the row's name; None: there is only a shift."""
    biases: Mapping[str, Float[Tensor, " d_model"] | None]
    """b by the row's name; None: there is no shift."""
    model: Mapping[str, Any]
    """Which model it belongs to."""
    corpus: Mapping[str, Any] = field(default_factory=dict)
    """What it was fitted to: prompts, tokens, hash."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """How it was fitted."""
    details: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Numbers of the fit by the row's name."""
    errors: Mapping[str, Float[Tensor, "d_model d_model"]] = field(default_factory=dict)
    """Standard errors of a mean Jacobian's entries over prompts."""
    seen: Int[Tensor, " prompt"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """The prompts it was fitted to, each as a number made from its ids."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the fit."""
    _placed: dict[Any, Any] = field(default_factory=dict, init=False)

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of the rows that have a map; the final row needs none."""
        return tuple(self.weights)

    @property
    def final(self) -> str:
        """The name of the final row, which is left as it is."""
        return f"r{self.model['n_layers'] - 1}"

    @property
    def described(self) -> dict[str, Any]:
        """What it is, as plain data for the provenance of a lens."""
        return {
            "method": self.method,
            "model": dict(self.model),
            "corpus": dict(self.corpus),
            "options": dict(self.options),
            "rows": list(self.rows),
            "sha256": self.sha256,
        }

    @cached_property
    def sha256(self) -> str:
        """Hash of its tensors."""
        return folder.hash_of(folder.tensors_of(self))

    def matrix(self, row: str) -> Float[Tensor, "d_model d_model"]:
        """Return A of `T(r) = A r + b`; of the Jacobian lens that is the mean Jacobian.

        Args:
            row: The row's name, such as `"r2"`.

        Raises:
            ResultError: If there is no such row.
        """
        if row != self.final and row not in self.weights:
            raise ResultError(
                f"the translator has no row {row!r}.{did_you_mean(row, self.rows)}\n"
                f"Rows: {', '.join(self.rows)}; the final one, {self.final}, is left as it is."
            )
        weight = self.weights.get(row)
        like = next((one for one in self._all() if one is not None), torch.zeros(0))
        whole = torch.eye(self.model["d_model"], dtype=like.dtype)
        return whole if weight is None else whole + weight

    def applied(
        self, values: Float[Tensor, "row position d_model"], rows: Sequence[Row]
    ) -> Float[Tensor, "row position d_model"]:
        """Return the residual stream of each row, translated; the final row as it is.

        Args:
            values: The residual stream at each row.
            rows: The rows.
        """
        parts = []
        for value, row in zip(values, rows, strict=True):
            if row.name in self.weights:
                value = translate(value, *self._at(row.name, value))
            parts.append(value)
        return torch.stack(parts)

    def refuse(self, model: Model, rows: Sequence[Row] = (), *, where: str = "") -> None:
        """Refuse another model than the one it was fitted to, and rows that it lacks.

        Args:
            model: The model.
            rows: What shall be read.
            where: The folder it was read from.

        Raises:
            ResultError: Saying which model it belongs to, or which rows there are.
        """
        refuse_other(self.model, model, where=where)
        known = {*self.rows, self.final}
        lacking = [row for row in rows if row.name not in known]
        if not lacking:
            return
        row, instead = lacking[0], f"Read those: {', '.join(self.rows)} and {self.final}"
        if row.kind == "write":
            instead = "A map of the residual stream says nothing of one write: leave writes=False"
        elif row.kind == "mid":
            instead = "Leave sublayers=False, or fit with hw.fit_lens(..., sublayers=True)"
        elif row.kind == "residual":
            instead = (
                f"Write layers={_layers(self.rows)}, or fit with hw.fit_lens(..., layers=None)"
            )
        raise ResultError(f"the translator has no row {row.name} ({row.title}).\n{instead}.")

    def evaluate(
        self,
        model: Model,
        held_out: Dataset,
        *,
        controls_from: Dataset | None = None,
        limit: int | None = None,
        length: int | None = None,
        untrained_model: bool = True,
        steps: int = 100,
        batch_size: int = 8,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Evaluation:
        """Judge it on prompts that it was not fitted to, beside the controls it has to beat.

        Args:
            model: The model it belongs to.
            held_out: Texts, ids, or a file; prompts it was fitted to are left out and counted.
            controls_from: What to fit controls to, such as its own corpus; None: half of the
                prompts, chosen by a hash of their ids.
            limit: Read at most this many held-out prompts.
            length: Cut each prompt to this many tokens; None: as its own corpus was.
            untrained_model: Whether to compare with an untrained copy of the model, which takes
                as much memory.
            steps: Of training the shift it is compared with.
            batch_size: Most prompts in a forward.
            seed: Of the shuffles, the order of batches and the untrained weights.
            progress: A bar or log lines; None: where there is a terminal.

        Returns:
            KL(final || row) of every lens and control, and in words what they say.

        Raises:
            ResultError: If it was fitted to another model.
            PromptError: If no prompt is left, or an iterator is given, which can be read only once.
        """
        from headwater.lenses.translators.evaluate import evaluate_lens

        return evaluate_lens(
            self,
            model,
            held_out,
            controls_from=controls_from,
            limit=limit,
            length=length,
            untrained_model=untrained_model,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it into a folder: `translator.safetensors` and `translator.json`.

        Args:
            path: The folder; made if there is none.
            overwrite: Whether another translator there may be replaced.

        Returns:
            The folder.

        Raises:
            RunFolderError: If the folder cannot be written, or holds something else.
        """
        return folder.write(self, Path(path), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Translator:
        """Read one from a folder, or from a checkpoint of tuned-lens (config.json, params.pt).

        Args:
            path: The folder.

        Raises:
            RunFolderError: If there is none that this release can read.
        """
        there = Path(path)
        if tuned_lens.is_checkpoint(there):
            return cls(**tuned_lens.read(there))
        return cls(**folder.read(there))

    def __repr__(self) -> str:
        return "\n".join(_told(self))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def _all(self) -> list[Tensor | None]:
        return [*self.weights.values(), *self.biases.values()]

    def _at(self, row: str, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return a row's map where a value is, in a format that is no lower than float32."""
        key = (row, like.device, like.dtype)
        if key not in self._placed:
            dtype = torch.promote_types(like.dtype, torch.float32)
            found = (self.weights[row], self.biases[row])
            self._placed[key] = tuple(
                None if one is None else one.to(like.device, dtype) for one in found
            )
        return self._placed[key]


def translate(
    value: Float[Tensor, "position d_model"],
    weight: Float[Tensor, "d_model d_model"] | None,
    bias: Float[Tensor, " d_model"] | None,
) -> Float[Tensor, "position d_model"]:
    """Return `value + value W^T + b`, computed in the map's format, in the value's own."""
    given = next((one for one in (weight, bias) if one is not None), value)
    high = value.to(given.dtype)
    found = high
    if weight is not None:
        found = found + high @ weight.mT
    if bias is not None:
        found = found + bias
    return found.to(value.dtype)


def _layers(rows: Sequence[str]) -> list[int]:
    return [int(row[1:]) for row in rows if row[1:].isdigit()]


def _size(tokens: int, prompts: int) -> str:
    return f"{tokens:,} tokens of {prompts:,} prompt{'' if prompts == 1 else 's'}"


def _told(translator: Translator) -> list[str]:
    """Return the lines of the printed translator."""
    corpus = translator.corpus
    size = _size(corpus["tokens"], corpus["prompts"]) if corpus else "unknown"
    lines = [
        f"Translator of {translator.model.get('name')}: "
        f"{METHODS.get(translator.method, translator.method)}; fitted to {size}"
    ]
    names = list(dict.fromkeys(name for one in translator.details.values() for name in one))
    lines.append("".join([f"{'row':<8}", *(f"{name:>24}" for name in names)]))
    for row in reversed(translator.rows):
        details = translator.details.get(row, {})
        cells = [f"{details[name]:>24.4g}" if name in details else " " * 24 for name in names]
        lines.append("".join([f"{row:<8}", *cells]).rstrip())
    return [*lines, *translator.notes]
