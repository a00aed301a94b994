"""The survey: counts against the model's own attention, shares against full exact runs."""

from __future__ import annotations

import functools
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import headwater as hw
import planted_models
from headwater.audits.sampling import AuditSample
from headwater.audits.saturation import largest_share
from headwater.audits.survey_result import Survey
from headwater.audits.unseen import Checked, missed_share, most_blind, share_interval
from headwater.components import parse_component
from headwater.errors import (
    PairFileError,
    PromptError,
    ResultError,
    UnavailableSiteError,
    UnknownOptionError,
    UnknownWordError,
)
from headwater.estimators import AtPStar
from headwater.zoo.truths.truth import gated as of_task
from tiny_tasks import model, task, tokenizer

PROMPTS = [pair.clean for pair in task(3, 9, 5, 7, 7, 2).pairs]
COMPONENTS = hw.heads() + hw.queries() + hw.keys()


@functools.cache
def sharp() -> hw.Model:
    """A model of whose layers one has mostly saturated attention."""
    return planted_models.saturated().model


@functools.cache
def surveyed() -> Survey:
    return hw.survey(sharp(), PROMPTS, progress=False)


# --- rows ----------------------------------------------------------------------------------------


def own_patterns(wrapped: hw.Model, prompt: str) -> list[torch.Tensor]:
    """The model's own eager attention over one prompt, without padding."""
    module = wrapped.module
    ids = tokenizer()([prompt], return_tensors="pt")["input_ids"]
    before = module.config._attn_implementation
    module.config._attn_implementation = "eager"
    with torch.no_grad():
        patterns = module(ids, output_attentions=True).attentions
    module.config._attn_implementation = before
    return list(patterns)


def test_shares_are_those_of_the_model_s_own_attention_prompt_by_prompt_without_first_tokens():
    every = [own_patterns(sharp(), prompt) for prompt in PROMPTS]
    rows = sum(len(prompt.split()) - 1 for prompt in PROMPTS)
    for head in surveyed().heads:
        hits = starts = 0
        for patterns in every:
            pattern = patterns[head.layer][0, head.head]
            for query in range(1, len(pattern)):
                hits += pattern[query].max().item() > 0.99
                starts += pattern[query, 0].item() > 0.99
        assert head.rows == rows
        assert head.saturated == hits / rows
        assert head.at_start == (starts / hits if hits else 0)
    planted = [h.saturated for h in surveyed().heads if h.layer == planted_models.LAYER]
    assert min(planted) > 0.4


def test_padding_and_the_batch_change_no_count():
    alone = hw.survey(sharp(), PROMPTS, batch_size=1, sample=4, tested=2, progress=False)
    assert alone.heads == surveyed().heads
    assert (alone.prompts, alone.tokens) == (len(PROMPTS), sum(len(p.split()) for p in PROMPTS))


def test_a_prompt_of_one_token_has_no_row_that_counts():
    more = hw.survey(sharp(), [*PROMPTS, "w5"], sample=4, tested=2, progress=False)
    assert more.heads == surveyed().heads
    assert more.prompts == len(PROMPTS) + 1


def test_share_that_goes_to_a_sink_saturates_a_row_too():
    rows = torch.tensor([[0.004, 0.002], [0.3, 0.2], [0.995, 0.005]])[None, None]
    assert largest_share(rows)[0, 0].tolist() == pytest.approx([0.994, 0.5, 0.995])


def test_prompts_beyond_max_tokens_are_counted_up_to_there_and_it_says_so():
    found = hw.survey(sharp(), PROMPTS, max_tokens=5, sample=4, tested=2, progress=False)
    assert found.tokens == sum(min(5, len(p.split())) for p in PROMPTS)
    assert "3 prompts were cut to 5 tokens and not tested." in found.notes


def test_prompts_beyond_the_model_s_positions_are_counted_up_to_there_and_not_tested():
    long = task(70).pairs[0].clean  # the model has 64 positions
    found = hw.survey(sharp(), [*PROMPTS, long], sample=4, tested=9, progress=False)
    assert found.tokens == sum(len(p.split()) for p in PROMPTS) + 64
    assert found.tested == len(PROMPTS)
    assert "1 prompts were cut to 64 tokens and not tested." in found.notes


def test_pairs_are_tested_whole_where_their_prompts_were_cut_to_be_counted():
    found = hw.survey(sharp(), task(9, 9), max_tokens=5, sample=4, progress=False)
    assert (found.tokens, found.tested) == (10, 2)
    assert "2 prompts were cut to 5 tokens." in found.notes


# --- effects -------------------------------------------------------------------------------------


def test_the_share_not_seen_weighs_effects_by_what_they_stand_for():
    weight = np.array([1.0, 1.0, 4.0, 1.0])
    estimate, exact = np.array([0.9, 3.0, -0.05, 0.0]), np.array([-10.0, 5.0, 1.0, 0.0])
    # 10 and four times 1 are not seen (a zero effect has nothing to be seen) of 10 + 5 + 4
    assert missed_share(weight, estimate, exact) == pytest.approx(14 / 19)
    assert np.isnan(missed_share(weight, estimate, 0 * exact))


@pytest.mark.parametrize("estimator", ["gradient", "atp-star"])
def test_shares_are_those_of_exact_effects_and_estimates_of_every_component(estimator):
    pairs = task(6, 6, 6)
    found = hw.survey(sharp(), pairs, progress=False)
    kind = {"gradient": hw.Gradient(), "atp-star": AtPStar(grad_drop=False)}[estimator]
    function = of_task(sharp(), pairs, COMPONENTS)
    exact, estimate = hw.Exact().scores(function), kind.scores(function)
    kinds = [parse_component(name).kind for name in function.names]

    def share(effects: torch.Tensor, estimates: torch.Tensor, wanted: str) -> float:
        held = lost = 0.0
        for column, kind in enumerate(kinds):
            for e, a in zip(
                effects[:, column].tolist(), estimates[:, column].tolist(), strict=True
            ):
                if wanted in ("all", kind):
                    held += abs(e)
                    lost += abs(e) if abs(a) < 0.1 * abs(e) else 0.0
        return lost / held

    for wanted in ("all", "head", "query", "key"):
        one = found.share(estimator, wanted)
        means = exact.mean(0, keepdim=True), estimate.mean(0, keepdim=True)
        assert one.share == pytest.approx(share(*means, wanted), abs=1e-9)
        assert one.by_prompt == pytest.approx(share(exact, estimate, wanted), abs=1e-9)
        assert (one.low, one.high) == (None, None)  # every component was checked


def test_where_attention_was_planted_saturated_the_softmax_computed_sees_more():
    found = hw.survey(sharp(), task(6, 6, 6), progress=False)
    assert found.share("gradient", "query").share > 2 * found.share("atp-star", "query").share
    assert found.answer != "no"


def test_a_sample_stands_for_all_components_and_has_an_interval():
    found = hw.survey(model("Llama"), task(6, 6), sample=16, progress=False)
    assert len(found.rows) == 16
    assert found.components == 20
    assert sum(row.weight for row in found.rows) == pytest.approx(20)
    whole = found.share()
    assert 0 <= whole.low <= whole.share <= whole.high <= 1


def with_interval(low: float | None, high: float | None, kind: float = 0.0) -> Survey:
    """A survey of a sample, with this interval, and this share of queries not seen."""
    whole = hw.survey(sharp(), task(6, 6), progress=False)
    shares = [
        replace(one, low=low, high=high, share=0.04)
        if one.kind == "all"
        else replace(one, share=kind)
        for one in whole.shares
    ]
    return replace(whole, components=len(whole.rows) + 1, shares=tuple(shares))


@pytest.mark.parametrize(
    ("low", "high", "kind", "answer"),
    [
        (0.0, 0.049, 0.0, "no"),
        (0.0, 0.049, 0.2, "in part"),
        (0.0, 0.05, 0.2, "open"),
        (0.049, 0.9, 0.0, "open"),
        (0.05, 0.9, 0.0, "yes"),
        (None, None, 0.0, "open"),
    ],
)
def test_a_sample_answers_by_the_ends_of_its_interval(low, high, kind, answer):
    found = with_interval(low, high, kind)
    assert found.answer == answer
    asks = (
        "24 of 25 components checked cannot tell whether it is 5 %: raise sample=; 25 checks all."
    )
    assert (asks in found.sentence) == (answer == "open")
    assert replace(found, components=24).answer != "open"  # then all were checked


@pytest.mark.parametrize(("members", "checked", "found"), [(9, 4, 0), (9, 4, 1), (8, 3, 3)])
def test_more_may_be_blind_as_long_as_a_sample_would_show_so_few(members, checked, found):
    def shows_as_few(blind: int) -> float:  # sample by sample
        samples = list(itertools.combinations(range(members), checked))
        few = [sum(one < blind for one in sample) <= found for sample in samples]
        return sum(few) / len(few)

    possible = range(found, members - checked + found + 1)
    expected = max(blind for blind in possible if shows_as_few(blind) >= 0.05)
    assert most_blind(members, checked, found) == expected


def test_of_many_the_rule_of_three_tells_how_many_may_be_blind():
    assert most_blind(20_000, 59, 0) / 20_000 == pytest.approx(1 - 0.05 ** (1 / 59), rel=0.01)
    assert most_blind(70, 70, 0) == 0


@pytest.mark.parametrize("blind", [1, 5])
def test_the_interval_covers_what_a_few_blind_components_hold(blind):
    generator = np.random.default_rng(0)
    exact = generator.standard_t(2, 432) * 0.1
    estimate = 0.5 * exact * np.exp(0.5 * generator.normal(size=432))
    chosen = generator.choice(432, blind, replace=False)
    exact[chosen], estimate[chosen] = np.abs(exact).sum() * 0.1 / blind, 1e-4
    truth = float(missed_share(np.ones(432), estimate, exact))
    covered = 0
    for seed in range(40):
        sample = AuditSample.draw(estimate, sample=128, seed=seed)
        low, high = share_interval(sample, estimate, exact[list(sample.indices)], seed)
        covered += low <= truth <= high
    assert truth > 0.05
    assert covered >= 36


def test_estimates_are_held_against_their_own_exact_effects_where_float32_takes_two_for_equal():
    tiny = 2.0**-25
    # with slopes v and curvatures c the exact effects are v - c
    v = torch.tensor([[1, 1, 0.25, 0.125], [tiny, tiny, 0, 0], [0, tiny, 0, 0]])
    c = torch.tensor([-10.0, 0.0, 0.0, 0.0])
    # the second is the stronger one by far less than float32 can tell
    assert v.double().mean(0)[0] < v.double().mean(0)[1]
    assert v.mean(0)[0] == v.mean(0)[1]
    function = hw.GatedFunction(
        lambda m: (m * v + (1 - m).square() * c).sum(-1), [f"a0.h{i}" for i in range(4)], batch=3
    )
    plain = hw.attribute(function, estimator=hw.Gradient())
    checked = Checked(plain, hw.attribute(function, estimator=hw.Exact()), plain.audit(), seed=0)
    assert [row.name for row in checked.audit.rows] == ["a0.h1", "a0.h0", "a0.h2", "a0.h3"]
    assert checked.sample.indices == (1, 0, 2, 3)
    shares = {(one.estimator, one.kind): one for one in checked.shares()}
    # of 31 + 1 + 1/4 + 1/8, over three pairs, a gradient does not see the first
    by_gradient = shares["gradient", "all"]
    assert by_gradient.share == pytest.approx(31 / 32.375)
    assert (shares["exact", "all"].share, shares["exact", "all"].by_prompt) == (0, 0)


@pytest.mark.parametrize("size", [1, 2, 16, 19, 64])
def test_the_sample_is_read_back_from_the_audit_as_it_was_drawn(size):
    values = torch.tensor(np.random.default_rng(0).standard_normal((3, 64)))
    function = hw.GatedFunction(
        lambda m: (m * values).sum(-1),
        [f"a0.h{i}" for i in range(64)],
        batch=3,
        dtype=torch.float64,
    )
    plain = hw.attribute(function, estimator=hw.Gradient())
    checked = Checked(plain, plain, plain.audit(sample=size, seed=5), seed=0)
    assert checked.sample == AuditSample.draw(values.mean(0).numpy(), sample=size, seed=5)


def test_effects_that_are_all_zero_leave_the_answer_unknown_with_the_reason():
    # one prompt's mean by position is its own value
    found = hw.survey(sharp(), PROMPTS[:1], progress=False)
    assert (found.answer, found.share().share, found.share().low) == ("unknown", None, None)
    assert (
        "GPT2LMHeadModel here? Unknown: none of 24 checked heads, queries and keys has an exact "
        "effect above rounding (0) on 1 prompt, reference positional-mean, so there is nothing to "
        "miss. Give more prompts, or pairs. "
    ) in found.sentence
    assert "unknown is not seen" not in repr(found)


def test_effects_that_rounding_could_make_leave_the_answer_unknown_too():
    largest = max(abs(row.exact) for row in surveyed().rows)
    # the floor is the largest of few tries, so ten times as much is asked for
    assert replace(surveyed(), noise_floor=largest / 10).answer == "unknown"
    clear = replace(surveyed(), noise_floor=0.99 * largest / 10)
    assert clear.answer == surveyed().answer != "unknown"


def test_of_a_shared_key_the_saturation_is_the_mean_over_the_heads_that_read_it():
    found = hw.survey(model("Llama"), task(6, 6), progress=False)
    by_name = {head.name: head.saturated for head in found.heads}
    row = next(row for row in found.rows if row.name == "a1.kv1<k>")
    assert row.saturated == (by_name["a1.h2"] + by_name["a1.h3"]) / 2
    assert found.shared_keys["a1.h3"] == "a1.kv1<k>"


def test_plain_text_is_measured_by_its_own_likelihood_against_its_mean_by_position():
    assert (surveyed().metric, surveyed().reference) == ("cross-entropy", "positional-mean")
    assert any("the last 2 tokens of the longest prompt" in note for note in surveyed().notes)


def test_pairs_are_measured_against_their_corrupted_prompts_while_rows_are_counted_on_the_text():
    found = hw.survey(sharp(), PROMPTS, task=task(6, 6), progress=False)
    assert (found.metric, found.reference, found.tested) == ("logit-diff", "corrupted", 2)
    assert found.heads == surveyed().heads


def test_the_share_of_certain_predictions_is_counted_on_what_the_metric_reads():
    scores = planted_models.certain()
    found = hw.survey(scores.model, scores.task, progress=False)
    module, certain = scores.model.module, 0
    for pair in scores.task.pairs:
        ids = tokenizer()([pair.clean], return_tensors="pt")["input_ids"]
        certain += module(ids).logits[0, -1].softmax(-1).max().item() > 0.99
    assert found.output_saturated == certain / len(scores.task) > 0.5
    assert "prob reads the output softmax, which has p > 0.99 in 100 % of" in found.sentence


def test_the_same_seed_draws_the_same_prompts_and_another_seed_others():
    def effects(seed: int) -> list[float]:
        found = hw.survey(sharp(), PROMPTS, tested=2, seed=seed, progress=False)
        return [row.exact for row in found.rows]

    assert effects(0) == effects(0)
    assert effects(0) != effects(1)


# --- what is given and what comes out ------------------------------------------------------------


def test_a_file_is_read_a_prompt_a_line_and_blank_lines_are_none(tmp_path: Path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(PROMPTS) + "\n  \n")
    for given in (path, str(path)):
        found = hw.survey(sharp(), given, progress=False)
        assert found.heads == surveyed().heads
        assert found.corpus == "corpus.txt"


def test_the_sentence_has_the_answer_and_its_numbers():
    found, one = surveyed(), surveyed().share()
    assert found.sentence.startswith("Does a gradient miss effects in GPT2LMHeadModel here? ")
    shown = re.search(r"hold ([\d.]+) %", found.sentence)[1]
    assert float(shown) == pytest.approx(100 * one.share, abs=0.06)
    worst = max(found.heads, key=lambda head: head.saturated)
    assert f"most in {worst.name} (" in found.sentence
    assert found.sentence in repr(found)


def test_a_survey_is_saved_and_read_back_whole(tmp_path: Path):
    surveyed().save(tmp_path / "deep")
    assert Survey.load(tmp_path / "deep") == surveyed()
    assert json.loads((tmp_path / "deep" / "survey.json").read_text())["answer"]
    frame = surveyed().to_frame()
    assert list(frame["name"]) == [head.name for head in surveyed().heads]


def test_a_survey_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch):
    def full_disk(*_) -> None:
        raise OSError("no space left on device")

    surveyed().save(tmp_path)
    monkeypatch.setattr("headwater.files.os.replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        replace(surveyed(), corpus="another").save(tmp_path)
    assert Survey.load(tmp_path) == surveyed()
    assert [path.name for path in tmp_path.iterdir()] == ["survey.json"]


def test_a_file_that_is_not_utf_8_is_no_survey(tmp_path: Path):
    (tmp_path / "survey.json").write_bytes(b'{"corpus": "\xe9"}')
    with pytest.raises(ResultError, match=r"survey\.json cannot be read: .* invalid"):
        Survey.load(tmp_path)


def test_no_survey_and_no_share_are_refused_by_name(tmp_path: Path):
    with pytest.raises(ResultError, match="headwater survey --out"):
        Survey.load(tmp_path)
    with pytest.raises(ResultError, match="these data are not a survey"):
        Survey.from_dict({})
    with pytest.raises(ResultError, match="no share of 'exact'"):
        surveyed().share("exact")
    with pytest.raises(ResultError, match=r"'queries'. Closest: 'gradient/query'"):
        surveyed().share("gradient", "queries")


@pytest.mark.parametrize("family", ["GPT-J", "BLOOM", "Mamba"])
def test_a_model_that_shows_no_pattern_is_refused_with_the_reason(family):
    with pytest.raises(UnavailableSiteError, match=r"no 'layers.0.attn.pattern' in"):
        hw.survey(model(family), PROMPTS, progress=False)


def test_a_word_the_tokenizer_lacks_is_refused_by_its_line(tmp_path: Path):
    path = tmp_path / "corpus.txt"
    path.write_text("Mary and John went to the store\nMary and nonsense\n")
    with pytest.raises(UnknownWordError, match=r"corpus.txt, line 2: .*'nonsense'"):
        hw.survey(hw.load("tiny"), path, progress=False)


@pytest.mark.parametrize(
    ("prompts", "error", "said"),
    [
        ([], PromptError, "there are no prompts"),
        ("w4 w5 w6", PromptError, "neither a list of prompts nor a text file"),
        ("nowhere.txt", PairFileError, "no file 'nowhere.txt'"),
        (["w4", "w5"], PromptError, "none of 2 prompts drawn has between 2 and 64 tokens"),
    ],
)
def test_prompts_that_are_none_are_refused(prompts, error, said):
    with pytest.raises(error, match=said):
        hw.survey(sharp(), prompts, progress=False)


def test_a_file_without_a_prompt_or_of_another_encoding_is_refused(tmp_path: Path):
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("\n \n")
    latin.write_bytes(b"w4 w5\nw\xe9\n")
    with pytest.raises(PromptError, match="holds no prompt"):
        hw.survey(sharp(), empty, progress=False)
    with pytest.raises(PairFileError, match="is not UTF-8"):
        hw.survey(sharp(), latin, progress=False)


@pytest.mark.parametrize("number", ["sample", "tested", "batch_size", "max_tokens"])
def test_numbers_below_one_are_refused_by_name(number):
    with pytest.raises(UnknownOptionError, match=f"{number}=0 is below 1"):
        hw.survey(sharp(), PROMPTS, **{number: 0})


# --- the command ---------------------------------------------------------------------------------


def command(monkeypatch, *words: object) -> int | str | None:
    from headwater.cli import main

    monkeypatch.setattr("sys.argv", ["headwater", "survey", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


def test_the_command_answers_in_a_sentence_and_saves_the_survey(tmp_path, monkeypatch, capsys):
    words = ("-m", "tiny", "--task", "ioi", "--tested", 4, "--sample", 20, "--no-progress")
    assert command(monkeypatch, *words, "--out", tmp_path / "out") in (0, None)
    said = capsys.readouterr().out
    assert "Does a gradient miss effects in tiny here?" in said
    found = Survey.load(tmp_path / "out")
    assert found.answer == "open"
    asks = "raise sample=; 40 checks all."
    assert found.sentence.count(asks) == 1
    assert found.sentence.replace(asks, asks.replace("sample=", "--sample")) in said
    assert (found.tested, len(found.rows), found.prompts) == (4, 20, 200)


def test_the_command_prints_json_of_a_text_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(pair.clean for pair in hw.task("capital")[:6].pairs))
    words = ("-m", "tiny", "-f", path, "--tested", 3, "--no-progress", "--json")
    assert command(monkeypatch, *words) in (0, None)
    found = Survey.from_dict(json.loads(capsys.readouterr().out))
    assert (found.corpus, found.prompts, found.metric) == ("corpus.txt", 6, "cross-entropy")


def test_the_command_without_a_corpus_is_refused(monkeypatch, capsys):
    assert command(monkeypatch, "-m", "tiny") == 2
    assert "there is nothing to survey" in capsys.readouterr().err


def test_the_command_refuses_prompts_of_a_mean_that_was_not_asked_for(monkeypatch, capsys):
    assert command(monkeypatch, "-m", "tiny", "--task", "ioi", "--over", "clean") == 2
    said = capsys.readouterr().err
    assert "--over goes with --reference mean or positional-mean, and no --reference was" in said
    assert "Type --reference positional-mean --over clean." in said
