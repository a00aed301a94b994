"""The number that is decomposed, as a metric: a logit, or the difference of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwater.errors import PromptError
from headwater.metrics import Metric
from headwater.metrics.base import wide
from headwater.prompts import Batch
from headwater.prompts.batches import Read


@dataclass(frozen=True)
class LogitMetric(Metric):
    """Mean logit of the answers, minus that of the wrong ones if there are any, at one position."""

    against: bool = False
    """Whether wrong answers are subtracted."""
    position: int = -1
    """Which token's prediction, from the first or, negative, from the last."""
    cap: float | None = None
    """A soft cap of the model, undone: only logits before it are sums of writes."""

    sense = "rises when the model prefers the answer"

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As results call it."""
        return "logit difference" if self.against else "logit"

    @property
    def needs(self) -> frozenset[str]:
        """The pairs' answers."""
        return frozenset({"answer", "wrong"} if self.against else {"answer"})

    def columns(self, batch: Batch) -> Int[Tensor, " rows"]:
        """Return the column of the padded batch that each row's position is.

        Raises:
            PromptError: If a prompt has no such position.
        """
        width, lengths = batch.clean.shape[1], batch.prompt_lengths()
        there = (lengths > self.position) & (lengths >= -self.position)
        if not bool(there.all()):
            row = int((~there).int().argmax())
            length = int(lengths[row])
            raise PromptError(
                f"position {self.position} does not exist: prompt {batch.pairs[row]} has {length} "
                f"tokens, positions 0 to {length - 1}.\n"
                "Write position=-1 for the last token, whose prediction follows the prompt."
            )
        starts = width - lengths if self.position >= 0 else torch.full_like(lengths, width)
        return starts + self.position

    def read(self, batch: Batch) -> Read:
        """Return every column that is some row's position."""
        return tuple(sorted(set(self.columns(batch).tolist())))

    def at_position(
        self, values: Float[Tensor, "rows read *axis"], batch: Batch
    ) -> Float[Tensor, "rows *axis"]:
        """Return each row's values at its own position, of those that `read` names."""
        read = torch.tensor(batch.read_columns(), device=values.device)
        places = torch.searchsorted(read, self.columns(batch).to(values.device))
        return values[torch.arange(len(values), device=values.device), places]

    def value(
        self, logits: Float[Tensor, "rows read vocab"], batch: Batch
    ) -> Float[Tensor, " rows"]:
        """Return the logit or the difference of means."""
        there = self.at_position(wide(logits), batch)
        if self.cap is not None:
            there = self.cap * (there / self.cap).atanh()
        return self.of(there, batch)

    def of(self, logits: Float[Tensor, "rows vocab"], batch: Batch) -> Float[Tensor, " rows"]:
        """Return the number from each row's logits at its position."""
        right = _mean(logits, batch.answer, batch.answer_mask)
        return right - _mean(logits, batch.wrong, batch.wrong_mask) if self.against else right

    def to_dict(self) -> dict[str, Any]:
        """Return what tells it from others."""
        return {"name": self.name, "position": self.position}


def _mean(
    logits: Float[Tensor, "rows vocab"],
    ids: Int[Tensor, "rows n"] | None,
    real: Bool[Tensor, "rows n"] | None,
) -> Float[Tensor, " rows"]:
    ids, real = cast("Tensor", ids), cast("Tensor", real)  # `needs` was checked by the caller
    return torch.where(real, logits.gather(1, ids), 0).sum(1) / real.sum(1)
