"""`hw.survey`: does saturation come up in this model, on this text?

Two questions, one answer. How many rows of attention are saturated is counted over the whole
corpus. What that costs is asked of a sample: the exact effects of heads, queries and keys, and how
much of them is on components of which an estimate sees next to nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from headwater.attribution.attribute import attribute
from headwater.audits.saturated_heads import Counted, count_saturated, lines_of
from headwater.audits.saturation import SATURATED
from headwater.audits.survey_result import Survey
from headwater.audits.unseen import Checked
from headwater.components import heads, keys, queries
from headwater.errors import PromptError, UnknownOptionError
from headwater.estimators import AtPStar, Gradient
from headwater.limits import position_limit
from headwater.metrics import Metric
from headwater.models import Model
from headwater.progress import progress_bar
from headwater.prompts import Pair, Task
from headwater.prompts.encoding import Encoder
from headwater.references import Corrupted, PositionalMean, Reference

AVERAGED = 256
"""Most prompts of the corpus over which the default reference is averaged."""


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
        sample: Components checked exactly, stratified by the gradient; None for all. A sample
            seldom rules out that a few others hold 5 % of the effects: the answer is then "open".
        tested: Prompts, drawn at random, on which effects are taken.
        max_tokens: Longer prompts of a text are counted up to here, and not tested; at most as
            many as the model has positions.
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
    limit = min(max_tokens, position_limit(model.module) or max_tokens)
    with (
        model.frozen(),
        progress_bar("attention rows", length, show=progress) as advance,
    ):
        counted = count_saturated(
            model, read(), limit=limit, batch_size=batch_size, advance=advance
        )
    if task is None:
        pool = _pool(model, read(), limit, max(AVERAGED, tested), seed)
        chosen, off, notes = _of_text(pool, metric, reference, tested)
    else:
        chosen, off, notes = *_of_pairs(task, metric, reference, tested, seed), []
    if counted.cut:
        untested = " and not tested" if task is None else ""
        notes.append(f"{counted.cut:,} prompts were cut to {limit} tokens{untested}.")
    options = {"reference": off, "batch_size": batch_size, "seed": seed, "progress": progress}
    components = heads() + queries() + keys()
    plain = attribute(model, chosen, components, Gradient(), **options)
    fixed = attribute(model, chosen, components, AtPStar(grad_drop=False), **options)
    size = len(plain.names) if sample is None else sample
    checked = Checked(plain, fixed, plain.audit(sample=size, seed=seed, progress=progress), seed)
    found = _made(model, name, counted, checked, notes)
    cost = f"{found.prompts:,} prompts counted, {len(found.rows):,} components checked"
    return replace(found, cost=f"{cost}, {time.perf_counter() - started:.2f} s")


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
    model: Model, prompts: Iterator[tuple[str, str]], limit: int, count: int, seed: int
) -> list[tuple[str, int]]:
    """Return up to `count` prompts of the corpus that can be tested, with their tokens.

    Drawn at random without holding the others.

    Raises:
        PromptError: If none of those drawn has between 2 and `limit` tokens.
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
    fitting = [(text, n) for text, n in zip(kept, counts, strict=True) if 2 <= n <= limit]
    if not fitting:
        raise PromptError(
            f"none of {len(kept):,} prompts drawn has between 2 and {limit} tokens, so no "
            "effect can be taken.\nSplit long lines, or raise max_tokens= if the model has more "
            "positions."
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
    model: Model, corpus: str, counted: Counted, checked: Checked, notes: Sequence[str]
) -> Survey:
    plain, task, heads = checked.plain, checked.plain.task, counted.heads()
    assert task is not None
    adapter = model.anatomy()
    heads_per_key = (adapter.n_heads or 1) // (adapter.n_kv_heads or 1)
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
        heads_per_key=heads_per_key,
        rows=checked.rows({head.name: head.saturated for head in heads}, heads_per_key),
        shares=checked.shares(),
        output_saturated=_output_saturated(model, task, plain.provenance.batch_size),
        noise_floor=checked.audit.counts.noise_floor or 0.0,
        seed=checked.seed,
        notes=tuple(notes),
    )


def _refuse_numbers(**given: int | None) -> None:
    for name, value in given.items():
        if value is not None and value < 1:
            raise UnknownOptionError(f"{name}={value} is below 1.\nType for example {name}=32.")
