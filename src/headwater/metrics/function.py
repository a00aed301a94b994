"""A metric of one's own: a function of the logits."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from headwater.errors import MetricError, UnknownOptionError, did_you_mean
from headwater.metrics.base import HOW_TO_CARRY, Metric
from headwater.prompts.batches import Batch, Read
from headwater.prompts.pairs import described

Positions: TypeAlias = int | Sequence[int] | Literal["all"]
"""The last `k` positions, these counted from the end (`[-3, -1]`), or all of them."""


@dataclass(frozen=True)
class FunctionMetric(Metric):
    """A metric computed by a function of the user's; made by `metric`."""

    function: Callable[..., Tensor]
    name: str
    positions: int | tuple[int, ...] | Literal["all"] | None = None
    fields: frozenset[str] | None = None

    sense = "is taken to rise when the behavior is present, as the function's author decides"

    @property
    def needs(self) -> frozenset[str]:
        """What was declared; by default nothing is required and what the pairs have is given."""
        return self.fields or frozenset()

    @property
    def wants(self) -> frozenset[str]:
        """The declared fields; undeclared, both kinds of answers."""
        return frozenset({"answer", "wrong"}) if self.fields is None else self.fields

    def read(self, batch: Batch) -> Read:
        """Return the declared positions as columns of the batch.

        Raises:
            MetricError: If a row is too short to have one of them.
        """
        width = batch.clean.shape[1]
        if self.positions == "all":
            return width
        if self.positions is None:
            return 1
        if isinstance(self.positions, int):
            read, columns = self.positions, range(width - self.positions, width)
        else:
            read = columns = tuple(width + position for position in self.positions)
        for pair, row in zip(batch.pairs, batch.mask, strict=True):
            if any(column < 0 or not row[column] for column in columns):
                raise MetricError(
                    f"pair {pair} has {int(row.sum())} tokens, too few for the metric "
                    f"{self.name}, which reads positions={self.positions!r}. "
                    "Read fewer positions, or leave short pairs out."
                )
        return read

    def value(
        self, logits: Float[Tensor, "rows read vocab"], batch: Batch
    ) -> Float[Tensor, " rows"]:
        """Return what the function returns, checked."""
        values = self.function(logits[:, -1] if self.positions is None else logits, batch)
        rows = logits.shape[0]
        if not isinstance(values, Tensor) or not values.is_floating_point():
            is_tensor = isinstance(values, Tensor)
            returned = f"a tensor of {values.dtype}" if is_tensor else described(values)
            raise MetricError(
                f"the metric {self.name} returned {returned}; it must return a "
                f"floating-point tensor of shape [{rows}], one number a row."
            )
        if values.shape != (rows,):
            raise MetricError(
                f"the metric {self.name} returned shape {list(values.shape)} for {rows} rows; it "
                f"must return [{rows}], one number a row. Do not average over the rows."
            )
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the function's name; the function itself is not saved."""
        function = self.function
        where = getattr(function, "__module__", type(function).__module__)
        name = getattr(function, "__qualname__", type(function).__qualname__)
        data = {"name": self.name, "function": f"{where}.{name}"}
        return data if self.positions is None else {**data, "positions": self.positions}


def metric(
    function: Callable[[Tensor, Batch], Tensor],
    *,
    positions: Positions | None = None,
    name: str | None = None,
    needs: Sequence[str] | None = None,
) -> Metric:
    """Make a metric of a function `(logits, batch) -> one number a row`.

    Args:
        function: It must rise when the behavior is present; differentiable, unless it is only
            scored with `hw.Exact()`.
        positions: Left out, the function gets the last position's logits, `[rows, vocab]`. An
            integer k gives the last k positions, negative positions those, `"all"` every one
            (mind `batch.mask`); then it gets `[rows, positions, vocab]`.
        name: Shown in results; the function's own name if left out.
        needs: Which of `"answer"`, `"wrong"` and `"clean_logits"` it reads from the batch. Left
            out, the answers that all pairs have are given; `()` gives none, whatever their length.

    Returns:
        The metric.

    Raises:
        MetricError: If `positions` has no meaning, or the function cannot be called so.
        UnknownOptionError: If `needs` names something else.
    """
    checked = _checked_positions(positions)
    for one in needs or ():
        if one not in HOW_TO_CARRY:
            known = ", ".join(sorted(HOW_TO_CARRY))
            raise UnknownOptionError(
                f"no batch field {one!r}.{did_you_mean(one, HOW_TO_CARRY)} Known: {known}."
            )
    title = name or str(getattr(function, "__name__", type(function).__name__))
    _refuse_signature(function, title)
    return FunctionMetric(function, title, checked, None if needs is None else frozenset(needs))


def _refuse_signature(function: Callable[..., Any], title: str) -> None:
    try:
        takes = inspect.signature(function)
    except (TypeError, ValueError):
        return  # what is not written in Python may not tell
    try:
        takes.bind(None, None)
    except TypeError:
        raise MetricError(
            f"the metric {title} takes {takes}, and is called with the logits and the batch.\n"
            "Write it as (logits, batch), whether it reads the batch or not."
        ) from None


def _checked_positions(
    positions: Positions | None,
) -> int | tuple[int, ...] | Literal["all"] | None:
    if positions is None:
        return None
    if isinstance(positions, str):
        checked, valid = "all", positions == "all"
    elif isinstance(positions, int):
        checked, valid = positions, positions >= 1
    else:
        checked = tuple(positions)
        valid = bool(checked) and all(isinstance(one, int) and one < 0 for one in checked)
    if not valid:
        raise MetricError(
            f"positions={positions!r}: give the last k as a number from 1, a list counted from "
            "the end such as [-3, -1], or 'all'."
        )
    return checked
