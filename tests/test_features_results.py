"""Features of dictionaries: how they are selected and named, and what becomes of their scores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import headwater as hw
from feature_gates import prompts
from feature_twins import Twin, features_of, random_dictionaries, random_dictionary
from headwater.components import Choice, Selection, parse_component
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import (
    DictionaryError,
    GateError,
    NestedComponentsError,
    UnavailableSiteError,
    UnfitReferenceError,
    UnknownOptionError,
)
from headwater.gates import Move
from headwater.sites import Site
from shape_checks import unchecked
from tiny_tasks import gated, model, task


def names(selection: Selection, family: str = "Llama", length: int | None = None) -> list[str]:
    return list(selection.expand(model(family, prove=False).anatomy(), length).names)


def found(*places: str, family: str = "Llama", **fields: Any) -> Dictionaries:
    """Dictionaries of 3, 4, 5, ... features."""
    return random_dictionaries(model(family, prove=False), *places, features=3, **fields)


# --- what is selected -----------------------------------------------------------------------------


def test_features_come_site_by_site_as_a_run_computes_them_and_the_error_behind_each():
    assert names(hw.features(found("1.mlp.out", "embed"))) == [
        "input.f0", "input.f1", "input.f2", "input.f3", "input.error",
        "m1.f0", "m1.f1", "m1.f2", "m1.error",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "place", "written"),
    [
        ("Llama", "embed", "input"),
        ("Llama", "1.attn.z", "a1.z"),
        ("Llama", "1.attn.out", "a1"),
        ("Llama", "1.resid_mid", "r1.mid"),
        ("Llama", "1.mlp.post", "m1.post"),
        ("Llama", "1.mlp.out", "m1"),
        ("Llama", "1.resid_post", "r1"),
        ("Mamba", "1.mixer.post", "mixer1.post"),
        ("Mamba", "1.mixer.out", "mixer1"),
    ],
)
def test_names_say_the_site_and_are_read_back(family, place, written):
    dictionaries = found(place, family=family)
    table = hw.features(dictionaries, positions=[0, -1]).expand(
        model(family, prove=False).anatomy()
    )
    parts = [f"f{index}@{position}" for position in (0, -1) for index in range(3)]
    assert table.names == tuple(f"{written}.{part}" for part in (*parts, "error@0", "error@-1"))
    assert [parse_component(name) for name in table.names] == list(table)
    assert [table.index_of(name) for name in table.names] == list(range(len(table)))


def test_each_position_is_counted_from_the_first_token():
    assert names(hw.features(found("0.mlp.out"), positions="each"), length=2) == [
        "m0.f0@0", "m0.f1@0", "m0.f2@0", "m0.f0@1", "m0.f1@1", "m0.f2@1",
        "m0.error@0", "m0.error@1",
    ]  # fmt: skip


def test_layers_choose_among_the_sites_that_have_a_dictionary():
    both = found("embed", "0.mlp.out", "1.attn.out", "1.mlp.out")
    assert [name for name in names(hw.features(both, layers=1)) if "error" in name] == [
        "a1.error",
        "m1.error",
    ]
    assert [name for name in names(hw.features(both, layers=[1, 0])) if "error" in name] == [
        "m0.error",
        "a1.error",
        "m1.error",
    ]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (
            [0, 3],
            "no dictionary at layer 3: there are some at layers.0.mlp.out, layers.1.mlp.out.",
        ),
        ([1, 1], "layer 1 is given twice for features.\nGive each layer once, such as 0,2."),
    ],
)
def test_layers_without_a_dictionary_or_given_twice_are_refused(layers, said):
    with pytest.raises(GateError) as refused:
        names(hw.features(found("0.mlp.out", "1.mlp.out"), layers=layers))
    assert str(refused.value) == said


def test_no_positions_and_other_things_than_dictionaries_are_refused():
    with unchecked(), pytest.raises(UnknownOptionError) as refused:
        hw.features("folder")  # pyright: ignore[reportArgumentType]
    assert str(refused.value) == (
        "hw.features takes dictionaries, got str.\n"
        "Write hw.features(hw.load_dictionaries(model, 'FOLDER'))."
    )
    with pytest.raises(UnknownOptionError, match=r"^positions=\[\] selects nothing"):
        hw.features(found("0.mlp.out"), positions=[])
    with pytest.raises(GateError) as missing:
        names(Selection((Choice("feature"),)))
    assert str(missing.value) == (
        "features are those of dictionaries, and none are given here: a name alone does not say "
        "whose feature is meant.\nWrite hw.features(hw.load_dictionaries(model, 'FOLDER'))."
    )


def test_a_position_outside_a_prompt_is_refused_with_the_pair():
    with pytest.raises(GateError) as refused:
        hw.attribute(model("Llama"), task(6, 4), hw.features(found("0.mlp.out"), positions=[4]))
    assert str(refused.value) == (
        "position 4 does not exist in pair 1, whose prompt has 4 tokens (positions 0 to 3).\n"
        "Positions count from the first real token; -1 is the last."
    )


def test_a_site_whose_features_have_no_names_is_refused():
    one = random_dictionary(24, 3, 0)
    with pytest.raises(UnavailableSiteError) as refused:
        names(hw.features(Dictionaries({"layers.1.mlp.in": one})))
    assert str(refused.value) == (
        "a dictionary at 'layers.1.mlp.in' has no place in a circuit.\nFeatures are gated at "
        "embed, attn.z, attn.out, resid_mid, mlp.post, mlp.out, mixer.post, mixer.out, resid_post."
    )


@pytest.mark.parametrize("place", ["layers.7.mlp.out", "layers.0.mixer.out", "layers.0.mlp.post"])
def test_a_dictionary_that_does_not_fit_the_model_is_refused(place):
    one = random_dictionary(24, 3, 0)
    with pytest.raises(DictionaryError, match=re.escape(place)):
        names(hw.features(Dictionaries({place: one})))


@pytest.mark.parametrize(
    ("read", "written"),
    [
        ("layers.0.mlp.in", "layers.1.mlp.out"),
        ("embed", "layers.1.mlp.out"),
        ("layers.0.resid_post", "layers.0.mlp.out"),
        ("layers.1.mlp.in", "layers.0.mlp.out"),
    ],
)
def test_a_transcoder_over_layers_or_backwards_is_refused(read, written):
    one = random_dictionary(24, 3, 0, reads=24)
    with pytest.raises(DictionaryError) as refused:
        names(hw.features(Dictionaries({written: one}, {written: read})))
    assert str(refused.value) == (
        f"a dictionary that reads '{read}' and writes '{written}' cannot be gated: its features "
        "are computed where they are written, from what passes before that in the same layer.\n"
        "Use transcoders of one layer, such as ('layers.3.mlp.in', 'layers.3.mlp.out')."
    )


def test_what_leaves_the_layer_before_is_what_a_transcoder_reads_in_its_own():
    chosen = model("Llama")
    one = random_dictionary(24, 5, 1, reads=24)
    read, written = Site(0, "resid_post"), Site(1, "mlp.out")
    selection = hw.features(Dictionaries({written: one}, {written: read}))
    function = gated(chosen, prompts(), selection)
    twin = Twin(chosen, "Llama", function)
    clean, off = (features_of(one, twin.value(read, ids)) for ids in (None, twin.corrupted))
    column = int((clean - off)[:, -1].abs().sum(0).argmax())
    change = (off - clean)[..., column, None] * one.decoder[column]
    with torch.no_grad():
        expected = twin.metric() - twin.metric({written: lambda value: value + change})
    function.value()
    before = function.cost.forwards
    assert_close(function.effects([column])[0], expected, rtol=0, atol=1e-10)
    # a run of two prompts that starts at layer 1 of 2
    assert function.cost.forwards - before == pytest.approx(2 * 1 / 2)


def test_two_dictionaries_of_one_site_are_refused_and_one_may_be_selected_twice():
    one, other = found("0.mlp.out"), found("0.mlp.out")
    with pytest.raises(GateError) as refused:
        names(hw.features(one, positions=[0]) + hw.features(other, positions=[1]))
    assert str(refused.value) == (
        "two dictionaries are of 'layers.0.mlp.out': a name would mean a feature of either.\n"
        "Select both from one that is read once, or score them in two calls."
    )
    with pytest.raises(GateError, match=r"^component 'm0.f0' is selected twice\."):
        names(hw.features(one) + hw.features(one))
    twice = hw.features(one, positions=[0]) + hw.features(one, positions=[1])
    assert len(names(twice)) == 2 * 4


@pytest.mark.parametrize(
    ("places", "positions", "length", "cut"),
    [
        (["embed"], "all", None, True),
        (["embed"], "each", 4, True),
        (["1.resid_post"], "all", None, True),
        (["1.resid_post"], "each", 4, True),
        (["1.resid_post"], [0, -1], 4, False),
        (["0.mlp.out"], "all", None, False),
        (["1.resid_mid"], "all", None, False),
        (["embed", "1.resid_post"], "all", None, False),
    ],
)
def test_only_all_features_of_the_input_or_of_one_residual_are_a_cut(
    places, positions, length, cut
):
    selection = hw.features(found(*places), positions=positions)
    table = selection.expand(model("Llama", prove=False).anatomy(), length)
    assert table.is_cut(length) is cut
    beside = selection + hw.mlps(layers=0)
    assert not beside.expand(model("Llama", prove=False).anatomy(), length).is_cut(length)


def test_an_error_alone_is_a_cut_where_it_is_the_whole_residual():
    none = hw.Dictionary(
        encoder=torch.zeros(24, 0),
        encoder_bias=torch.zeros(0),
        decoder=torch.zeros(0, 24),
        decoder_bias=torch.zeros(24),
    )
    selection = hw.features(Dictionaries({"layers.0.resid_post": none}))
    table = selection.expand(model("Llama", prove=False).anatomy())
    assert table.names == ("r0.error",)
    assert table.is_cut(None)


def test_a_family_that_lacks_a_kind_offers_what_it_has_each_once():
    with pytest.raises(UnavailableSiteError) as refused:
        names(hw.heads(), "Mamba")
    assert str(refused.value).splitlines()[1] == (
        "It offers tokens, residual, mixers, channels, ssm, conv."
    )


def test_a_tangent_is_refused_at_a_dictionary():
    with pytest.raises(UnfitReferenceError) as refused:
        hw.attribute(
            model("Llama"), prompts(), hw.features(found("0.mlp.out")), reference=hw.Tangent()
        )
    assert str(refused.value).startswith("hw.Tangent() replaces the activation function of an MLP")


# --- scores that are kept -------------------------------------------------------------------------


def written(folder: Path, dictionaries: Dictionaries) -> Path:
    """Write dictionaries, a folder each."""
    for site, one in dictionaries.items():
        hw.write_dictionary(one, folder / str(site), hook=site)
    return folder


@pytest.fixture(scope="module")
def dictionaries(tmp_path_factory: pytest.TempPathFactory) -> Dictionaries:
    """Random dictionaries of `tiny`, read from files."""
    tiny = hw.load("tiny")
    made = random_dictionaries(tiny, "0.attn.z", "1.mlp.out", "2.resid_post", features=6)
    return hw.load_dictionaries(tiny, written(tmp_path_factory.mktemp("dictionaries"), made))


@pytest.fixture(scope="module")
def tiny() -> hw.Model:
    return hw.load("tiny")


def scored(tiny: hw.Model, dictionaries: Dictionaries, **options: Any) -> hw.Attribution:
    return hw.attribute(tiny, hw.task("ioi")[:4], hw.features(dictionaries), **options)


def test_an_audit_of_features_checks_them_by_exact_effects(tiny, dictionaries):
    scores = scored(tiny, dictionaries)
    exact = scored(tiny, dictionaries, estimator=hw.Exact())
    audit = scores.audit(sample=10)
    assert audit.counts.checked == 10
    for row in audit.rows:
        assert row.exact == pytest.approx(float(exact[row.name].mean()), abs=1e-5)
    checked = hw.verify(scores, theta=0.01)
    assert "All 24 components were checked exactly" in repr(checked)


def test_a_saved_run_of_features_is_audited_from_the_files_of_its_dictionaries(
    tiny, dictionaries, tmp_path
):
    scores = scored(tiny, dictionaries)
    scores.save(tmp_path / "run")
    again = hw.Attribution.load(tmp_path / "run")
    assert again.names == scores.names
    assert_close(again.scores, scores.scores, rtol=0, atol=0)
    assert repr(again.audit(model=tiny, sample=24)).splitlines()[0].startswith("24 of 24")
    exact = scored(tiny, dictionaries, estimator=hw.Exact())
    known = {row.name: row.exact for row in again.rows()}
    for name in scores.names:
        assert known[name] == pytest.approx(float(exact[name].mean()), abs=1e-5)
    found_flags = again.diagnose(model=tiny)
    assert len(found_flags.findings) == 24
    bars = again.error_bars()
    assert bars is not None
    assert "24 of 24 components were checked exactly" in repr(bars)
    assert again.page(tmp_path / "page.html").read_text().count("m1.f3") > 0


def test_an_audit_in_float64_takes_the_dictionaries_along(tiny, dictionaries, tmp_path):
    scores = scored(tiny, dictionaries)
    scores.save(tmp_path / "run")
    audit = hw.Attribution.load(tmp_path / "run").audit(model=tiny, sample=24, dtype="float64")
    assert audit.counts.noise_floor is not None
    assert audit.counts.noise_floor < 1e-12


def test_features_at_positions_chosen_one_by_one_are_read_back_as_one_dictionary(
    tiny, dictionaries, tmp_path
):
    task = hw.task("ioi")[:2]
    both = hw.features(dictionaries, layers=1, positions=[1]) + hw.features(
        dictionaries, layers=1, positions=[-1]
    )
    hw.attribute(tiny, task, both).save(tmp_path / "run")
    again = hw.Attribution.load(tmp_path / "run")
    assert again.audit(model=tiny, sample=100).counts.checked == len(again.names)


def test_dictionaries_made_in_memory_cannot_be_read_back_and_that_is_said(tiny, tmp_path):
    made = random_dictionaries(tiny, "1.mlp.out").to(dtype=torch.float32)
    scored(tiny, made).save(tmp_path / "run")
    with pytest.raises(DictionaryError) as refused:
        hw.Attribution.load(tmp_path / "run").audit(model=tiny)
    assert str(refused.value) == (
        "the dictionary at 'layers.1.mlp.out' was made in memory, so no file holds it.\n"
        "Write it first: hw.write_dictionary(dictionary, folder), then read it."
    )


def test_a_dictionary_that_has_changed_since_is_refused(tiny, tmp_path):
    made = random_dictionaries(tiny, "1.mlp.out")
    folder = written(tmp_path / "dictionaries", made)
    scored(tiny, hw.load_dictionaries(tiny, folder)).save(tmp_path / "run")
    other = random_dictionary(tiny.anatomy().d_model, 9, seed=5)
    hw.write_dictionary(other, folder / "layers.1.mlp.out", hook="layers.1.mlp.out", overwrite=True)
    with pytest.raises(DictionaryError, match="is another file than the one used before"):
        hw.Attribution.load(tmp_path / "run").audit(model=tiny)


def test_a_dictionary_from_before_a_norms_weight_is_fitted_again_when_a_run_is_read_back(
    tiny, tmp_path
):
    width = tiny.anatomy().d_model
    one = random_dictionary(width, 6, 0, reads=width)
    hook, hook_out = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
    hw.write_dictionary(one, tmp_path / "one", hook=hook, hook_out=hook_out)
    scores = scored(tiny, hw.load_dictionaries(tiny, tmp_path / "one"))
    scores.save(tmp_path / "run")
    again = hw.Attribution.load(tmp_path / "run")
    assert again.audit(model=tiny, sample=100).counts.checked == 7
    exact = scored(tiny, hw.load_dictionaries(tiny, tmp_path / "one"), estimator=hw.Exact())
    for row in again.rows():
        assert row.exact == pytest.approx(float(exact[row.name].mean()), abs=1e-5)


def test_estimators_of_features_are_held_against_each_other(tiny, dictionaries):
    found = hw.compare(
        tiny,
        hw.task("ioi")[:4],
        hw.features(dictionaries),
        {"gradient": hw.Gradient(), "family": hw.IntegratedGradients()},
        sample=24,
    )
    rows = {row.name: row for row in found.rows}
    assert set(rows) == {"gradient", "family"}
    assert "24 of 24 components checked exactly" in repr(found)
    # the path of a family sees how the metric saturates, and most effects here are small
    errors = {name: row.figures["relative error"] for name, row in rows.items()}
    assert errors["family"] < errors["gradient"] / 10


def test_error_bars_are_tightened_by_exact_runs_of_features(tiny, dictionaries):
    scores = scored(tiny, dictionaries, tolerance=0.2)
    bars = scores.error_bars()
    assert bars is not None
    exact = scored(tiny, dictionaries, estimator=hw.Exact())
    for bar in bars.rows:
        assert bar.low is not None
        assert bar.high is not None
        assert bar.high - bar.low <= 2 * 0.2 + 1e-9
    checked = [bar for bar in bars.rows if bar.low == bar.high]
    assert checked
    for bar in checked:
        assert bar.low == pytest.approx(float(exact[bar.name].mean()), abs=1e-5)


def test_two_features_named_to_a_model_are_refused_because_names_do_not_say_whose(tiny):
    with pytest.raises(GateError, match="a name alone does not say whose"):
        hw.interaction(tiny, hw.task("ioi")[:2], "m1.f0", "m1.f1")


def test_a_whole_path_with_a_component_and_its_features_is_refused(tiny, dictionaries):
    both = hw.mlps(layers=1) + hw.features(dictionaries)
    with pytest.raises(NestedComponentsError, match=r"^m1\.f0 lies inside m1, "):
        hw.attribute(tiny, hw.task("ioi")[:2], both, hw.IntegratedGradients(path="joint"))
    one_by_one = hw.attribute(tiny, hw.task("ioi")[:2], both, hw.Exact())
    assert bool(one_by_one.scores.isfinite().all())


def test_features_do_not_disturb_what_is_scored_beside_them(tiny, dictionaries):
    pairs = hw.task("ioi")[:4]
    alone = hw.attribute(tiny, pairs, hw.heads() + hw.mlps())
    beside = hw.attribute(tiny, pairs, hw.heads() + hw.features(dictionaries) + hw.mlps())
    for name in alone.names:
        assert_close(beside[name], alone[name], rtol=1e-4, atol=1e-5)


def test_a_move_of_many_features_costs_one_run(tiny, dictionaries):
    function = gated(tiny, hw.task("ioi")[:2], hw.features(dictionaries, layers=[0, 2]))
    function.value()
    with function.counting() as cost:
        function.moved([Move(tuple(range(len(function.names))), 1.0)])
    assert cost.forwards == 2
