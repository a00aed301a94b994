"""What every metric is: a name, a sense, the positions it reads, and one number a row."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import MetricError, MissingFieldError, NonFiniteError
from headwater.prompts.batches import Batch, Read
from headwater.prompts.pairs import Answer


class Metric(ABC):
    """One number a prompt; subclass it with `value`, or wrap a function with `metric`."""

    name: str
    """As typed on the command line."""

    sense: str
    """Why the metric is larger when the behavior is present."""

    several_tokens: bool = False
    """Whether an answer may be several tokens long."""

    @property
    def needs(self) -> frozenset[str]:
        """What a batch must carry: some of `"answer"`, `"wrong"`, `"clean_logits"`."""
        return frozenset()

    @property
    def wants(self) -> frozenset[str]:
        """What it uses if the pairs have it; `needs` unless overridden."""
        return self.needs

    @property
    def fixed_answer(self) -> tuple[Answer, ...]:
        """An answer of the metric's own, which replaces the pairs' answers; usually none."""
        return ()

    def read(self, batch: Batch) -> Read:
        """Return the positions whose logits `value` wants; the last one unless overridden."""
        return 1

    @abstractmethod
    def value(
        self, logits: Float[Tensor, "rows read vocab"], batch: Batch
    ) -> Float[Tensor, " rows"]:
        """Return the metric of each row, differentiable in the logits."""

    def __call__(
        self, logits: Float[Tensor, "rows read vocab"], batch: Batch
    ) -> Float[Tensor, " rows"]:
        """Return the metric of each row.

        Args:
            logits: Logits at the positions `read` names.
            batch: The prompts and answers of the same rows (`batch.repeat` for stacked settings).

        Returns:
            One number a row.

        Raises:
            MetricError: If the logits are not of the batch's rows and read positions, or the
                value of logits that require a gradient has none.
            MissingFieldError: If the batch lacks what the metric needs.
            NonFiniteError: If a value is NaN or infinite.
        """
        self._refuse_misfit(logits, batch)
        values = self.value(logits, batch)
        _refuse_non_finite(self.name, values, batch)
        if logits.requires_grad and torch.is_grad_enabled() and not values.requires_grad:
            raise MetricError(
                f"the value of the metric {self.name} does not depend on the logits in a way "
                "autograd can follow (argmax, a comparison, .item(), .detach() or no_grad "
                "inside?), so it has no gradient.\n"
                "Compute it from the logits by differentiable operations, for example "
                "logits.log_softmax(-1), or score with hw.Exact(), which works with any metric."
            )
        return values

    def _refuse_misfit(self, logits: Float[Tensor, "rows read vocab"], batch: Batch) -> None:
        if logits.shape[:2] != (len(batch), len(batch.read_columns())):
            raise MetricError(
                f"the metric {self.name} got logits for {logits.shape[0]} rows and "
                f"{logits.shape[1]} positions, with a batch of {len(batch)} rows that reads "
                f"{len(batch.read_columns())}. Stacked settings need batch.repeat(settings); "
                "another metric than the task's needs task.with_metric(metric).batches(...)."
            )
        for field in sorted(self.needs):
            if getattr(batch, field) is None and (field != "answer" or batch.target is None):
                raise MissingFieldError(
                    f"the metric {self.name} needs `{field}`, which this batch does not carry."
                    f"{HOW_TO_CARRY[field]}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return what `resolve_metric` rebuilds the metric from."""
        answer = {"answer": list(self.fixed_answer)} if self.fixed_answer else {}
        return {"name": self.name, **answer}


HOW_TO_CARRY = {
    "answer": " Build the batch with `task.batches`, from pairs with `answer`.",
    "wrong": " Build the batch with `task.batches`, from pairs with `wrong`.",
    "clean_logits": " Run the clean prompts first: batch.with_clean_logits(logits).",
}


def wide(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the logits in float32, or as they are if that would lose digits."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _refuse_non_finite(name: str, values: Float[Tensor, " rows"], batch: Batch) -> None:
    finite = values.isfinite()
    if bool(finite.all()):
        return
    rows = (~finite).nonzero().flatten().tolist()
    # With stacked settings the rows repeat the batch's pairs.
    pairs = sorted({batch.pairs[row % len(batch.pairs)] for row in rows})
    raise NonFiniteError(
        f"the metric {name} is {float(values[rows[0]].detach())} for "
        f"pair{'s' if len(pairs) > 1 else ''} {', '.join(map(str, pairs[:10]))}"
        f"{' and others' if len(pairs) > 10 else ''}. "
        "Run in a wider dtype (dtype=torch.float32), or look at these prompts' logits."
    )
