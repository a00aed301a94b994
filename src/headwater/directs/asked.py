"""What is asked: prompts, and for each the token whose logit is taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headwater.attribution.checks import refuse_given
from headwater.directs.metric import LogitMetric
from headwater.errors import AnswerError, HeadwaterError, MissingFieldError, PromptError
from headwater.models import Model
from headwater.prompts import Batch, Pair, Task
from headwater.prompts.pairs import Answers, described

EXAMPLE = 'hw.attribute_logit(model, "Mary and John went", "Mary", against="John")'


def task_of(prompts: str | Sequence[str] | Task, answer: Any, against: Any, position: int) -> Task:
    """Return prompts and answers as a task whose metric is the logit.

    Args:
        prompts: One prompt, several, or a task, of which clean prompts, answers and wrong answers
            are taken.
        answer: The token; of several prompts the same for all, or a list with one a prompt.
        against: The token whose logit is subtracted, likewise.
        position: Which token's prediction.

    Raises:
        PromptError: If the arguments do not fit each other.
        MissingFieldError: If it is not said which token is meant.
    """
    if isinstance(position, bool) or not isinstance(position, int):
        raise PromptError(
            f"position is {described(position)}: write one number, such as -1 for the last token."
        )
    if isinstance(prompts, Task):
        refuse_given("a task has its own: its pairs' answer and wrong", answer=answer,
                     against=against)  # fmt: skip
        return _of_task(prompts, position)
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(texts, Sequence) or not all(isinstance(one, str) for one in texts):
        raise PromptError(f"prompts: expected a text, a list of texts or a task, got "
                          f"{described(prompts)}.\nWrite {EXAMPLE}.")  # fmt: skip
    if not texts:
        raise PromptError("there are no prompts. Give at least one.")
    if answer is None:
        raise MissingFieldError(f"which token's logit? No answer is given.\nWrite {EXAMPLE}.")
    alone = isinstance(prompts, str)
    answers = _for_each(answer, len(texts), "answer", alone=alone)
    wrongs = _for_each(against, len(texts), "against", alone=alone)
    pairs = [Pair(*one) for one in zip(texts, [None] * len(texts), answers, wrongs, strict=True)]
    metric = LogitMetric(against=against is not None, position=position)
    return Task(pairs, metric, name="prompt" if alone else "prompts")


def batches_of(model: Model, task: Task, batch_size: int) -> list[Batch]:
    """Return the prompts encoded for a model.

    Raises:
        PromptError: If a prompt or an answer cannot be used.
    """
    try:
        return task.batches(
            model.tokenizer,
            batch_size=batch_size,
            device=model.device,
            pad=model.anatomy().pads,
            align=False,
        )
    except HeadwaterError as error:
        if len(task) > 1:
            raise
        raise type(error)(str(error).removeprefix("pair 0: ")) from None


def _of_task(task: Task, position: int) -> Task:
    lacking = next((n for n, pair in enumerate(task.pairs) if not pair.answer), None)
    if lacking is not None:
        raise MissingFieldError(
            f"pair {lacking} has no `answer`: which token's logit?\n"
            "Give every pair one: hw.Pair(clean, answer=...)."
        )
    with_wrong = [bool(pair.wrong) for pair in task.pairs]
    if any(with_wrong) and not all(with_wrong):
        raise MissingFieldError(
            f"pair {with_wrong.index(False)} has no `wrong`, and others do: their numbers would be "
            "a logit and a difference of logits.\nGive every pair one, or none."
        )
    return task.with_metric(LogitMetric(against=all(with_wrong), position=position))


def _for_each(given: Any, count: int, name: str, *, alone: bool) -> list[Answers]:
    """Return one answer a prompt."""
    if given is None:
        return [()] * count
    if alone or not isinstance(given, list | tuple):
        return [given] * count
    if len(given) != count:
        raise AnswerError(
            f"{name} is a list of {len(given)} for {count} prompts.\n"
            "Give one for all, or a list with one a prompt."
        )
    return list(given)
