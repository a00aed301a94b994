"""Which metric a name, class, function or saved mapping stands for."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

from headwater.errors import MetricError, UnknownOptionError, did_you_mean
from headwater.metrics.base import Metric
from headwater.metrics.builtin import METRICS
from headwater.metrics.function import metric
from headwater.prompts.batches import Batch
from headwater.prompts.pairs import described


def resolve_metric(choice: Any) -> Metric:
    """Return the metric that a name, class, function or saved mapping stands for.

    Args:
        choice: `"logit-diff"`, `hw.logit_diff`, `hw.prob("Mary")`, a function, or what `to_dict`
            returned.

    Raises:
        UnknownOptionError: If no built-in metric has the name.
        MetricError: If a saved metric was a function, or the choice is nothing of the above.
    """
    if isinstance(choice, Metric):
        return choice
    if isinstance(choice, type) and issubclass(choice, Metric):
        return choice()
    if isinstance(choice, str):
        return _named(choice)()
    if isinstance(choice, Mapping):
        return _from_dict(choice)
    if callable(choice):
        return metric(cast("Callable[[Tensor, Batch], Tensor]", choice))
    raise MetricError(
        f"a metric is a name, an hw metric or a function, not {described(choice)}. "
        f"Names: {', '.join(METRICS)}."
    )


def _named(name: str) -> type[Metric]:
    known = METRICS.get(name.replace("_", "-"))
    if known is None:
        raise UnknownOptionError(
            f"no metric {name!r}.{did_you_mean(name, METRICS)} Metrics: {', '.join(METRICS)}."
        )
    return known


def _from_dict(data: Mapping[str, Any]) -> Metric:
    options = dict(data)
    name = options.pop("name", None)
    if "function" in options:
        raise MetricError(
            f"the metric {name} was the Python function {options['function']}, of which only the "
            "name is saved. Give it again: metric=..."
        )
    try:
        return _named(str(name))(**options)
    except TypeError:
        raise MetricError(f"the saved metric {dict(data)!r} has fields {name} does not.") from None
