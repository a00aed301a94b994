"""Metrics: each equals its formula written out in plain Python, and rises with the behavior."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import (
    ConstantMetricError,
    MetricError,
    MissingFieldError,
    NonFiniteError,
    PromptError,
    UnknownOptionError,
)
from headwater.metrics import (
    METRICS,
    cross_entropy,
    kl,
    logit_diff,
    logprob,
    metric,
    prob,
    prob_diff,
    refuse_constant,
    resolve_metric,
)
from headwater.prompts.batches import Batch

VOCAB = 7

# Answers of each row: two and one on the right, one and three on the wrong side.
ANSWER = ([1, 4], [2])
WRONG = ([3], [0, 5, 6])


def batch(length: int = 4, lengths: tuple[int, int] | None = None, **fields) -> Batch:
    """Two rows with answers, padded on the left to `length`."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.stack(
        [torch.arange(length) >= length - real for real in lengths or (length, length)]
    )
    return Batch(
        pairs=(8, 3),
        clean=torch.randint(VOCAB, (2, length), generator=generator),
        corrupted=None,
        mask=mask,
        position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
        answer=torch.tensor([[1, 4], [0, 2]]),
        answer_mask=torch.tensor([[True, True], [False, True]]),
        wrong=torch.tensor([[0, 0, 3], [0, 5, 6]]),
        wrong_mask=torch.tensor([[False, False, True], [True, True, True]]),
        **fields,
    )


def random_logits(positions: int = 1, *, rows: int = 2, dtype=torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, positions, VOCAB, generator=generator, dtype=dtype)


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def twin_logit_diff(row, answer, wrong):
    return mean([row[i] for i in answer]) - mean([row[i] for i in wrong])


def twin_prob_diff(row, answer, wrong):
    p = softmax(row)
    return sum(p[i] for i in answer) - sum(p[i] for i in wrong)


def twin_prob(row, answer, wrong):
    return sum(softmax(row)[i] for i in answer)


def twin_logprob(row, answer, wrong):
    return math.log(twin_prob(row, answer, wrong))


TWINS = {
    logit_diff: twin_logit_diff,
    prob_diff: twin_prob_diff,
    prob: twin_prob,
    logprob: twin_logprob,
}


@pytest.mark.parametrize("kind", TWINS, ids=lambda kind: kind.name)
def test_a_metric_of_answers_equals_its_formula(kind):
    logits = random_logits()
    expected = [
        TWINS[kind](row[0], answer, wrong)
        for row, answer, wrong in zip(logits.tolist(), ANSWER, WRONG, strict=True)
    ]
    torch.testing.assert_close(kind()(logits, batch()), torch.tensor(expected).double())


def test_kl_is_minus_the_divergence_from_the_clean_run():
    clean, here = random_logits(seed=1), random_logits(seed=2)
    pairs = zip(clean[:, 0].tolist(), here[:, 0].tolist(), strict=True)
    expected = [
        -sum(p * math.log(p / q) for p, q in zip(softmax(one), softmax(other), strict=True))
        for one, other in pairs
    ]
    values = kl()(here, batch(clean_logits=clean))
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


def test_kl_of_the_clean_run_itself_is_zero_with_zero_gradient():
    clean = random_logits()
    here = clean.clone().requires_grad_()
    values = kl()(here, batch(clean_logits=clean))
    (gradient,) = torch.autograd.grad(values.sum(), here)
    assert values.abs().max() == 0
    assert gradient.abs().max() < 1e-15


def test_kl_over_all_positions_leaves_padding_out():
    clean, here = random_logits(4, seed=1), random_logits(4, seed=2)
    rows = batch(lengths=(4, 2), read=4, clean_logits=clean)
    alone = batch(read=2, clean_logits=clean[:, 2:])
    whole = kl(positions="all")(here, rows)[1]
    torch.testing.assert_close(whole, kl(positions=2)(here[:, 2:], alone)[1])


def test_cross_entropy_is_the_mean_log_probability_of_the_following_tokens():
    rows = batch(lengths=(4, 3), read=4)
    logits = random_logits(4)
    expected = [
        mean([math.log(softmax(logits[row, t].tolist())[rows.clean[row, t + 1]]) for t in steps])
        for row, steps in enumerate([(0, 1, 2), (1, 2)])
    ]
    values = cross_entropy()(logits, rows)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


def test_logprob_of_several_tokens_adds_each_token_given_those_before():
    logits = random_logits(3)
    rows = batch(
        read=3,
        target=torch.tensor([[5, 2, 6], [0, 4, 1]]),
        target_mask=torch.tensor([[True, True, True], [False, True, True]]),
    )
    p = [[softmax(position) for position in row] for row in logits.tolist()]
    expected = [
        math.log(p[0][0][5] * p[0][1][2] * p[0][2][6]),
        math.log(p[1][1][4] * p[1][2][1]),
    ]
    values = logprob()(logits, rows)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("kind", TWINS, ids=lambda kind: kind.name)
def test_a_metric_rises_with_the_logit_of_its_answer(kind):
    logits = random_logits().requires_grad_()
    (gradient,) = torch.autograd.grad(kind()(logits, batch()).sum(), logits)
    assert gradient[1, 0, ANSWER[1][0]] > 0


def test_kl_and_cross_entropy_fall_away_from_the_clean_run():
    clean = random_logits()
    assert (kl()(random_logits(seed=9), batch(clean_logits=clean)) < 0).all()
    assert (cross_entropy()(random_logits(4), batch(read=4)) < 0).all()


def test_softmax_is_stable_at_huge_logits():
    logits = torch.zeros(2, 1, VOCAB)
    logits[:, :, 1] = 1e4
    assert prob()(logits, batch()).tolist() == [1.0, 0.0]
    assert logprob()(logits, batch()).tolist() == [0.0, -1e4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", TWINS, ids=lambda kind: kind.name)
def test_narrow_logits_are_widened_to_float32(kind, dtype):
    logits = random_logits(dtype=torch.float32).to(dtype)
    values = kind()(logits, batch())
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, kind()(logits.float(), batch()))


@pytest.mark.parametrize("name", METRICS)
def test_stacked_settings_give_each_row_its_own_answer(name):
    chosen = resolve_metric(name)
    read = {"cross-entropy": 4}.get(name, 1)
    rows = batch(read=read, clean_logits=random_logits(read, seed=4))
    settings_ = [random_logits(read, seed=seed) for seed in range(3)]
    stacked = chosen(torch.cat(settings_), rows.repeat(3))
    torch.testing.assert_close(stacked, torch.cat([chosen(one, rows) for one in settings_]))


@given(st.floats(-50, 50), st.sampled_from([logit_diff, prob_diff, prob, logprob]))
@settings(max_examples=30, deadline=None)
def test_adding_one_number_to_all_logits_changes_nothing(shift, kind):
    logits = random_logits()
    values = kind()(logits, batch())
    torch.testing.assert_close(kind()(logits + shift, batch()), values, rtol=1e-9, atol=1e-12)


def test_every_metric_says_its_sense_in_words():
    for kind in METRICS.values():
        assert kind.sense.split()[0] in {"rises", "is"}


# Names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_found_by_dashed_and_underscored_name(name):
    assert resolve_metric(name) == resolve_metric(name.replace("-", "_")) == METRICS[name]()


def test_a_metric_class_stands_for_its_default():
    assert resolve_metric(logit_diff) == logit_diff()


def test_a_misspelt_name_is_answered_with_the_closest():
    with pytest.raises(UnknownOptionError) as refusal:
        resolve_metric("logit-dif")
    assert str(refusal.value) == (
        "no metric 'logit-dif'. Closest: 'logit-diff', 'prob-diff'. "
        "Metrics: logit-diff, prob-diff, prob, logprob, kl, cross-entropy."
    )


def test_something_that_is_no_metric_is_refused():
    with pytest.raises(
        MetricError, match=r"^a metric is a name, an hw metric or a function, not 3"
    ):
        resolve_metric(3)


@pytest.mark.parametrize(
    "chosen", [logit_diff(), prob("Mary"), logprob(["a", 7]), kl(positions="all"), kl(3)], ids=repr
)
def test_a_saved_metric_comes_back(chosen):
    assert resolve_metric(chosen.to_dict()) == chosen


def first_logit(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    return logits[:, 0]


def test_a_saved_function_is_refused_by_its_name():
    saved = metric(first_logit, name="mine").to_dict()
    with pytest.raises(MetricError) as refusal:
        resolve_metric(saved)
    assert str(refusal.value) == (
        "the metric mine was the Python function "
        f"{first_logit.__module__}.first_logit, of which only the name is saved. "
        "Give it again: metric=..."
    )


# Functions --------------------------------------------------------------------------------------


def test_a_function_gets_the_logits_of_the_last_position():
    logits = random_logits()
    values = metric(lambda logits, batch: logits[:, 2])(logits, batch())
    assert torch.equal(values, logits[:, 0, 2])


@pytest.mark.parametrize(
    ("positions", "read"), [(2, 2), ([-3, -1], (1, 3)), ("all", 4), (None, 1)], ids=str
)
def test_a_function_declares_its_positions(positions, read):
    assert (
        metric(lambda logits, batch: logits.sum((1, 2)), positions=positions).read(batch()) == read
    )


def test_a_function_with_positions_gets_all_of_them():
    logits = random_logits(2)
    chosen = metric(lambda logits, batch: logits[:, 0, 0] - logits[:, 1, 0], positions=[-3, -1])
    rows = batch().with_read(chosen.read(batch()))
    assert torch.equal(chosen(logits, rows), logits[:, 0, 0] - logits[:, 1, 0])


@pytest.mark.parametrize("positions", [0, -1, [], [1], [-1, 0]], ids=str)
def test_positions_without_meaning_are_refused(positions):
    with pytest.raises(MetricError, match="give the last k as a number from 1"):
        metric(random_logits, positions=positions)


def test_a_function_that_reads_into_padding_is_refused_with_the_pair():
    chosen = metric(lambda logits, batch: logits[:, 0, 0], positions=3, name="far")
    with pytest.raises(MetricError) as refusal:
        chosen.read(batch(lengths=(4, 2)))
    assert str(refusal.value) == (
        "pair 3 has 2 tokens, too few for the metric far, which reads positions=3. "
        "Read fewer positions, or leave short pairs out."
    )


def test_a_function_that_averages_over_rows_is_refused_with_its_shape():
    with pytest.raises(MetricError) as refusal:
        metric(lambda logits, batch: logits.mean(), name="mine")(random_logits(), batch())
    assert str(refusal.value) == (
        "the metric mine returned shape [] for 2 rows; it must return [2], one number a row. "
        "Do not average over the rows."
    )


@pytest.mark.parametrize(
    ("function", "returned"),
    [
        (lambda logits, batch: 1.0, "1.0 (float)"),
        (lambda logits, batch: logits.argmax(-1), "a tensor of torch.int64"),
    ],
)
def test_a_function_that_returns_no_floating_tensor_is_refused(function, returned):
    with pytest.raises(MetricError) as refusal:
        metric(function, name="mine")(random_logits(), batch())
    assert str(refusal.value) == (
        f"the metric mine returned {returned}; it must return a floating-point tensor of shape "
        "[2], one number a row."
    )


def test_an_unknown_need_is_answered_with_the_closest():
    with pytest.raises(UnknownOptionError) as refusal:
        metric(random_logits, needs=["anwser"])
    assert str(refusal.value) == (
        "no batch field 'anwser'. Closest: 'answer'. Known: answer, clean_logits, wrong."
    )


# Traps ------------------------------------------------------------------------------------------


def test_a_sum_of_probabilities_is_refused_as_constant():
    total = metric(lambda logits, batch: logits.softmax(-1).sum(-1), name="total")
    with pytest.raises(ConstantMetricError) as refusal:
        refuse_constant(total, random_logits(), batch())
    assert str(refusal.value) == (
        "the metric total is 1 for pair 8 whatever the logits are (4 different ones tried), so its "
        "gradient is 0. A softmax summed over the whole vocabulary is such a metric.\n"
        'Choose a token: metric=hw.prob(" Paris").'
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_constant_metric_is_found_in_every_dtype(dtype):
    total = metric(lambda logits, batch: logits.softmax(-1).sum(-1))
    with pytest.raises(ConstantMetricError):
        refuse_constant(total, random_logits(dtype=dtype), batch())


@pytest.mark.parametrize("name", METRICS)
def test_no_built_in_metric_is_taken_for_constant(name):
    read = {"cross-entropy": 4}.get(name, 1)
    clean = random_logits(read, dtype=torch.float32)
    refuse_constant(resolve_metric(name), clean, batch(read=read, clean_logits=clean))


def test_a_saturated_probability_is_not_taken_for_constant():
    logits = torch.zeros(2, 1, VOCAB)
    logits[:, :, [1, 2]] = 200.0
    refuse_constant(prob(), logits, batch())


CUT = {
    "argmax": lambda logits, batch: (logits.argmax(-1) == 2).float(),
    "item": lambda logits, batch: logits.new_tensor([row[2].item() for row in logits]),
    "detach": lambda logits, batch: logits[:, 2].detach(),
    "no_grad": torch.no_grad()(lambda logits, batch: logits[:, 2] * 1),
}


@pytest.mark.parametrize("way", CUT)
def test_a_metric_that_cuts_the_gradient_is_refused_where_one_is_wanted(way):
    logits = random_logits().requires_grad_()
    with pytest.raises(MetricError) as refusal:
        metric(CUT[way], name="mine")(logits, batch())
    assert str(refusal.value) == (
        "the value of the metric mine does not depend on the logits in a way autograd can follow "
        "(argmax, a comparison, .item(), .detach() or no_grad inside?), so it has no gradient.\n"
        "Compute it from the logits by differentiable operations, for example "
        "logits.log_softmax(-1), or score with hw.Exact(), which works with any metric."
    )


@pytest.mark.parametrize("way", CUT)
def test_a_metric_without_gradient_is_fine_where_none_is_wanted(way):
    chosen = metric(CUT[way])
    assert chosen(random_logits(), batch()).shape == (2,)
    with torch.no_grad():
        assert chosen(random_logits().requires_grad_(), batch()).shape == (2,)


def test_a_value_that_is_not_finite_is_refused_with_its_pairs():
    logits = random_logits().repeat(2, 1, 1)
    logits[3, 0, 2] = torch.nan  # second setting, second row
    with pytest.raises(NonFiniteError) as refusal:
        logit_diff()(logits, batch().repeat(2))
    assert str(refusal.value) == (
        "the metric logit-diff is nan for pair 3. Run in a wider dtype (dtype=torch.float32), or "
        "look at these prompts' logits."
    )


def test_logits_of_other_rows_than_the_batch_are_refused():
    with pytest.raises(MetricError) as refusal:
        logit_diff()(random_logits(rows=6), batch())
    assert str(refusal.value) == (
        "the metric logit-diff got logits for 6 rows and 1 positions, with a batch of 2 rows that "
        "reads 1. Stacked settings need batch.repeat(settings); another metric than the task's "
        "needs task.with_metric(metric).batches(...)."
    )


def test_a_batch_without_the_clean_run_is_refused_by_kl():
    with pytest.raises(MissingFieldError) as refusal:
        kl()(random_logits(), batch())
    assert str(refusal.value) == (
        "the metric kl needs `clean_logits`, which this batch does not carry. "
        "Run the clean prompts first: batch.with_clean_logits(logits)."
    )


def test_kl_needs_at_least_one_position():
    with pytest.raises(MetricError, match=r"^kl\(positions=0\): at least the last 1, or 'all'\.$"):
        kl(positions=0)


def test_cross_entropy_of_one_token_is_refused():
    with pytest.raises(PromptError) as refusal:
        cross_entropy().read(batch(lengths=(4, 1)))
    assert str(refusal.value) == (
        "pair 3: cross-entropy needs a prompt of at least 2 tokens, since it scores each token "
        "given those before it; this one has 1."
    )
