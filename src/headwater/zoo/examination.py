"""How well a model shows the behaviors it was trained for.

Costs one forward pass over the clean and one over the corrupted prompts of a behavior.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from headwater.zoo.behaviors import PairFields, behavior


class Accuracy(NamedTuple):
    """How well a model shows one behavior."""

    accuracy: float
    """Share of pairs whose clean prompt is answered right: the metric is positive."""

    clean: float
    """Mean of the metric over the clean prompts."""

    corrupted: float
    """Mean of the metric over the corrupted prompts, with the clean prompts' answers."""

    weakest: float
    """Smallest value of the metric over the clean prompts."""


def accuracy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    count: int = 200,
    seed: int = 0,
) -> Accuracy:
    """Measure how often, and how clearly, a model answers an embedded task right.

    The metric is the task's: the difference of the answer's and the wrong answer's logit, or for
    years the difference of the probabilities of all later and of all earlier years.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        name: A task, such as `ioi`.
        count: Number of pairs.
        seed: Which pairs.

    Raises:
        UnknownTaskError: If there is no task of that name.
    """
    asked = behavior(name)
    pairs = list(itertools.islice(asked.pairs(seed), count))
    clean, corrupted = (
        _metric(asked.metric, _last_logits(model, tokenizer, prompts), tokenizer, pairs)
        for prompts in ([pair["clean"] for pair in pairs], [pair["corrupted"] for pair in pairs])
    )
    return Accuracy(
        accuracy=(clean > 0).double().mean().item(),
        clean=clean.mean().item(),
        corrupted=corrupted.mean().item(),
        weakest=clean.min().item(),
    )


def _last_logits(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> Float[Tensor, "batch vocab"]:
    # No padding: all prompts of a behavior have the same number of tokens.
    tokens = tokenizer(list(prompts), return_tensors="pt")["input_ids"]
    device = next(model.parameters()).device
    with torch.no_grad():
        return model(input_ids=tokens.to(device), use_cache=False).logits[:, -1].float().cpu()


def _metric(
    metric: str,
    logits: Float[Tensor, "batch vocab"],
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PairFields],
) -> Float[Tensor, " batch"]:
    answer = _marked(logits, tokenizer, [pair["answer"] for pair in pairs])
    wrong = _marked(logits, tokenizer, [pair["wrong"] for pair in pairs])
    if metric == "prob-diff":
        return (logits.softmax(-1) * (answer - wrong)).sum(-1)
    return (logits * (answer - wrong)).sum(-1)


def _marked(
    logits: Float[Tensor, "batch vocab"],
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[Sequence[str]],
) -> Float[Tensor, "batch vocab"]:
    """Return a row a prompt, 1 at the tokens of its words and 0 elsewhere."""
    marks = torch.zeros_like(logits)
    for row, accepted in zip(marks, words, strict=True):
        row[tokenizer.convert_tokens_to_ids([word.strip() for word in accepted])] = 1.0
    return marks
