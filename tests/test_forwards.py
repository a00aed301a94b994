"""The forwards that an estimator promises, which drive the progress bar, are those that it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import pytest

import headwater as hw
from headwater.estimators import ESTIMATORS
from tiny_tasks import model, task

INPUTS = {"path": "inputs", "rule": "midpoint", "steps": 3}
CASES = [
    hw.Gradient(),
    hw.Gradient(at="corrupted"),
    hw.AtPStar(),
    hw.AtPStar(queries=False, keys=False, grad_drop=False),
    hw.Exact(),
    hw.Exact(at="corrupted"),
    hw.SecondOrder(probes=2),
    hw.SecondOrder(probes=2, at="corrupted"),
    hw.Trapezoid(),
    hw.Shapley(permutations=4),
    hw.TrainedMask(steps=2),
    hw.IntegratedGradients(steps=3),
    hw.IntegratedGradients(path="joint", steps=3),
    hw.IntegratedGradients(path="component", steps=3),
    hw.IntegratedGradients(**INPUTS),
    hw.IntegratedGradients(**INPUTS, increments="path"),
    hw.Auto(),
]
SELECTIONS = {
    "heads": hw.heads(),
    "heads+mlps": hw.heads() + hw.mlps(),
    "nodes": hw.nodes(),
    "heads of layer 1": hw.heads(layers=1),
}


def test_every_estimator_is_among_the_cases():
    assert {type(one) for one in CASES} == set(ESTIMATORS.values())


@pytest.fixture
def bar(monkeypatch) -> dict[str, float]:
    """What the last bar of `attribute` was promised, and what it was told."""
    seen: dict[str, float] = {}

    @contextmanager
    def count(_title: str, total: float, *, show: bool | None = None) -> Iterator[object]:
        seen.update(promised=total, run=0.0)

        def advance(work: float, note: str = "") -> None:
            seen["run"] += work

        yield advance

    monkeypatch.setattr(import_module("headwater.attribution.attribute"), "progress_bar", count)
    return seen


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("estimator", CASES, ids=str)
def test_what_is_promised_is_run(bar, estimator, selection):
    hw.attribute(model("Llama"), task(6, 6, 6), SELECTIONS[selection], estimator, batch_size=2)
    assert bar["promised"] == pytest.approx(bar["run"])


@pytest.mark.parametrize(("budget", "picked"), [(5, "Gradient"), (40, "SecondOrder")])
def test_auto_promises_what_is_left_after_picking(bar, budget, picked):
    scores = hw.attribute(
        model("Llama"), task(6, 6, 6), hw.neurons(), hw.Auto(budget), batch_size=2
    )
    assert picked in scores.parts.notes[0]
    assert bar["promised"] == pytest.approx(bar["run"])
    parts = hw.neurons() + hw.mlps()
    hw.attribute(model("Llama"), task(6, 6, 6), parts, hw.Auto(2 * budget), batch_size=2)
    assert bar["promised"] == pytest.approx(bar["run"])
