"""The behaviors of the embedded models as tasks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwater.errors import (
    AnswerError,
    PromptError,
    UnalignedPromptsError,
    UnknownTaskError,
    UnknownWordError,
    did_you_mean,
)
from headwater.metrics import resolve_metric
from headwater.prompts import Batch, Pair, Task
from headwater.zoo.behaviors import BEHAVIORS, Behavior
from headwater.zoo.python_tasks import PYTHON_BEHAVIORS

_PAIRS = 200
_GRAMMAR_MODELS = ("tiny", "tiny-gpt2", "tiny-mamba")
_PYTHON_MODELS = ("tiny-python",)
TASK_MODELS = dict.fromkeys(BEHAVIORS, _GRAMMAR_MODELS) | dict.fromkeys(
    PYTHON_BEHAVIORS, _PYTHON_MODELS
)
"""Each embedded task, and the embedded models it is made for."""
OTHER_NAMES = {"subject-verb": "agreement"}
"""Tasks by what else they are called."""


class EmbeddedTask(Task):
    """A task that knows which embedded models it is made for.

    Other models may run it; if their tokenizer cannot, the error says which models can.
    """

    @property
    def models(self) -> tuple[str, ...]:
        """Names for `headwater.load`."""
        return TASK_MODELS[self.name]

    def batches(self, *arguments: Any, **options: Any) -> list[Batch]:
        """Encode the pairs into batches for a model, as `Task.batches` does.

        Raises:
            UnalignedPromptsError, AnswerError, UnknownWordError: If the tokens of another model do
                not fit the pairs. The message names the models that the task is made for.
        """
        try:
            return super().batches(*arguments, **options)
        except (UnalignedPromptsError, AnswerError, UnknownWordError) as error:
            made_for = " or ".join(f"hw.load({name!r})" for name in self.models)
            raise type(error)(
                f"{error}\nThe embedded task '{self.name}' is made for {made_for}."
            ) from None

    def with_metric(self, metric: Any) -> EmbeddedTask:
        """Return the same pairs with another metric."""
        return EmbeddedTask(self.pairs, metric, name=self.name, source=self.source)

    def _with_pairs(self, pairs: Sequence[Pair]) -> EmbeddedTask:
        return EmbeddedTask(pairs, self.metric, name=self.name, source=self.source)


def task(name: str, count: int | None = None, seed: int = 0) -> Task:
    """Return a task that an embedded model solves (but `tiny-mamba` not `induction`).

    With the same seed, a smaller task is the beginning of a larger one.

    Args:
        name: Of `tiny`, `tiny-gpt2` and `tiny-mamba`, on generated sentences: `ioi`,
            `greater-than`, `agreement` (also called `subject-verb`), `induction`, `capital`,
            `language` or `gender`. Of `tiny-python`, on Python's standard library: `bracket`,
            `quote`, `self`, `indent` or `name`.
        count: Number of pairs; by default 200, or as many as there are.
        seed: Which pairs, and in which order.

    Returns:
        Distinct pairs, all of the same number of tokens. On generated sentences their label is
        `held-out` if training never showed the combination asked for, and `memorised` if the
        answer is a learned fact. On Python it is the file and line the prompt was cut from, a
        file held out from training.

    Raises:
        UnknownTaskError: If there is no task of that name.
        PromptError: If the task has fewer than `count` distinct pairs, or `count` is below 1.
    """
    name = OTHER_NAMES.get(name, name)
    if name in BEHAVIORS:
        return _generated(BEHAVIORS[name], count, seed)
    if name in PYTHON_BEHAVIORS:
        return _cut(name, count, seed)
    others = "".join(f", {other} (which is {one})" for other, one in OTHER_NAMES.items())
    listed = f"{', '.join(BEHAVIORS)}{others}; {', '.join(PYTHON_BEHAVIORS)} (tiny-python)"
    raise UnknownTaskError(
        f"no embedded task '{name}'.{did_you_mean(name, [*TASK_MODELS, *OTHER_NAMES])}\n"
        f"Embedded tasks: {listed}; for a file of pairs: hw.Task.read('pairs.jsonl')."
    )


def _generated(asked: Behavior, count: int | None, seed: int) -> EmbeddedTask:
    count = _PAIRS if count is None else count
    _refuse_count(asked.name, count, asked.distinct)
    return EmbeddedTask(
        itertools.islice(asked.pairs(seed), count),
        metric=resolve_metric(asked.metric),
        name=asked.name,
        source=f"embedded, seed {seed}",
    )


def _cut(name: str, count: int | None, seed: int) -> EmbeddedTask:
    folder = Path(__file__).parent / "data" / _PYTHON_MODELS[0] / "tasks"
    pairs = list(Task.read(folder / f"{name}.jsonl").pairs)
    count = min(_PAIRS, len(pairs)) if count is None else count
    _refuse_count(name, count, len(pairs))
    random.Random(f"{name} {seed}").shuffle(pairs)
    return EmbeddedTask(
        pairs[:count],
        metric=resolve_metric("logit-diff"),
        name=name,
        source=f"embedded, Python's standard library, seed {seed}",
    )


def _refuse_count(name: str, count: int, distinct: int) -> None:
    if not 1 <= count <= distinct:
        raise PromptError(
            f"task '{name}' has {distinct} distinct pairs; count is {count}.\n"
            f"Choose a count from 1 to {distinct}."
        )
