"""Slopes and estimates of features, against autograd at the site and a function by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from feature_gates import CASES, TIGHT, Case, prompts
from feature_twins import (
    Twin,
    corrupted_code,
    error_of,
    features_of,
    function_by_hand,
    random_dictionaries,
    random_dictionary,
    toward,
)
from headwater.dictionaries.collection import Dictionaries
from headwater.sites import Site
from tiny_tasks import gated, model

# --- slopes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(CASES))
def test_gradients_are_decoder_rows_times_the_total_slope_at_the_site(family):
    # all sites are gated at once: none of them cuts what flows past it
    case = Case(family)
    scores = hw.attribute(case.model, case.pairs, case.selection, hw.Gradient()).scores
    for site, dictionary in case.dictionaries.items():
        slope = case.twin.slope(site)
        value = case.twin.value(site)
        off_features, off_error = corrupted_code(case.twin, site, dictionary)
        change = features_of(dictionary, value) - off_features
        by_feature = torch.einsum("bpf,fd,bpd->bf", change, dictionary.decoder, slope)
        by_error = torch.einsum("bpd,bpd->b", error_of(dictionary, value, value) - off_error, slope)
        expected = torch.cat([by_feature, by_error[:, None]], 1)
        assert_close(scores[:, case.columns(site)], expected, **TIGHT)
        assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize("scaling", ["none", "layer_norm"])
def test_gradients_at_each_position_sum_to_those_at_all(scaling):
    case = Case("Llama", "0.attn.z", "0.mlp.out", "1.resid_post", scaling=scaling)
    each = hw.features(case.dictionaries, positions="each")
    whole = hw.attribute(case.model, case.pairs, case.selection, hw.Gradient())
    apart = hw.attribute(case.model, case.pairs, each, hw.Gradient())
    assert len(apart.names) == 6 * len(whole.names)
    for name in whole.names:
        summed = sum(apart[f"{name}@{position}"] for position in range(6))
        assert_close(summed, whole[name], **TIGHT)


def test_gradients_of_a_transcoder_go_through_what_it_writes():
    chosen = model("Llama")
    one = random_dictionary(24, 12, 3, reads=24)
    written = Site(1, "mlp.out")
    function = gated(
        chosen,
        prompts(),
        hw.features(Dictionaries({written: one}, {written: Site(1, "mlp.in")})),
    )
    twin = Twin(chosen, "Llama", function)
    clean, off = (
        features_of(one, twin.value(Site(1, "mlp.in"), ids)) for ids in (None, twin.corrupted)
    )
    slope = twin.slope(written)
    found = hw.Gradient().scores(function)[:, :-1]
    assert_close(found, ((clean - off) * (slope @ one.decoder.T)).sum(1), **TIGHT)


# --- estimators -----------------------------------------------------------------------------------


def small() -> tuple[Case, hw.GatedFunction]:
    """Two sites of few features, and the same function by hand."""
    case = Case("Llama", "0.mlp.out", "0.resid_post", features=4)
    return case, function_by_hand(case.twin, case.dictionaries, case.table.names)


ESTIMATORS = {
    "exact": hw.Exact(),
    "gradient": hw.Gradient(),
    "joint": hw.IntegratedGradients(path="joint", steps=4),
    "component": hw.IntegratedGradients(path="component", steps=3),
    "second order": hw.SecondOrder(probes="exact"),
    "second order, sampled": hw.SecondOrder(probes=4, seed=3),
    "trapezoid": hw.Trapezoid(),
    "shapley": hw.Shapley(permutations=4, seed=1),
    "auto": hw.Auto(budget=20),
    "auto, exact": hw.Auto(budget=1000),
    "trained mask": hw.TrainedMask(steps=15, seed=2),
}


@pytest.mark.parametrize("estimator", list(ESTIMATORS.values()), ids=list(ESTIMATORS))
def test_estimators_find_on_features_what_they_find_on_the_same_function_by_hand(estimator):
    case, by_hand = small()
    by_hand.families = case.function.families
    with case.model.frozen():
        found = estimator.fitted([case.function]).estimate(case.function)
        expected = estimator.fitted([by_hand]).estimate(by_hand)
    assert_close(found.scores, expected.scores, rtol=0, atol=1e-8)
    assert found.exact == expected.exact


def test_a_family_is_a_sites_features_with_its_error_and_sums_to_closing_the_site():
    whole = {
        "embed": hw.tokens(positions="all"),
        "0.attn.out": hw.attentions(layers=0),
        "0.mlp.out": hw.mlps(layers=0),
        "1.resid_post": hw.residual(layers=1, positions="all"),
    }
    case = Case("Llama", *whole)
    rule, halving = hw.IntegratedGradients(steps=10), hw.IntegratedGradients(tolerance=1e-6)
    found, close = (
        hw.attribute(case.model, case.pairs, case.selection, one) for one in (rule, halving)
    )
    assert found.parts.gap_names == tuple(f"features of {site}" for site in case.dictionaries)
    gaps = found.gaps()
    assert gaps is not None
    assert not close.parts.notes
    for site, selection in zip(case.dictionaries, whole.values(), strict=True):
        put = case.twin.value(site, case.twin.corrupted)
        with torch.no_grad():
            effect = case.twin.metric() - case.twin.metric({site: lambda _, put=put: put})
        columns = case.columns(site)
        assert_close(close.scores[:, columns].sum(1), effect, rtol=0, atol=1e-6)
        # the path of the site is the same straight line, in whatever it is written
        summed = found.scores[:, columns].sum(1)
        plain = hw.attribute(case.model, case.pairs, selection, rule)
        assert_close(summed, plain.scores[:, 0], **TIGHT)
        gap = gaps[f"features of {site}"]
        assert gap == pytest.approx(float((summed - effect).mean()), abs=1e-10)


def test_features_at_several_positions_are_one_family_too():
    case = Case("Llama", "0.mlp.out", positions=[1, 3])
    (family,) = case.function.families
    assert family.name == "features of layers.0.mlp.out"
    assert family.columns == tuple(range(len(case.table)))
    here = torch.zeros(6, 1, dtype=torch.float64)
    here[[1, 3]] = 1
    site = Site(0, "mlp.out")
    off = corrupted_code(case.twin, site, case.dictionaries[site])
    with torch.no_grad():
        edit = toward(case.dictionaries[site], None, *off, here)
        whole = case.twin.metric() - case.twin.metric({site: edit})
    found = hw.IntegratedGradients(steps=10).estimate(case.function)
    assert_close(found.scores.sum(1), whole, rtol=0, atol=1e-3 * float(whole.abs().max()))


def test_the_joint_path_sums_to_the_corrupted_run_over_a_cut():
    for place in ("embed", "1.resid_post"):
        case = Case("GPT-2", place)
        found = hw.attribute(
            case.model,
            case.pairs,
            case.selection,
            hw.IntegratedGradients(path="joint", tolerance=1e-8),
        )
        assert found.parts.is_cut
        change = case.twin.metric() - case.twin.metric(ids=case.twin.corrupted)
        assert_close(found.scores.sum(1), change.detach(), rtol=0, atol=1e-7)


def test_a_components_own_path_converges_to_its_exact_effect():
    case = Case("Gemma 2", "0.attn.out", "0.resid_post", features=5)
    own = hw.IntegratedGradients(path="component", steps=6, tolerance=1e-7)
    found = own.estimate(case.function)
    assert not found.notes
    exact = case.function.effects(range(len(case.table))).T
    assert_close(found.scores, exact, rtol=0, atol=2e-7)


def slopes_on_the_way(case: Case, site: Site, shares: tuple[float, ...]) -> list[Tensor]:
    """Slopes at a site while the layer-0 input goes from the corrupted prompt's to the clean's."""
    embed = Site(None, "embed")
    ends = [case.twin.value(embed, ids) for ids in (case.twin.corrupted, None)]
    found = []
    for share in shares:
        leaf: list[Tensor] = []

        def grow(value: Tensor, leaf: list[Tensor] = leaf) -> Tensor:
            leaf.append(value.detach().requires_grad_())
            return leaf[0]

        put = torch.lerp(*ends, share)
        value = case.twin.metric({embed: lambda _, put=put: put, site: grow})
        found += torch.autograd.grad(value.sum(), leaf)
    return found


def test_the_input_path_multiplies_slopes_on_the_way_by_what_a_feature_changes():
    case = Case("Llama", "0.attn.z", "0.mlp.out")
    rule = hw.IntegratedGradients(path="inputs", rule="midpoint", steps=4)
    scores = rule.estimate(case.function).scores
    for site, one in case.dictionaries.items():
        slopes = slopes_on_the_way(case, site, (1 / 8, 3 / 8, 5 / 8, 7 / 8))
        slope = torch.stack(slopes).mean(0)
        value = case.twin.value(site)
        off, off_error = corrupted_code(case.twin, site, one)
        features = ((features_of(one, value) - off) * (slope @ one.decoder.T)).sum(1)
        error = ((error_of(one, value, value) - off_error) * slope).sum((1, 2))
        expected = torch.cat([features, error[:, None]], 1)
        assert_close(scores[:, case.columns(site)], expected, **TIGHT)


def test_conductance_of_features_sums_to_the_whole_effect_over_a_cut():
    for place in ("embed", "0.resid_post"):
        case = Case("Llama", place, scaling="layer_norm")
        whole = case.twin.metric() - case.twin.metric(ids=case.twin.corrupted)
        errors = []
        for steps in (8, 32):
            along = hw.IntegratedGradients(
                path="inputs", rule="midpoint", increments="path", steps=steps
            )
            summed = along.estimate(case.function).scores.sum(1)
            errors.append(float((summed - whole).detach().abs().max()))
        assert errors[1] < errors[0] / 8  # second order: 16 times smaller for 4 times the steps


def test_atp_star_without_dropped_layers_is_the_gradient_on_features():
    case = Case("Llama", "0.attn.z", "0.mlp.out", "1.resid_post")
    found = hw.AtPStar(grad_drop=False).scores(case.function)
    assert_close(found, hw.Gradient().scores(case.function), **TIGHT)


def all_in_the_error(width: int, sites: tuple[Site, ...]) -> Dictionaries:
    """Dictionaries of which no feature ever fires: the error is the site but for the bias."""
    dead = replace(random_dictionary(width, 3, 0), encoder_bias=torch.full((3,), -1e6).double())
    return Dictionaries(dict.fromkeys(sites, dead))


@pytest.mark.parametrize(
    "estimator", [hw.AtPStar(), hw.SecondOrder(probes="exact"), hw.Exact()], ids=lambda e: e.name
)
def test_an_error_that_is_the_whole_site_scores_as_the_whole_component_does(estimator):
    sites = {
        Site(0, "attn.out"): hw.attentions(layers=0),
        Site(0, "resid_post"): hw.residual(layers=0, positions="all"),
        Site(1, "mlp.out"): hw.mlps(layers=1),
    }
    coded = hw.features(all_in_the_error(24, tuple(sites)))
    found = hw.attribute(model("Llama"), prompts(), coded, estimator)
    for selection, name in zip(sites.values(), ("a0", "r0", "m1"), strict=True):
        whole = hw.attribute(model("Llama"), prompts(), selection, estimator)
        assert_close(found[f"{name}.error"], whole.scores[:, 0], **TIGHT)
        assert float(found[f"{name}.f1"].abs().max()) < 1e-12


def test_gradients_in_float64_take_dictionaries_along():
    chosen = model("Llama", torch.float32, prove=False)
    found = random_dictionaries(chosen, "0.mlp.out", "0.resid_post", scaling="layer_norm")
    single = hw.features(found.to(dtype=torch.float32))
    low = hw.attribute(chosen, prompts(), single, hw.Gradient())
    high = hw.attribute(chosen, prompts(), single, hw.Gradient(), dtype="float64")
    assert high.scores.dtype == torch.float64
    exact = hw.features(found.to(dtype=torch.float32).to(dtype=torch.float64))
    doubled = hw.wrap(chosen.to(dtype="float64").module, chosen.tokenizer)
    expected = hw.attribute(doubled, prompts(), exact, hw.Gradient())
    assert_close(high.scores, expected.scores, **TIGHT)
    assert_close(low.scores.double(), high.scores, rtol=0, atol=1e-3)
