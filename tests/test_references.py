"""Off values, against averages taken by hand over runs of one prompt at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from headwater.attribution import attribute
from headwater.errors import MissingFieldError, UnfitReferenceError, UnknownOptionError
from headwater.models import Model
from headwater.references import REFERENCES, reference_from_dict
from headwater.sites import Site
from oracles import Part, Place, Twin, logit_difference
from tiny_models import tokens
from tiny_tasks import model, task, text, tokenizer

FAMILIES = ["GPT-2", "Qwen2", "OPT"]
PLACES: dict[Site, Place] = {
    Site(1, "attn.z"): ("head", 1),
    Site(0, "mlp.out"): ("mlp", 0),
    Site(1, "mlp.post"): ("neuron", 1),
}


def off_values(chosen: Model, given: hw.Task, reference, batch_size: int = 32) -> list:
    """Batches with the off values at every site."""
    batches = given.batches(tokenizer(), batch_size=batch_size)
    off = reference.prepare(chosen, given, batches, list(PLACES))
    return [(batch, off(batch).values) for batch in batches]


def alone(family: str, prompts: list[str], place: Place) -> list[Tensor]:
    """The value in a run of each prompt by itself, [pos, unit, width]."""
    twin = Twin(family)
    ids = [tokenizer()(prompt, return_tensors="pt")["input_ids"] for prompt in prompts]
    return [twin.values(one, [place])[place][0] for one in ids]


def corrupted(given: hw.Task) -> list[str]:
    return [str(pair.corrupted) for pair in given.pairs]


def clean(given: hw.Task) -> list[str]:
    return [pair.clean for pair in given.pairs]


# --- means ------------------------------------------------------------


@pytest.mark.parametrize("over", ["corrupted", "clean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mean_is_over_the_real_tokens_of_every_prompt_and_no_padding(family, over):
    mixed = task(6, 3, 4)
    prompts = corrupted(mixed) if over == "corrupted" else clean(mixed)
    for batch_size in (1, 32):
        for _, values in off_values(model(family), mixed, hw.Mean(over=over), batch_size):
            for site, place in PLACES.items():
                expected = torch.cat(alone(family, prompts, place)).mean(0)
                ours = values[site].reshape(expected.shape)
                assert_close(ours, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_positional_mean_counts_from_the_first_real_token(family):
    mixed = task(6, 3, 4)
    for batch, values in off_values(model(family), mixed, hw.PositionalMean(), 2):
        for site, place in PLACES.items():
            runs = alone(family, corrupted(mixed), place)
            for row, pair in enumerate(batch.pairs):
                length = len(runs[pair])
                for position in range(length):
                    here = torch.stack([run[position] for run in runs if len(run) > position])
                    column = batch.mask.shape[1] - length + position
                    ours = values[site][row, column].reshape(here.shape[1:])
                    assert_close(ours, here.mean(0), rtol=1e-11, atol=1e-11)


def test_a_mean_can_be_over_prompts_of_ones_own_or_another_task():
    given, other = task(5, 5), task(4, 7, seed=3)
    listed = off_values(model("GPT-2"), given, hw.Mean(over=clean(other)))
    tasked = off_values(model("GPT-2"), given, hw.Mean(over=other))
    for site, place in PLACES.items():
        expected = torch.cat(alone("GPT-2", clean(other), place)).mean(0)
        for _, values in (*listed, *tasked):
            ours = values[site].reshape(expected.shape)
            assert_close(ours, expected, rtol=1e-11, atol=1e-11)


def test_a_positional_mean_over_shorter_prompts_is_refused():
    with pytest.raises(UnfitReferenceError) as refused:
        attribute(
            model("GPT-2"), task(6), hw.mlps(), reference=hw.PositionalMean(over=["w3 w4 w5"])
        )
    assert str(refused.value) == (
        "a prompt of this task has 6 tokens, but the longest prompt averaged has 3: "
        "hw.PositionalMean has no mean at position 3.\n"
        "Give longer prompts in over=, or use hw.Mean()."
    )


@pytest.mark.parametrize("components", [hw.queries(), hw.keys(layers=1)])
def test_the_mean_of_a_rotated_query_or_key_is_refused(components):
    name = components.choices[0].kind[0]
    layer = 0 if components.choices[0].layers is None else 1
    with pytest.raises(UnfitReferenceError) as refused:
        attribute(model("Llama"), task(5, 5), components, reference=hw.Mean())
    assert str(refused.value) == (
        f"'layers.{layer}.attn.{name}' carries its position (by rotary embedding in most "
        "families): a mean over positions is not a query or key.\n"
        "Use reference=hw.PositionalMean()."
    )


@pytest.mark.parametrize("kind", ["query", "key", "value"])
def test_the_positional_mean_of_a_query_key_or_value_is_by_position(kind):
    select = {"query": hw.queries, "key": hw.keys, "value": hw.values}[kind]
    given, twin = task(5, 5, 5), Twin("Llama")
    scores = attribute(
        model("Llama"), given, select(layers=1), hw.Exact(), reference=hw.PositionalMean()
    )
    runs = torch.stack(alone("Llama", corrupted(given), (kind, 1)))
    for unit in range(twin.units(kind)):
        part = Part(kind, 1, unit)
        for row, pair in enumerate(given.pairs):
            ids = tokenizer()(pair.clean, return_tensors="pt")["input_ids"]
            answer, wrong = torch.tensor([pair.answer[0]]), torch.tensor([pair.wrong[0]])
            whole = logit_difference(twin.run(ids, {}), answer, wrong)
            closed = logit_difference(
                twin.mixed(ids, part, runs.mean(0, keepdim=True), 0.0), answer, wrong
            )
            assert_close(scores[part.name(twin)][row], (whole - closed)[0], rtol=0, atol=1e-10)


# --- resampling ------------------------------------------------------------


def donors(given: hw.Task, seed: int, batch_size: int = 32) -> dict[int, int]:
    """Which pair's corrupted prompt each pair got, told by the values."""
    place, site = ("mlp", 0), Site(0, "mlp.out")
    runs = alone("GPT-2", corrupted(given), place)
    found = {}
    for batch, values in off_values(model("GPT-2"), given, hw.Resample(seed), batch_size):
        for row, pair in enumerate(batch.pairs):
            ours = values[site][row][batch.mask[row]]
            (found[pair],) = [
                i
                for i, run in enumerate(runs)
                if run.shape[0] == len(ours) and torch.allclose(run[:, 0], ours, atol=1e-9)
            ]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_resampling_takes_another_pair_of_the_same_length_and_never_itself(seed):
    given = task(5, 4, 5, 4, 5)
    found = donors(given, seed)
    assert sorted(found.values()) == [0, 1, 2, 3, 4]  # each is drawn once
    assert all(pair != donor for pair, donor in found.items())
    assert {found[0], found[2], found[4]} == {0, 2, 4}


def test_resampling_depends_on_the_seed_and_on_nothing_else():
    given = task(5, 5, 5, 5, 5, 5)
    torch.manual_seed(11)
    first = donors(given, 0)
    torch.manual_seed(12)
    assert donors(given, 0, batch_size=2) == first
    assert any(donors(given, seed) != first for seed in (1, 2, 3))


def test_resampling_with_no_other_pair_of_that_length_is_refused():
    with pytest.raises(UnfitReferenceError) as refused:
        attribute(model("GPT-2"), task(5, 4, 5), hw.mlps(), reference=hw.Resample())
    assert str(refused.value) == (
        "pair 1 is the only one with 4 tokens, so hw.Resample has no other prompt of its length "
        "to draw from.\nAdd pairs of that length, or use hw.Mean()."
    )


# --- tasks without corrupted prompts ------------------------------------------------------------


def uncorrupted(*lengths: int) -> hw.Task:
    prompts = [text(tokens(1, n, seed=n + i)[0].tolist()) for i, n in enumerate(lengths)]
    return hw.Task([hw.Pair(prompt, answer=7, wrong=9) for prompt in prompts])


@pytest.mark.parametrize(
    "reference", [hw.Zero(), hw.Mean(over="clean"), hw.PositionalMean(over="clean"), hw.Resample()]
)
def test_references_that_need_no_corrupted_prompt_work_without(reference):
    scores = attribute(
        model("GPT-2"), uncorrupted(5, 5, 5), hw.mlps(), hw.Exact(), reference=reference
    )
    assert scores.parts.corrupted is None
    assert bool((scores.scores != 0).all())


@pytest.mark.parametrize("reference", [hw.Corrupted(), hw.Mean(), hw.PositionalMean()])
def test_references_that_need_corrupted_prompts_say_so(reference):
    with pytest.raises(MissingFieldError) as refused:
        attribute(model("GPT-2"), uncorrupted(5), hw.mlps(), reference=reference)
    assert str(refused.value) == (
        f"hw.{type(reference).__name__}() needs corrupted prompts, and this task has none.\n"
        'Add a "corrupted" prompt to each pair, or use a reference that needs none: hw.Zero(), or '
        'hw.Mean(over="clean").'
    )


@pytest.mark.parametrize("reference", [hw.Zero(), hw.Mean(), hw.Resample()])
def test_the_corrupted_end_needs_the_corrupted_prompts_own_values(reference):
    with pytest.raises(UnfitReferenceError) as refused:
        attribute(
            model("GPT-2"),
            task(5, 5),
            hw.mlps(),
            hw.Exact(at="corrupted"),
            reference=reference,
        )
    assert str(refused.value) == (
        'at="corrupted" runs the corrupted prompt and restores clean values in it, so it needs '
        "the corrupted prompts' own values.\nWrite reference=hw.Corrupted()."
    )


# --- as plain data ------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    [
        hw.Zero(),
        hw.Corrupted(),
        hw.Mean(),
        hw.Mean(over="clean"),
        hw.PositionalMean(over=["w3 w4", "w5"]),
        hw.Resample(seed=5),
    ],
)
def test_a_reference_survives_being_written_as_plain_data(reference):
    assert reference_from_dict(reference.to_dict()) == reference


def test_an_unknown_reference_is_answered_with_the_closest():
    with pytest.raises(UnknownOptionError) as refused:
        reference_from_dict({"name": "means"})
    assert str(refused.value) == (
        f"no reference 'means'. Closest: 'mean'. References: {', '.join(REFERENCES)}."
    )
