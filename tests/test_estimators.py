"""Exact and Gradient on every architecture, against plain hooks and finite differences."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from torch import Tensor, nn

import headwater as hw
from headwater.components import Selection
from headwater.errors import UnknownOptionError
from headwater.estimators.draws import RunningMean
from headwater.gates import GatedFunction
from oracles import NAMES, Part, Twin, logit_difference
from shape_checks import unchecked
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


@functools.cache
def values(family: str, prompts: str) -> dict[tuple[str, int], Tensor]:
    """The value at every place in the run of one side, [batch, pos, unit, width]."""
    twin = twin_of(family)
    ids = pairs()[1] if prompts == "clean" else pairs()[2]
    layers = range(len(twin.layers))
    return twin.values(ids, [(k, n) for k in twin.kinds for n in layers if n == 0 or k != "token"])


def off_value(family: str, part: Part, reference: str) -> Tensor:
    """What a closed part is set to, broadcastable to [batch, pos, unit, width]."""
    value = values(family, "clean" if reference == "clean" else "corrupted")[part.place]
    if reference == "zero":
        return torch.zeros_like(value)
    return value.mean((0, 1), keepdim=True) if reference == "mean" else value


def scores_by_name(function: GatedFunction, scores: Tensor) -> dict[str, Tensor]:
    return dict(zip(function.names, scores.unbind(1), strict=True))


def assert_same(ours: dict[str, Tensor], twins: dict[str, Tensor], tolerance: float) -> None:
    """Compare scores, each relative to the largest of its kind of run."""
    scale = max(float(value.abs().max()) for value in twins.values())
    assert scale > 1e-3  # else nothing was tested
    for name, expected in twins.items():
        difference = float((ours[name] - expected).abs().max())
        assert difference <= tolerance * scale, f"{name}: {ours[name]} is not {expected}"


# --- Exact ------------------------------------------------------------


@pytest.mark.parametrize("reference", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_leaving_one_out_equals_a_plain_hook_in_float64(family, reference):
    twin, without = twin_of(family), ROTATED if reference == "mean" else ()
    parts = drawn(twin, f"{family} {reference}", 2, without=without)
    off = {"corrupted": hw.Corrupted(), "zero": hw.Zero(), "mean": hw.Mean()}[reference]
    two, clean, _ = pairs()
    function = gated(model(family), two, selection(twin, without=without), off)
    ours = scores_by_name(function, hw.Exact().scores(function))
    whole = metric(twin.run(clean, {}))
    twins = {
        part.name(twin): whole
        - metric(twin.mixed(clean, part, off_value(family, part, reference), 0.0))
        for part in parts
    }
    assert_same(ours, twins, 1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_adding_one_in_equals_a_plain_hook_in_the_corrupted_run_in_float64(family):
    twin = twin_of(family)
    parts = drawn(twin, f"{family} added", 2)
    two, _, corrupted = pairs()
    function = gated(model(family), two, selection(twin), end="corrupted")
    ours = scores_by_name(function, hw.Exact(at="corrupted").scores(function))
    nothing = metric(twin.run(corrupted, {}))
    twins = {
        part.name(twin): metric(twin.mixed(corrupted, part, off_value(family, part, "clean"), 0.0))
        - nothing
        for part in parts
    }
    assert_same(ours, twins, 1e-10)


# --- draws ------------------------------------------------------------


def test_a_running_mean_has_the_standard_error_of_its_draws_however_far_from_zero():
    draws = RunningMean(torch.zeros(2, dtype=torch.float64))
    for first, second in ((1.0, 1e9), (2.0, 1e9 + 3), (6.0, 1e9 + 6)):
        draws.add(torch.tensor([first, second], dtype=torch.float64))
    assert draws.mean.tolist() == [3.0, 1e9 + 3]
    # squares of the distances: 4 + 1 + 9 and 9 + 0 + 9; over 2, over 3
    assert draws.standard_error().tolist() == pytest.approx([(14 / 6) ** 0.5, 3**0.5])


# --- Gradient ------------------------------------------------------------


@pytest.mark.parametrize("kind", [hw.Exact, hw.Gradient, hw.SecondOrder])
def test_an_end_is_refused_where_it_is_typed(kind):
    with unchecked(), pytest.raises(UnknownOptionError) as refused:
        kind(at="corupted")
    assert str(refused.value) == (
        "at='corupted' is unknown. Closest: 'corrupted'.\nWrite one of 'clean', 'corrupted'."
    )


STEP = 1e-5
"""Rounding of 1e-15 over this step is 1e-10; the difference's own error is of the order 1e-10."""


@pytest.mark.parametrize("end", ["clean", "corrupted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_equals_finite_differences_of_plain_hooks_in_float64(family, end):
    twin = twin_of(family)
    two, clean, corrupted = pairs()
    function = gated(model(family), two, selection(twin), end=end)
    ours = scores_by_name(function, hw.Gradient(at=end).scores(function))
    # the twin counts m from the other run's value: at both ends the run's own value is m = 1
    ids, other, sign = (clean, "corrupted", 1) if end == "clean" else (corrupted, "clean", -1)
    twins = {}
    for part in drawn(twin, f"{family} {end}", 1):
        off = off_value(family, part, other)
        above, below = (metric(twin.mixed(ids, part, off, 1 + s)) for s in (STEP, -STEP))
        twins[part.name(twin)] = sign * (above - below) / (2 * STEP)
    assert_same(ours, twins, 1e-7)


def test_every_family_without_names_of_its_own_is_like_llama():
    assert set(NAMES) <= set(FAMILIES)
    alike = {type(twin_of(f).layers[0].self_attn.o_proj) for f in FAMILIES if f not in NAMES}
    assert alike == {nn.Linear}


# --- queries, keys and values without anybody's attention function ------------------------------


@pytest.mark.parametrize("kind", ["query", "key", "value"])
@pytest.mark.parametrize("family", ["GPT-2", "OPT"])
def test_without_rotary_a_query_key_or_value_is_a_slice_of_its_projection(family, kind):
    two, clean, corrupted = pairs()
    function = gated(model(family), two, SELECTORS[kind])
    ours = scores_by_name(function, hw.Exact().scores(function))
    module, width, layer, head = twin_of(family).module, 24 // 4, 1, 2
    if family == "GPT-2":  # one projection: queries, keys and values side by side
        projection = module.transformer.h[layer].attn.c_attn
        first = ["query", "key", "value"].index(kind) * 24
    else:
        projection = getattr(module.model.decoder.layers[layer].self_attn, f"{kind[0]}_proj")
        first = 0
    columns = slice(first + head * width, first + (head + 1) * width)
    kept: list[Tensor] = []

    def closing(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.append(output.clone())
        changed = output.clone()
        changed[..., columns] = kept[0][..., columns]  # the first run is the corrupted prompts'
        return changed

    hook = projection.register_forward_hook(closing)
    twin_of(family).run(corrupted, {})
    closed = metric(twin_of(family).run(clean, {}))
    hook.remove()
    expected = metric(twin_of(family).run(clean, {})) - closed
    assert_same(ours, {Part(kind, layer, head).name(twin_of(family)): expected}, 1e-10)
