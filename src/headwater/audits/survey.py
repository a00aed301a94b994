"""`hw.survey`: does saturation come up in this model, on this text?

Two questions, one answer. How many rows of attention are saturated is counted over the whole
corpus. What that costs is asked of a sample: the exact effects of heads, queries and keys, and how
much of them is on components of which an estimate sees next to nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headwater.attribution.attribute import attribute
from headwater.attribution.result import Attribution
from headwater.audits.intervals import intervals
from headwater.audits.report import Audit
from headwater.audits.sampling import AuditSample
from headwater.audits.saturated_heads import Counted, count_saturated, lines_of
from headwater.audits.saturation import SATURATED
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
    if task is None:
        pool = _pool(model, read(), max_tokens, max(AVERAGED, tested), seed)
        chosen, off, notes = _of_text(pool, metric, reference, tested)
    else:
        chosen, off, notes = *_of_pairs(task, metric, reference, tested, seed), []
    if counted.cut:
        notes.append(f"{counted.cut:,} prompts were cut to {max_tokens} tokens and not tested.")
    options = {"reference": off, "batch_size": batch_size, "seed": seed, "progress": progress}
    components = heads() + queries() + keys()
    plain = attribute(model, chosen, components, Gradient(), **options)
    fixed = attribute(model, chosen, components, AtPStar(grad_drop=False), **options)
    size = len(plain.names) if sample is None else sample
    plain.audit(sample=size, seed=seed, progress=progress)
    certain = _output_saturated(model, chosen, batch_size)
    seconds = f"{time.perf_counter() - started:.2f} s"
    return _made(model, name, counted, plain, fixed, certain, size, seed, notes, seconds)


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


def _of_pairs(
    task: Task, metric: object, reference: Reference | None, tested: int, seed: int
) -> tuple[Task, Reference]:
    """Return the pairs on which effects are taken, and their reference."""
    task = task if metric is None else task.with_metric(metric)
    task = task.sample(min(tested, len(task)), seed)
    if reference is None:
        reference = Corrupted() if task.has_corrupted else PositionalMean(over="clean")
    return task, reference


def _of_text(
    pool: Sequence[tuple[str, int]], metric: object, reference: Reference | None, tested: int
) -> tuple[Task, Reference, list[str]]:
    """Return prompts of the corpus as a task, its reference, and what to know about that."""
    texts = [text for text, _ in pool]
    chosen = Task([Pair(text) for text in texts[:tested]], metric or "cross-entropy", name="corpus")
    if reference is not None:
        return chosen, reference, []
    longest, second, *_ = [*sorted((count for _, count in pool), reverse=True), 0]
    notes = []
    if longest > second and any(count == longest for _, count in pool[:tested]):
        notes.append(
            f"the last {longest - second} tokens of the longest prompt stand where no other prompt "
            "reaches: the mean there is its own value, and closing a gate does nothing."
        )
    return chosen, PositionalMean(over=texts), notes


def _pool(
    model: Model, prompts: Iterator[tuple[str, str]], max_tokens: int, count: int, seed: int
) -> list[tuple[str, int]]:
    """Return up to `count` prompts of the corpus that can be tested, with their tokens.

    Drawn at random without holding the others.

    Raises:
        PromptError: If none of those drawn has between 2 and `max_tokens` tokens.
    """
    draw, kept = random.Random(seed), []
    for number, (_, text) in enumerate(prompts):
        if number < count:
            kept.append(text)
        elif (place := draw.randrange(number + 1)) < count:
            kept[place] = text
    draw.shuffle(kept)
    encoder = Encoder(model.tokenizer)
    encoder.prime(kept, special=True)
    counts = [len(encoder.prompt(text)) for text in kept]
    fitting = [(text, n) for text, n in zip(kept, counts, strict=True) if 2 <= n <= max_tokens]
    if not fitting:
        raise PromptError(
            f"none of {len(kept):,} prompts drawn has between 2 and {max_tokens} tokens, so no "
            "effect can be taken.\nRaise max_tokens=, or split long lines."
        )
    return fitting


@torch.no_grad()
def _output_saturated(model: Model, task: Task, batch_size: int) -> float:
    """Return the share of predictions that the metric reads whose largest p is above 0.99."""
    batches = task.batches(
        model.tokenizer,
        batch_size=batch_size,
        device=model.device,
        pad=model.anatomy().pads,
        align=False,
    )
    certain = read = 0
    with model.frozen():
        for batch in batches:
            logits = model.forward(
                batch.clean, mask=batch.mask, position_ids=batch.position_ids, read=batch.read
            )
            real = batch.mask[:, batch.read_columns()]
            largest = logits.float().softmax(-1).amax(-1)
            certain += int(((largest > SATURATED) & real.to(largest.device)).sum())
            read += int(real.sum())
    return certain / max(read, 1)


def _made(
    model: Model,
    corpus: str,
    counted: Counted,
    plain: Attribution,
    fixed: Attribution,
    certain: float,
    size: int,
    seed: int,
    notes: Sequence[str],
    seconds: str,
) -> Survey:
    audit, task, heads = plain.checked, plain.task, counted.heads()
    assert audit is not None
    assert task is not None
    estimates = {
        str(scores.provenance.estimator["name"]): scores.scores.double().cpu().numpy()
        for scores in (plain, fixed)
    }
    adapter = model.anatomy()
    repeats = (adapter.n_heads or 1) // (adapter.n_kv_heads or 1)
    by_name = {head.name: head.saturated for head in heads}
    # the very sample that the audit drew
    drawn = AuditSample.draw(plain.mean().double().cpu().numpy(), sample=size, seed=seed)
    rows = _rows(audit, plain.names, estimates, by_name, repeats)
    shares = [
        _share(name, kind, values, audit, drawn, seed)
        for name, values in estimates.items()
        for kind in ("all", *KINDS)
    ]
    return Survey(
        model=model.name,
        corpus=corpus,
        prompts=counted.prompts,
        tokens=counted.tokens,
        heads=heads,
        tested=len(task),
        metric=task.metric.name,
        reference=str(plain.provenance.reference["name"]),
        components=len(plain.names),
        heads_per_key=repeats,
        rows=rows,
        shares=tuple(shares),
        output_saturated=certain,
        noise_floor=audit.counts.noise_floor or 0.0,
        seed=seed,
        notes=tuple(notes),
        cost=f"{counted.prompts:,} prompts counted, {len(rows):,} components checked, {seconds}",
    )


def _rows(
    audit: Audit,
    names: Sequence[str],
    estimates: Mapping[str, Float[np.ndarray, "pair component"]],
    by_head: Mapping[str, float],
    repeats: int,
) -> tuple[SurveyRow, ...]:
    column = {name: place for place, name in enumerate(names)}
    return tuple(
        SurveyRow(
            name=row.name,
            kind=parse_component(row.name).kind,
            weight=row.weight,
            exact=row.exact,
            estimates={
                name: float(values[:, column[row.name]].mean())
                for name, values in estimates.items()
            },
            saturated=_own_saturation(row.name, by_head, repeats),
        )
        for row in audit.rows
    )


def _own_saturation(name: str, by_head: Mapping[str, float], repeats: int) -> float:
    """Return a head's share of saturated rows; of a shared key the mean over its heads."""
    component = parse_component(name)
    index = component.index or 0
    served = range(index * repeats, (index + 1) * repeats) if component.kind == "key" else [index]
    own = [by_head[f"a{component.layer}.h{head}"] for head in served]
    return sum(own) / len(own)


def _share(
    estimator: str,
    kind: str,
    values: Float[np.ndarray, "pair component"],
    audit: Audit,
    drawn: AuditSample,
    seed: int,
) -> MissedShare:
    assert audit.pair_effects is not None
    exact, checked = audit.pair_effects.double().numpy(), values[:, list(drawn.indices)]
    weight = np.array([row.weight for row in audit.rows])
    wanted = [kind in ("all", parse_component(row.name).kind) for row in audit.rows]
    parts = [part[..., wanted] for part in (weight, checked, exact)]
    share = missed_share(parts[0], parts[1].mean(0), parts[2].mean(0))
    each = [np.broadcast_to(part, parts[2].shape).ravel() for part in parts]
    span = None
    if kind == "all":
        measures = {"share": missed_share}
        span = intervals(measures, drawn, values.mean(0), exact.mean(0), seed=seed)["share"]
    return MissedShare(
        estimator,
        kind,
        components=sum(wanted),
        share=_known(share),
        low=None if span is None else max(0.0, min(span[0], float(share))),
        high=None if span is None else min(1.0, max(span[1], float(share))),
        by_prompt=_known(missed_share(*each)),
    )


def missed_share(
    weight: Float[np.ndarray, "*#batch component"],
    estimate: Float[np.ndarray, "*#batch component"],
    exact: Float[np.ndarray, "*#batch component"],
) -> Float[np.ndarray, "*batch"] | float:
    """Return the share of sum |exact| on components with |estimate| < 0.1 |exact|.

    Args:
        weight: How many components each stands for.
        estimate: Estimates.
        exact: Exact effects.
    """
    size = np.abs(exact) * weight
    blind = size * (np.abs(estimate) < BLIND * np.abs(exact))
    total = np.asarray(size.sum(-1))
    return np.divide(blind.sum(-1), total, out=np.full_like(total, np.nan), where=total > 0)


def _known(share: np.ndarray | float) -> float | None:
    value = float(share)
    return None if np.isnan(value) else value


def _refuse_numbers(**given: int | None) -> None:
    for name, value in given.items():
        if value is not None and value < 1:
            raise UnknownOptionError(f"{name}={value} is below 1.\nType for example {name}=32.")
