"""Exact checks until nothing above theta can be missing: validity, words, resuming, commands."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import headwater as hw
from headwater.audits.bound import SPOTS
from headwater.audits.plan import LOOKS, Plan
from headwater.audits.verification import Verification
from headwater.cli import main
from headwater.errors import ModelGoneError, ResultError, RunFolderError
from planted import checked, counted, planted, population
from shape_checks import unchecked


def verified(seed: int, hidden=(), size=0.0, *, known=(), theta=0.1, **options):
    """A verification of a planted population, and which of its components reach theta."""
    estimate, exact = population(seed, hidden, size)
    planting = {key: options.pop(key) for key in ("together", "size_together") if key in options}
    function = planted(
        estimate,
        exact,
        together=planting.get("together", ()),
        size=planting.get("size_together", 0.0),
    )
    scores = hw.attribute(function, estimator=hw.Gradient())
    if known:
        checked(scores, exact, known)
    options = {"budget": 150, "seed": seed, "progress": False} | options
    found = hw.verify(scores, theta=theta, model=function, **options)
    effects = np.abs(exact)
    for columns in planting.get("together", ()):
        effects[list(columns)] += planting["size_together"]
    return found, {f"c{c}" for c in np.flatnonzero(effects >= theta)}


def missed(found: Verification, reach: set[str]) -> bool:
    """Whether the claim is made although an unchecked component reaches theta."""
    return found.holds and any(row.name in reach for row in found.unchecked)


# --- validity -------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [[150], [150, 170, 190]])
def test_the_whole_procedure_is_wrong_at_most_as_often_as_it_says(hidden):
    """Effects just above theta, which the estimate does not see: the hardest to bound rightly."""
    wrong = [missed(*verified(seed, hidden, 0.1 + 1e-9)) for seed in range(150)]
    # Nominal at most 5 %; 150 runs know that to 1.8 points.
    assert np.mean(wrong) <= 0.05 + 2 * 0.018


def test_a_claim_ends_it_early_where_little_is_hidden():
    found = [verified(seed)[0] for seed in range(10)]
    assert {one.outcome for one in found} == {"bounded"}
    assert all(one.runs < 150 and len(one.looks) < LOOKS for one in found)
    assert all(one.smallest < 0.1 for one in found)


def test_components_that_work_only_together_are_never_claimed_away():
    sets = [(150, 170), (151, 171, 191)]
    wrong = [missed(*verified(seed, together=sets, size_together=0.12)) for seed in range(60)]
    # 5 % of 60 is 3, and 7 or more come with a probability of 3 %
    assert sum(wrong) <= 6


def test_a_planted_interaction_is_said_in_words():
    found, _ = verified(0, together=[range(150, 160)], size_together=0.3)
    assert found.outcome == "open"
    assert "no bound on them" in found.sentence
    assert "This assumes that effects of unchecked components add up, and that fails" in (
        found.sentence
    )
    assert all(row.below is None for row in found.unchecked)
    assert len(found.looks) == 1  # the rest of the budget went into checks


def test_the_error_rates_of_the_looks_sum_to_that_of_the_whole():
    found, _ = verified(1, [150], 0.11, confidence=0.9)
    assert found.planned_looks == LOOKS
    assert all(look.confidence == pytest.approx(1 - 0.1 / LOOKS) for look in found.looks)


def test_whoever_tries_again_until_it_holds_is_told_what_that_costs():
    function = planted(*population(3))
    scores = hw.attribute(function, estimator=hw.Gradient())
    options = {"theta": 0.1, "model": function, "progress": False}
    first = hw.verify(scores, budget=150, **options)
    assert len(first.attempts) == 1
    assert "attempt" not in first.sentence
    again = hw.verify(scores, budget=150, **options)  # the same procedure, read back
    assert again.sentence == first.sentence
    assert again.fresh == 0
    other = hw.verify(scores, budget=150, seed=1, **options)
    assert other.outcome == "bounded"
    assert "This is attempt 2 on these scores" in other.sentence
    assert "has a chance of up to 10 %" in other.sentence


def test_checks_go_in_the_order_of_the_estimate():
    estimate, exact = population(2, [150], 0.3)
    found, _ = verified(2, [150], 0.3)
    n = sum(row.exact is not None for row in found.rows)
    spots = SPOTS * len(found.looks)  # drawn at random, to see whether effects add up
    order = np.argsort(-np.abs(estimate), kind="stable")[: n - spots]
    checked_names = {row.name for row in found.rows if row.exact is not None}
    assert checked_names >= {f"c{c}" for c in order}
    assert 0 < spots < n / 2
    for row in found.rows[:n]:
        assert row.exact == pytest.approx(exact[int(row.name[1:])], abs=1e-12)


# --- the plan -------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 50, 96, 150, 200, 1000, 10_000])
@pytest.mark.parametrize("unknown", [1, 30, 200, 5000])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_plan_never_exceeds_its_budget(budget, unknown, depth):
    plan = Plan.of(budget, unknown, depth)
    assert LOOKS * plan.stage_runs <= budget
    assert (plan.blocks > 0) == (budget >= Plan.least_budget(depth))


@pytest.mark.parametrize("budget", [1, 40, 100, 150])
def test_a_verification_never_exceeds_its_budget_and_counts_its_runs(budget):
    estimate, exact = population(0, [150], 0.2)
    function = planted(estimate, exact)
    scores = hw.attribute(function, estimator=hw.Gradient())
    settings = counted(function)
    found = hw.verify(scores, theta=0.1, budget=budget, model=function)
    assert found.runs <= budget
    assert sum(settings) == found.runs + 1  # and one at rest
    assert found.fresh == found.runs


def test_few_components_are_all_checked():
    function = planted(np.arange(8.0), np.arange(8.0))
    scores = hw.attribute(function, estimator=hw.Gradient())
    found = hw.verify(scores, theta=5.5, model=function)
    assert found.outcome == "complete"
    assert found.sentence == (
        "All 8 components were checked exactly: nothing can be missing. "
        "2 of the 8 checked reach 5.5: c7, c6."
    )
    assert [row.name for row in found.found] == ["c7", "c6"]


def test_a_small_budget_says_that_there_is_no_bound_and_what_there_would_be_one_for():
    found, _ = verified(0, budget=20)
    assert found.outcome == "open"
    assert "ended with 180 of 200 unchecked and no bound on them" in found.sentence
    assert found.notes == (
        "a budget of 20 leaves no room for subset runs, so there is no bound; they take a budget "
        "of 96.",
    )


def test_a_small_budget_says_what_checks_the_few_that_are_left():
    found, _ = verified(0, budget=17, known=range(20, 195))
    assert found.notes[0].endswith("so there is no bound; budget=25 checks every component.")


def test_exact_scores_need_no_run():
    function = planted(np.arange(8.0), np.arange(8.0))
    scores = hw.attribute(function, estimator=hw.Exact())
    found = hw.verify(scores, theta=5.5, model=function)
    assert (found.outcome, found.runs, found.known_before) == ("complete", 0, 8)


def test_what_an_audit_knows_costs_no_run():
    found, _ = verified(0, known=range(200))
    assert (found.outcome, found.runs, found.known_before) == ("complete", 0, 200)
    found, _ = verified(0, known=range(20, 60))
    assert found.known_before == 40
    rows = {row.name: row for row in found.rows}
    assert all(rows[f"c{c}"].exact is not None for c in range(20, 60))


def test_mean_and_magnitude_are_verified_apart():
    estimate, exact = population(1)
    estimate, exact = np.tile(estimate, (8, 1)), np.tile(exact, (8, 1))
    exact[:, 150] = [0.3, -0.3] * 4  # the mean is 0, the mean size 0.3
    function = planted(estimate, exact)
    scores = hw.attribute(function, estimator=hw.Gradient())
    options = {"theta": 0.1, "budget": 190, "model": function}
    means, sizes = (hw.verify(scores, magnitudes=m, **options) for m in (False, True))
    assert means.outcome == "bounded"
    assert "|mean effect|" in means.sentence
    assert not sizes.holds or "c150" in {row.name for row in sizes.found}
    assert sizes.to_dict()["bounded"] == "mean |effect|"


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"theta": -0.05}, "theta=-0.05 is not above 0"),
        ({"theta": 0.0}, "theta=0.0 is not above 0"),
        ({"theta": 0.1, "confidence": 1.5}, "confidence=1.5 is not between 0 and 1"),
        ({"theta": 0.1, "confidence": 0.0}, "confidence=0.0 is not between 0 and 1"),
        ({"theta": 0.1, "budget": 0}, "budget=0: verifying takes at least one exact run."),
    ],
)
def test_numbers_without_a_meaning_are_answered(options, said):
    function = planted(np.ones(3), np.ones(3))
    scores = hw.attribute(function, estimator=hw.Gradient())
    with pytest.raises(ResultError) as error:
        hw.verify(scores, model=function, **options)
    assert said in str(error.value)


def test_a_theta_that_is_no_number_is_answered():
    function = planted(np.ones(3), np.ones(3))
    scores = hw.attribute(function, estimator=hw.Gradient())
    with unchecked(), pytest.raises(ResultError, match=r"theta='x' is not a number"):
        hw.verify(scores, theta="x", model=function)  # pyright: ignore[reportArgumentType]


def test_a_number_of_numpys_is_a_number():
    function = planted(np.arange(8.0), np.arange(8.0))
    scores = hw.attribute(function, estimator=hw.Gradient())
    with unchecked():
        found = hw.verify(scores, theta=np.float32(5.5), model=function)  # pyright: ignore[reportArgumentType]
    assert found.outcome == "complete"


# --- folders and the command line -----------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> hw.Model:
    return hw.load("tiny")


@pytest.fixture
def folder(model, tmp_path):
    """A run with nested components and no audit."""
    components = hw.heads() + hw.queries() + hw.keys() + hw.mlps()
    task = hw.task("ioi")[:4]
    hw.attribute(model, task, components, progress=False, out=tmp_path / "run")
    return tmp_path / "run"


def again(folder, model, **options) -> Verification:
    scores = hw.Attribution.load(folder)
    return hw.verify(scores, model=model, out=folder, progress=False, **options)


def test_a_folder_is_verified_once_and_read_back_without_a_forward(folder, model):
    first = again(folder, model, theta=0.05)
    assert first.outcome == "complete"
    written = json.loads((folder / "verify.json").read_text())
    assert written["sentence"] == first.sentence
    second = again(folder, model, theta=0.05)
    assert (second.runs, second.fresh) == (first.runs, 0)
    assert second.cost.startswith("0 forwards")
    assert second.rows == first.rows


def test_a_larger_budget_goes_on_where_the_smaller_one_ended(folder, model):
    few = again(folder, model, theta=0.05, budget=10)
    assert few.outcome == "open"
    more = again(folder, model, theta=0.05, budget=100)
    assert more.fresh == more.runs - 10
    alone = hw.verify(hw.Attribution.load(folder), theta=0.05, model=model, progress=False)
    assert [row.name for row in more.rows] == [row.name for row in alone.rows]


def test_killed_at_any_time_it_loses_only_the_runs_since_the_last_write(folder, model, monkeypatch):
    from headwater.audits import interventions

    whole = hw.verify(hw.Attribution.load(folder), theta=0.05, model=model, progress=False)
    monkeypatch.setattr(interventions, "AT_ONCE", 8)
    calls = []
    run = hw.audits.interventions.Interventions.closed

    def killed(self, sets, title="exact runs"):
        calls.append(len(sets))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run(self, sets, title)

    with monkeypatch.context() as patched:
        patched.setattr(hw.audits.interventions.Interventions, "closed", killed)
        with pytest.raises(KeyboardInterrupt):
            again(folder, model, theta=0.05)
    resumed = again(folder, model, theta=0.05)
    assert resumed.fresh == whole.runs - 24
    # another stacking of the same runs rounds differently
    assert [row.exact for row in resumed.rows] == pytest.approx(
        [row.exact for row in whole.rows], abs=1e-5
    )


def test_an_audit_of_the_folder_is_not_repeated(folder, model):
    scores = hw.Attribution.load(folder)
    with scores.kept_in(folder):
        scores.audit(model=model, sample=30, progress=False)
    found = again(folder, model, theta=0.05)
    assert found.known_before == 30
    assert found.runs == len(scores.names) - 30


def test_an_audit_after_everything_was_verified_uses_all_of_it_and_runs_nothing(folder, model):
    again(folder, model, theta=0.05)
    scores = hw.Attribution.load(folder)
    audit = scores.audit(model=model, sample=5, progress=False)
    assert audit.counts.checked == len(scores.names)
    assert "; " in audit.cost
    forwards = float(audit.cost.split()[0])
    measured = float(audit.cost.split("; ")[1].split()[0])
    assert forwards == measured  # of the noise floor


def test_a_folder_of_other_scores_or_a_broken_ledger_is_refused(folder, model, tmp_path):
    other = hw.attribute(model, hw.task("ioi")[:4], hw.heads(), progress=False)
    with pytest.raises(RunFolderError, match="already holds another run"):
        hw.verify(other, theta=0.05, out=folder)
    (folder / "exact.safetensors").write_bytes(b"broken")
    with pytest.raises(RunFolderError, match="Delete it; the exact runs"):
        again(folder, model, theta=0.05)


def test_new_scores_in_the_folder_drop_what_was_verified_of_the_old_ones(folder, model):
    again(folder, model, theta=0.05)
    other = hw.attribute(model, hw.task("ioi")[:4], hw.heads(), progress=False)
    other.save(folder, overwrite=True)
    assert not (folder / "verify.json").exists()
    assert not (folder / "exact.safetensors").exists()


def test_a_loaded_result_without_its_model_says_to_pass_it(folder):
    with pytest.raises(ModelGoneError, match="Pass it"):
        hw.verify(hw.Attribution.load(folder), theta=0.05)


def command(monkeypatch, capsys, *words) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["headwater", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    return left.value.code or 0, said.out, said.err


def test_the_command_says_what_it_found_and_prints_json(folder, monkeypatch, capsys):
    words = ("verify", folder, "--theta", "0.05", "--confidence", "0.95", "--budget", "200")
    code, out, _ = command(monkeypatch, capsys, *words)
    assert code == 0
    assert "All 44 components were checked exactly: nothing can be missing." in out
    code, out, _ = command(monkeypatch, capsys, *words, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["outcome"] == "complete"
    assert found["fresh"] == 0
    assert len(found["components"]) == 44


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--theta", "-0.05"), "Type the smallest effect that matters to you"),
        (("--theta", "0.05", "--confidence", "2"), "Type confidence=0.95."),
        (("--theta", "0.05", "--budget", "0"), "Type budget=200."),
    ],
)
def test_each_mistake_is_one_message_with_exit_code_2(folder, monkeypatch, capsys, words, said):
    code, _, err = command(monkeypatch, capsys, "verify", folder, *words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
