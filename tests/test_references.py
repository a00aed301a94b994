"""Off values, against averages taken by hand over runs of one prompt at a time."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from headwater.attribution import Attribution, attribute
from headwater.audits.interventions import interventions
from headwater.errors import (
    HeadwaterError,
    MissingFieldError,
    PromptError,
    RunFolderError,
    UnfitReferenceError,
    UnknownOptionError,
)
from headwater.estimators import Estimate
from headwater.gates import Family, GatedTask, ModelGates
from headwater.models import Model
from headwater.references import REFERENCES, capture, reference_from_dict
from headwater.sites import Site
from oracles import Part, Place, Twin, logit_difference
from tiny_models import build, tokens
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


# --- means over prompts that are streamed ------------------------------------------------------


class Column(Sequence):
    """Texts as a column of Hugging Face datasets gives them: iterated over again and again."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        return self.texts[index]


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


SOURCES: dict[str, Callable[[list[str], Path], Any]] = {
    "a generator": lambda texts, folder: (text for text in texts),
    "an iterator": lambda texts, folder: iter(texts),
    "a function": lambda texts, folder: lambda: (text for text in texts),
    "a column": lambda texts, folder: Column(texts),
    "rows with a text": lambda texts, folder: ({"text": text, "id": 3} for text in texts),
    "a text file": lambda texts, folder: written(folder / "texts.txt", ["", *texts]),
    "lines of JSON": lambda texts, folder: written(
        folder / "texts.jsonl", [json.dumps(text) for text in texts]
    ),
    "objects of JSON": lambda texts, folder: written(
        folder / "texts.jsonl", [json.dumps({"prompt": text, "id": 3}) for text in texts]
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_streamed_mean_is_the_mean_of_the_same_list(source, tmp_path, monkeypatch):
    monkeypatch.setattr("headwater.prompts.streams.WINDOW", 1)
    texts = clean(task(4, 7, 3, 5, 6, seed=3))
    over = SOURCES[source](texts, tmp_path)
    for batch, values in off_values(model("GPT-2"), task(5, 5), hw.Mean(over=over), batch_size=2):
        for site, place in PLACES.items():
            expected = torch.cat(alone("GPT-2", texts, place)).mean(0)
            assert_close(values[site].reshape(expected.shape), expected, rtol=1e-11, atol=1e-11)
        assert len(batch) == 2


def test_a_streamed_positional_mean_is_by_position():
    texts = clean(task(4, 7, 6, 5, seed=3))
    reference = hw.PositionalMean(over=(text for text in texts))
    for batch, values in off_values(model("GPT-2"), task(6, 3), reference):
        for site, place in PLACES.items():
            runs = alone("GPT-2", texts, place)
            for row, length in enumerate(batch.prompt_lengths().tolist()):
                for position in range(length):
                    here = torch.stack([run[position] for run in runs if len(run) > position])
                    column = batch.mask.shape[1] - length + position
                    ours = values[site][row, column].reshape(here.shape[1:])
                    assert_close(ours, here.mean(0), rtol=1e-11, atol=1e-11)


def test_a_limit_takes_the_first_prompts_and_reads_no_further():
    texts, taken = clean(task(4, 7, 3, seed=3)), []

    def endless():
        for one in itertools.cycle(texts):
            taken.append(one)
            yield one

    for over in (endless(), [*texts, "w5 w6"], hw.Task([hw.Pair(one) for one in texts])):
        expected = torch.cat(alone("GPT-2", texts[:2], ("mlp", 0))).mean(0)
        for _, values in off_values(model("GPT-2"), task(5, 5), hw.Mean(over=over, limit=2)):
            ours = values[Site(0, "mlp.out")].reshape(expected.shape)
            assert_close(ours, expected, rtol=1e-11, atol=1e-11)
    assert taken == texts[:2]


@pytest.mark.parametrize("over", ["clean", "corrupted"])
def test_a_limit_takes_the_first_prompts_of_the_task(over):
    mixed = task(6, 3, 4)
    prompts = (clean(mixed) if over == "clean" else corrupted(mixed))[:2]
    expected = torch.cat(alone("GPT-2", prompts, ("mlp", 0))).mean(0)
    for _, values in off_values(model("GPT-2"), mixed, hw.Mean(over=over, limit=2), 1):
        ours = values[Site(0, "mlp.out")].reshape(expected.shape)
        assert_close(ours, expected, rtol=1e-11, atol=1e-11)


def test_no_more_prompts_are_read_ahead_than_a_window_holds(monkeypatch):
    monkeypatch.setattr("headwater.prompts.streams.WINDOW", 2)
    read, run, ahead = [0], [0], []

    def texts():
        for one in clean(task(*[4, 5, 6] * 20)):
            read[0] += 1
            yield one

    def counting(model, ids, batch, sites):
        run[0] += len(batch)
        ahead.append(read[0] - run[0])
        return capture(model, ids, batch, sites)

    monkeypatch.setattr("headwater.references.means.capture", counting)
    off_values(model("GPT-2"), task(5, 5, 5), hw.Mean(over=texts()), batch_size=3)
    assert run[0] == 60
    assert max(ahead) < 2 * 3


def test_a_generator_serves_estimate_audit_and_the_audit_of_the_saved_run(tmp_path):
    texts = clean(task(4, 7, 5, seed=3))
    given, chosen = task(5, 5, 5), model("GPT-2")
    scores = attribute(
        chosen, given, hw.mlps(), hw.Exact(), reference=hw.Mean(over=(text for text in texts))
    )
    listed = attribute(chosen, given, hw.mlps(), hw.Exact(), reference=hw.Mean(over=texts))
    assert_close(scores.scores, listed.scores, rtol=0, atol=1e-12)
    assert all(row.error == 0 for row in scores.audit().rows)
    back = Attribution.load(scores.save(tmp_path / "run"))
    assert all(row.error == 0 for row in back.audit(model=chosen).rows)


def test_the_manifest_says_where_streamed_prompts_came_from_and_what_they_hash_to(tmp_path):
    texts = clean(task(4, 7, seed=3))

    def attributed(over: Any) -> dict:
        reference = hw.Mean(over=over)
        scores = attribute(model("GPT-2"), task(5, 5), hw.mlps(), reference=reference)
        return scores.provenance.reference

    path = written(tmp_path / "texts.txt", texts)
    hashed = hashlib.sha256("".join(json.dumps(t) + "\n" for t in texts).encode()).hexdigest()
    assert attributed(path) == {
        "name": "mean",
        "over": {"file": str(path), "prompts": 2, "sha256": hashed},
    }
    assert attributed(iter(texts))["over"] == {
        "stream": "the list_iterator",
        "prompts": 2,
        "sha256": hashed,
    }


def test_a_generator_that_was_read_is_refused_instead_of_giving_what_is_left():
    def texts():
        yield from clean(task(5, 6))

    reference = hw.Mean(over=texts(), limit=1)
    attribute(model("GPT-2"), task(5, 5), hw.mlps(), reference=reference)
    with pytest.raises(UnfitReferenceError) as refused:
        attribute(model("GPT-2"), task(5, 5), hw.mlps(), reference=reference)
    assert str(refused.value) == (
        "the generator test_a_generator_that_was_read_is_refused_instead_of_giving_what_is_left."
        "<locals>.texts in over= has been read by an earlier run, and can be read only once.\n"
        "Pass a function that makes it anew: over=lambda: (text for text in ...)."
    )


def test_means_of_one_model_are_never_used_for_another():
    other = hw.wrap(build("GPT-2", seed=1, dtype=torch.float64), tokenizer())
    over = Column(clean(task(5, 6)))
    first = attribute(
        model("GPT-2"), task(5, 5), hw.mlps(), hw.Exact(), reference=hw.Mean(over=over)
    )
    reused = attribute(other, task(5, 5), hw.mlps(), hw.Exact(), reference=first.reference)
    fresh = attribute(other, task(5, 5), hw.mlps(), hw.Exact(), reference=hw.Mean(over=over))
    assert torch.equal(reused.scores, fresh.scores)


def test_a_run_folder_takes_the_same_prompts_again_and_refuses_others(tmp_path):
    texts = clean(task(4, 7, 5, seed=3))

    def attributed(over: Any) -> Attribution:
        return attribute(
            model("GPT-2"),
            task(5, 5),
            hw.mlps(),
            hw.Exact(),
            reference=hw.Mean(over=over),
            out=tmp_path / "run",
        )

    first = attributed(iter(texts))
    again = attributed(written(tmp_path / "texts.txt", texts))
    assert torch.equal(again.scores, first.scores)
    with pytest.raises(RunFolderError, match="reference: "):
        attributed(iter(texts[:2]))
    with pytest.raises(RunFolderError, match="reference: "):
        attributed("clean")


def test_a_site_that_was_not_scored_needs_the_prompts_again(tmp_path):
    path = written(tmp_path / "texts.txt", clean(task(4, 7, 5, seed=3)))
    given, chosen = task(5, 5), model("GPT-2")
    scores = attribute(chosen, given, hw.mlps(), reference=hw.Mean(over=path))
    fresh = hw.interaction(chosen, given, "m0", "a1.h2", reference=hw.Mean(over=path))
    assert torch.equal(hw.interaction(scores, a="m0", b="a1.h2").values, fresh.values)
    streamed = attribute(
        chosen, given, hw.mlps(), reference=hw.Mean(over=iter(path.read_text().splitlines()))
    )
    back = Attribution.load(streamed.save(tmp_path / "run"))
    assert hw.audit(back, model=chosen).rows
    with pytest.raises(UnfitReferenceError) as refused:
        back.reference.prepare(chosen, given, given.batches(tokenizer()), [Site(1, "attn.z")])
    assert str(refused.value) == (
        "the mean of this run was over the list_iterator; of its prompts only the hash is saved, "
        "and means only at the sites that were scored then. Another site is needed now.\n"
        "Start from the model, with the prompts: "
        "hw.attribute(model, task, ..., reference=hw.Mean(over=prompts))."
    )


def test_a_file_that_changed_since_is_refused(tmp_path):
    texts = clean(task(4, 7, 5, seed=3))
    path = written(tmp_path / "texts.txt", texts)
    scores = attribute(model("GPT-2"), task(5, 5), hw.mlps(), reference=hw.Mean(over=path))
    written(path, texts[:2])
    with pytest.raises(UnfitReferenceError) as refused:
        hw.interaction(scores, a="m0", b="a1.h2")
    then, now = (
        hashlib.sha256("".join(json.dumps(t) + "\n" for t in part).encode()).hexdigest()[:12]
        for part in (texts, texts[:2])
    )
    assert str(refused.value) == (
        f"the file {path} in over= gave 2 prompts with the hash {now}; the mean of this run was "
        f"over 3 with {then}.\n"
        "Give the prompts of that run, or attribute again with these."
    )


UNREADABLE: dict[str, tuple[Any, type[HeadwaterError], str]] = {
    "nothing": (
        iter(()),
        UnfitReferenceError,
        "the tuple_iterator in over= gave no prompt, so there is nothing to average.\n",
    ),
    "a number among the texts": (
        lambda: ["w5 w6", 7],
        PromptError,
        "<lambda> is 7 (int), not a text.\n",
    ),
    "a row without a text": (
        lambda: [{"body": "w5 w6"}],
        PromptError,
        "is a row with the fields 'body', of which none could be the prompt (text, prompt, clean)",
    ),
    "a row with two texts": (
        lambda: [{"text": "w5 w6", "prompt": "w5"}],
        PromptError,
        "is a row with the fields 'text', 'prompt', of which several could be the prompt",
    ),
    "a text without tokens": (
        iter(["w5 w6", " "]),
        PromptError,
        "prompt 1 of the list_iterator: the tokenizer turns ' ' into no tokens at all.",
    ),
    "a function of one text": (
        lambda: "w5 w6",
        UnfitReferenceError,
        "returned 'w5 w6', not texts one after another.\n",
    ),
    "no such file": (Path("no/such.txt"), PromptError, "no file 'no/such.txt' in over=."),
    "a table": (
        Path("pairs.csv"),
        PromptError,
        "no file 'pairs.csv' in over=.",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_gives_no_prompts_is_refused_when_it_is_read(case):
    over, error, message = UNREADABLE[case]
    with pytest.raises(error) as refused:
        attribute(model("GPT-2"), task(5, 5), hw.mlps(), reference=hw.Mean(over=over))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.csv", b"text\nw5", "is neither a text file (.txt) nor JSON lines (.jsonl)"),
        ("prompts.jsonl", b'"w5"\nw6\n', "prompts.jsonl, line 2: not JSON (Expecting value"),
        ("prompts.jsonl", b"[1]\n", "prompts.jsonl, line 1 is [1] (list), not a text."),
        ("prompts.txt", b"w5\n\xff\n", "prompts.txt in over= is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name_and_line(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptError) as refused:
        attribute(model("GPT-2"), task(5, 5), hw.mlps(), reference=hw.Mean(over=path))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"over": "corupted"},
            "hw.Mean(over='corupted') is unknown. Closest: 'corrupted'.\n"
            'Write "corrupted" or "clean", or a list of texts.',
        ),
        (
            {"over": "prompts.txt"},
            "hw.Mean(over='prompts.txt') is unknown.\n"
            "A file of prompts is given as a path: over=pathlib.Path('prompts.txt').",
        ),
        (
            {"over": {"train": ["w5"]}},
            "over= is a mapping with 'train', not prompts.\n"
            "Of a dictionary of datasets choose one and its column: over=data['train']['text'].",
        ),
        ({"limit": 0}, "hw.Mean(limit=0) averages over nothing.\nType limit=1000."),
    ],
)
def test_a_mean_over_what_are_no_prompts_is_refused_when_it_is_made(options, message):
    with pytest.raises(HeadwaterError) as refused:
        hw.Mean(**options)
    assert str(refused.value) == message


# --- several donors ------------------------------------------------------------


def donated(given: hw.Task, reference: hw.Resample) -> dict[int, list[int]]:
    """Which pairs' corrupted prompts each pair got, told by the values."""
    place, site = ("mlp", 0), Site(0, "mlp.out")
    runs = alone("GPT-2", corrupted(given), place)
    batches = given.batches(tokenizer())
    off = reference.prepare(model("GPT-2"), given, batches, [site])
    found: dict[int, list[int]] = {pair: [] for pair in range(len(given.pairs))}
    for batch, draw in itertools.product(batches, range(off.draws)):
        values = off(batch, draw).values[site]
        for row, pair in enumerate(batch.pairs):
            ours = values[row][batch.mask[row]]
            found[pair] += [
                i
                for i, run in enumerate(runs)
                if run.shape[0] == len(ours) and torch.allclose(run[:, 0], ours, atol=1e-9)
            ]
    return found


@pytest.mark.parametrize("seed", range(3))
def test_several_donors_are_different_never_oneself_and_each_is_drawn_once_a_draw(seed):
    given = task(5, 4, 5, 4, 5, 4, 5)
    found = donated(given, hw.Resample(seed, draws=2))
    for pair, given_to in found.items():
        assert len(set(given_to)) == 2
        assert pair not in given_to
    for draw in (0, 1):
        assert sorted(given_to[draw] for given_to in found.values()) == list(range(7))
    assert {pair: own[0] for pair, own in found.items()} == donors(given, seed)


def test_scores_are_means_over_draws_and_errors_their_standard_errors():
    given, twin, draws = task(5, 5, 5, 5, 5), Twin("GPT-2"), 3
    reference = hw.Resample(seed=1, draws=draws)
    scores = attribute(model("GPT-2"), given, hw.mlps(), hw.Exact(), reference=reference)
    found = donated(given, reference)
    for layer in (0, 1):
        part = Part("mlp", layer)
        runs = alone("GPT-2", corrupted(given), part.place)
        for row, pair in enumerate(given.pairs):
            ids = tokenizer()(pair.clean, return_tensors="pt")["input_ids"]
            answer, wrong = torch.tensor([pair.answer[0]]), torch.tensor([pair.wrong[0]])
            whole = logit_difference(twin.run(ids, {}), answer, wrong)
            effects = torch.stack(
                [
                    whole
                    - logit_difference(twin.mixed(ids, part, runs[d][None], 0.0), answer, wrong)
                    for d in found[row]
                ]
            )[:, 0]
            column = scores.names.index(f"m{layer}")
            assert_close(scores.scores[row, column], effects.mean(), rtol=0, atol=1e-10)
            error = effects.std() / math.sqrt(draws)
            assert_close(scores.parts.errors[row, column], error, rtol=0, atol=1e-10)


@dataclass(frozen=True)
class Sizes(hw.Estimator):
    """|exact effect|: not linear in the gated function."""

    name: ClassVar[str] = "sizes"
    estimand: ClassVar[str] = "each component alone"

    def scores(self, function: hw.GatedFunction) -> Tensor:
        return function.effects(range(len(function.names))).T.abs()

    def forwards(self, families: Sequence[Family]) -> float:
        return 1.0 + sum(family.one_by_one for family in families)


def test_what_is_not_linear_is_averaged_over_draws_after_the_estimator():
    given, draws = task(*[5] * 6), 5
    apart = [
        {pair: own[draw] for pair, own in donated(given, hw.Resample(draws=draws)).items()}
        for draw in range(draws)
    ]
    assert len({tuple(one.values()) for one in apart}) == draws
    together = attribute(
        model("GPT-2"), given, hw.heads(), Sizes(), reference=hw.Resample(draws=draws)
    )
    mean = torch.zeros_like(together.scores)
    gated = GatedTask(model("GPT-2"), given, hw.heads(), hw.Resample(draws=draws))
    for batch, function in gated:
        mean[list(batch.pairs)] += Sizes().scores(function) / draws
    assert_close(together.scores, mean, rtol=0, atol=1e-12)
    signed = attribute(
        model("GPT-2"), given, hw.heads(), hw.Exact(), reference=hw.Resample(draws=draws)
    )
    assert bool((together.scores > signed.scores.abs() + 1e-9).any())


@dataclass(frozen=True)
class Unsure(Sizes):
    """Scores with a standard error of their own."""

    def estimate(self, function: hw.GatedFunction) -> Estimate:
        scores = self.scores(function)
        return Estimate(scores, errors=torch.full_like(scores, 0.25))


def test_the_errors_of_draws_and_of_the_estimator_add_up_in_squares():
    given, reference = task(5, 5, 5, 5), hw.Resample(draws=2)
    drawn = attribute(model("GPT-2"), given, hw.mlps(), Sizes(), reference=reference)
    both = attribute(model("GPT-2"), given, hw.mlps(), Unsure(), reference=reference)
    expected = (drawn.parts.errors.square() + 0.25**2).sqrt()
    assert_close(both.parts.errors, expected, rtol=1e-12, atol=0)


def test_one_draw_has_no_standard_error():
    scores = attribute(model("GPT-2"), task(5, 5), hw.mlps(), reference=hw.Resample())
    assert scores.parts.errors is None


def test_the_audit_of_exact_effects_over_draws_finds_no_difference(tmp_path):
    given, reference = task(5, 5, 5, 4, 4, 4), hw.Resample(seed=3, draws=2)
    scores = attribute(
        model("GPT-2"), given, hw.heads() + hw.mlps(), hw.Exact(), reference=reference
    )
    assert max(abs(row.error) for row in scores.audit().rows) < 1e-12
    back = Attribution.load(scores.save(tmp_path / "run"))
    assert torch.equal(back.parts.errors, scores.parts.errors)
    assert max(abs(row.error) for row in back.audit(model=model("GPT-2")).rows) < 1e-12


def test_the_whole_effect_of_a_cut_is_averaged_over_draws():
    given, reference, twin = task(5, 5, 5, 5), hw.Resample(draws=2), Twin("GPT-2")
    scores = attribute(model("GPT-2"), given, hw.tokens(), hw.Exact(), reference=reference)
    assert scores.parts.is_cut
    whole = []
    for row, own in donated(given, reference).items():
        pair = given.pairs[row]
        answer, wrong = torch.tensor([pair.answer[0]]), torch.tensor([pair.wrong[0]])
        # with every token closed, the donor's prompt runs
        for prompt in (str(given.pairs[donor].corrupted) for donor in own):
            runs = [
                twin.run(tokenizer()(one, return_tensors="pt")["input_ids"], {})
                for one in (pair.clean, prompt)
            ]
            clean_value, closed = (logit_difference(run, answer, wrong) for run in runs)
            whole.append(float(clean_value - closed))
    gap = scores.audit().statistic("completeness gap").value
    expected = float(scores.scores.mean(0).sum()) - sum(whole) / len(whole)
    assert gap == pytest.approx(expected, abs=1e-10)


def test_everything_measured_on_a_result_is_averaged_over_its_draws():
    given, reference = task(5, 5, 5, 5), hw.Resample(draws=3)
    scores = attribute(model("GPT-2"), given, hw.mlps(), hw.Exact(), reference=reference)
    pair = hw.interaction(scores, a="m0", b="m1")
    assert_close(pair.effect_a, scores["m0"], rtol=0, atol=1e-12)
    assert_close(pair.effect_b, scores["m1"], rtol=0, atol=1e-12)
    with interventions(scores) as runs:
        closed = torch.from_numpy(runs.closed([[0], [1]]))
    assert_close(closed, scores.scores, rtol=0, atol=1e-12)


def test_the_cost_of_draws_is_counted():
    given = task(5, 5, 5, 5)
    one = attribute(model("GPT-2"), given, hw.mlps(), reference=hw.Resample()).cost
    three = attribute(model("GPT-2"), given, hw.mlps(), reference=hw.Resample(draws=3)).cost
    assert (three.forwards, three.backwards) == (3 * one.forwards, 3 * one.backwards)


def test_too_few_donors_are_refused_with_what_there_are():
    with pytest.raises(UnfitReferenceError) as refused:
        attribute(model("GPT-2"), task(5, 4, 5, 4, 4), hw.mlps(), reference=hw.Resample(draws=2))
    assert str(refused.value) == (
        "hw.Resample(draws=2) needs 2 different donors a pair, but pair 0 has only 1 other pair of "
        "its 5 tokens to draw from.\nType draws=1, or add pairs of that length."
    )
    with pytest.raises(UnfitReferenceError) as refused:
        hw.Resample(draws=0)
    assert str(refused.value) == (
        "hw.Resample(draws=0): every pair needs at least one donor.\n"
        "Type draws=1, or more for a standard error."
    )


# --- estimate and exact effects ------------------------------------------------------------


EVERY: dict[str, Callable[[], Any]] = {
    "zero": hw.Zero,
    "corrupted": hw.Corrupted,
    "mean of the corrupted": hw.Mean,
    "mean of the clean": lambda: hw.Mean(over="clean", limit=4),
    "mean of a list": lambda: hw.Mean(over=["w3 w4 w5 w6 w7", "w8 w9"]),
    "mean of a task": lambda: hw.Mean(over=task(6, 7, seed=4)),
    "mean of a generator": lambda: hw.Mean(over=iter(clean(task(6, 7, 5, seed=4)))),
    "mean of a function": lambda: hw.Mean(over=lambda: clean(task(6, 7, 5, seed=4)), limit=2),
    "positional mean": hw.PositionalMean,
    "positional mean of a generator": lambda: hw.PositionalMean(
        over=iter(clean(task(6, 7, 5, seed=4)))
    ),
    "resample": lambda: hw.Resample(seed=2),
    "resample three times": lambda: hw.Resample(seed=2, draws=2),
}


@pytest.mark.parametrize("given", EVERY)
def test_estimate_and_exact_see_identical_off_values(given, monkeypatch, tmp_path):
    seen: list[tuple] = []

    class Watched(ModelGates):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            seen.append((self.rows.pairs, dict(self.off.values)))

    monkeypatch.setattr("headwater.gates.task.ModelGates", Watched)
    chosen = model("Llama")
    scores = attribute(
        chosen,
        task(5, 4, 5, 4, 5, 4),
        hw.heads() + hw.mlps() + hw.neurons(layers=1),
        hw.Gradient(),
        reference=EVERY[given](),
        batch_size=2,
    )
    estimate = list(seen)
    assert len(estimate) >= 3
    back = Attribution.load(scores.save(tmp_path / "run"))
    for audited, options in ((scores, {}), (back, {"model": chosen})):
        seen.clear()
        audited.audit(sample=4, **options)
        # before them comes the first batch, for the noise floor
        for (pairs, values), (own, exact) in zip(estimate, seen[-len(estimate) :], strict=True):
            assert pairs == own
            assert values.keys() == exact.keys()
            assert all(torch.equal(values[site], exact[site]) for site in values)


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
        hw.Mean(over="clean", limit=7),
        hw.Mean(over=Path("prompts.txt")),
        hw.Resample(seed=5),
        hw.Resample(seed=5, draws=3),
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


def test_the_curve_of_a_result_is_averaged_over_its_draws():
    given, reference = task(5, 5, 5, 4, 4, 4), hw.Resample(draws=2)
    scores = attribute(model("GPT-2"), given, hw.mlps(), hw.Exact(), reference=reference)
    curve = scores.curve("m1", points=3, batch_size=2)
    # from open to closed the metric loses the exact effect
    ends = curve.values[:, list(curve.gates.tolist()).index(1.0)] - curve.values[:, 0]
    assert_close(ends, scores["m1"], rtol=0, atol=1e-11)
