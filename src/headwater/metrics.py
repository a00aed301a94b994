"""Metrics: one number a prompt, computed from the logits, rising when the behavior is present.

Every metric declares its sense, so that a positive score always means "supports". Divergences and
losses are negated for that: `kl` and `cross_entropy` are 0 at best and fall from there.

    logit_diff     mean logit of the answers - mean logit of the wrong ones
    prob_diff      probability of the answers, summed - that of the wrong ones
    prob           probability of the answers, summed
    logprob        log of that sum; also of one answer of several tokens, teacher-forced
    kl             -KL(clean run || this run)
    cross_entropy  -(mean next-token loss on the clean prompt)

Softmax and logarithm are computed in float32, or in the logits' own dtype if that is wider.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from headwater.errors import (
    ConstantMetricError,
    MetricError,
    MissingFieldError,
    NonFiniteError,
    PromptError,
    UnknownOptionError,
    did_you_mean,
)
from headwater.prompts.batches import Batch, Read
from headwater.prompts.pairs import Answer, Answers, as_answers

Positions: TypeAlias = int | Sequence[int] | Literal["all"]
"""The last `k` positions, these counted from the end (`[-3, -1]`), or all of them."""


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
            MissingFieldError: If the batch lacks what the metric needs.
            NonFiniteError: If a value is NaN or infinite.
        """
        for field in sorted(self.needs):
            if getattr(batch, field) is None and (field != "answer" or batch.target is None):
                raise MissingFieldError(
                    f"the metric {self.name} needs `{field}`, which this batch does not carry."
                    f"{_HOW_TO_CARRY[field]}"
                )
        values = self.value(logits, batch)
        _refuse_non_finite(self.name, values, batch)
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return what `resolve_metric` rebuilds the metric from."""
        answer = {"answer": list(self.fixed_answer)} if self.fixed_answer else {}
        return {"name": self.name, **answer}


_HOW_TO_CARRY = {
    "answer": " Build the batch with `task.batches`, from pairs with `answer`.",
    "wrong": " Build the batch with `task.batches`, from pairs with `wrong`.",
    "clean_logits": " Run the clean prompts first: batch.with_clean_logits(logits).",
}


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
        last = _wide(logits)[:, -1]
        right, wrong = _sides(batch)
        return _pooled(last, *right, mean=True) - _pooled(last, *wrong, mean=True)


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
        probs = _wide(logits)[:, -1].softmax(dim=-1)
        right, wrong = _sides(batch)
        return _pooled(probs, *right) - _pooled(probs, *wrong)


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
        return _pooled(_wide(logits)[:, -1].softmax(dim=-1), *_sides(batch)[0])


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
        logprobs = _wide(logits).log_softmax(dim=-1)
        if batch.target is None or batch.target_mask is None:
            ids, real = _sides(batch)[0]
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
        assert batch.clean_logits is not None  # `needs` was checked by the caller
        clean = _wide(batch.clean_logits).log_softmax(dim=-1)
        here = _wide(logits).log_softmax(dim=-1)
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
        logprobs = _wide(logits)[:, :-1].log_softmax(dim=-1)
        following = logprobs.gather(2, batch.clean[:, 1:, None]).squeeze(2)
        # Under left padding, position t predicts a real token exactly if t itself is real.
        return _masked_mean(following, batch.mask[:, :-1])


@dataclass(frozen=True)
class FunctionMetric(Metric):
    """A metric computed by a function of the user's; made by `metric`."""

    function: Callable[..., Tensor]
    name: str
    positions: Positions | None = None
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
        read: Read = 1 if self.positions is None else self.positions  # pyright: ignore[reportAssignmentType]
        if not isinstance(read, int):
            read = tuple(width + position for position in read)
        columns = range(width - read, width) if isinstance(read, int) else read
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
            raise MetricError(
                f"the metric {self.name} returned {_described(values)}; it must return a "
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
        return {"name": self.name, "function": f"{where}.{name}"}


def metric(
    function: Callable[[Tensor, Batch], Tensor],
    *,
    positions: Positions | None = None,
    name: str | None = None,
    needs: Sequence[str] | None = None,
) -> Metric:
    """Make a metric of a function `(logits, batch) -> one number a row`.

    Args:
        function: Differentiable; it must rise when the behavior is present.
        positions: Left out, the function gets the last position's logits, `[rows, vocab]`. An
            integer k gives the last k positions, negative positions those, `"all"` every one
            (mind `batch.mask`); then it gets `[rows, positions, vocab]`.
        name: Shown in results; the function's own name if left out.
        needs: Which of `"answer"`, `"wrong"` and `"clean_logits"` it reads from the batch. Left
            out, the answers that all pairs have are given; `()` gives none, whatever their length.

    Returns:
        The metric.

    Raises:
        MetricError: If `positions` has no meaning.
        UnknownOptionError: If `needs` names something else.
    """
    if isinstance(positions, int):
        valid = positions >= 1
    elif positions is not None and positions != "all":
        positions = tuple(int(one) for one in positions)
        valid = bool(positions) and all(one < 0 for one in positions)
    else:
        valid = True
    if not valid:
        raise MetricError(
            f"positions={positions!r}: give the last k as a number from 1, a list counted from "
            "the end such as [-3, -1], or 'all'."
        )
    for one in needs or ():
        if one not in _HOW_TO_CARRY:
            known = ", ".join(sorted(_HOW_TO_CARRY))
            raise UnknownOptionError(
                f"no batch field {one!r}.{did_you_mean(one, _HOW_TO_CARRY)} Known: {known}."
            )
    name = name or getattr(function, "__name__", type(function).__name__)
    return FunctionMetric(function, name, positions, None if needs is None else frozenset(needs))


METRICS: dict[str, type[Metric]] = {
    one.name: one for one in (logit_diff, prob_diff, prob, logprob, kl, cross_entropy)
}
"""The built-in metrics by the name typed on the command line."""


def resolve_metric(
    choice: "str | Metric | type[Metric] | Callable[..., Tensor] | Mapping[str, Any]",
) -> Metric:
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
        return metric(choice)
    raise MetricError(
        f"a metric is a name, an hw metric or a function, not {_described(choice)}. "
        f"Names: {', '.join(METRICS)}."
    )


def refuse_constant(
    metric: Metric, logits: Float[Tensor, "rows read vocab"], batch: Batch, *, seed: int = 0
) -> None:
    """Raise if the metric is the same number whatever the logits are.

    Costs no model run: it is evaluated at `logits` and at four random ones of the same spread.

    Raises:
        ConstantMetricError: If all values agree to rounding in every row.
    """
    wide = _wide(logits.detach())
    generator = torch.Generator().manual_seed(seed)
    spread = float(wide.std()) if wide.numel() > 1 else 1.0
    draws = [torch.randn(wide.shape, generator=generator, dtype=wide.dtype) for _ in range(4)]
    with torch.no_grad():
        tried = [wide, *(max(spread, 1.0) * draw.to(wide.device) for draw in draws)]
        values = torch.stack([metric(one, batch) for one in tried]).to(wide.dtype)
    size = values.abs().amax(dim=0)
    moved = values.amax(dim=0) - values.amin(dim=0)
    if bool((moved <= torch.finfo(values.dtype).eps ** 0.5 * size).all()):
        raise ConstantMetricError(
            f"the metric {metric.name} is {float(values[0, 0]):.6g} for pair {batch.pairs[0]} "
            "whatever the logits are (5 different ones tried), so its gradient is 0. A softmax "
            "summed over the whole vocabulary is such a metric.\n"
            'Choose a token: metric=hw.prob(" Paris").'
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


def _wide(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return logits if logits.dtype == torch.float64 else logits.float()


Side: TypeAlias = tuple[Int[Tensor, "rows n"], Bool[Tensor, "rows n"]]


def _sides(batch: Batch) -> tuple[Any, Any]:
    """Return (ids, mask) of the right and of the wrong answers; `needs` says which are there."""
    return (batch.answer, batch.answer_mask), (batch.wrong, batch.wrong_mask)


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


def _refuse_non_finite(name: str, values: Float[Tensor, " rows"], batch: Batch) -> None:
    finite = values.isfinite()
    if bool(finite.all()):
        return
    rows = (~finite).nonzero().flatten().tolist()
    # With stacked settings the rows repeat the batch's pairs.
    pairs = sorted({batch.pairs[row % len(batch.pairs)] for row in rows})
    raise NonFiniteError(
        f"the metric {name} is {float(values[rows[0]])} for "
        f"pair{'s' if len(pairs) > 1 else ''} {', '.join(map(str, pairs[:10]))}"
        f"{' and others' if len(pairs) > 10 else ''}. "
        "Run in a wider dtype (dtype=torch.float32), or look at these prompts' logits."
    )


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    return f"{value!r:.60} ({type(value).__name__})"
