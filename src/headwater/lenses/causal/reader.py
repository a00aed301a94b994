"""What a lens says of a value of the residual stream, and which way that changes fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import UnknownOptionError
from headwater.lenses.asked import Prompt, Prompts, encoded
from headwater.lenses.measure import Translate
from headwater.lenses.readout import Readings, Readout
from headwater.lenses.rows import Row, index_of, rows_of
from headwater.lenses.translators import Translator, as_translator
from headwater.models import Model

if TYPE_CHECKING:
    from headwater.lenses.result import Lens


@dataclass(frozen=True, eq=False)
class Reader:
    """A lens as a function: prompts, rows, and how a row's value is read as a prediction."""

    model: Model
    prompts: tuple[Prompt, ...]
    rows: tuple[Row, ...]
    """Places of the residual stream, the last of them the model's own prediction."""
    readout: Readout
    translate: Translate | None = None

    @classmethod
    def of_prompts(
        cls,
        model: Model,
        prompts: Prompts,
        *,
        layers: Sequence[int] | None = None,
        sublayers: bool = False,
        readout: Readings = "final-norm",
        translator: Translator | str | None = None,
        decode_with: Literal["unembedding", "embedding"] = "unembedding",
    ) -> Reader:
        """Return the lens that `hw.lens` reads with these arguments.

        Args:
            model: The model.
            prompts: As for `hw.lens`.
            layers: Likewise.
            sublayers: Likewise.
            readout: Likewise.
            translator: Likewise.
            decode_with: Likewise.

        Raises:
            HeadwaterError: Whatever `hw.lens` refuses.
        """
        rows = rows_of(model.anatomy(), layers, sublayers=sublayers)
        translate = as_translator(translator, model, rows)
        return cls(
            model,
            tuple(encoded(model, prompts)),
            rows,
            Readout(model, readout, decode_with),
            None if translate is None else translate.applied,
        )

    @classmethod
    def of_lens(
        cls, model: Model, lens: Lens, translator: Translator | str | None = None
    ) -> Reader:
        """Return what a lens was read with; rows that are single writes are left out.

        Args:
            model: The model that the lens is of.
            lens: A lens.
            translator: The one it was read through, which the result does not keep.

        Raises:
            UnknownOptionError: If the lens was read through another translator, or through none.
        """
        options: dict[str, Any] = lens.provenance.get("options", {})
        rows = tuple(row for row in lens.layers if row.is_stream)
        translate = as_translator(translator, model, rows)
        _refuse_other_translator(options.get("translator"), translate)
        ids = [
            tuple(one[real].tolist()) for one, real in zip(lens.arrays.ids, lens.mask, strict=True)
        ]
        prompts = [Prompt(one, text) for one, text in zip(ids, lens.texts, strict=True)]
        return cls(
            model,
            tuple(prompts),
            rows,
            Readout(
                model,
                options.get("readout", "final-norm"),
                options.get("decode_with", "unembedding"),
            ),
            None if translate is None else translate.applied,
        )

    @property
    def is_model_at_the_end(self) -> bool:
        """Whether the last row is read as the model itself reads it."""
        return self.readout.decode_with == "unembedding"

    def row(self, which: str | int) -> int:
        """Return the number of a row, by name or layer.

        Raises:
            UnknownOptionError: If there is no such row of the residual stream.
        """
        return index_of(self.rows, which)

    @torch.no_grad()
    def logprobs(
        self, values: Float[Tensor, "point d_model"], row: int
    ) -> Float[Tensor, "point vocab"]:
        """Return what the lens reads of values at a row, as log-probabilities.

        Args:
            values: Values of the residual stream at one row.
            row: The row's number.
        """
        normed = self._normed(values, row)
        found = normed.new_empty(len(values), self.readout.vocab)
        for tile in self.readout.tiles(normed):
            place = slice(tile.first, tile.first + len(tile.logits))
            found[place, tile.token : tile.token + tile.logits.shape[-1]] = tile.logits[:, 0]
        return found.log_softmax(-1)

    def gradient(
        self, value: Float[Tensor, " d_model"], row: int, token: int
    ) -> Float[Tensor, " d_model"]:
        """Return the gradient of a token's log-probability in the lens with respect to a value.

        Args:
            value: The value of the residual stream.
            row: The row's number.
            token: The token's id.
        """
        with torch.enable_grad():
            point = value.detach().clone().requires_grad_()
            logits = self._logits(self._normed(point[None], row)[:, 0])
            logprob = logits.to(self.readout.dtype).log_softmax(-1)[0, token]
            (found,) = torch.autograd.grad(logprob, point)
        return found.to(self.readout.dtype)

    def _normed(
        self, values: Float[Tensor, "point d_model"], row: int
    ) -> Float[Tensor, "point one d_model"]:
        rows = [self.rows[row]]
        read = values[None] if self.translate is None else self.translate(values[None], rows)
        return self.readout.normed(read, rows)

    def _logits(self, normed: Float[Tensor, "point d_model"]) -> Float[Tensor, "point vocab"]:
        """Return logits with their graph: tiles share memory and have none."""
        head = self.readout.head
        if self.readout.decode_with == "unembedding" or head is None:
            return self.readout.replay(normed)
        logits = normed.to(head.weight.dtype) @ head.weight.mT * head.scale
        return logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)


def _refuse_other_translator(read: Any, given: Translator | None) -> None:
    if read is None and given is not None:
        raise UnknownOptionError(
            "translator= was given, but this lens was read without one.\n"
            "Leave it out, or read the lens through it: hw.lens(..., translator=...)."
        )
    if read is not None and given is None:
        raise UnknownOptionError(
            "this lens was read through a translator, which its result does not keep.\n"
            "Give the same one again: translator=..."
        )
    if given is not None and read is not None and read["sha256"] != given.described["sha256"]:
        raise UnknownOptionError(
            "this lens was read through another translator than the one given (sha256 "
            f"{read['sha256'][:8]} and {given.described['sha256'][:8]}).\n"
            "Give the one it was read through."
        )


def refuse_no_sample(sample: int) -> None:
    """Refuse a sample of nothing.

    Raises:
        UnknownOptionError: If it is not a number from 1 on.
    """
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
        raise UnknownOptionError(
            f"sample={sample!r}: at least one place is looked at.\nWrite sample=32."
        )
