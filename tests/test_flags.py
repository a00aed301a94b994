"""Diagnosis: its numbers against closed forms and slow twins; each flag on its planted model."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch

import headwater as hw
import planted_models
from headwater.audits import diagnosis as words
from headwater.audits.diagnosis import Diagnosis
from headwater.audits.jumps import SHORTEST, find_jumps
from headwater.audits.saturation import linear_effects, missed, saturated_rows
from headwater.cli import show
from headwater.errors import GateError, ResultError, RunFolderError, StationaryMetricError
from headwater.estimators import AtPStar
from headwater.gates import ATTENTION, DROPS, GatedFunction, Linearized, Slopes
from headwater.zoo.truths.cancellation import CANCELLATION
from headwater.zoo.truths.saturation import GAPS, SATURATED_SOFTMAX, SHARP_STEP, OneQuery
from tiny_tasks import gated, model, task, tokenizer


@functools.cache
def planted(name: str) -> tuple[hw.Attribution, Diagnosis]:
    scores = planted_models.PLANTED[name]()
    return scores, scores.diagnose(progress=False)


def names_with(scores: hw.Attribution, flag: str) -> set[str]:
    return {row.name for row in scores.rows() if any(one.startswith(flag) for one in row.flags)}


# --- each flag fires on its own planted model and on no other -----------------------------------


PAIRS_OF_FLAGS = [
    (name, flag)
    for name in planted_models.PLANTED
    for flag in words.FLAGS
    if (name, flag) != (words.ATTENTION, words.BENT)  # bends, too: the next test
]


@pytest.mark.parametrize(("name", "flag"), PAIRS_OF_FLAGS)
def test_a_flag_is_raised_by_the_model_it_was_planted_in_and_by_no_other(name, flag):
    scores, _ = planted(name)
    assert bool(names_with(scores, flag)) == (name == flag)


@pytest.mark.parametrize("name", [words.ATTENTION, words.BENT])
def test_attention_is_flagged_as_bent_only_where_the_gradient_is_wrong_by_two(name):
    scores, _ = planted(name)
    exact = hw.attribute(
        scores.model, scores.task, hw.queries() + hw.keys(), hw.Exact(), progress=False
    )
    for one in names_with(scores, words.BENT):
        truth, gradient = float(exact[one].mean()), float(scores[one].mean())
        assert abs(truth - gradient) > 0.5 * max(abs(truth), abs(gradient))


def test_saturated_attention_is_flagged_in_the_layer_where_it_was_planted_only():
    scores, _ = planted(words.ATTENTION)
    layers = {name.partition(".")[0] for name in names_with(scores, words.ATTENTION)}
    assert layers == {f"a{planted_models.LAYER}"}


def test_the_head_that_writes_next_to_nothing_is_below_the_noise_of_bfloat16():
    scores, found = planted(words.NOISE)
    assert found.noise_floor is not None
    assert found.noise_floor > 2.0**-9 * float(scores.parts.clean.abs().max())
    assert "a1.h0" in names_with(scores, words.NOISE)


# --- saturated rows ------------------------------------------------------------------------------


def test_saturated_rows_are_those_of_the_model_s_own_eager_attention_without_the_first_token():
    scores, found = planted(words.ATTENTION)
    module = scores.model.module
    ids = tokenizer()([pair.clean for pair in scores.task.pairs], return_tensors="pt")["input_ids"]
    module.config._attn_implementation = "eager"
    patterns = module(ids, output_attentions=True).attentions
    module.config._attn_implementation = "sdpa"
    for layer, pattern in enumerate(patterns):
        for head, share in enumerate(planted_models.saturated_rows(pattern)):
            assert found[f"a{layer}.h{head}"].saturated_rows == share
            assert found[f"a{layer}.h{head}<q>"].saturated_rows == share
            assert found[f"a{layer}.h{head}<k>"].saturated_rows == share
    assert bool(
        (patterns[1][:, :, 0].amax(-1) == 1).all()
    )  # the first token's rows would all count


def test_padded_rows_and_padding_change_no_share():
    wrapped = model("Llama")
    together = hw.attribute(wrapped, task(4, 9), hw.queries(), progress=False)
    alone = [
        hw.attribute(wrapped, task(4, 9)[i : i + 1], hw.queries(), progress=False) for i in range(2)
    ]
    both = together.diagnose(jumps=0, progress=False)
    each = [one.diagnose(jumps=0, progress=False) for one in alone]
    for name in together.names:
        rows = [3, 8]  # of a prompt's tokens all but the first
        counted = sum(r * one[name].saturated_rows for r, one in zip(rows, each, strict=True))
        assert both[name].saturated_rows == pytest.approx(counted / 11, abs=1e-12)


def test_what_atp_misses_in_saturated_rows_is_the_closed_form():
    function = SATURATED_SOFTMAX.function()
    found = hw.attribute(function, estimator=hw.Gradient()).diagnose()["query"]

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def lost(s: float) -> float:
        return math.tanh(s / 2) - 2 * s * sigmoid(s) * sigmoid(-s)

    saturated = [s for s in GAPS if sigmoid(s) > 0.99]
    assert saturated == [10.0, 20.0, 40.0]
    assert found.saturated_rows == 3 / 4
    assert found.missed == pytest.approx(sum(map(lost, saturated)) / 4, abs=1e-12)
    assert found.flags == ("saturated attention (75 % of rows, AtP misses +0.75 there)",)
    assert found.computed == pytest.approx(sum(math.tanh(s / 2) for s in GAPS) / 4, abs=1e-12)


class Unsloped(OneQuery):
    """The same row of attention, without what the metric makes of it."""

    def linearized(self, *, attention: bool, drops: bool) -> Linearized:
        linear = super().linearized(attention=attention, drops=drops)
        return replace(linear, slopes=Slopes(linear.slopes.gates, {}))


def test_without_the_slope_of_a_pattern_what_is_missed_is_not_known():
    function = SATURATED_SOFTMAX.function()
    unsloped = Unsloped(
        function.fn,
        function.names,
        function.batch,
        function.capabilities,
        dtype=function.dtype,
    )
    found = hw.attribute(unsloped, estimator=hw.Gradient()).diagnose()["query"]
    assert (found.saturated_rows, found.missed, found.softened) == (3 / 4, None, None)
    assert found.computed is None
    assert found.flags == ()


ATTENDING = {
    "whole": hw.queries() + hw.keys(),
    "positions": hw.queries(positions=[1, -1]) + hw.keys(positions=[0, -2]),
}


@pytest.mark.parametrize("components", ATTENDING)
@pytest.mark.parametrize("family", ["GPT-2", "Llama", "gpt-oss"])
def test_the_softmax_s_slope_in_all_rows_together_is_the_gradient_score(family, components):
    function = gated(model(family), task(6, 4), ATTENDING[components])
    linear = function.linearized(attention=True, drops=False)
    expected = hw.Gradient().scores(function)
    for part in linear.replaced:
        rows, slope = linear.rows[part.layer], linear.slopes.patterns[part.layer]
        ours = linear_effects(rows, part, slope)
        assert ours == pytest.approx(expected[:, part.columns], abs=1e-11)


@pytest.mark.parametrize("components", ATTENDING)
def test_what_is_missed_in_all_rows_together_is_atp_star_minus_atp(components):
    function = gated(model("Llama"), task(6, 4), ATTENDING[components])
    linear = function.linearized(attention=True, drops=False)
    expected = AtPStar(grad_drop=False).scores(function) - hw.Gradient().scores(function)
    for part in linear.replaced:
        rows, slope = linear.rows[part.layer], linear.slopes.patterns[part.layer]
        every = torch.ones_like(saturated_rows(rows))
        ours = missed(rows, part, slope, every)
        assert ours == pytest.approx(expected[:, part.columns], abs=1e-11)


def test_what_is_computed_through_all_rows_is_atp_star_and_a_head_has_none():
    wrapped, two = model("Llama"), task(6, 4)
    components = hw.heads() + hw.queries() + hw.keys()
    found = hw.attribute(wrapped, two, components, progress=False).diagnose(jumps=0, progress=False)
    fixed = AtPStar(grad_drop=False).scores(gated(wrapped, two, components)).mean(0).tolist()
    for one, expected in zip(found.findings, fixed, strict=True):
        if one.name.endswith(">"):
            assert one.computed == pytest.approx(expected, abs=1e-11)
        else:
            assert (one.computed, one.inside) == (None, True)


def test_attention_that_bends_without_saturating_is_flagged_with_both_numbers():
    _, found = planted(words.BENT)
    query = found["a1.h1<q>"]
    assert query.missed == pytest.approx(0, abs=1e-9)
    assert query.flags == (
        f"bent attention (AtP gives {query.gradient:+.3g}, with the softmax computed "
        f"{query.computed:+.3g})",
    )
    assert "bent attention a1.h1<q>, a1.h1<k>" in found.sentence


def test_of_a_grouped_head_the_numbers_are_those_of_its_query_and_of_the_key_it_reads():
    wrapped = model("Llama")
    components = hw.heads() + hw.queries() + hw.keys()
    found = hw.attribute(wrapped, task(6, 6), components, progress=False).diagnose(progress=False)
    query, key = found["a1.h3<q>"], found["a1.kv1<k>"]
    assert found["a1.h3"].missed == pytest.approx(query.missed + key.missed, abs=1e-12)


def test_heads_alone_are_told_the_same_as_heads_scored_with_their_queries_and_keys():
    wrapped, two = model("GPT-2"), task(6, 6)
    alone = hw.attribute(wrapped, two, hw.heads(), progress=False).diagnose(progress=False)
    components = hw.heads() + hw.queries() + hw.keys()
    together = hw.attribute(wrapped, two, components, progress=False).diagnose(progress=False)
    for found in alone.findings:
        assert found.missed == pytest.approx(together[found.name].missed, abs=1e-12)
        assert found.saturated_rows == together[found.name].saturated_rows


# --- cancellation --------------------------------------------------------------------------------

KEPT = 0.1
"""What the second layer leaves of the first one's write."""


class PartlyUndone(GatedFunction):
    """Layer 0 writes the gate, layer 1 takes all but a tenth of it away: df/dm = 0.1 on both."""

    def linearized(self, *, attention: bool, drops: bool) -> Linearized:
        whole, cut = torch.full((2, 1), KEPT, dtype=torch.float64), torch.ones(2, 1)
        return Linearized(2, [0], {}, [], Slopes(whole, {}), lambda at: Slopes(at * cut, {}))


def test_the_cancellation_index_is_the_mean_over_held_layers_by_the_gradient():
    function = PartlyUndone(
        lambda m: KEPT * m[..., 0],
        ["a0"],
        batch=2,
        capabilities=frozenset({ATTENTION, DROPS}),
        dtype=torch.float64,
    )
    found = hw.attribute(function).diagnose()["a0"]
    # of two layers one is the component's own, whose being held leaves nothing
    assert found.cancellation == pytest.approx(1 / KEPT)
    assert found.uncancelled == pytest.approx(1.0)
    assert found.flags == ("cancellation (index 10: 1 with a layer held)",)


def test_a_gradient_that_cancels_exactly_has_an_infinite_index_that_survives_saving(tmp_path):
    scores = hw.attribute(CANCELLATION.function())
    assert scores.diagnose()["a0"].cancellation == math.inf
    scores.save(tmp_path / "run")
    assert hw.Attribution.load(tmp_path / "run").diagnosis == scores.diagnosis


# --- jumps ---------------------------------------------------------------------------------------


def gate(fn, batch: int = 1) -> GatedFunction:
    return GatedFunction(lambda m: fn(m[..., 0]), ["a"], batch=batch, dtype=torch.float64)


def test_a_jump_is_found_with_its_size_and_its_place_to_the_shortest_piece():
    function = gate(lambda m: torch.sin(m) + 1.5 * (m > 0.3))
    jump = find_jumps(function, [0], 0.01)[0]
    assert jump.decided
    assert jump.size == pytest.approx(1.5, abs=1e-6)
    assert jump.gate == pytest.approx(0.3, abs=SHORTEST)


@pytest.mark.parametrize(
    "fn",
    [
        lambda m: torch.sigmoid(200 * (m - 0.37)),
        lambda m: torch.relu(m - 0.411),
        lambda m: 100 * torch.exp(m),
    ],
    ids=["steep", "kink", "large"],
)
def test_what_is_only_steep_or_kinked_is_no_jump(fn):
    assert find_jumps(gate(fn), [0], 0.01)[0].size == 0
    assert find_jumps(gate(lambda m: fn(m) + 0.1 * (m > 0.8)), [0], 0.01)[0].size > 0.09


def test_the_ramp_that_few_midpoints_miss_is_no_jump():
    assert find_jumps(SHARP_STEP.function(), [0], 0.01)[0].size == 0


def test_a_jump_on_one_pair_is_found_among_pairs_without():
    thresholds = torch.tensor([2.0, 0.6], dtype=torch.float64)
    jump = find_jumps(gate(lambda m: m + (m > thresholds), batch=2), [0], 0.01)[0]
    assert jump.size == pytest.approx(1.0, abs=1e-6)
    assert jump.gate == pytest.approx(0.6, abs=SHORTEST)


def step(m: torch.Tensor) -> torch.Tensor:
    return (m > 0).double()


@pytest.mark.parametrize(
    "window", [(0.3, 0.6), (0.9, 0.95), (0.02, 0.07)], ids=["wide", "near clean", "near off"]
)
def test_jumps_that_cancel_over_the_whole_way_are_found(window):
    up, down = window
    jump = find_jumps(gate(lambda m: m + 5 * (step(m - up) - step(m - down))), [0], 0.01)[0]
    assert jump.size == pytest.approx(5.0, abs=0.01)
    assert min(abs(jump.gate - up), abs(jump.gate - down)) <= SHORTEST


def test_a_staircase_of_small_steps_is_one_jump_of_their_sum():
    jump = find_jumps(gate(lambda m: 0.3 * torch.floor(30 * m) / 30), [0], 0.013)[0]
    # steps of 0.01 at 1/30, 2/30 ... 1, of which a piece may hold two
    assert jump.decided
    assert jump.gate is None
    assert jump.size == pytest.approx(0.3, rel=0.1)


def test_a_way_with_many_kinks_is_no_staircase():
    kinks = torch.linspace(0.01, 0.99, 40, dtype=torch.float64)
    hinges = torch.where(torch.arange(40) % 2 == 0, 6.0, -6.0)
    function = gate(lambda m: (torch.relu(m[..., None] - kinks) * hinges).sum(-1))
    assert find_jumps(function, [0], 0.01)[0].size == 0


def test_rounding_on_many_pieces_is_no_staircase():
    def rounded(m: torch.Tensor) -> torch.Tensor:  # to steps of 0.01, up to 0.005 off
        return m + (torch.round(m * 100) / 100 - m).detach()

    function = gate(rounded)
    with function.counting() as cost:
        assert find_jumps(function, [0], 0.02, 0.03)[0].size == 0
    assert cost.backwards == 16  # two slopes on each of eight pieces, none of which is halved


def stepping(count: int = 20, jump: float = 3) -> hw.Attribution:
    """One gate that only jumps, and others with slopes."""
    function = GatedFunction(
        lambda m: jump * step(m[..., 0] - 0.5) + m[..., 1:].sum(-1),
        [f"c{i}" for i in range(count)],
        dtype=torch.float64,
    )
    return planted_models._kept_function(function)


def test_a_gate_that_only_jumps_is_looked_at_once_its_exact_effect_is_known():
    scores = stepping(400, jump=50)  # among so many it is hardly ever drawn
    assert scores.diagnose(progress=False).flagged(words.ROUTING) == ()
    scores.audit(sample=400, progress=False)
    assert scores.diagnose(progress=False).flagged(words.ROUTING) == ("c0",)


def test_a_gate_whose_exact_effect_is_furthest_from_its_score_is_looked_at_next():
    scores = stepping(jump=0.6)
    scores.audit(sample=20, progress=False)
    found = scores.diagnose(progress=False)
    assert found.jumps_in[:5] == ("c1", "c2", "c3", "c4", "c0")
    assert any("the 1 furthest from their exact effect (c0), 3 drawn" in n for n in found.notes)
    assert found.flagged(words.ROUTING) == ("c0",)


def test_half_of_the_gates_looked_at_are_drawn_and_a_note_says_which():
    scores = stepping()
    looks = [scores.diagnose(seed=seed, progress=False) for seed in range(20)]
    assert looks[0] == replace(scores.diagnose(seed=0, progress=False), cost=looks[0].cost)
    for found in looks:
        strongest, drawn = found.jumps_in[:4], found.jumps_in[4:]
        assert strongest == ("c1", "c2", "c3", "c4")
        assert (
            f"jumps were looked for in the 4 strongest (c1, c2, c3, c4), 4 drawn at random "
            f"({', '.join(drawn)}); jumps=20 looks in all."
        ) in found.notes
        assert found.flagged(words.ROUTING) == (("c0",) if "c0" in drawn else ())
        assert "jumps looked for in 8 of 20" in found.sentence
    # c0 is drawn with probability 4/16, and not once in 20 with probability 0.3 %
    assert any("c0" in found.jumps_in for found in looks)
    assert scores.diagnose(jumps=20, progress=False).flagged(words.ROUTING) == ("c0",)


def test_the_jump_flagged_in_the_routed_model_is_there_when_the_gate_is_moved_across_it():
    scores, found = planted(words.ROUTING)
    name = max(found.findings, key=lambda one: one.jump or 0).name
    at, size = found[name].jump_at, found[name].jump
    ends = torch.tensor([at - SHORTEST, at + SHORTEST], dtype=torch.float64)
    function = gated(scores.model, scores.task, hw.heads())
    m = function.gates(2)
    m[..., function.names.index(name)] = ends[:, None]
    with torch.no_grad():
        below, above = function(m)
    assert float((above - below).abs().max()) == pytest.approx(size, rel=0.01)


def test_where_rounding_is_larger_than_the_jumps_that_count_none_are_looked_for():
    _, found = planted(words.NOISE)
    assert found.jumps_in == ()
    assert any("jumps were not looked for: rounding moves the metric" in n for n in found.notes)


# --- what a reader sees --------------------------------------------------------------------------


def test_flags_stand_in_rows_repr_page_table_and_the_audit_s_sentence(capsys):
    scores, found = planted(words.ROUTING)
    flag = found["a0.h1"].flags[0]
    audit = scores.audit(sample=8, progress=False)
    assert "Flags: routing jump a0.h0, a0.h1" in audit.sentence
    assert flag in repr(scores)
    assert any(flag in row["flags"] for row in scores.page_data()["components"])
    assert "Flags: routing jump" in scores.page_data()["headline"][0]
    show.attribution(scores)
    assert "routing jump" in capsys.readouterr().out


def test_diagnosed_after_the_audit_the_sentence_has_the_flags_too_and_only_once():
    scores = planted_models.plain()
    before = scores.audit(sample=8, progress=False).sentence
    scores.diagnose(progress=False)
    scores.diagnose(progress=False)
    assert scores.checked.sentence == f"{before} Flags: none."


def test_a_result_s_diagnosis_is_saved_and_read_back_whole(tmp_path):
    scores, found = planted(words.ATTENTION)
    scores.save(tmp_path / "run")
    again = hw.Attribution.load(tmp_path / "run")
    assert again.diagnosis == found
    assert [row.flags for row in again.rows()] == [row.flags for row in scores.rows()]


def test_scores_of_other_numbers_do_not_keep_an_old_diagnosis(tmp_path):
    wrapped, two = model("Llama"), task(6, 6)
    old = hw.attribute(wrapped, two, hw.heads(), progress=False)
    old.diagnose(progress=False)
    old.save(tmp_path / "run")
    new = hw.attribute(wrapped, two, hw.heads(), hw.Exact(), progress=False)
    new.save(tmp_path / "run", overwrite=True)
    assert hw.Attribution.load(tmp_path / "run").diagnosis is None


def test_a_broken_diagnosis_is_refused_by_its_name(tmp_path):
    scores, _ = planted("none")
    scores.save(tmp_path / "run")
    (tmp_path / "run" / "diagnosis.json").write_text('{"findings": []}')
    with pytest.raises(RunFolderError, match=r"diagnosis.json cannot be read"):
        hw.Attribution.load(tmp_path / "run")


def test_a_saturated_output_is_a_warning_on_the_result_without_any_diagnosis():
    scores = planted_models.certain()
    assert scores.diagnosis is None
    assert any("p > 0.99 in 100 % of pairs" in warning for warning in scores.warnings())
    audit = scores.audit(sample=8, progress=False)
    assert audit.sentence.endswith("Flags: saturated output softmax in 100 % of pairs.")


def test_a_diagnosis_knows_of_the_saturated_output_and_rows_say_it_once():
    scores, found = planted(words.OUTPUT)
    assert found.flagged(words.OUTPUT) == scores.names
    for row in scores.rows():
        assert [one for one in row.flags if one.startswith(words.OUTPUT)] == [
            "saturated output softmax (p > 0.99 in 100 % of pairs)"
        ]
    audit = scores.audit(sample=8, progress=False)
    assert audit.sentence.count(words.OUTPUT) == 1


def test_exact_effects_have_no_saturated_output():
    scores = planted_models.certain()
    exact = hw.attribute(scores.model, scores.task, hw.heads(), hw.Exact(), progress=False)
    assert not names_with(exact, words.OUTPUT)
    assert not any("saturated output" in warning for warning in exact.warnings())


# --- what is refused or not known ----------------------------------------------------------------


def test_scores_of_the_corrupted_end_are_refused():
    scores = hw.attribute(
        model("Llama"), task(6), hw.heads(), hw.Gradient(at="corrupted"), progress=False
    )
    with pytest.raises(GateError, match="corrupted end"):
        scores.diagnose()


def test_a_metric_that_is_stationary_at_the_clean_end_is_refused():
    scores = hw.attribute(
        model("Llama"), task(6), hw.heads(), hw.Exact(), metric="kl", progress=False
    )
    with pytest.raises(StationaryMetricError, match="every gradient there is exactly 0"):
        scores.diagnose(progress=False)


@pytest.mark.parametrize(
    ("family", "reference", "why"),
    [
        ("Llama", hw.Mean(), "a mean over positions is no query"),
        ("GPT-J", hw.Corrupted(), "GPT-J offers no queries"),
    ],
)
def test_heads_whose_queries_cannot_be_had_say_so(family, reference, why):
    scores = hw.attribute(
        model(family), task(6, 6), hw.heads(), reference=reference, progress=False
    )
    found = scores.diagnose(progress=False)
    assert all(one.saturated_rows is None and one.missed is None for one in found.findings)
    assert any(why in note for note in found.notes)
    assert any(why in warning for warning in scores.warnings())


def test_a_gated_function_without_capabilities_says_what_is_not_known():
    found = hw.attribute(GatedFunction(lambda m: m.sum(-1), ["a", "b"])).diagnose()
    assert found["a"].cancellation is None
    assert [note.partition(" is not known")[0] for note in found.notes] == [
        "saturated attention",
        "cancellation",
    ]


@pytest.mark.parametrize("end", ["clean", "corrupted"])
def test_a_diagnosis_counts_apart_from_what_the_function_had_counted(end):
    function = GatedFunction(lambda m: m.sum(-1), ["a", "b"], end=end)
    scores = hw.attribute(function, estimator=hw.Gradient())
    own, before = function.cost, function.cost.forwards
    scores.diagnose()
    assert function.cost is own
    assert own.forwards == before


def test_a_name_and_a_flag_that_are_not_there_are_answered_with_the_closest():
    _, found = planted("none")
    with pytest.raises(ResultError) as refused:
        found["a1.h33"]
    assert str(refused.value) == (
        "no component 'a1.h33' among the 8 diagnosed. Closest: 'a1.h3', 'a1.h2', 'a1.h1'.\n"
        "All names: `scores.names`."
    )
    with pytest.raises(ResultError, match=r"no flag 'cancelation'. Closest: 'cancellation'"):
        found.flagged("cancelation")


def test_the_thresholds_decide_on_either_side():
    found = words.Finding("a", 1.0, 1.0, saturated_rows=0.5, missed=0.2, softened=1.0)
    flagged = functools.partial(words.flags_of, floor=None, jump_tolerance=0.01)
    assert flagged(found, whole=10.0)  # 0.2 is more than 1 % of 10 and a tenth of 1
    assert not flagged(found, whole=30.0)
    small = words.Finding("a", 1.0, 1.0, saturated_rows=0.5, missed=0.2, softened=3.0)
    assert not flagged(small, whole=10.0)
    bent = words.Finding("a", 1.0, 1.0, computed=0.45)
    assert flagged(bent, whole=10.0)  # 0.55 apart is more than half of 1, and than 1 % of 10
    assert not flagged(bent, whole=60.0)
    assert not flagged(replace(bent, computed=0.55), whole=10.0)
    assert flagged(replace(bent, computed=-0.05), whole=10.0)
