"""MLPs without curvature, against models whose activation module is replaced by a straight line.

The lines are written out by hand: value and slope of each activation function in closed form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import headwater as hw
from headwater.attribution import Attribution, attribute
from headwater.components import Selection
from headwater.errors import (
    RunFolderError,
    UnavailableSiteError,
    UnfitReferenceError,
    UnknownOptionError,
)
from headwater.gates.function import Move
from headwater.models import Model
from headwater.references import Tangent, capture, reference_from_dict
from headwater.sites import Site
from oracles import NAMES, Names, Part, Twin, logit_difference
from shape_checks import unchecked
from tiny_models import BUILDERS, build
from tiny_tasks import gated, model, task, tokenizer

Curve = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Value and slope of a function."""
NO_NEURONS = ("Mixtral", "gpt-oss", "Mamba", "Mamba-2")
FAMILIES = [name for name in BUILDERS if name not in NO_NEURONS]
LENGTHS = (6, 3, 4)


# --- straight lines by hand ------------------------------------------------------------


def normal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope of x Phi(x)."""
    below = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x * below, below + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def with_tanh(scale: float) -> Curve:
    """Value and slope of x (1 + tanh(scale (x + 0.044715 x^3))) / 2."""

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.tanh(scale * (x + 0.044715 * x**3))
        inner = scale * (1 + 3 * 0.044715 * x * x)
        return x * (1 + t) / 2, (1 + t) / 2 + x / 2 * (1 - t * t) * inner

    return both


def silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope of x / (1 + exp(-x))."""
    s = 1 / (1 + torch.exp(-x))
    return x * s, s * (1 + x * (1 - s))


def relu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope of max(x, 0), away from 0."""
    on = (x > 0).to(x)
    return x * on, on


TANH = with_tanh(math.sqrt(2 / math.pi))
ACTIVATIONS: dict[str, tuple[str, Curve]] = {
    "GPT-2": ("mlp.act", TANH),
    "GPT-NeoX": ("mlp.act", normal),
    "GPT-NeoX sequential": ("mlp.act", normal),
    "Gemma": ("mlp.act_fn", TANH),
    "Gemma 2": ("mlp.act_fn", TANH),
    "Gemma 3": ("mlp.act_fn", TANH),
    "Phi-3": ("mlp.activation_fn", silu),
    "Phi": ("mlp.activation_fn", TANH),
    "OPT": ("activation_fn", relu),
    "GPT-J": ("mlp.act", TANH),
    "BLOOM": ("mlp.gelu_impl", with_tanh(0.79788456)),
    "Falcon": ("mlp.act", normal),
    "Falcon sequential": ("mlp.act", normal),
    "Falcon new": ("mlp.act", normal),
    "GPT-Neo": ("mlp.act", TANH),
}
"""Where a layer's activation module is, and its function; Llama's are `mlp.act_fn` and SiLU."""


class Line(nn.Module):
    """An activation module's stand-in: straight for some neurons, at some positions."""

    def __init__(
        self,
        own: nn.Module,
        both: Curve,
        at: Tensor,
        neuron: int | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__()
        self.own, self.both, self.at = own, both, at
        self.neuron, self.position = neuron, position

    def forward(self, x: Tensor) -> Tensor:
        value, slope = self.both(self.at)
        line = value + slope * (x - self.at)
        curved = self.own(x)
        columns = slice(None) if self.neuron is None else self.neuron
        rows = slice(None) if self.position is None else self.position
        curved[..., rows, columns] = line[..., rows, columns]
        return curved


class Straightened(Twin):
    """A twin whose activation modules can be replaced, one at a time."""

    def __init__(self, family: str) -> None:
        super().__init__(family)
        path, self.both = ACTIVATIONS.get(family, ("mlp.act_fn", silu))
        self.owner, _, self.field = path.rpartition(".")

    def layer(self, number: int) -> nn.Module:
        layers: Any = self.layers
        return layers[number]

    def logits(self, ids: Tensor, layer: int, at: Tensor, **where: int) -> Tensor:
        """Return all logits of a run in which one layer's activation is straight."""
        return self.with_line(layer, at, lambda: self.run(ids, {}), **where)

    def with_line(self, layer: int, at: Tensor, run: Callable[[], Any], **where: int) -> Any:
        holder = self.layer(layer).get_submodule(self.owner)
        own = getattr(holder, self.field)
        try:
            setattr(holder, self.field, Line(own, self.both, at, **where))
            return run()
        finally:
            setattr(holder, self.field, own)

    def entering(self, ids: Tensor, layer: int) -> Tensor:
        """Return what enters a layer's activation, [pos, neuron]."""
        kept: list[Tensor] = []
        module = self.layer(layer).get_submodule(f"{self.owner}.{self.field}".strip("."))
        handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
        try:
            self.run(ids, {})
        finally:
            handle.remove()
        return kept[0].reshape(ids.shape[1], -1)


def rows_of(given: hw.Task) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids, answer and wrong answer of each pair, without padding."""
    return [
        (
            tokenizer()(pair.clean, return_tensors="pt")["input_ids"],
            torch.tensor(pair.answer).reshape(1),
            torch.tensor(pair.wrong).reshape(1),
        )
        for pair in given.pairs
    ]


def lost(twin: Straightened, given: hw.Task, layer: int, at: Tensor, **where: int) -> Tensor:
    """What the metric loses of each pair when one layer's activation is straight, by hand."""
    return torch.cat(
        [
            logit_difference(twin.run(ids, {}), *answers)
            - logit_difference(twin.logits(ids, layer, at, **where), *answers)
            for ids, *answers in rows_of(given)
        ]
    )


def exact(
    chosen: Model, given: hw.Task, at: Any = "zero", components: Selection | None = None
) -> Tensor:
    components = hw.mlps() if components is None else components
    return attribute(chosen, given, components, hw.Exact(), reference=Tangent(at)).scores


def middle(twin: Straightened, given: hw.Task, layer: int) -> Tensor:
    """Each neuron's mean input over all prompts, run one at a time."""
    return torch.cat([twin.entering(ids, layer) for ids, *_ in rows_of(given)]).mean(0)


# --- exact effects ------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_mlps_effect_is_that_of_a_model_whose_activation_is_its_tangent(family):
    given, twin = task(*LENGTHS), Straightened(family)
    number = 0.7 if family == "OPT" else 0.0  # ReLU has no tangent at zero
    found = exact(model(family), given, 0.7 if family == "OPT" else "zero")
    for layer in (0, 1):
        expected = lost(twin, given, layer, torch.tensor(number, dtype=torch.float64))
        assert float(expected.abs().max()) > 1e-3
        assert_close(found[:, layer], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Gemma 2", "Phi", "OPT", "Phi-3"])
def test_at_the_mean_a_neuron_touches_at_its_mean_input_and_padding_never_enters(family):
    given, twin = task(*LENGTHS), Straightened(family)
    found = exact(model(family), given, "mean")
    for layer in (0, 1):
        expected = lost(twin, given, layer, middle(twin, given, layer))
        assert_close(found[:, layer], expected, rtol=0, atol=1e-10)


def test_prompts_of_ones_own_give_the_mean():
    given, other, twin = task(*LENGTHS), task(5, 4, seed=3), Straightened("Llama")
    found = exact(model("Llama"), given, hw.Mean(over=other))
    expected = lost(twin, given, 1, middle(twin, other, 1))
    assert_close(found[:, 1], expected, rtol=0, atol=1e-10)


def test_a_positional_mean_is_a_point_for_every_position():
    given, twin = task(4, 4, 4), Straightened("GPT-2")
    found = exact(model("GPT-2"), given, hw.PositionalMean(over="clean"))
    entering = torch.stack([twin.entering(ids, 1) for ids, *_ in rows_of(given)])
    expected = lost(twin, given, 1, entering.mean(0))
    assert_close(found[:, 1], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Phi-3", "Gemma 2"])
def test_a_neurons_effect_is_that_of_a_model_with_one_straight_neuron(family):
    given, twin = task(*LENGTHS), Straightened(family)
    found = exact(model(family), given, 0.4, hw.neurons(layers=1))
    at = torch.tensor(0.4, dtype=torch.float64)
    for neuron in range(0, found.shape[1], 7):
        expected = lost(twin, given, 1, at, neuron=neuron)
        assert_close(found[:, neuron], expected, rtol=0, atol=1e-10)


def test_an_mlp_can_be_straight_at_one_position_alone():
    given, twin = task(*LENGTHS), Straightened("Llama")
    found = exact(model("Llama"), given, "zero", hw.mlps(positions=[-2, -1]))
    zero = torch.zeros((), dtype=torch.float64)
    for column, (layer, position) in enumerate([(0, -2), (0, -1), (1, -2), (1, -1)]):
        expected = lost(twin, given, layer, zero, position=position)
        assert_close(found[:, column], expected, rtol=0, atol=1e-10)


# --- other estimators see the same off values ------------------------------------------------


def test_closed_together_both_layers_keep_the_off_values_of_the_clean_run():
    given, twin = task(5), Straightened("GPT-2")
    ((ids, *answers),) = rows_of(given)
    zero = torch.zeros((), dtype=torch.float64)
    held = {
        ("mlp", layer): twin.with_line(layer, zero, lambda p=layer: twin.values(ids, [("mlp", p)]))
        for layer in (0, 1)
    }
    changes = {place: lambda _, own=place: held[own][own] for place in held}
    expected = logit_difference(twin.run(ids, changes), *answers)
    function = gated(model("GPT-2"), given, hw.mlps(), Tangent())
    assert_close(function.moved([Move((0, 1), 1.0)])[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["GPT-2", "Llama"])
def test_a_gradient_is_the_slope_towards_the_straight_write(family):
    given, twin, h = task(5), Straightened(family), 1e-5
    ((ids, *answers),) = rows_of(given)
    zero = torch.zeros((), dtype=torch.float64)
    found = attribute(model(family), given, hw.mlps(), hw.Gradient(), reference=Tangent()).scores
    for layer in (0, 1):
        place = ("mlp", layer)
        held = twin.with_line(layer, zero, lambda p=place: twin.values(ids, [p]))[place]
        above, below = (
            logit_difference(twin.mixed(ids, Part("mlp", layer), held, m), *answers)
            for m in (1 + h, 1 - h)
        )
        assert_close(found[:, layer], (above - below) / (2 * h), rtol=1e-6, atol=1e-8)


def test_an_audit_of_exact_scores_finds_no_error():
    scores = attribute(
        model("Llama"),
        task(*LENGTHS),
        hw.mlps() + hw.neurons(layers=1),
        hw.Exact(),
        reference=Tangent("mean"),
    )
    assert all(row.error == 0 for row in scores.audit(sample=8).rows)


# --- closed forms ------------------------------------------------------------


def wrapped(family: str, change: Callable[[Any], None], dtype=torch.float64) -> Model:
    """A tiny model whose layers were changed."""
    module = build(family, dtype=dtype)
    layers: Any = module.get_submodule(NAMES.get(family, Names()).layers)
    for layer in layers:
        change(layer)
    return hw.wrap(module, tokenizer())


def off_values(chosen: Model, given: hw.Task, reference: Tangent) -> tuple[dict, dict]:
    """The off values of all MLPs and neurons, and the values of the clean run."""
    sites = [Site(layer, name) for layer in (0, 1) for name in ("mlp.post", "mlp.out")]
    (batch,) = given.batches(tokenizer())
    off = reference.prepare(chosen, given, [batch], sites)(batch)
    return dict(off.values), capture(chosen, batch.clean, batch, sites)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_an_activation_function_there_is_no_curvature(dtype):
    chosen = wrapped("GPT-2", lambda layer: setattr(layer.mlp, "act", nn.Identity()), dtype)
    off, clean = off_values(chosen, task(*LENGTHS), Tangent())
    assert all(torch.equal(off[site], clean[site]) for site in clean)
    rounding = 100 * torch.finfo(dtype).eps
    assert float(exact(chosen, task(*LENGTHS)).abs().max()) <= rounding
    off, clean = off_values(chosen, task(*LENGTHS), Tangent("mean"))
    for site, value in clean.items():
        assert_close(off[site], value, rtol=rounding, atol=rounding)


def test_a_relu_that_is_never_off_has_no_curvature():
    def lifted(layer: Any) -> None:
        layer.fc1.bias.data.add_(50)

    chosen = wrapped("OPT", lifted)
    for at in (1.0, "mean"):
        assert float(exact(chosen, task(*LENGTHS), at).abs().max()) <= 1e-11


def test_below_its_kink_the_tangent_of_a_relu_is_zero_and_above_it_the_input():
    given, neurons = task(*LENGTHS), hw.neurons(layers=0)
    below = exact(model("OPT"), given, -1, neurons)
    zero = attribute(model("OPT"), given, neurons, hw.Exact(), reference=hw.Zero()).scores
    assert float(zero.abs().max()) > 1e-3
    assert_close(below, zero, rtol=0, atol=1e-12)
    off, _ = off_values(model("OPT"), given, Tangent(1))
    (batch,) = given.batches(tokenizer())
    site = Site(0, "mlp.pre")
    entering = capture(model("OPT"), batch.clean, batch, [site])[0][site]
    assert_close(off[Site(0, "mlp.post")], entering, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("family", ["GPT-2", "Gemma 2"])
def test_lower_precision_gives_the_same_numbers_up_to_rounding(family):
    given = task(*LENGTHS)
    truth = exact(model(family), given, "mean")
    for dtype, share in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        found = exact(model(family, dtype), given, "mean").to(truth)
        assert float((found - truth).abs().max()) <= share * float(truth.abs().max())


# --- what is kept ------------------------------------------------------------


TEXTS = ["w3 w4 w5 w6", "w7 w8"]


@pytest.mark.parametrize(
    ("at", "written"),
    [
        ("zero", {"at": "zero"}),
        ("mean", {"at": "mean"}),
        (-2, {"at": -2}),
        (hw.Mean(over=TEXTS), {"at": "mean", "over": TEXTS}),
        (
            hw.PositionalMean(over="clean", limit=3),
            {"at": "positional-mean", "over": "clean", "limit": 3},
        ),
    ],
)
def test_a_manifest_gives_the_reference_back(at, written):
    saved = Tangent(at).to_dict()
    assert saved == {"name": "tangent", **written}
    back = reference_from_dict(json.loads(json.dumps(saved)))
    assert isinstance(back, Tangent)
    assert type(back.at) is type(at)
    assert back.to_dict() == saved


def test_a_stream_is_read_once_and_serves_estimate_audit_and_the_audit_of_the_saved_run(tmp_path):
    given, chosen = task(*LENGTHS), model("Llama")
    streamed = Tangent(hw.Mean(over=(text for text in TEXTS)))
    scores = attribute(chosen, given, hw.mlps(), hw.Exact(), reference=streamed)
    listed = exact(chosen, given, hw.Mean(over=TEXTS))
    assert_close(scores.scores, listed, rtol=0, atol=1e-12)
    assert all(row.error == 0 for row in scores.audit().rows)
    back = Attribution.load(scores.save(tmp_path / "run"))
    assert all(row.error == 0 for row in back.audit(model=chosen).rows)
    assert back.provenance.reference["over"]["prompts"] == 2


def test_a_folder_takes_the_same_stream_again_and_no_other(tmp_path):
    def run(texts: list[str]) -> Attribution:
        streamed = Tangent(hw.Mean(over=(text for text in texts)))
        return attribute(
            model("Llama"), task(5), hw.mlps(), reference=streamed, out=tmp_path / "run"
        )

    assert_close(run(TEXTS).scores, run(TEXTS).scores, rtol=0, atol=0)
    with pytest.raises(RunFolderError):
        run(TEXTS[:1])


def test_means_of_another_model_are_not_used():
    given, texts = task(*LENGTHS), lambda: iter(TEXTS)
    first = attribute(
        model("Llama"), given, hw.mlps(), hw.Exact(), reference=Tangent(hw.Mean(over=texts))
    )
    kept = first.reference
    assert isinstance(kept, Tangent)
    other = hw.wrap(build("Llama", seed=5, dtype=torch.float64), tokenizer())
    found = attribute(other, given, hw.mlps(), hw.Exact(), reference=kept).scores
    assert_close(found, exact(other, given, hw.Mean(over=TEXTS)), rtol=0, atol=1e-12)


def test_its_cost_is_a_clean_forward_a_pair_and_one_more_at_means():
    def forwards(at: Any) -> float:
        scores = attribute(model("GPT-2"), task(5, 5), hw.mlps(), hw.Exact(), reference=Tangent(at))
        return scores.cost.forwards

    def with_zero() -> float:
        zero = hw.Zero()
        return attribute(
            model("GPT-2"), task(5, 5), hw.mlps(), hw.Exact(), reference=zero
        ).cost.forwards

    assert forwards("zero") == with_zero() + 2
    assert forwards("mean") == with_zero() + 4


# --- what is refused ------------------------------------------------------------


def refused(chosen: Model, components: Selection, at: Any = "zero") -> str:
    with pytest.raises(UnfitReferenceError) as error:
        attribute(chosen, task(*LENGTHS), components, hw.Exact(), reference=Tangent(at))
    return str(error.value)


@pytest.mark.parametrize(
    ("family", "components", "site"),
    [
        ("GPT-2", hw.heads(layers=1), "layers.1.attn.z"),
        ("GPT-2", hw.mlps() + hw.attentions(layers=0), "layers.0.attn.out"),
        ("GPT-2", hw.tokens(positions=[0]), "embed"),
        ("GPT-2", hw.residual(layers=0, positions=[0]), "layers.0.resid_post"),
        ("Mamba", hw.mixers(layers=0), "layers.0.mixer.out"),
    ],
)
def test_a_component_without_an_activation_function_is_refused_by_name(family, components, site):
    assert refused(model(family), components) == (
        f"hw.Tangent() replaces the activation function of an MLP, and there is none at '{site}'.\n"
        "Score hw.mlps() or hw.neurons() with it."
    )


def test_a_family_without_mlps_is_refused_as_ever():
    with pytest.raises(UnavailableSiteError, match="Mamba has no mlps"):
        attribute(model("Mamba"), task(5), hw.mlps(), reference=Tangent())


@pytest.mark.parametrize("family", ["Mixtral", "gpt-oss"])
def test_experts_are_refused_by_name(family):
    assert refused(model(family), hw.mlps()) == (
        f"hw.Tangent() needs the MLP's neurons, and {family} shows none: its MLP routes each token "
        "to a few experts, so there is no fixed list of neurons.\n"
        "Use hw.Zero(), hw.Mean() or hw.Corrupted()."
    )


def test_a_kink_has_no_tangent():
    assert refused(model("OPT"), hw.mlps()) == (
        "ReLU, which reads 'layers.0.mlp.pre', has no tangent at 0: its slope is 0 on the left and "
        "1 on the right (autograd says 0).\n"
        "Let it touch elsewhere: hw.Tangent(at='mean'), or a number such as at=1."
    )


def test_a_backward_of_its_own_that_is_no_slope_is_refused():
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return torch.nn.functional.silu(x)

        @staticmethod
        def backward(ctx: Any, *slopes: Tensor) -> Tensor:
            return slopes[0]

    class StraightThrough(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Straight.apply(x)

    chosen = wrapped("GPT-2", lambda layer: setattr(layer.mlp, "act", StraightThrough()))
    assert refused(chosen, hw.mlps()).startswith(
        "StraightThrough, which reads 'layers.0.mlp.pre', has no tangent at 0: its slope is 0.5 on "
        "the left and 0.5 on the right (autograd says 1).\n"
    )


class Clamped(nn.Module):
    """An MLP that does more to its neurons than its activation module does."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.c_fc, self.act, self.c_proj = mlp.c_fc, mlp.act, mlp.c_proj

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)).clamp(max=0.1))


def test_an_mlp_that_does_more_than_its_activation_module_is_refused_with_the_number():
    chosen = wrapped("GPT-2", lambda layer: setattr(layer, "mlp", Clamped(layer.mlp)))
    said = refused(chosen, hw.neurons(layers=1))
    before, after = (
        "no activation function found in GPT-2 that makes 'layers.1.mlp.post' of "
        "'layers.1.mlp.pre': NewGELUActivation is off by ",
        ", where rounding explains 7.1e-15. So hw.Tangent() does not know what to replace.\n"
        "Use hw.Zero(), hw.Mean() or hw.Corrupted().",
    )
    assert said.startswith(before)
    assert said.endswith(after)
    assert float(said.removeprefix(before).removesuffix(after)) > 0.1


class Normed(nn.Module):
    """An activation in which a neuron depends on its neighbors."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


def test_an_activation_that_mixes_neurons_is_refused():
    chosen = wrapped("GPT-2", lambda layer: setattr(layer.mlp, "act", Normed()))
    assert "no activation function found" in refused(chosen, hw.mlps())


def test_a_gated_mlp_without_an_activation_module_is_refused():
    class Plain(nn.Module):
        def __init__(self, mlp: Any) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (
                mlp.gate_proj,
                mlp.up_proj,
                mlp.down_proj,
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))

    chosen = wrapped("Llama", lambda layer: setattr(layer, "mlp", Plain(layer.mlp)))
    assert refused(chosen, hw.mlps()) == (
        "no activation function found in Llama that makes 'layers.0.mlp.post' of "
        "'layers.0.mlp.gate' and 'layers.0.mlp.up': it has no part without weights. "
        "So hw.Tangent() does not know what to replace.\n"
        "Use hw.Zero(), hw.Mean() or hw.Corrupted()."
    )


def test_a_write_that_someone_changed_behind_the_down_projection_is_refused():
    chosen = hw.wrap(build("GPT-2", dtype=torch.float64), tokenizer())
    mlp: Any = chosen.module.get_submodule("transformer.h.1.mlp")
    handle = mlp.register_forward_hook(lambda _, args, output: output * 2)
    said = refused(chosen, hw.mlps())
    handle.remove()
    assert said == (
        "'layers.1.mlp.out' of GPT-2 is not what its down projection makes of 'layers.1.mlp.post': "
        "off by 0.5, where rounding explains 7.1e-15. So hw.Tangent() does not know what a linear "
        "MLP would write.\nRemove the hooks that change it, or score hw.neurons()."
    )


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        ("zeros", "'zeros') touches nowhere. Closest: 'zero'."),
        (math.inf, "inf) touches nowhere."),
        (True, "True) touches nowhere."),
        (None, "None) touches nowhere."),
    ],
)
def test_a_point_that_is_none_is_refused(at, shown):
    with unchecked(), pytest.raises(UnknownOptionError) as error:
        Tangent(at)
    assert str(error.value) == (
        f"hw.Tangent(at={shown}\n"
        'Write at="zero", at="mean", a number such as at=1.0, or at=hw.Mean(over=prompts).'
    )


def test_the_corrupted_end_is_refused_as_with_any_other_run():
    with pytest.raises(UnfitReferenceError, match="corrupted prompts' own values"):
        attribute(model("GPT-2"), task(5), hw.mlps(), hw.Exact(at="corrupted"), reference=Tangent())
