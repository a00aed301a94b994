"""The behaviors of the embedded models as tasks."""

from __future__ import annotations

import itertools

from headwater.errors import PromptError
from headwater.metrics import resolve_metric
from headwater.prompts import Task
from headwater.zoo.behaviors import behavior

_PAIRS = 200


def task(name: str, count: int | None = None, seed: int = 0) -> Task:
    """Return a task that the embedded models solve.

    With the same seed, a smaller task is the beginning of a larger one.

    Args:
        name: `ioi`, `greater-than`, `agreement`, `induction`, `capital`, `language` or `gender`.
        count: Number of pairs; by default 200.
        seed: Which pairs, and in which order.

    Returns:
        Distinct pairs, all of the same number of tokens. Their label is `held-out` if training
        never showed the combination asked for, and `memorised` if the answer is a learned fact.

    Raises:
        UnknownTaskError: If there is no task of that name.
        PromptError: If the task has fewer than `count` distinct pairs, or `count` is below 1.
    """
    asked = behavior(name)
    count = _PAIRS if count is None else count
    if not 1 <= count <= asked.distinct:
        raise PromptError(
            f"task '{name}' has {asked.distinct} distinct pairs; count is {count}.\n"
            f"Choose a count from 1 to {asked.distinct}."
        )
    return Task(
        itertools.islice(asked.pairs(seed), count),
        metric=resolve_metric(asked.metric),
        name=name,
        source=f"embedded, seed {seed}",
    )
