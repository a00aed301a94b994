"""The six metrics that come with headwater."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwater.errors import MetricError, PromptError
from headwater.metrics.base import Metric, wide
from headwater.prompts.batches import Batch, Read
from headwater.prompts.pairs import Answer, Answers, as_answers

Side: TypeAlias = tuple[Int[Tensor, "rows n"], Bool[Tensor, "rows n"]]
"""Token ids of each row's answers, and where they are real."""


@dataclass(frozen=True)
class logit_diff(Metric):
    """Mean logit of the answers minus mean logit of the wrong ones: `z[answer] - z[wrong]`."""

    name = "logit-diff"
    sense = "rises when the model prefers the answer to the wrong one"

    @property
    def needs(self) -> frozenset[str]:
        """The pairs' own answers, right and wrong."""
        return frozenset({"answer", "wrong"})

    def value(
        self, logits: Float[Tensor, "rows read vocab"], batch: Batch
    ) -> Float[Tensor, " rows"]:
        """Return the difference of the two means."""
        last = wide(logits)[:, -1]
        return _pooled(last, *_right(batch), mean=True) - _pooled(last, *_wrong(batch), mean=True)


@dataclass(frozen=True)
class prob_diff(Metric):
    """Probability of the answers, summed, minus that of the wrong ones."""

    name = "prob-diff"
    sense = "rises when probability moves from the wrong ones to the answers"

    @property
    def needs(self) -> frozenset[str]:
        """The pairs' own answers, right and wrong."""
        return frozenset({"answer", "wrong"})

    def value(
        self, logits: Float[Tensor, "rows read vocab"], batch: Batch
    ) -> Float[Tensor, " rows"]:
        """Return the difference of the two sums."""
        probs = wide(logits)[:, -1].softmax(dim=-1)
        return _pooled(probs, *_right(batch)) - _pooled(probs, *_wrong(batch))


@dataclass(frozen=True)
class prob(Metric):
    """Probability of the answers, summed."""

    answer: Answers = ()
    """The token or tokens to follow for every pair; left out, each pair's own answers."""

    name = "prob"
    sense = "rises when the answer becomes more probable"

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer", as_answers(self.answer))

    @property
    def fixed_answer(self) -> tuple[Answer, ...]:
        """The answer given to the metric itself."""
        return as_answers(self.answer)

    @property
    def needs(self) -> frozenset[str]:
        """An answer."""
        return frozenset({"answer"})

    def value(
        self, logits: Float[Tensor, "rows read vocab"], batch: Batch
    ) -> Float[Tensor, " rows"]:
        """Return the summed probability."""
        return _pooled(wide(logits)[:, -1].softmax(dim=-1), *_right(batch))


@dataclass(frozen=True)
class logprob(Metric):
    """Log-probability that the continuation is one of the answers.

    One answer of several tokens is teacher-forced: the sum over its tokens, each given those
    before it. Several answers of one token each are pooled: `logsumexp` over them.
    """

    answer: Answers = ()
    """The continuation to follow for every pair; left out, each pair's own answers."""

    name = "logprob"
    sense = "rises when the answer becomes more probable"
    several_tokens = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer", as_answers(self.answer))

    @property
    def fixed_answer(self) -> tuple[Answer, ...]:
        """The answer given to the metric itself."""
        return as_answers(self.answer)

    @property
    def needs(self) -> frozenset[str]:
        """An answer."""
        return frozenset({"answer"})

    def read(self, batch: Batch) -> Read:
        """Return one position for each token of the longest answer."""
        return 1 if batch.target is None else batch.target.shape[1]

    def value(
        self, logits: Float[Tensor, "rows read vocab"], batch: Batch
    ) -> Float[Tensor, " rows"]:
        """Return the log-probability."""
        logprobs = wide(logits).log_softmax(dim=-1)
        if batch.target is None or batch.target_mask is None:
            ids, real = _right(batch)
            return logprobs[:, -1].gather(1, ids).masked_fill(~real, -torch.inf).logsumexp(dim=1)
        steps = logprobs.gather(2, batch.target[..., None]).squeeze(2)
        return torch.where(batch.target_mask, steps, 0).sum(dim=1)


@dataclass(frozen=True)
class kl(Metric):
    """Minus the divergence from the clean run: `-sum_v p_clean(v) log(p_clean(v) / p(v))`.

    It is 0 in the clean run itself, with gradient exactly 0 there.
    """

    positions: int | Literal["all"] = 1
    """The last `k` positions or all of them; their mean is taken, padding left out."""

    name = "kl"
    sense = "is 0 when the run predicts what the clean run predicts, and falls as they part"

    def __post_init__(self) -> None:
        if self.positions != "all" and self.positions < 1:
            raise MetricError(f"kl(positions={self.positions}): at least the last 1, or 'all'.")

    @property
    def needs(self) -> frozenset[str]:
        """The clean run; neither answer nor corrupted prompt."""
        return frozenset({"clean_logits"})

    def read(self, batch: Batch) -> Read:
        """Return the last `positions`, as many as the longest row has."""
        width = batch.clean.shape[1]
        return width if self.positions == "all" else min(self.positions, width)

    def value(
        self, logits: Float[Tensor, "rows read vocab"], batch: Batch
    ) -> Float[Tensor, " rows"]:
        """Return the negated divergence, averaged over the positions."""
        clean = wide(cast("Tensor", batch.clean_logits)).log_softmax(dim=-1)
        here = wide(logits).log_softmax(dim=-1)
        divergence = (clean.exp() * (clean - here)).sum(dim=-1)
        return -_masked_mean(divergence, batch.mask[:, batch.read_columns()])

    def to_dict(self) -> dict[str, Any]:
        """Return what `resolve_metric` rebuilds the metric from."""
        return {"name": self.name, "positions": self.positions}


@dataclass(frozen=True)
class cross_entropy(Metric):
    """Minus the mean next-token loss on the clean prompt: `mean_t log p(token[t+1] | ...t)`."""

    name = "cross-entropy"
    sense = "rises when the clean prompt becomes more probable, token by token"

    def read(self, batch: Batch) -> Read:
        """Return all positions.

        Raises:
            PromptError: If a prompt has one token only, so that nothing is predicted.
        """
        short = [pair for pair, row in zip(batch.pairs, batch.mask, strict=True) if row.sum() < 2]
        if short:
            raise PromptError(
                f"pair {short[0]}: cross-entropy needs a prompt of at least 2 tokens, since it "
                "scores each token given those before it; this one has 1."
            )
        return batch.clean.shape[1]

    def value(
        self, logits: Float[Tensor, "rows read vocab"], batch: Batch
    ) -> Float[Tensor, " rows"]:
        """Return the mean log-probability of the tokens after the first."""
        logprobs = wide(logits)[:, :-1].log_softmax(dim=-1)
        following = logprobs.gather(2, batch.clean[:, 1:, None]).squeeze(2)
        # Under left padding, position t predicts a real token exactly if t itself is real.
        return _masked_mean(following, batch.mask[:, :-1])


METRICS: dict[str, type[Metric]] = {
    one.name: one for one in (logit_diff, prob_diff, prob, logprob, kl, cross_entropy)
}
"""The built-in metrics by the name typed on the command line."""


def _right(batch: Batch) -> Side:
    # The masks are there whenever the ids are, and `needs` was checked by the caller.
    return cast("Side", (batch.answer, batch.answer_mask))


def _wrong(batch: Batch) -> Side:
    return cast("Side", (batch.wrong, batch.wrong_mask))


def _pooled(
    values: Float[Tensor, "rows vocab"],
    ids: Int[Tensor, "rows n"],
    real: Bool[Tensor, "rows n"],
    *,
    mean: bool = False,
) -> Float[Tensor, " rows"]:
    picked = torch.where(real, values.gather(1, ids), 0).sum(dim=1)
    return picked / real.sum(dim=1) if mean else picked


def _masked_mean(
    values: Float[Tensor, "rows n"], real: Bool[Tensor, "rows n"]
) -> Float[Tensor, " rows"]:
    return torch.where(real, values, 0).sum(dim=1) / real.sum(dim=1)
