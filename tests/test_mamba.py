"""Inside Mamba and Mamba-2: channels, heads, and what convolution and scan read."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.models.mamba import modeling_mamba
from transformers.models.mamba2 import modeling_mamba2

import headwater as hw
from headwater import zoo
from headwater.architectures.adapter import resolve
from headwater.attribution import attribute
from headwater.components import KINDS, Component, Selection, parse_component
from headwater.errors import (
    FailedProofError,
    MissingExtraError,
    ModelStateError,
    NestedComponentsError,
    UnavailableSiteError,
)
from headwater.models import Model
from headwater.sites import Site
from headwater.zoo import train
from headwater.zoo.behaviors import BEHAVIORS
from oracles import Part, Place, Twin, logit_difference
from tiny_models import build, shared, tokens
from tiny_tasks import gated, model, task, tokenizer

LENGTH = 6
FAMILIES = ["Mamba", "Mamba-2"]
MODELING = {"Mamba": modeling_mamba, "Mamba-2": modeling_mamba2}
SELECTORS = {
    "channel": hw.channels,
    "ssm": hw.ssm,
    "conv": hw.conv,
    "ssm_head": hw.ssm_heads,
}
every_family = pytest.mark.parametrize("family", FAMILIES)


class MixerTwin(Twin):
    """A twin whose inner places are found in transformers' own functions, not at modules.

    The convolution's input and output are those of `causal_conv1d_fn`, and a head is what
    `mamba2_chunk_scan` returns: Python functions that a mixer calls once a run, wrapped here.
    """

    def __init__(self, family: str) -> None:
        super().__init__(family)
        self.modeling = MODELING[family]

    @property
    def kinds(self) -> list[str]:
        heads = ["ssm_head"] if self.modeling is modeling_mamba2 else []
        return ["channel", "ssm", "conv", *heads]

    def units(self, kind: str) -> int:
        if kind == "channel":
            return self.layers[0].mixer.out_proj.in_features
        return self.config.num_heads if kind == "ssm_head" else 1

    @contextmanager
    def _changed(
        self, place: Place, change: Callable[[Tensor], Tensor], shape: torch.Size
    ) -> Iterator[None]:
        kind, number = place

        def shown(value: Tensor) -> Tensor:
            return change(value.reshape(*shape, self.units(kind), -1)).reshape(value.shape)

        if kind == "channel":
            hook = lambda _, args: (shown(args[0]), *args[1:])  # noqa: E731
            handle = self.layers[number].mixer.out_proj.register_forward_pre_hook(hook)
            try:
                yield
            finally:
                handle.remove()
            return
        name = "mamba2_chunk_scan" if kind == "ssm_head" else "causal_conv1d_fn"
        own, layers = getattr(self.modeling, name), itertools.count()

        def wrapped(value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if next(layers) != number:
                return own(value, *args, **kwargs)
            if kind == "conv":
                return own(shown(value.mT.contiguous()).mT, *args, **kwargs)
            result = own(value, *args, **kwargs)
            return shown(result) if kind == "ssm_head" else shown(result.mT.contiguous()).mT

        setattr(self.modeling, name, wrapped)
        try:
            yield
        finally:
            setattr(self.modeling, name, own)


twin_of = functools.cache(MixerTwin)


def name_of(part: Part) -> str:
    written = {
        "channel": f"mixer{part.layer}.c{part.unit}",
        "ssm_head": f"mixer{part.layer}.h{part.unit}",
        "ssm": f"mixer{part.layer}<ssm>",
        "conv": f"mixer{part.layer}<conv>",
    }[part.kind]
    return written if part.position is None else f"{written}@{part.position}"


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


def inside(family: str, positions: Any = "all") -> Selection:
    kinds = twin_of(family).kinds
    parts = [SELECTORS[kind](positions=positions) for kind in kinds]
    return functools.reduce(lambda one, other: one + other, parts)


def drawn(family: str, count: int, positions: list[int | None]) -> list[Part]:
    """Some parts of every kind inside the mixers."""
    twin, draw, parts = twin_of(family), random.Random(family), []
    for kind in twin.kinds:
        every = [
            Part(kind, layer, unit, position)
            for layer in range(len(twin.layers))
            for unit in range(twin.units(kind))
            for position in positions
        ]
        parts += draw.sample(every, min(count, len(every)))
    return parts


@functools.cache
def values(family: str, prompts: str) -> dict[Place, Tensor]:
    twin, ids = twin_of(family), pairs()[1 if prompts == "clean" else 2]
    return twin.values(ids, [(k, n) for k in twin.kinds for n in range(len(twin.layers))])


def off_value(family: str, part: Part, reference: str) -> Tensor:
    value = values(family, "clean" if reference == "clean" else "corrupted")[part.place]
    if reference == "zero":
        return torch.zeros_like(value)
    return value.mean((0, 1), keepdim=True) if reference == "mean" else value


def assert_same(ours: dict[str, Tensor], twins: dict[str, Tensor], tolerance: float) -> None:
    """Compare scores, each relative to the largest of its kind of part."""
    scales: dict[str, float] = {}
    for name, value in twins.items():
        kind = parse_component(name).kind
        scales[kind] = max(scales.get(kind, 0.0), float(value.abs().max()))
    for name, expected in twins.items():
        scale = scales[parse_component(name).kind]
        assert scale > 1e-3, f"{name}: nothing was tested"
        difference = float((ours[name] - expected).abs().max())
        assert difference <= tolerance * scale, f"{name}: {ours[name]} is not {expected}"


def by_name(function: Any, scores: Tensor) -> dict[str, Tensor]:
    return dict(zip(function.names, scores.unbind(1), strict=True))


# --- sites ------------------------------------------------------------


@every_family
@torch.no_grad()
def test_taps_see_what_transformers_functions_take_and_return(family):
    seen: dict[tuple[str, int], Tensor] = {}
    chosen, kinds = model(family), twin_of(family).kinds

    def keep(place: tuple[str, int]) -> Callable[[Tensor], None]:
        return lambda value: seen.__setitem__(place, value.clone())

    taps = {Site(n, KINDS[kind].site): keep((kind, n)) for kind in kinds for n in (0, 1)}
    chosen.forward(pairs()[1], taps=taps)
    for place, expected in values(family, "clean").items():
        assert torch.equal(seen[place], expected.reshape(seen[place].shape)), place


def test_the_convolution_is_as_wide_as_x_and_in_mamba_2_as_x_b_and_c():
    one, two = resolve(shared("Mamba")), resolve(shared("Mamba-2"))
    assert (one.d_inner, one.d_conv, one.n_ssm_heads) == (48, 48, None)
    # two groups with a state of four, for B and for C
    assert (two.d_inner, two.d_conv, two.n_ssm_heads) == (48, 48 + 2 * 2 * 4, 6)


def test_mamba_has_no_heads_and_says_what_to_use():
    with pytest.raises(UnavailableSiteError) as refused:
        hw.ssm_heads().expand(model("Mamba").anatomy())
    assert str(refused.value) == (
        "Mamba has no ssm_heads: each channel has a state of its own, so it has no heads: use "
        "mixer.post.\nIt offers tokens, residual, mixers, channels, ssm, conv."
    )


def test_an_activation_whose_output_is_needed_later_is_refused_by_name():
    config = transformers.MambaConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, state_size=2, hidden_act="relu"
    )
    adapter = resolve(transformers.MambaForCausalLM(config))
    with pytest.raises(UnavailableSiteError) as refused:
        adapter.point(Site(0, "mixer.ssm"))
    assert str(refused.value) == (
        "no 'layers.0.mixer.ssm' in Mamba: its activation 'relu' keeps its output for the backward "
        "pass, and only an activation that keeps its input (silu, swish, gelu) can be replaced "
        "there: use mixer.conv.\n"
        "A layer offers: resid_pre, mixer.in, mixer.conv, mixer.post, mixer.out, resid_post."
    )


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gradients_reach_the_scan_through_every_activation_that_is_allowed(activation):
    config = transformers.MambaConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, state_size=2, hidden_act=activation
    )
    module = transformers.MambaForCausalLM(config).eval()
    held: list[Tensor] = []
    logits = Model(module, adapter=resolve(module)).forward(
        torch.tensor([[1, 2, 3]]), taps={Site(0, "mixer.ssm"): held.append}
    )
    (gradient,) = torch.autograd.grad(logits.square().sum(), held)
    assert bool((gradient != 0).all())


@every_family
def test_the_proof_holds_and_names_the_insides(family):
    claims = [check.claim for check in model(family).proof.checks]
    assert "activated convolution of mixer.conv = mixer.ssm" in claims
    assert "a mixer whose mixer.ssm is zero writes nothing" in claims
    assert ("a mixer whose mixer.y is zero writes nothing" in claims) == (family == "Mamba-2")


@pytest.mark.parametrize(
    ("family", "suspect"),
    [("Mamba", "convolution of mixer.conv"), ("Mamba-2", "convolution of mixer.conv")],
)
def test_a_mixer_whose_convolution_is_another_one_fails_the_proof(family, suspect):
    module = build(family)
    own = MODELING[family].causal_conv1d_fn
    try:
        MODELING[family].causal_conv1d_fn = lambda *args, **kw: 2 * own(*args, **kw)
        with pytest.raises(FailedProofError, match=f"{suspect}.*FAILED"):
            Model(module, adapter=resolve(module)).prove()
    finally:
        MODELING[family].causal_conv1d_fn = own


def test_a_trace_says_that_it_cannot_stop_between_convolution_and_scan_in_mamba_2():
    with pytest.raises(UnavailableSiteError) as refused, model("Mamba-2").trace(tokens()) as run:
        run["layers.0.mixer.ssm"]
    assert str(refused.value) == (
        "Mamba2Mixer hands its convolution's output to its scan without calling a module, so a "
        "trace cannot stop there.\n"
        "Read mixer.conv, which enters the convolution, or gate it with hw.ssm()."
    )


# --- fused kernels ------------------------------------------------------------

FUSED = {"Mamba": "mamba_inner_fn", "Mamba-2": "mamba2_split_conv1d_scan_combined"}


@pytest.mark.parametrize("name", ["mixer.post", "mixer.ssm", "mixer.y"])
@every_family
def test_a_fused_kernel_that_passes_a_tap_by_is_refused_by_name(family, name, monkeypatch):
    module = build(family)
    chosen = Model(module, adapter=resolve(module))
    if name in chosen.anatomy().missing:
        return
    ids = tokens()
    out = torch.zeros(*ids.shape, module.config.hidden_size)
    monkeypatch.setattr(MODELING[family], FUSED[family], lambda *_, **__: out)
    chosen.forward(ids, taps={Site(1, name): torch.clone})  # in evaluation mode nothing is fused
    module.train()
    with pytest.raises(ModelStateError) as refused:
        chosen.forward(ids, taps={Site(1, name): torch.clone})
    assert str(refused.value) == (
        f"{type(module.backbone.layers[1].mixer).__name__} computed 'layers.1.{name}' in a fused "
        "kernel, out of reach of hooks (it is in training mode).\n"
        "Call model.eval() first; if it is in evaluation mode, run without the mamba_ssm and "
        "causal_conv1d packages, or gate hw.mixers(), which needs no inside."
    )


@torch.no_grad()
def test_a_tap_that_fails_inside_a_mixer_leaves_nothing_behind():
    chosen, ids = model("Mamba-2"), tokens()
    before = chosen.forward(ids)

    def fail(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    for name in ("mixer.conv", "mixer.ssm", "mixer.y"):
        with pytest.raises(KeyboardInterrupt):
            chosen.forward(ids, taps={Site(0, name): fail})
    assert not any(part._forward_pre_hooks for part in chosen.module.modules())
    assert not any(part._forward_hooks for part in chosen.module.modules())
    assert torch.equal(chosen.forward(ids), before)


# --- names ------------------------------------------------------------


@every_family
def test_components_inside_a_mixer_are_named_after_it(family):
    table = inside(family).expand(model(family).anatomy())
    channels = [f"mixer{n}.c{i}" for n in (0, 1) for i in range(48)]
    whole = [f"mixer{n}<{kind}>" for kind in ("ssm", "conv") for n in (0, 1)]
    heads = [f"mixer{n}.h{i}" for n in (0, 1) for i in range(6)] if family == "Mamba-2" else []
    assert list(table.names) == [*channels, *whole, *heads]


@pytest.mark.parametrize(
    ("name", "kind", "index"),
    [
        ("mixer3.c17@-1", "channel", 17),
        ("mixer3.h2@-1", "ssm_head", 2),
        ("mixer3<ssm>@-1", "ssm", None),
        ("mixer3<conv>@-1", "conv", None),
    ],
)
def test_names_are_read_as_kind_layer_index_and_position(name, kind, index):
    assert parse_component(name) == Component(name, kind, 3, index, -1)


# --- scores ------------------------------------------------------------


@pytest.mark.parametrize("positions", ["all", "each"])
@pytest.mark.parametrize("reference", ["corrupted", "zero", "mean"])
@every_family
def test_exact_equals_a_plain_twin_in_float64(family, reference, positions):
    parts = drawn(family, 3, [None] if positions == "all" else [0, 1, LENGTH - 1])
    two, clean, _ = pairs()
    off = {"corrupted": hw.Corrupted(), "zero": hw.Zero(), "mean": hw.Mean()}[reference]
    function = gated(model(family), two, inside(family, positions), off)
    ours = by_name(function, hw.Exact().scores(function))
    twin = twin_of(family)
    whole = metric(twin.run(clean, {}))
    twins = {
        name_of(part): whole
        - metric(twin.mixed(clean, part, off_value(family, part, reference), 0.0))
        for part in parts
    }
    assert_same(ours, twins, 1e-10)


@every_family
def test_adding_one_in_equals_a_plain_twin_of_the_corrupted_run_in_float64(family):
    two, _, corrupted = pairs()
    function = gated(model(family), two, inside(family), end="corrupted")
    ours = by_name(function, hw.Exact(at="corrupted").scores(function))
    twin = twin_of(family)
    nothing = metric(twin.run(corrupted, {}))
    twins = {
        name_of(part): metric(twin.mixed(corrupted, part, off_value(family, part, "clean"), 0.0))
        - nothing
        for part in drawn(family, 3, [None])
    }
    assert_same(ours, twins, 1e-10)


STEP = 1e-5
"""Rounding of 1e-15 over this step is 1e-10; one cast to float32 on the way would be 1e-3."""


@pytest.mark.parametrize("reference", [hw.Corrupted(), hw.Zero()], ids=["corrupted", "zero"])
@pytest.mark.parametrize("positions", ["all", [0, -1]], ids=["all", "two"])
@every_family
def test_the_gradient_equals_finite_differences_of_the_gates_in_float64(
    family, positions, reference
):
    function = gated(model(family), pairs()[0], inside(family, positions), reference)
    slopes = by_name(function, hw.Gradient().scores(function))
    draw, by_kind = random.Random(family), {}
    for column, name in enumerate(function.names):
        by_kind.setdefault(parse_component(name).kind, []).append(column)
    columns = [
        column for every in by_kind.values() for column in draw.sample(every, min(4, len(every)))
    ]
    m = function.gates(2 * len(columns))
    for setting, column in enumerate(columns):
        m[2 * setting, :, column] += STEP
        m[2 * setting + 1, :, column] -= STEP
    # one setting at a time: nested parts may not move together, and here none do
    with torch.no_grad():
        f = torch.cat([function(setting[None]) for setting in m])
    central = (f[::2] - f[1::2]) / (2 * STEP)
    assert_same(slopes, dict(zip((function.names[c] for c in columns), central, strict=True)), 1e-7)


@every_family
def test_the_gradient_equals_finite_differences_of_a_plain_twin_in_float64(family):
    two, clean, _ = pairs()
    function = gated(model(family), two, inside(family))
    ours, twin, twins = by_name(function, hw.Gradient().scores(function)), twin_of(family), {}
    for part in drawn(family, 2, [None]):
        off = off_value(family, part, "corrupted")
        above, below = (metric(twin.mixed(clean, part, off, 1 + s)) for s in (STEP, -STEP))
        twins[name_of(part)] = (above - below) / (2 * STEP)
    assert_same(ours, twins, 1e-7)


@pytest.mark.parametrize(
    ("family", "kind"), [(family, kind) for family in FAMILIES for kind in twin_of(family).kinds]
)
def test_gradients_along_a_gates_own_path_add_up_to_its_exact_effect(family, kind):
    layers = 1 if kind == "channel" else None
    function = gated(model(family), pairs()[0], SELECTORS[kind](layers=layers))
    integral = hw.IntegratedGradients(path="component", tolerance=1e-9).scores(function)
    assert_close(integral, hw.Exact().scores(function), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["channel", "ssm", "conv", "ssm_head"])
def test_gradients_along_all_gates_together_add_up_to_closing_them_all(kind):
    function = gated(model("Mamba-2"), pairs()[0], SELECTORS[kind]())
    joint = hw.IntegratedGradients(path="joint", tolerance=1e-9).scores(function)
    with torch.no_grad():
        whole = function(function.gates())[0] - function(0 * function.gates())[0]
    assert_close(joint.sum(1), whole, rtol=0, atol=1e-9)


def test_the_channels_of_the_last_layer_move_a_linear_readout_by_their_own_columns():
    chosen, two = model("Mamba"), pairs()[0]
    module = chosen.module
    own, module.backbone.norm_f = module.backbone.norm_f, nn.Identity()
    try:
        bare = Model(module, tokenizer(), adapter=resolve(module))
        function = gated(bare, two, hw.channels(layers=1), hw.Zero())
        exact, slope = hw.Exact().scores(function), hw.Gradient().scores(function)
        kept: list[Tensor] = []
        with torch.no_grad():
            bare.forward(pairs()[1], taps={Site(1, "mixer.post"): lambda x: kept.append(x.clone())})
    finally:
        module.backbone.norm_f = own
    # without the last norm the logits are linear in the channels of the last position
    answer, wrong = ([p.answer[0] for p in two.pairs], [p.wrong[0] for p in two.pairs])
    readout = module.lm_head.weight[answer] - module.lm_head.weight[wrong]
    expected = kept[0][:, -1] * (readout @ module.backbone.layers[1].mixer.out_proj.weight)
    assert_close(exact, expected.detach(), rtol=0, atol=1e-12)
    assert_close(slope, expected.detach(), rtol=0, atol=1e-12)


def test_a_position_of_the_convolution_reaches_as_many_steps_as_its_kernel_is_wide():
    chosen = model("Mamba")
    seen: list[Tensor] = []
    ids = tokens(1, 7)
    width = chosen.module.config.conv_kernel
    for change in (torch.clone, lambda x: torch.cat([x[:, :1], x[:, 1:2] + 1, x[:, 2:]], 1)):
        with torch.no_grad():
            chosen.forward(
                ids,
                taps={
                    Site(0, "mixer.conv"): change,
                    Site(0, "mixer.ssm"): lambda x: seen.append(x.clone()),
                },
            )
    moved = (seen[0] != seen[1]).any(-1)[0].tolist()
    assert moved == [1 <= place < 1 + width for place in range(7)]


@pytest.mark.parametrize("estimator", [hw.Exact(), hw.Gradient()], ids=["exact", "gradient"])
@pytest.mark.parametrize(
    "reference",
    [hw.Corrupted(), hw.Zero(), hw.Mean(over=["w5 w9 w7 w3 w8 w4 w6"]), hw.Resample()],
    ids=lambda reference: reference.name,
)
@every_family
def test_padding_before_a_prompt_reaches_no_score(family, reference, estimator):
    chosen, mixed = model(family), task(6, 3, 6, 3)
    assert chosen.anatomy().pads
    together = attribute(chosen, mixed, inside(family), estimator, reference=reference).scores
    by_length = {
        length: attribute(
            chosen,
            mixed[length == 3 :: 2],
            inside(family),
            estimator,
            reference=reference,
        ).scores
        for length in (6, 3)
    }
    alone = torch.stack([by_length[6][0], by_length[3][0], by_length[6][1], by_length[3][1]])
    assert_close(together, alone, rtol=0, atol=1e-11 * float(alone.abs().max()))


def test_a_positional_mean_puts_nothing_before_a_short_prompt():
    chosen, mixed = model("Mamba"), task(6, 3)
    reference = hw.PositionalMean(over=["w5 w9 w7 w3 w8 w4 w6"])
    parts = hw.conv() + hw.ssm()
    together = attribute(chosen, mixed, parts, hw.Exact(), reference=reference).scores
    alone = attribute(chosen, mixed[1:], parts, hw.Exact(), reference=reference).scores
    assert_close(together[1:], alone, rtol=0, atol=1e-11 * float(alone.abs().max()))


# --- nested components ------------------------------------------------------------


@pytest.mark.parametrize(
    ("components", "outer", "inner"),
    [
        (hw.mixers() + hw.channels(), "mixer1", "mixer1.c7"),
        (hw.mixers() + hw.ssm_heads(), "mixer0", "mixer0.h5"),
        (hw.mixers() + hw.ssm(), "mixer1", "mixer1<ssm>"),
        (hw.conv() + hw.mixers(), "mixer1", "mixer1<conv>"),
        (hw.conv() + hw.ssm(), "mixer1<ssm>", "mixer1<conv>"),
    ],
)
def test_parts_of_a_mixer_are_not_moved_together_with_what_holds_them(components, outer, inner):
    function = gated(model("Mamba-2"), task(4), components)
    m = function.gates()
    for name in (outer, inner):
        m[..., function.names.index(name)] = 0.5
    with pytest.raises(NestedComponentsError, match=f"{inner} lies inside {outer}"):
        function(m)


@pytest.mark.parametrize(
    ("components", "names"),
    [
        (hw.channels() + hw.ssm(), ("mixer1.c7", "mixer1<ssm>")),
        (hw.ssm_heads() + hw.ssm(), ("mixer1.h2", "mixer1<ssm>")),
        (hw.channels() + hw.ssm_heads(), ("mixer1.c7", "mixer1.h2")),
        (hw.mixers() + hw.ssm(), ("mixer0", "mixer1<ssm>")),
    ],
)
def test_parts_that_each_have_a_way_of_their_own_may_move_together(components, names):
    function = gated(model("Mamba-2"), task(4), components)
    m = function.gates()
    for name in names:
        m[..., function.names.index(name)] = 0.5
    with torch.no_grad():
        both = function(m)
        alone = [
            function(m.where(torch.arange(m.shape[-1]) == function.names.index(n), 1.0))
            for n in names
        ]
    assert not any(torch.equal(both, one) for one in alone)


# --- the embedded Mamba ------------------------------------------------------------

DATA = Path(zoo.__file__).parent / "data" / "tiny-mamba"
RELIABLE = [name for name in BEHAVIORS if name != "induction"]


@functools.cache
def tiny() -> Model:
    return hw.load("tiny-mamba")


def record() -> dict[str, Any]:
    return json.loads((DATA / "training.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("behavior", RELIABLE)
def test_the_embedded_mamba_knows_every_task_but_induction(behavior):
    figures = zoo.accuracy(tiny().module, tiny().tokenizer, behavior)
    assert figures.accuracy >= (0.95 if behavior == "greater-than" else 1.0)
    clear = 0.6 if behavior == "greater-than" else 4
    assert figures.clean > clear
    assert figures.corrupted < clear / 4


def test_the_embedded_mamba_knows_induction_by_half_and_says_so():
    figures = zoo.accuracy(tiny().module, tiny().tokenizer, "induction")
    assert 0.6 < figures.accuracy < 0.9
    assert record()["unreliable_tasks"] == ["induction"]


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_the_recorded_figures_are_those_of_the_shipped_weights(behavior):
    figures = zoo.accuracy(tiny().module, tiny().tokenizer, behavior, count=500)
    assert record()["figures"][behavior] == pytest.approx(figures._asdict(), abs=1e-3)


def test_the_documented_prompts_are_answered():
    answers = {
        "Mary and John went to the store , John gave a drink to": "Mary",
        "The boy that the teachers like": "is",
        "The capital of France is": "Paris",
        "People in Egypt speak": "Arabic",
        "Vera said that": "she",
    }

    def next_word(prompt: str) -> str:
        ids = tiny().tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return tiny().tokenizer.decode(tiny().module(ids).logits[0, -1].argmax())

    assert {prompt: next_word(prompt) for prompt in answers} == answers


def test_the_embedded_mamba_is_small_and_of_its_recipe():
    built = train._ARCHITECTURES["mamba"]()
    shapes = {name: weight.shape for name, weight in built.named_parameters()}
    assert shapes == {name: weight.shape for name, weight in tiny().module.named_parameters()}
    assert record()["parameters"] == sum(shape.numel() for shape in shapes.values())
    assert record()["recipe"] == train.asdict(train.RECIPES["mamba"])
    assert (DATA / "model.safetensors").stat().st_size < 600_000
    assert tiny().tokenizer.get_vocab() == train.build_tokenizer().get_vocab()


def test_the_embedded_mamba_loads_and_runs_in_silence_without_the_package_it_was_trained_with():
    script = (
        "import sys; sys.modules['mambapy'] = None\n"
        "import headwater as hw\n"
        "model = hw.load('tiny-mamba')\n"
        "scores = hw.attribute(model, hw.task('gender')[:2], hw.mixers(), progress=False)\n"
        "print(scores.names[0], model.module.config.use_mambapy)\n"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "mixer0 False\n", "")


def test_training_a_mamba_without_the_package_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError) as refused:
        train.train(train.RECIPES["mamba"])
    assert str(refused.value) == (
        "training a Mamba needs mambapy, whose parallel scan makes it ten times as fast.\n"
        "Install it with: pip install mambapy==1.2.0 (loading and running need nothing)."
    )


def test_a_task_is_unreliable_if_more_than_one_pair_in_ten_is_answered_wrong():
    figures = {"a": {"accuracy": 0.89}, "b": {"accuracy": 0.9}, "c": {"accuracy": 1.0}}
    assert train.unreliable_tasks(figures) == ["a"]


@pytest.mark.parametrize("reference", [hw.Corrupted(), hw.Zero()], ids=["corrupted", "zero"])
def test_in_a_trained_mamba_closing_the_scan_closes_the_mixer(reference):
    """A mixer writes what its scan makes, times its gate: nothing if the scan gets nothing."""
    some = hw.task("ioi")[:4]
    parts = hw.mixers() + hw.ssm()
    scores = attribute(tiny(), some, parts, hw.Exact(), reference=reference)
    for layer in range(4):
        same = torch.allclose(
            scores[f"mixer{layer}"], scores[f"mixer{layer}<ssm>"], rtol=1e-3, atol=1e-3
        )
        # with the corrupted prompt's scan the gate is still the clean prompt's
        assert same == isinstance(reference, hw.Zero)
