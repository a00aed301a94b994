"""Answers of several tokens: they run behind the prompt, and positions still count over it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from headwater.attribution import attribute
from headwater.errors import GateError, UnalignedPromptsError
from headwater.prompts import Batch
from headwater.sites import Site
from oracles import Part, Twin
from tiny_tasks import gated, model, pair, tokenizer

FAMILIES = ["GPT-2", "Llama", "Falcon"]
LONG, SHORT, ONE = " w7 w9 w11", " w8 w10", " w20"


def task(*rows: tuple[int, str]) -> hw.Task:
    """One random pair a (prompt length, answer)."""
    pairs = [pair(length, seed=seed) for seed, (length, _) in enumerate(rows)]
    return hw.Task(
        [
            hw.Pair(one.clean, one.corrupted, answer=answer)
            for one, (_, answer) in zip(pairs, rows, strict=True)
        ],
        "logprob",
    )


def batch_of(*rows: tuple[int, str]) -> Batch:
    (batch,) = task(*rows).batches(tokenizer())
    return batch


def ids(text: str | None) -> list[int]:
    return tokenizer()(text)["input_ids"]


def ablated(twin: Twin, one: hw.Pair, kind: str, position: int) -> Tensor:
    """What log p(answer) loses when every unit of one place at one position is corrupted."""
    target = ids(str(one.answer[0]))
    clean, corrupted = (
        torch.tensor([ids(prompt) + target[:-1]]) for prompt in (one.clean, one.corrupted)
    )

    def logprob(logits: Tensor) -> Tensor:
        steps = logits[0, -len(target) :].log_softmax(-1)
        return steps[range(len(target)), target].sum()

    place = (kind, 0)
    off = twin.values(corrupted, [place])[place]
    closed = twin.mixed(clean, Part(kind, 0, position=position), off, 0.0)
    return logprob(twin.run(clean, {})) - logprob(closed)


def expected(family: str, pairs: hw.Task, kind: str, positions: Sequence[int]) -> Tensor:
    """The effects by plain hooks; each row's position counts over its prompt."""
    twin = Twin(family)
    return torch.stack(
        [
            ablated(twin, one, kind, position % len(ids(one.clean)))
            for one in pairs
            for position in positions
        ]
    ).reshape(len(pairs), len(positions))


# --- what a batch knows ------------------------------------------------------------


def test_a_batch_counts_the_tokens_that_stand_behind_each_prompt():
    batch = batch_of((6, SHORT), (4, LONG))
    assert batch.pairs == (1, 0)
    assert batch.ending is not None
    assert batch.ending.tolist() == [2, 1]
    assert batch.prompt_lengths().tolist() == [4, 6]
    assert batch.mask.sum(1).tolist() == [6, 7]


def test_a_batch_of_one_token_answers_has_no_ending():
    batch = batch_of((6, ONE), (4, ONE))
    assert batch.ending is None
    assert batch.prompt_lengths().tolist() == [4, 6]


def test_the_ending_stays_with_its_row():
    batch = batch_of((6, SHORT), (4, LONG))
    for changed, endings in (
        (batch.repeat(2), [2, 1, 2, 1]),
        (batch.rows(1, 2), [1]),
        (batch.to("cpu"), [2, 1]),
        (batch.with_read(3), [2, 1]),
    ):
        assert changed.ending is not None
        assert changed.ending.tolist() == endings
        assert len(changed.prompt_lengths()) == len(changed)


def test_the_ending_moves_to_a_device_with_the_rest():
    ending = batch_of((6, SHORT)).to("meta").ending
    assert ending is not None
    assert ending.device.type == "meta"


@pytest.mark.parametrize("side", ["clean", "corrupted"])
def test_tokens_shown_are_those_of_the_prompt(side):
    pairs = task((6, SHORT), (4, LONG))
    (batch,) = pairs.batches(tokenizer())
    prompts = [getattr(pairs[i], side) for i in batch.pairs]
    assert batch.tokens(tokenizer(), side) == [prompt.split() for prompt in prompts]


# --- positions against plain hooks ------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("components", "kind"), [(hw.residual, "residual"), (hw.mlps, "mlp")], ids=["residual", "mlp"]
)
def test_a_position_is_that_of_the_prompt_whatever_follows_it(family, components, kind):
    pairs = task((6, SHORT), (4, LONG), (5, ONE))
    positions = [0, 3, -1]
    scores = attribute(
        model(family), pairs, components(layers=0, positions=positions), hw.Exact()
    ).scores
    wanted = expected(family, pairs, kind, positions)
    assert_close(scores, wanted, rtol=0, atol=1e-11)
    assert bool((wanted[:, 2] != 0).all())


def test_each_position_ends_with_the_prompt_though_answers_differ_in_length():
    first, *_ = task((5, SHORT))
    pairs = hw.Task(
        [hw.Pair(first.clean, first.corrupted, answer=one) for one in (LONG, ONE, SHORT)],
        "logprob",
    )
    scores = attribute(model("Llama"), pairs, hw.residual(layers=0, positions="each"), hw.Exact())
    assert scores.names == tuple(f"r0@{i}" for i in range(5))
    assert_close(scores.scores, expected("Llama", pairs, "residual", range(5)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("estimator", [hw.Exact(), hw.Gradient()], ids=["exact", "gradient"])
@pytest.mark.parametrize("end", ["clean", "corrupted"])
def test_rows_of_several_lengths_get_the_scores_each_gets_alone(estimator, end):
    chosen, pairs = model("GPT-NeoX"), task((6, SHORT), (4, LONG), (4, SHORT), (5, ONE))
    components = hw.heads(positions=[0, -1]) + hw.mlps()
    estimator = type(estimator)(at=end)
    together = attribute(chosen, pairs, components, estimator).scores
    alone = [
        attribute(chosen, pairs[i : i + 1], components, estimator).scores for i in range(len(pairs))
    ]
    assert_close(together, torch.cat(alone), rtol=0, atol=1e-11)


def test_all_positions_hold_those_of_the_answer_too():
    # with every residual of the last layer at its corrupted value, the run is the corrupted one
    function = gated(model("Llama"), task((5, LONG)), hw.residual(layers=1, positions="all"))
    assert_close(function.switched([0])[0], function.corrupted_value(), rtol=0, atol=1e-11)
    prompt = gated(model("Llama"), task((5, LONG)), hw.residual(layers=1, positions="each"))
    with torch.no_grad():
        closed = prompt(prompt.gates() * 0)[0]
    whole = prompt.corrupted_value()
    assert whole is not None
    assert bool((closed - whole).abs() > 1e-6)


def test_sizes_are_measured_at_the_prompts_position():
    def sizes(answer: str) -> Tensor:
        scores = attribute(model("Llama"), task((5, answer)), hw.mlps(positions=[-1]), hw.Exact())
        assert scores.parts.sizes is not None
        return scores.parts.sizes

    assert_close(sizes(LONG), sizes(ONE), rtol=1e-6, atol=0)


# --- refusals ------------------------------------------------------------


def refused(error: type[Exception], pairs: hw.Task, components: Any) -> str:
    with pytest.raises(error) as refusal:
        attribute(model("GPT-2"), pairs, components)
    return str(refusal.value)


@pytest.mark.parametrize("position", [4, -5])
def test_a_position_inside_the_answer_is_refused_with_the_prompts_length(position):
    message = refused(GateError, task((6, SHORT), (4, LONG)), hw.heads(positions=[position]))
    assert message == (
        f"position {position} does not exist in pair 1, whose prompt has 4 tokens "
        "(positions 0 to 3).\nPositions count from the first real token; -1 is the last."
    )


def test_prompts_of_several_lengths_are_refused_though_answers_even_them_out():
    pairs = task((5, SHORT), (4, LONG))
    assert pairs.batches(tokenizer())[0].mask.all()
    message = refused(UnalignedPromptsError, pairs, hw.mlps(positions="each"))
    assert re.search(r"but this task has lengths 4, 5: ", message)


def test_a_resampled_prompt_keeps_its_own_answer_behind_it():
    pairs = [
        hw.Pair("Mary and John went to the", answer=" store , Mary"),
        hw.Pair("Anna and Paul went to the", answer=" park , Anna"),
    ]
    subject = hw.load("tiny")
    task = hw.Task(pairs, metric=hw.logprob())
    batches = task.batches(subject.tokenizer)
    sites = [Site(0, "mlp.out")]
    off = hw.Resample().prepare(subject, task, batches, sites)
    (batch,) = batches
    seen = off(batch).values[sites[0]]
    own = batch.clean.clone()
    prompt = int(batch.prompt_lengths()[0])
    own[0, :prompt], own[1, :prompt] = batch.clean[1, :prompt], batch.clean[0, :prompt]
    kept = {}
    subject.forward(own, mask=batch.mask, taps={sites[0]: lambda value: kept.update(value=value)})
    torch.testing.assert_close(seen, kept["value"])


def test_positions_of_a_residual_are_no_cut_when_an_answer_stands_behind_them():
    task = hw.Task([hw.Pair("Mary and John", answer=" went to")], metric=hw.logprob())
    scores = hw.attribute(hw.load("tiny"), task, hw.residual(layers=1), reference=hw.Zero())
    assert not scores.parts.is_cut


def test_a_mean_over_the_clean_prompts_leaves_the_answers_tokens_out():
    given = task((5, LONG), (5, SHORT))
    listed = hw.Mean(over=[one.clean for one in given.pairs])
    own = hw.Mean(over="clean")
    scores = [
        attribute(model("GPT-2"), given, hw.heads(), hw.Exact(), reference=reference).scores
        for reference in (own, listed)
    ]
    assert_close(scores[0], scores[1], rtol=0, atol=1e-12)
