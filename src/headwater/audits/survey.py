"""`hw.survey`: does saturation come up in this model, on this text?

Two questions, one answer. How many rows of attention are saturated is counted over the whole
corpus. What that costs is asked of a sample: the exact effects of heads, queries and keys, and how
much of them is on components of which an estimate sees next to nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.attribution.attribute import attribute
from headwater.attribution.result import Attribution
from headwater.audits.intervals import intervals
from headwater.audits.saturated_heads import Counted, count_saturated, lines_of
from headwater.audits.sampling import AuditSample
from headwater.audits.survey_result import BLIND, MissedShare, Survey, SurveyRow
from headwater.components import heads, keys, parse_component, queries
from headwater.errors import PromptError, UnknownOptionError
from headwater.estimators import AtPStar, Gradient
from headwater.metrics import Metric
from headwater.models import Model
from headwater.progress import progress_bar
from headwater.prompts import Pair, Task
from headwater.prompts.encoding import Encoder
from headwater.references import Corrupted, PositionalMean, Reference

AVERAGED = 256
"""Most prompts of the corpus over which the default reference is averaged."""
KINDS = ("head", "query", "key")


def survey(
    model: Model,
    prompts: Iterable[str] | str | Path | Task,
    *,
    task: Task | None = None,
    metric: Metric | type[Metric] | Callable[..., Tensor] | str | None = None,
    reference: Reference | None = None,
    sample: int | None = 128,
    tested: int = 32,
    max_tokens: int = 512,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool | None = None,
) -> Survey:
    """Say how often attention saturates on a corpus, and what a gradient does not see for it.

    Rows of attention with p > 0.99 are counted over every prompt, without gradients, one layer of
    one batch at a time. The first token's rows do not count: it has nothing else to look at. Exact
    effects, gradients and AtP* (softmax computed) are then compared on a sample.

    Args:
        model: A model that shows its attention (`headwater models`).
        prompts: Texts, a text file with one prompt a line, or a task, whose clean prompts are read.
        task: Prompt pairs on which effects are taken; by default prompts of the corpus.
        metric: Of the effects; by default the task's, and for plain text `hw.cross_entropy()`.
        reference: What a closed component is set to. By default `hw.Corrupted()` for pairs; for
            plain text `hw.PositionalMean` over up to 256 prompts of the corpus.
        sample: Components checked exactly, stratified by the gradient; None for all.
        tested: Prompts, drawn at random, on which effects are taken.
        max_tokens: Longer prompts are counted up to here, and not tested.
        batch_size: Most prompts in a forward.
        seed: Of both samples.
        progress: True, False, or None to show a bar only on a terminal.

    Returns:
        Shares by head, shares of effects not seen, and the answer in a sentence.

    Raises:
        UnavailableSiteError: If the model shows no attention pattern.
        PromptError: If there is no prompt that can be used.
        UnknownOptionError: If a number is out of range.
    """
    _refuse_numbers(sample=sample, tested=tested, max_tokens=max_tokens, batch_size=batch_size)
    started = time.perf_counter()
    name, read = _corpus(prompts)
    if isinstance(prompts, Task) and task is None:
        task = prompts
    length = sum(1 for _ in read())
    with (
        model.frozen(),
        progress_bar("attention rows", length, show=progress) as advance,
    ):
        counted = count_saturated(
            model, read(), max_tokens=max_tokens, batch_size=batch_size, advance=advance
        )
    usable = _fitting(model, read(), max_tokens)
    chosen, off, notes = _chosen(model, usable, task, metric, reference, tested, seed)
    if counted.cut:
        notes.append(f"{counted.cut:,} prompts were cut to {max_tokens} tokens and not tested.")
    options = {"reference": off, "batch_size": batch_size, "seed": seed, "progress": progress}
    components = heads() + queries() + keys()
    plain = attribute(model, chosen, components, Gradient(), **options)
    fixed = attribute(model, chosen, components, AtPStar(grad_drop=False), **options)
    size = len(plain.names) if sample is None else sample
    plain.audit(sample=size, seed=seed, progress=progress)
    seconds = time.perf_counter() - started
    return _made(model, name, counted, plain, fixed, size, seed, notes, f"{seconds:.2f} s")


Read = Callable[[], Iterator[tuple[str, str]]]
"""Reads the corpus from its start: where each prompt stands, and its text."""


def _corpus(prompts: Iterable[str] | str | Path | Task) -> tuple[str, Read]:
    if isinstance(prompts, Task):
        texts, name = [pair.clean for pair in prompts.pairs], prompts.name
    elif isinstance(prompts, str | Path):
        if isinstance(prompts, str) and not Path(prompts).suffix and not Path(prompts).is_file():
            raise PromptError(
                f"prompts={prompts!r:.60} is neither a list of prompts nor a text file.\n"
                "Write hw.survey(model, [text, ...]) or hw.survey(model, 'corpus.txt')."
            )
        return Path(prompts).name, partial(lines_of, Path(prompts))
    else:
        texts, name = list(prompts), "prompts"
    if not texts:
        raise PromptError("there are no prompts.\nGive at least one.")
    return name, lambda: ((f"prompt {number}", text) for number, text in enumerate(texts))


def _fitting(
    model: Model, prompts: Iterable[tuple[str, str]], max_tokens: int
) -> Iterator[tuple[str, int]]:
    """Yield prompts of at least two and at most `max_tokens` tokens, with their number of tokens."""
    for _, text in prompts:
        count = len(Encoder(model.tokenizer).prompt(text))
        if 2 <= count <= max_tokens:
            yield text, count


def _chosen(
    model: Model,
    usable: Iterator[tuple[str, int]],
    task: Task | None,
    metric: object,
    reference: Reference | None,
    tested: int,
    seed: int,
) -> tuple[Task, Reference, list[str]]:
    """Return the task on which effects are taken, its reference, and what to know about them."""
    if task is not None:
        task = task if metric is None else task.with_metric(metric)
        task = task.sample(min(tested, len(task)), seed)
        if reference is None:
            reference = Corrupted() if task.has_corrupted else PositionalMean(over="clean")
        return task, reference, []
    pool = _reservoir(usable, max(AVERAGED, tested), seed)
    if not pool:
        raise PromptError(
            "no prompt has at least 2 tokens and at most max_tokens, so none can be tested.\n"
            "Raise max_tokens=, or split long lines."
        )
    texts = [text for text, _ in pool[:tested]]
    chosen = Task([Pair(text) for text in texts], metric or "cross-entropy", name="corpus")
    if reference is not None:
        return chosen, reference, []
    lengths = sorted((count for _, count in pool), reverse=True)
    alone = max(0, lengths[0] - (lengths[1] if len(lengths) > 1 else 0))
    notes = []
    if alone and any(count == lengths[0] for _, count in pool[:tested]):
        notes.append(
            f"the last {alone} tokens of the longest prompt stand where no other prompt reaches: "
            "the mean there is its own value, and closing a gate does nothing."
        )
    return chosen, PositionalMean(over=[text for text, _ in pool]), notes


def _reservoir(
    items: Iterator[tuple[str, int]], count: int, seed: int
) -> list[tuple[str, int]]:
    """Return up to `count` of the items, drawn at random without holding the others."""
    draw, kept = random.Random(seed), []
    for number, item in enumerate(items):
        if number < count:
            kept.append(item)
        elif (place := draw.randrange(number + 1)) < count:
            kept[place] = item
    draw.shuffle(kept)
    return kept


def _made(
    model: Model,
    corpus: str,
    counted: Counted,
    plain: Attribution,
    fixed: Attribution,
    size: int,
    seed: int,
    notes: Sequence[str],
    seconds: str,
) -> Survey:
    audit = plain.checked
    assert audit is not None
    assert audit.pair_effects is not None
    columns = [plain.names.index(row.name) for row in audit.rows]
    exact = audit.pair_effects.double().numpy()
    estimates = {
        scores.provenance.estimator["name"]: scores.scores.double().cpu().numpy()
        for scores in (plain, fixed)
    }
    kinds = np.array([parse_component(row.name).kind for row in audit.rows])
    weight = np.array([row.weight for row in audit.rows])
    # the very sample that the audit drew
    drawn = AuditSample.draw(plain.mean().double().cpu().numpy(), sample=size, seed=seed)
    by_name = {head.name: head.saturated for head in counted.heads()}
    rows = tuple(
        SurveyRow(
            name=row.name,
            kind=kind,
            weight=row.weight,
            exact=row.exact,
            estimates={name: float(one[:, c].mean()) for name, one in estimates.items()},
            saturated=_own_saturation(row.name, by_name),
        )
        for row, kind, c in zip(audit.rows, kinds.tolist(), columns, strict=True)
    )
    shares = [
        _share(name, kind, values, exact, columns, weight, kinds, drawn, seed)
        for name, values in estimates.items()
        for kind in ("all", *KINDS)
    ]
    task = plain.task
    assert task is not None
    return Survey(
        model=model.name,
        corpus=corpus,
        prompts=counted.prompts,
        tokens=counted.tokens,
        heads=counted.heads(),
        tested=len(task),
        metric=task.metric.name,
        reference=str(plain.provenance.reference["name"]),
        components=len(plain.names),
        rows=rows,
        shares=tuple(shares),
        noise_floor=audit.counts.noise_floor or 0.0,
        seed=seed,
        notes=tuple(notes),
        cost=f"{counted.prompts:,} prompts counted, {len(rows):,} components checked, {seconds}",
    )


def _own_saturation(name: str, by_head: dict[str, float]) -> float:
    """Return a head's share of saturated rows; of a shared key the mean over its heads."""
    component = parse_component(name)
    if ".kv" not in name:
        return by_head[f"a{component.layer}.h{component.index}"]
    own = [share for head, share in by_head.items() if head.startswith(f"a{component.layer}.")]
    served = len(own) // _kv_heads(name, by_head)
    first = (component.index or 0) * served
    return sum(own[first : first + served]) / served


def _share(
    estimator: str,
    kind: str,
    values: Float[np.ndarray, "pair component"],
    exact: Float[np.ndarray, "pair index"],
    columns: Sequence[int],
    weight: Float[np.ndarray, " index"],
    kinds: np.ndarray,
    drawn: AuditSample,
    seed: int,
) -> MissedShare:
    of_kind = np.ones(len(kinds), dtype=bool) if kind == "all" else kinds == kind
    mean, effect = values.mean(0), exact.mean(0)
    share = missed_share(weight[of_kind], mean[columns][of_kind], effect[of_kind])
    span = None
    if kind == "all":
        span = intervals({"share": missed_share}, drawn, mean, effect, seed=seed)["share"]
    every = missed_share(
        weight[of_kind], values[:, columns][:, of_kind], exact[:, of_kind], pooled=True
    )
    low, high = (None, None) if span is None else (max(0.0, span[0]), min(1.0, span[1]))
    return MissedShare(
        estimator,
        kind,
        components=int(of_kind.sum()),
        share=_known(share),
        low=None if low is None else min(low, float(share)),
        high=None if high is None else max(high, float(share)),
        by_prompt=_known(every),
    )


def missed_share(
    weight: Float[np.ndarray, "*#batch component"],
    estimate: Float[np.ndarray, "*#batch component"],
    exact: Float[np.ndarray, "*#batch component"],
    *,
    pooled: bool = False,
) -> Float[np.ndarray, "*batch"] | float:
    """Return the share of sum |exact| on components with |estimate| < 0.1 |exact|.

    Args:
        weight: How many components each stands for.
        estimate: Estimates.
        exact: Exact effects.
        pooled: Sum over the leading axes, too.
    """
    size = np.abs(exact) * weight
    blind = size * (np.abs(estimate) < BLIND * np.abs(exact))
    axes = None if pooled else -1
    total = size.sum(axes)
    missed = blind.sum(axes)
    return np.divide(missed, total, out=np.full_like(np.asarray(total), np.nan), where=total > 0)


def _known(share: object) -> float | None:
    value = float(np.asarray(share))
    return None if np.isnan(value) else value


def _refuse_numbers(**given: int | None) -> None:
    for name, value in given.items():
        if value is not None and value < 1:
            raise UnknownOptionError(f"{name}={value} is below 1.\nType for example {name}=32.")
