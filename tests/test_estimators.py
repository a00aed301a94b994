"""Exact and Gradient on every architecture, against plain hooks and finite differences."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from headwater.components import Selection
from headwater.gates import GatedFunction
from oracles import NAMES, Part, Twin, logit_difference
from tiny_models import BUILDERS
from tiny_tasks import gated, model, task, tokenizer

LENGTH = 6
"""Beyond the sliding windows of 4, so that the window matters."""
ROTATED = ("query", "key")
FAMILIES = list(BUILDERS)

SELECTORS = {
    "token": hw.tokens(),
    "head": hw.heads(),
    "query": hw.queries(),
    "key": hw.keys(),
    "value": hw.values(),
    "attention": hw.attentions(),
    "mlp": hw.mlps(),
    "neuron": hw.neurons(layers=1),
    "residual": hw.residual(),
    "mixer": hw.mixers(),
}

twin_of = functools.cache(Twin)


@functools.cache
def pairs() -> tuple[hw.Task, Tensor, Tensor]:
    """Two pairs of one length, and their clean and corrupted ids."""
    two = task(LENGTH, LENGTH)
    clean = tokenizer()([pair.clean for pair in two.pairs], return_tensors="pt")["input_ids"]
    corrupted = tokenizer()([pair.corrupted for pair in two.pairs], return_tensors="pt")
    return two, clean, corrupted["input_ids"]


def metric(logits: Tensor) -> Tensor:
    answer, wrong = zip(*((p.answer[0], p.wrong[0]) for p in pairs()[0].pairs), strict=True)
    return logit_difference(logits, torch.tensor(answer), torch.tensor(wrong))


def selection(twin: Twin, *, without: tuple[str, ...] = ()) -> Selection:
    kinds = [SELECTORS[kind] for kind in twin.kinds if kind not in without]
    return functools.reduce(lambda one, other: one + other, kinds)


def drawn(twin: Twin, family: str, count: int, *, without: tuple[str, ...] = ()) -> list[Part]:
    """Some parts of every kind, other ones for every family."""
    draw = random.Random(family)
    parts = []
    for kind in twin.kinds:
        if kind in without:
            continue
        layers = {"token": [0], "neuron": [1]}.get(kind, range(len(twin.layers)))
        places = range(LENGTH) if kind in ("token", "residual") else [None]
        every = [
            Part(kind, layer, unit, place)
            for layer in layers
            for unit in range(twin.units(kind))
            for place in places
        ]
        parts += draw.sample(every, min(count, len(every)))
    return parts


def references(twin: Twin, parts: list[Part], kind: str) -> dict[tuple[str, int], Tensor]:
    """The off value of every place, each broadcastable to [batch, pos, unit, width]."""
    _, clean, corrupted = pairs()
    ids = clean if kind == "clean" else corrupted
    values = twin.values(ids, list({part.place for part in parts}))
    if kind == "zero":
        return {place: torch.zeros_like(value) for place, value in values.items()}
    if kind == "mean":
        return {place: value.mean((0, 1), keepdim=True) for place, value in values.items()}
    return values


def scores_by_name(function: GatedFunction, scores: Tensor) -> dict[str, Tensor]:
    return dict(zip(function.names, scores.unbind(1), strict=True))


def assert_same(ours: dict[str, Tensor], twins: dict[str, Tensor], tolerance: float) -> None:
    """Compare scores, each relative to the largest of its kind of run."""
    scale = max(float(value.abs().max()) for value in twins.values())
    assert scale > 1e-3  # else nothing was tested
    for name, expected in twins.items():
        difference = float((ours[name] - expected).abs().max())
        assert difference <= tolerance * scale, f"{name}: {ours[name]} is not {expected}"


# --- Exact ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_leaving_one_out_equals_a_plain_hook_in_float64(family, reference):
    twin, without = twin_of(family), ROTATED if reference == "mean" else ()
    parts = drawn(twin, family, 3, without=without)
    off = {"corrupted": hw.Corrupted(), "zero": hw.Zero(), "mean": hw.Mean()}[reference]
    two, clean, _ = pairs()
    function = gated(model(family), two, selection(twin, without=without), off)
    ours = scores_by_name(function, hw.Exact().scores(function))
    values = references(twin, parts, reference)
    whole = metric(twin.run(clean, {}))
    twins = {
        part.name(twin): whole - metric(twin.mixed(clean, part, values[part.place], 0.0))
        for part in parts
    }
    assert_same(ours, twins, 1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_adding_one_in_equals_a_plain_hook_in_the_corrupted_run_in_float64(family):
    twin = twin_of(family)
    parts = drawn(twin, family + " added", 3)
    two, _, corrupted = pairs()
    function = gated(model(family), two, selection(twin), end="corrupted")
    ours = scores_by_name(function, hw.Exact(at="corrupted").scores(function))
    values = references(twin, parts, "clean")
    nothing = metric(twin.run(corrupted, {}))
    twins = {
        part.name(twin): metric(twin.mixed(corrupted, part, values[part.place], 0.0)) - nothing
        for part in parts
    }
    assert_same(ours, twins, 1e-10)


# --- Gradient ---------------------------------------------------------------------------------

STEP = 1e-5
"""Rounding of 1e-15 over this step is 1e-10; the stencil's own error is far below."""


@pytest.mark.parametrize("end", ["clean", "corrupted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_equals_finite_differences_of_plain_hooks_in_float64(family, end):
    twin = twin_of(family)
    parts = drawn(twin, f"{family} {end}", 1)
    two, clean, corrupted = pairs()
    function = gated(model(family), two, selection(twin), end=end)
    ours = scores_by_name(function, hw.Gradient(at=end).scores(function))
    off = references(twin, parts, "corrupted" if end == "clean" else "clean")
    ids, sign = (clean, 1) if end == "clean" else (corrupted, -1)

    def moved(part: Part, steps: int) -> Tensor:
        # m counts from the reference here, so at both ends the run's own value is m = 1
        return metric(twin.mixed(ids, part, off[part.place], 1 + steps * STEP))

    twins = {
        part.name(twin): sign
        * (8 * (moved(part, 1) - moved(part, -1)) - (moved(part, 2) - moved(part, -2)))
        / (12 * STEP)
        for part in parts
    }
    assert_same(ours, twins, 1e-7)


def test_every_family_of_the_table_has_a_twin_or_is_like_llama():
    assert set(NAMES) <= set(FAMILIES)
    assert {twin_of(family).names.o_proj for family in FAMILIES if family not in NAMES} == {
        "self_attn.o_proj"
    }
