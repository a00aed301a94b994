"""What is asked: one prompt, and the number computed from its logits, or several numbers."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import GradcheckError, HeadwaterError, MetricError
from headwater.metrics import FunctionMetric, Metric, resolve_metric
from headwater.models import Model
from headwater.prompts import Batch, Pair, Task
from headwater.prompts.pairs import Answers

EXAMPLE = {"answer": "Mary", "wrong": "John"}
"""What might be asked for, where something has to be."""


class Asked:
    """A prompt encoded for a model, and the objective.

    Args:
        model: Whose tokenizer reads the prompt.
        prompt: The prompt.
        metric: As for a task.
        answer: For metrics that read it.
        wrong: Likewise.
        corrupted: A corrupted prompt, for gates.
        grad_outputs: Weights of the entries of a vector metric; None for a metric of one number.

    Raises:
        GradcheckError: If it is not said which number is meant.
    """

    batch: Batch
    """The prompt's one row."""

    def __init__(
        self,
        model: Model,
        prompt: str,
        metric: Any,
        answer: Answers,
        wrong: Answers,
        corrupted: str | None,
        grad_outputs: Tensor | str | None,
    ) -> None:
        if metric is None and not answer:
            raise GradcheckError(
                "which number's gradient? No metric is given.\n"
                'Write metric=hw.prob("Mary"), hw.logprob("Mary"), or a function of the logits.'
            )
        if isinstance(metric, str) and ":" in metric:
            name, _, word = metric.partition(":")
            raise GradcheckError(
                f"metric={metric!r} is how the command line has it.\n"
                f"Write metric=hw.{name.replace('-', '_')}({word!r})."
            )
        if metric is not None:
            metric = resolve_metric(metric)
        adapter = model.anatomy()
        self.task = Task([Pair(prompt, corrupted, answer, wrong)], metric, name="prompt")
        self.metric: Metric = self.task.metric
        given = {"answer": answer or self.metric.fixed_answer, "wrong": wrong}
        lacking = [name for name, one in given.items() if name in self.metric.needs and not one]
        if lacking:
            raise GradcheckError(
                f"the metric {self.metric.name} needs {' and '.join(lacking)}, which "
                f"{'is' if len(lacking) == 1 else 'are'} not given.\n"
                f"Write {', '.join(f'{one}={EXAMPLE[one]!r}' for one in lacking)}"
                + (', or metric=hw.prob("Mary").' if "wrong" not in self.metric.needs else ".")
            )
        try:
            (self.batch,) = self.task.batches(
                model.tokenizer,
                device=model.device,
                pad=adapter.pads,
                align=corrupted is not None,
            )
        except HeadwaterError as error:  # there is no other prompt
            raise type(error)(str(error).removeprefix("pair 0: ")) from None
        self.grad_outputs = grad_outputs
        if grad_outputs is not None and not isinstance(self.metric, FunctionMetric):
            raise GradcheckError(
                f"grad_outputs weighs the entries of a vector, and {self.metric.name} is one "
                "number.\nLeave it out, or give a function of the logits that returns "
                "[rows, entries]: metric=lambda logits, batch: logits.softmax(-1)."
            )
        self.tokens: tuple[str, ...] = tuple(self.batch.tokens(model.tokenizer)[0])

    @property
    def length(self) -> int:
        """How many tokens the prompt has."""
        return len(self.tokens)

    @property
    def title(self) -> str:
        """The metric as it is typed: `prob:Mary`."""
        pair, name = self.task.pairs[0], self.metric.name
        if name == "<lambda>":
            return "the metric"
        answers = pair.answer if "answer" in self.metric.needs else ()
        listed = ",".join(map(str, self.metric.fixed_answer or answers))
        against = ",".join(map(str, pair.wrong)) if "wrong" in self.metric.needs else ""
        return name + (f":{listed}" if listed else "") + (f" against {against}" if against else "")

    def objective(
        self, logits: Float[Tensor, "rows read vocab"], rows: Batch
    ) -> Float[Tensor, "rows *entry"]:
        """Return the metric of each row; its entries where they are weighed."""
        if self.grad_outputs is None:
            try:
                return self.metric.value(logits, rows)
            except MetricError as error:
                if not isinstance(self.metric, FunctionMetric):
                    raise
                raise MetricError(
                    f"{error}\nOr say which sum of several numbers a row is meant: "
                    'grad_outputs="ones", or a tensor of weights.'
                ) from None
        assert isinstance(self.metric, FunctionMetric)
        shown = logits[:, -1] if self.metric.positions is None else logits
        found = self.metric.function(shown, rows)
        is_vector = isinstance(found, Tensor) and found.ndim > 1 and len(found) == len(logits)
        if not is_vector:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise GradcheckError(
                f"the metric {self.metric.name} returned {shape} for {len(logits)} rows; it must "
                "return [rows, entries]."
            )
        return found

    def weights(self, found: Float[Tensor, "rows *entry"]) -> Float[Tensor, "*entry"] | None:
        """Return the weights of the entries, shaped as they are.

        Args:
            found: What `objective` returned.
        """
        if self.grad_outputs is None:
            return None
        if isinstance(self.grad_outputs, str):  # "ones", the only word
            return torch.ones_like(found[0])
        if self.grad_outputs.shape != found.shape[1:]:
            raise GradcheckError(
                f"grad_outputs has shape {list(self.grad_outputs.shape)}; the metric returns "
                f"{list(found.shape[1:])}. Give one weight an entry."
            )
        return self.grad_outputs.detach().to(found)
