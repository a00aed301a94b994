"""Intervals over prompts and token types: how often they hold where units are few; their ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch

from headwater.lenses.causal import resampling as over_prompts
from headwater.lenses.intervals import (
    FEWER,
    FEWEST,
    RESAMPLES,
    Figure,
    interval_note,
    stretched,
    weights,
)
from headwater.lenses.questions import resampling as over_types
from headwater.lenses.tally.replicates import Replicates
from headwater.lenses.tally.tally import Tally
from lens_tally_cases import measured, plan

NAN = math.nan
TRIALS = 300


def of_prompts(values: np.ndarray, trial: int) -> Figure:
    return over_prompts.mean(torch.from_numpy(values), range(len(values)), trial)


def of_types(values: np.ndarray, trial: int) -> Figure:
    (found,) = over_types.means(values[:, None], trial)
    return found


def of_replicates(values: np.ndarray, trial: int) -> Figure:
    replicates = Replicates.empty(trial, 1, 1)
    replicates.add(torch.arange(len(values)), torch.from_numpy(values).view(1, -1, 1))
    means = replicates.means()[:, 0, 0]
    return Figure.of(float(means[0]), means[1:], len(values))


@pytest.mark.parametrize("figure", [of_prompts, of_types, of_replicates])
@pytest.mark.parametrize("units", [3, 6])
def test_the_interval_of_a_mean_of_few_units_holds_as_often_as_it_says(
    figure: Callable[[np.ndarray, int], Figure], units: int
) -> None:
    generator = np.random.default_rng(units)
    held = 0
    for trial in range(TRIALS):
        found = figure(generator.normal(size=units), trial)
        held += found.low <= 0 <= found.high
    # binomial: 95 % of 300 has a standard deviation of 1.3 %; percentiles alone hold 75 and 87 %
    assert held / TRIALS >= 0.91


def test_ends_are_percentiles_as_far_away_as_student_s_t_asks_for() -> None:
    drawn = torch.linspace(-1, 1, 201, dtype=torch.float64)
    low, high = stretched(torch.tensor(0.2, dtype=torch.float64), drawn, 5)
    # t(0.975, 4) = 2.776, and 5 units spread by 4 / 5 of the variance
    stretch = 2.77645 / NormalDist().inv_cdf(0.975) * math.sqrt(5 / 4)
    assert float(low) == pytest.approx(0.2 - stretch * (0.2 + 0.95), rel=1e-5)
    assert float(high) == pytest.approx(0.2 + stretch * (0.95 - 0.2), rel=1e-5)
    low, high = stretched(torch.tensor(0.2, dtype=torch.float64), drawn, 5000)
    assert (float(low), float(high)) == pytest.approx((-0.95, 0.95))


def test_a_figure_lies_in_its_own_interval_though_no_resample_reaches_it() -> None:
    drawn = torch.linspace(0.5, 0.7, 100, dtype=torch.float64)
    found = Figure.of(0.4, drawn, 20)
    assert found.low == 0.4
    assert found.high > 0.69


def test_of_one_unit_or_where_most_resamples_have_no_figure_there_is_no_interval() -> None:
    drawn = torch.randn(100, dtype=torch.float64, generator=torch.Generator())
    assert not Figure.of(0.0, drawn, 1).has_interval
    drawn[:60] = torch.nan
    assert not Figure.of(0.0, drawn, 9).has_interval
    drawn[:60] = 0.0
    drawn[:40] = torch.inf
    assert math.isfinite(Figure.of(0.0, drawn, 9).high)


def test_ends_stay_where_the_figure_can_be() -> None:
    found = Figure.of(0.9, torch.linspace(0, 1, 100, dtype=torch.float64), 3, least=0.0, most=1.0)
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_resample_draws_as_many_units_as_there_are() -> None:
    for units, resamples in ((1, RESAMPLES), (400, RESAMPLES), (1000, 400), (30_000, FEWER)):
        drawn = np.concatenate(list(weights(units, 3)))
        assert drawn.shape == (resamples, units)
        assert (drawn.sum(1) == units).all()
    again = np.concatenate(list(weights(40, 3)))
    assert (again == np.concatenate(list(weights(40, 3)))).all()
    assert (again != np.concatenate(list(weights(40, 4)))).any()
    # how often a unit is drawn: binomial, variance 1 - 1 / 40
    assert again.var() == pytest.approx(1 - 1 / 40, rel=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_no_interval_of_a_correlation_leaves_its_range_and_few_units_have_none(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = np.arange(9.0)
    y = x + 3 * generator.normal(size=9)
    found = over_types.spearman(x, {"y": y}, seed)["y"]
    pearson = over_prompts.correlation(torch.from_numpy(x), torch.from_numpy(y), range(9), seed)
    for one in (found, pearson):
        assert -1 <= one.low <= one.value <= one.high <= 1
    few = over_types.spearman(x[: FEWEST - 1], {"y": y[: FEWEST - 1]}, seed)["y"]
    assert not few.has_interval
    assert math.isfinite(few.value)


LIMITS = {"kl": (0, math.inf), "rank": (1, math.inf), "agrees": (0, 1), "max-prob": (0, 1)}


def test_no_interval_leaves_what_a_statistic_can_be() -> None:
    generator = torch.Generator().manual_seed(0)
    for trial in range(10):
        tally = Tally(plan(2, seed=trial))
        logits = 3 * torch.randn(4, 3, 16, generator=generator, dtype=torch.float64)
        tally.add(measured(logits, [[1, 2], [3, 4]]))
        for key in tally.keys:
            least, most = LIMITS.get(key.partition("(")[0], (-math.inf, math.inf))
            (low, high), mean = tally.interval(key), tally.mean(key)
            assert bool(((low >= least - 1e-12) & (low <= mean + 1e-12)).all()), key
            assert bool(((high <= most + 1e-12) & (high >= mean - 1e-12)).all()), key


def test_a_figure_says_on_which_side_of_a_number_it_is() -> None:
    assert Figure(2.0, 1.0, 3.0).side() == 1
    assert Figure(2.0, 1.0, 3.0).side(2) == 0
    assert Figure(2.0, 1.0, 3.0).side(4) == -1
    assert Figure(2.0).side() == 0


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Figure(0.456, 0.4, 0.5), "46 % (40 to 50)"),
        (Figure(0.012, 0.001, 0.02), "1.2 % (0.1 to 2.0)"),
        (Figure(0.0, 0.0, 0.0), "0 %"),
        (Figure(1.0, 1.0, 1.0), "100 %"),
        (Figure(0.0, 0.0, 0.01), "0 % (0 to 1)"),
        (Figure(0.3), "30 %"),
        (Figure(NAN), "-"),
    ],
)
def test_a_share_is_put_in_words(found: Figure, told: str) -> None:
    assert found.percent() == told


def test_how_many_prompts_an_interval_rests_on_is_said() -> None:
    assert interval_note(1) == "One prompt: no interval."
    assert interval_note(3) == "Intervals: 95 %, a bootstrap over 3 prompts, which are few."
    assert interval_note(4000) == "Intervals: 95 %, a bootstrap over 4,000 prompts."
