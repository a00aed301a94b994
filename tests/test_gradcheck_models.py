"""What `hw.gradcheck` takes besides a site, each held against plain hooks on the stock model."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import headwater as hw
from headwater import suffix
from headwater.errors import (
    GateError,
    GradcheckError,
    HeadwaterError,
    MetricError,
    ModelStateError,
    NoPathError,
    PromptError,
    UnknownComponentError,
    UnknownOptionError,
    UnknownSiteError,
    UnknownWordError,
    UnsupportedModelError,
)
from headwater.gates.task import TOKENS
from headwater.gradchecks.labels import indexed, namer
from headwater.gradchecks.report import GradientReport
from headwater.models import Model
from headwater.precision import context_for, true_float64
from headwater.sites import Site
from headwater.suffix import float64_suffix
from shape_checks import unchecked
from tiny_models import build
from tiny_tasks import model, text, tokenizer

DOUBLE = torch.float64
IDS = [7, 20, 33, 11, 50, 9]
PROMPT = text(IDS)
WORD = 17
METRIC = hw.logprob(f"w{WORD}")
STREAM = "layers.0.resid_post"
Objective = Callable[[Tensor], Tensor]
"""From all logits of the prompt, [pos, vocab], to one number."""


def checked(found: Model | None = None, site: Any = STREAM, **options: Any) -> GradientReport:
    """A quick check: the steepest entry and one at random beside the usual directions."""
    chosen = {"metric": METRIC, "coordinates": 1, "steps": 12} | options
    return hw.gradcheck(model("Llama") if found is None else found, PROMPT, site=site, **chosen)


def gradient(found: Model | None = None, site: Any = STREAM, **options: Any) -> Tensor:
    """The gradient that such a check has held against differences, and passed."""
    report = checked(found, site, **options)
    assert report.verdict == "agree", str(report)
    return report.checks[0].gradient


def single(word: int = WORD) -> Objective:
    return lambda logits: logits[-1].log_softmax(-1)[word]


@contextmanager
def replaced(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change what a module returns, by a plain hook."""

    def hook(_: nn.Module, args: object, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    with layer.register_forward_hook(hook):
        yield


def stock(
    objective: Objective,
    *,
    family: str = "Llama",
    ids: list[int] = IDS,
    edits: dict[str, Callable[[Tensor], Tensor]] | None = None,
) -> Tensor:
    """The gradient at the output of the stock model's first layer, [pos, d_model].

    Args:
        objective: What is differentiated.
        family: Of the tiny models.
        ids: What runs.
        edits: By module, what its output's gradient becomes on the way back.
    """
    module = build(family, dtype=DOUBLE)
    leaves: list[Tensor] = []

    def cut(value: Tensor) -> Tensor:
        leaves.append(value.detach().requires_grad_())
        return leaves[0] * 1  # later hooks see a tensor of the graph

    def edited(edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def change(value: Tensor) -> Tensor:
            value.register_hook(edit)
            return value

        return change

    hooks = [replaced(module.get_submodule("model.layers.0"), cut)]
    hooks += [
        replaced(module.get_submodule(path), edited(edit)) for path, edit in (edits or {}).items()
    ]
    with true_float64():
        for hook in hooks:
            hook.__enter__()
        value = objective(module(torch.tensor([ids]), use_cache=False).logits[0])
    (found,) = torch.autograd.grad(value, leaves[0])
    return found[0]


def close(found: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of float64 sums in another order."""
    assert_close(found, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


# --- positions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 3, 5, -1, -6])
def test_a_position_is_that_tokens_value(position):
    report = checked(position=position)
    close(report.checks[0].gradient, stock(single())[position])
    at = position % 6
    assert report.checks[0].where == f"position {at} ('w{IDS[at]}')"
    assert report.verdict == "agree"


def test_all_positions_are_one_value():
    report = checked(position="all")
    close(report.checks[0].gradient, stock(single()))
    assert report.checks[0].where == "all 6 positions"


@pytest.mark.parametrize(
    ("site", "shape", "positions", "index", "name"),
    [
        ("layers.0.mlp.post", (40,), None, 17, "n17"),
        ("layers.0.resid_post", (6, 24), range(6), 24 * 2 + 3, "d3@2"),
        ("layers.0.attn.z", (4, 6), None, 6 * 2 + 5, "h2.5"),
        ("layers.0.attn.k", (6, 2, 6), range(6), 12 * 3 + 6 + 4, "kv1.4@3"),
        ("layers.0.attn.pattern", (4, 6), None, 6 + 3, "h1.k3"),
        ("layers.0.attn.pattern", (4, 6, 6), range(6), 36 + 6 * 5 + 2, "h1.k2@5"),
        ("logits", (2, 61), (3, 5), 61 + 4, "v4@5"),
        ("layers.0.mixer.y", (6, 8), None, 8 * 4 + 1, "h4.1"),
    ],
)
def test_entries_are_named_by_their_place(site, shape, positions, index, name):
    assert namer(Site.parse(site), shape, positions)(index) == name


def test_entries_of_a_weight_are_named_by_row_and_column():
    assert indexed((4, 6))(6 * 3 + 1) == "[3, 1]"
    assert indexed((4,))(3) == "[3]"


def test_logits_at_all_positions_are_those_that_the_metric_reads():
    report = checked(site="logits", position="all")
    assert report.checks[0].value.shape == (1, 61)
    assert report.checks[0].where == "position 5 ('w9')"
    assert {one.name[-2:] for one in report.checks[0].directions if one.index is not None} == {"@5"}


# --- coefficients along vectors -----------------------------------------------------------------


def test_the_gradient_along_vectors_is_the_vectors_times_the_gradient():
    basis = torch.randn(3, 24, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    close(gradient(basis=basis, coordinates="all"), basis @ stock(single())[-1])


def test_a_features_removal_is_that_of_its_coefficient_times_its_vector():
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(2, 24, generator=generator, dtype=DOUBLE)
    code = torch.tensor([0.7, -0.3], dtype=DOUBLE)
    (check,) = checked(basis=decoder, coefficients=code, coordinates="all").checks
    assert_close(check.value, code)

    def objective(removed: Tensor) -> float:
        module = build("Llama", dtype=DOUBLE)

        def without(value: Tensor) -> Tensor:
            value = value.clone()
            value[:, -1] -= removed
            return value

        with replaced(module.get_submodule("model.layers.0"), without), true_float64():
            logits = module(torch.tensor([IDS]), use_cache=False).logits[0]
        return float(single()(logits).detach())

    whole = objective(torch.zeros(24, dtype=DOUBLE))
    for effect, coefficient, vector in zip(check.effects, code, decoder, strict=True):
        expected = objective(coefficient * vector) - whole
        place = check.effects.index(effect)
        assert effect.index == place
        assert effect.zeroing == pytest.approx(expected, abs=1e-12)
    assert check.reach is not None
    assert check.reach.exact == pytest.approx(whole - objective(code @ decoder), abs=1e-12)


def test_parts_of_a_weight_have_the_slopes_of_their_coefficients():
    name = "model.layers.1.mlp.down_proj.weight"
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(2, 24, 40, generator=generator, dtype=DOUBLE)
    found = gradient(site=name, basis=parts, coefficients=torch.ones(2), coordinates="all")
    close(found, (parts * weight_gradient("Llama", name)).sum((1, 2)))


# --- weights ------------------------------------------------------------------------------------


def weight_gradient(family: str, name: str) -> Tensor:
    """The stock model's gradient of one weight, by one plain run and backward pass."""
    module = build(family, dtype=DOUBLE)
    with context_for(module):
        value = single()(module(torch.tensor([IDS]), use_cache=False).logits[0])
    (found,) = torch.autograd.grad(value, module.get_parameter(name))
    return found


WEIGHTS = {
    "MLP": ("Llama", "model.layers.0.mlp.gate_proj.weight"),
    "last MLP": ("Llama", "model.layers.1.mlp.down_proj.weight"),
    "attention": ("Llama", "model.layers.1.self_attn.k_proj.weight"),
    "norm": ("Llama", "model.layers.0.input_layernorm.weight"),
    "final norm": ("Llama", "model.norm.weight"),
    "embedding": ("Llama", "model.embed_tokens.weight"),
    "unembedding": ("Llama", "lm_head.weight"),
    "tied": ("GPT-2", "transformer.wte.weight"),
    "tied, by its other name": ("GPT-2", "lm_head.weight"),
    "positions": ("GPT-2", "transformer.wpe.weight"),
    "bias": ("GPT-2", "transformer.h.0.mlp.c_fc.bias"),
    "experts": ("Mixtral", "model.layers.1.mlp.gate.weight"),
    "decay": ("Mamba", "backbone.layers.0.mixer.A_log"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_weights_gradient_is_the_stock_models_and_the_slope(kind):
    family, name = WEIGHTS[kind]
    expected = weight_gradient(family, name)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    found = gradient(model(family), name, directions=direction[None], coordinates=None)
    close(found, expected)


def test_a_weight_of_a_float32_model_is_checked_in_float64_with_its_precision_beside():
    name = "model.layers.1.mlp.down_proj.weight"
    report = checked(model("Llama", torch.float32), name)
    assert report.verdict == "agree"
    (check,) = report.checks
    native = checked(model("Llama", torch.float32), name, dtype="native").checks[0].gradient
    away = (native.double() - check.gradient).abs().max() / check.gradient.abs().max()
    assert check.precision is not None
    assert check.precision.largest == pytest.approx(float(away), rel=1e-6)
    assert 0 < check.precision.largest < 1e-4


@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.1.ln_1.weight"])
def test_weights_are_back_after_an_exception_wherever_they_are_shared(name):
    module = build("GPT-2")
    places = [
        (part, own, weight) for part in module.modules() for own, weight in part._parameters.items()
    ]
    bits = {name: weight.clone() for name, weight in module.state_dict().items()}
    calls: list[None] = []

    def failing(logits: Tensor, batch: object) -> Tensor:
        calls.append(None)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return logits[:, 5]

    with pytest.raises(KeyboardInterrupt):
        checked(hw.wrap(module, tokenizer()), name, metric=failing, dtype="native")
    assert all(part._parameters[own] is weight for part, own, weight in places)
    assert all(torch.equal(weight, bits[name]) for name, weight in module.state_dict().items())


# --- edits of gradients -------------------------------------------------------------------------

MLP = "layers.1.mlp.out"
ATTENTION = "layers.1.attn.out"
FACTORS = torch.randn(6, 24, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)


def halved_in_place(gradient: Tensor) -> None:
    gradient[..., :7] *= 0.5


def masked(gradient: Tensor) -> Tensor:
    return gradient * (torch.arange(24) % 3 == 0)


def halved(gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    gradient[..., :7] *= 0.5
    return gradient


EDITS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "zero": (0, lambda g: 0 * g),
    "a number": (-2.5, lambda g: -2.5 * g),
    "a tensor": (FACTORS, lambda g: FACTORS * g),
    "in place": (halved_in_place, halved),
    "returning": (masked, masked),
}


@pytest.mark.parametrize("position", ["all", -1, 2])
@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_gradient_is_that_of_plain_hooks_and_the_slope_of_the_edited_function(
    kind, position
):
    edit, plain = EDITS[kind]
    expected = stock(single(), edits={"model.layers.1.mlp": plain})
    if position != "all":
        expected = expected[position]
    close(gradient(position=position, edits={MLP: edit}), expected)


def test_edits_at_two_sites_act_one_after_the_other():
    expected = stock(
        single(),
        edits={
            "model.layers.1.mlp": lambda g: 0.5 * g,
            "model.layers.1.self_attn": lambda g: -3 * g,
        },
    )
    close(gradient(position="all", edits={ATTENTION: -3, MLP: 0.5}), expected)


def test_an_edit_at_the_value_itself_multiplies_its_gradient():
    close(gradient(edits={STREAM: 0.25}), 0.25 * stock(single())[-1])


@pytest.mark.parametrize("kind", EDITS)
def test_the_precision_of_an_edited_gradient_is_that_of_the_same_edit(kind):
    edit, _ = EDITS[kind]
    (check,) = checked(model("Llama", torch.float32), edits={MLP: edit}).checks
    assert check.verdict == "agree"
    assert check.precision is not None
    assert check.precision.largest < 1e-4


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda g: g + 1, "does more than multiply"),
        (lambda g: g.clamp(-100, 100), "does more than multiply"),
        (lambda g: g.clamp(-1e-3, 1e-3), "does more than multiply"),
        (lambda g: g / g.norm(), "does more than multiply"),
        (lambda g: g.roll(1, -1), "does more than multiply"),
        (torch.relu, "does more than multiply"),
        (lambda g: g[0], r"returned \[6, 24\] for a gradient of shape \[1, 6, 24\]"),
        (lambda g: 3, "returned int for a gradient"),
        (math.nan, "a factor is not finite"),
        (lambda g: g @ torch.ones(7, 7), "failed on a gradient of shape"),
        (None, "NoneType is neither a number, a tensor nor a function"),
        (torch.ones(7), r"shape \[7\] does not broadcast to the value's \[1, 6, 24\]"),
    ],
)
def test_an_edit_that_is_no_multiplication_is_refused(edit, said):
    refused(GradcheckError, said, edits={MLP: edit})


@pytest.mark.parametrize(
    ("family", "site", "edited"),
    [
        ("Llama", "layers.1.mlp.post", "layers.0.mlp.out"),  # an earlier layer
        ("Llama", "layers.1.mlp.post", "embed"),
        ("Llama", "layers.0.mlp.post", "embed"),
        ("Llama", "layers.1.mlp.post", "layers.1.attn.out"),  # earlier in the layer
        ("Llama", "layers.1.mlp.gate", "layers.1.mlp.up"),  # beside it
        ("GPT-NeoX", "layers.1.mlp.post", "layers.1.attn.out"),
        ("GPT-NeoX", "layers.1.attn.z", "layers.1.mlp.out"),
    ],
)
def test_an_edit_that_does_not_lie_behind_the_value_is_refused(family, site, edited):
    with pytest.raises(GradcheckError, match=f"edit at {edited} lies before the value or beside"):
        checked(model(family), site, edits={edited: 0.5})


def test_an_edit_at_an_unknown_site_is_answered_with_the_closest():
    with pytest.raises(UnknownSiteError, match=r"Closest: 'layers\.1\.mlp\.out'"):
        checked(edits={"layers.1.mlp.outt": 0})


# --- a gradient of the user's -------------------------------------------------------------------


def traced(found: Model) -> Tensor:
    """The gradient at the last token's neurons, read in a trace."""
    with found.trace(PROMPT) as run:
        value = run["layers.0.mlp.post"]
        loss = found.output.logits[0, -1].log_softmax(-1)[WORD]
        with loss.backward():
            read = hw.save(value.grad)
    return read[0, -1]


def test_a_gradient_read_in_a_trace_is_the_slope():
    found = model("Llama")
    with true_float64():
        read = traced(found)
    report = checked(found, "layers.0.mlp.post", gradient=read)
    assert report.verdict == "agree"
    assert len(report.checks) == 1
    assert report.checks[0].claimed == "the given"


def test_a_gradient_of_a_float32_trace_is_right_to_float32_and_no_further():
    found = model("Llama", torch.float32)
    read = traced(found)
    right = checked(found, "layers.0.mlp.post", gradient=read, rtol=1e-4)
    assert right.verdict == "agree"
    wrong = checked(found, "layers.0.mlp.post", gradient=1.001 * read, rtol=1e-4)
    assert wrong.verdict == "disagree"


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda g, a, whole: -g, "sign is flipped"),
        (lambda g, a, whole: g / 2, "factor of a half"),
        (lambda g, a, whole: a * g, "activation times gradient"),
        (lambda g, a, whole: whole[2], r"gradient at position 2 \('w33'\)"),
    ],
)
def test_a_wrong_gradient_is_told_what_it_is(wrong, hint):
    everywhere = checked(position="all").checks[0]
    right = checked().checks[0]
    claimed = wrong(right.gradient, right.value, everywhere.gradient)
    report = checked(gradient=claimed)
    assert report.verdict == "disagree"
    assert re.search(hint, report.checks[0].hint)


def test_a_wrong_gradient_that_nobody_can_name_may_come_from_an_edit():
    right = checked().checks[0].gradient
    named, unnamed = checked(gradient=-right), checked(gradient=right.flip(-1))
    assert [one.verdict for one in (named, unnamed)] == ["disagree", "disagree"]
    assert not any("edits={site: factor}" in note for note in named.checks[0].notes)
    assert any("edits={site: factor}" in note for note in unnamed.checks[0].notes)


# --- metrics ------------------------------------------------------------------------------------


def test_kl_to_the_clean_run_is_stationary():
    assert checked(metric=hw.kl()).verdict == "stationary"


def test_the_gradient_of_a_logit_difference():
    found = gradient(metric=hw.logit_diff(), answer="w5", wrong=["w6", "w8"])
    close(found, stock(lambda z: z[-1, 5] - (z[-1, 6] + z[-1, 8]) / 2)[-1])


def test_the_gradient_of_the_cross_entropy_at_a_position_in_the_middle():
    def mean_logprob(logits: Tensor) -> Tensor:
        logprobs = logits[:-1].log_softmax(-1)
        return logprobs[torch.arange(5), torch.tensor(IDS[1:])].mean()

    close(gradient(metric=hw.cross_entropy(), position=2), stock(mean_logprob)[2])


def test_an_answer_of_several_tokens_is_teacher_forced_and_positions_stay_the_prompts():
    answer = [5, 6, 8]

    def logprob(logits: Tensor) -> Tensor:
        steps = logits[-3:].log_softmax(-1)
        return steps[torch.arange(3), torch.tensor(answer)].sum()

    expected = stock(logprob, ids=IDS + answer[:-1])
    report = checked(metric=hw.logprob(text(answer)), position=-1)
    close(report.checks[0].gradient, expected[5])
    assert report.checks[0].where == "position 5 ('w9')"
    assert report.verdict == "agree"
    everywhere = checked(metric=hw.logprob(text(answer)), position="all").checks[0]
    close(everywhere.gradient, expected[:6])
    with pytest.raises(GradcheckError, match="positions 0 to 5"):
        checked(metric=hw.logprob(text(answer)), position=6)


@pytest.mark.parametrize("name", ["gate", "up"])
def test_a_gradient_of_another_site_of_the_gated_mlp_is_told(name):
    post, other = "layers.0.mlp.post", f"layers.0.mlp.{name}"
    report = checked(site=post)
    assert [one.name for one in report.checks] == [
        "layers.0.mlp.post", "layers.0.mlp.gate", "layers.0.mlp.up",
    ]  # fmt: skip
    (check,) = checked(site=post, gradient=report[other].gradient).checks
    assert check.verdict == "disagree"
    assert check.hint == f"this is the gradient at {other}"


def test_a_gradient_of_another_position_is_told_behind_the_prompt_too():
    metric = hw.logprob("w5 w6 w8")
    report = checked(site="logits", metric=metric, position="all")
    assert report.checks[0].where == "positions 5, 6, 7"
    second = report.checks[0].gradient[1]
    wrong = checked(site="logits", metric=metric, position=-1, gradient=second)
    assert wrong.checks[0].hint == "this is the gradient at position 6 (of the answer)"


def test_a_function_of_several_positions_reads_those():
    difference = hw.metric(
        lambda logits, batch: logits[:, 0, 5] - logits[:, 1, 6], positions=[-3, -1]
    )
    found = gradient(metric=difference, position=1)
    close(found, stock(lambda z: z[-3, 5] - z[-1, 6])[1])


def test_grad_outputs_weigh_the_entries_of_a_vector():
    weights = torch.randn(61, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    report = checked(metric=lambda logits, batch: logits.softmax(-1), grad_outputs=weights)
    close(report.checks[0].gradient, stock(lambda z: weights @ z[-1].softmax(-1))[-1])
    assert report.verdict == "agree"
    assert len(report.checks[0].entries) == 16


def test_the_sum_of_a_softmax_is_constant():
    report = checked(metric=lambda logits, batch: logits.softmax(-1), grad_outputs="ones")
    assert report.verdict == "constant"
    assert "the objective is 1 whatever the value is" in report.checks[0].hint


# --- number formats -----------------------------------------------------------------------------


@functools.cache
def bfloat16() -> Model:
    return hw.wrap(build("Llama", dtype=torch.bfloat16), tokenizer())


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_native_runs_in_the_models_own_numbers(dtype):
    (check,) = checked(model("Llama", dtype), dtype="native", coordinates=0).checks
    assert check.dtype == str(dtype).removeprefix("torch.")
    assert check.value.dtype == dtype
    assert check.precision is None
    assert check.verdict == "agree"


def test_nothing_passes_in_bfloat16():
    report = checked(bfloat16(), dtype="native")
    assert report.checks[0].dtype == "bfloat16"
    assert not report.passed


def test_a_bfloat16_model_is_correct_in_float64_and_imprecise_in_its_own_numbers():
    (check,) = checked(bfloat16()).checks
    assert check.verdict == "agree"
    native = checked(bfloat16(), dtype="native").checks[0].gradient.double()
    assert check.precision is not None
    assert check.precision.dtype == "bfloat16"
    away = (native - check.gradient).abs().max() / check.gradient.abs().max()
    assert check.precision.largest == pytest.approx(float(away), rel=1e-6)
    assert check.precision.largest > 1e-3  # eps of bfloat16 is 8e-3
    cosine = torch.cosine_similarity(native, check.gradient, dim=0)
    assert check.precision.cosine == pytest.approx(float(cosine), rel=1e-9)


# --- the float64 copy ---------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_weights_of_earlier_layers_are_not_copied(layer):
    found = model("Llama", torch.float32)
    twin = float64_suffix(found, layer)
    sizes = [sum(p.numel() for p in one.parameters()) for one in twin.anatomy().layers]
    whole = [sum(p.numel() for p in one.parameters()) for one in found.anatomy().layers]
    assert sizes == [0] * layer + whole[layer:]
    assert {p.dtype for p in twin.module.parameters()} == {DOUBLE}
    own = {p.data_ptr() for p in found.module.parameters()}
    assert not own & {p.data_ptr() for p in twin.module.parameters() if p.numel()}


def test_a_weight_without_axes_can_be_left_out():
    module = build("Llama")
    module.get_submodule("model.layers.0").register_parameter("scale", nn.Parameter(torch.ones(())))
    assert checked(hw.wrap(module, tokenizer()), "layers.1.mlp.out").verdict == "agree"


def test_tied_weights_stay_tied_in_the_copy():
    twin = float64_suffix(model("GPT-2", torch.float32), 1).module
    assert twin.get_parameter("lm_head.weight") is twin.get_parameter("transformer.wte.weight")


def test_a_float64_model_is_not_copied():
    assert float64_suffix(model("Llama"), 1) is model("Llama")


def state_of(module: nn.Module) -> dict[str, Any]:
    """All that a run could have left changed."""
    return {
        "bits": {name: one.numpy().tobytes() for name, one in module.state_dict().items()},
        "buffers": {name: one.numpy().tobytes() for name, one in module.named_buffers()},
        "weights": [id(weight) for _, weight in module.named_parameters(remove_duplicate=False)],
        "flags": [weight.requires_grad for weight in module.parameters()],
        "hooks": [
            (len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks))
            for part in module.modules()
        ],
        "fields": [sorted(part.__dict__) for part in module.modules()],
        "modes": [part.training for part in module.modules()],
        "config": dict(vars(module.config)),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("dtype", ["float64", "native"])
@pytest.mark.parametrize(
    "site", ["layers.0.attn.q", "transformer.h.0.ln_1.weight", "lm_head.weight", "a1.h2", "logits"]
)
def test_the_users_model_is_as_it_was(site, dtype):
    module = build("GPT-2")
    module.get_parameter("transformer.wpe.weight").requires_grad_(False)
    found = hw.wrap(module, tokenizer())
    before = state_of(module)
    checked(found, site, dtype=dtype, directions=None)
    assert state_of(module) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("boom")], ids=str)
@pytest.mark.parametrize("call", [1, 3, 6])
def test_an_objective_that_fails_leaves_nothing_behind(error, call):
    module = build("GPT-2")
    found = hw.wrap(module, tokenizer())
    before, calls = state_of(module), []

    def failing(logits: Tensor, batch: object) -> Tensor:
        calls.append(None)
        if len(calls) == call:
            raise error
        return logits[:, 5]

    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else RuntimeError):
        checked(found, "layers.1.attn.pattern", metric=failing, dtype="native")
    assert len(calls) == call
    assert state_of(module) == before


# --- refusals -----------------------------------------------------------------------------------


def refused(error: type[HeadwaterError], said: str, *args: Any, **options: Any) -> None:
    with unchecked(), pytest.raises(error, match=said):
        checked(*args, **options)


def test_a_quantized_model_is_refused_in_float64_and_taken_natively():
    module = build("Llama")
    module.is_quantized = True  # type: ignore[assignment]
    found = hw.wrap(module, tokenizer())
    refused(UnsupportedModelError, "is quantized.*\nWrite dtype='native'", found)
    assert checked(found, dtype="native", coordinates=0).verdict == "agree"


def test_offloaded_weights_are_refused():
    found = hw.wrap(build("Llama"), tokenizer())
    layer = found.module.get_submodule("model.layers.1.mlp.down_proj")
    layer.weight = nn.Parameter(torch.empty(24, 40, device="meta"))
    with pytest.raises(UnsupportedModelError, match="offloaded and cannot be copied"):
        float64_suffix(found, 0)


def test_a_copy_that_would_fill_the_memory_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(suffix, "_free_bytes", lambda device: 10_000)
    found = model("Llama", torch.float32)
    refused(
        UnsupportedModelError,
        r"float64 copy of LlamaForCausalLM from layer 1 on takes 0\.0 GiB; 0\.0 GiB are free on cpu"
        r".*\nCheck a site in a later layer, or write dtype='native'",
        found,
        "layers.1.mlp.out",
    )
    assert checked(found, "layers.1.mlp.out", dtype="native", coordinates=0).passed


def test_a_copy_that_just_fits_is_made(monkeypatch):
    found = model("Llama", torch.float32)
    twin = float64_suffix(found, 1)
    needed = 8 * sum(p.numel() for p in twin.module.parameters())
    monkeypatch.setattr(suffix, "_free_bytes", lambda device: needed / 0.9 + 1)
    float64_suffix(found, 1)
    monkeypatch.setattr(suffix, "_free_bytes", lambda device: needed / 0.9 - 1)
    with pytest.raises(UnsupportedModelError):
        float64_suffix(found, 1)


def test_training_mode_with_dropout_is_refused():
    module = build("GPT-2")
    found = hw.wrap(module, tokenizer())
    module.train()
    refused(ModelStateError, "dropout is active.*\nCall model.eval", found)


def test_a_prompt_without_positions_is_refused():
    with pytest.raises(PromptError, match="70 tokens, but GPT2LMHeadModel has positions for only"):
        hw.gradcheck(model("GPT-2"), text([5] * 70), site=STREAM, metric=METRIC)


def test_an_unknown_word_is_answered_with_the_closest():
    with pytest.raises(UnknownWordError, match="Closest: 'Mary'"):
        hw.gradcheck(hw.load("tiny"), "Mary and John", site=STREAM, metric=hw.prob("Marry"))


def test_words_of_the_one_prompt_are_not_said_to_be_of_a_pair():
    with pytest.raises(UnknownWordError) as refusal:
        hw.gradcheck(hw.load("tiny"), "Mary and John", site=STREAM, metric=hw.prob("Marry"))
    assert "pair" not in str(refusal.value)


@pytest.mark.parametrize(
    ("site", "error", "said"),
    [
        ("layers.1.mlp.pst", UnknownSiteError, r"Closest: 'layers\.1\.mlp\.post'"),
        (
            "layers.7.mlp.post",
            UnknownSiteError,
            r"has 2 layers, the last is 'layers\.1\.mlp\.post'",
        ),
        ("layers.1.mixer.out", UnsupportedModelError, "A layer offers: resid_pre, attn.q"),
        (
            "model.layers.1.mlp.down_proj.weigth",
            UnknownSiteError,
            r"Closest: 'model\.layers\.1\.mlp\.down_proj\.weight'",
        ),
        ("a1.h9", UnknownComponentError, r"Closest: 'a1\.h3'"),
        ("a9.h0", GateError, "layer 9 does not exist"),
    ],
)
def test_an_unknown_place_is_answered_with_the_closest(site, error, said):
    refused(error, said, site=site)


@pytest.mark.parametrize(
    ("error", "said", "options"),
    [
        (GradcheckError, "position 6 does not exist: the prompt has 6 tokens", {"position": 6}),
        (GradcheckError, 'write a number such as -1, or "all"', {"position": "last"}),
        (GradcheckError, "which number's gradient", {"metric": None}),
        (GradcheckError, r"needs answer.*\nWrite answer='Mary', or metric=hw.prob",
         {"metric": hw.prob()}),
        (GradcheckError, r"needs wrong.*\nWrite wrong='John'",
         {"metric": hw.logit_diff(), "answer": "7"}),
        (GradcheckError, r"command line has it.\nWrite metric=hw.prob\('7'\)",
         {"metric": "prob:7"}),
        (GradcheckError, r"gradient has shape \[1, 24\]; .* has \[24\]",
         {"gradient": torch.zeros(1, 24)}),
        (GradcheckError, r"basis has shape \[2, 23\]; the value has \[24\]",
         {"basis": torch.zeros(2, 23)}),
        (GradcheckError, "basis is list, not a tensor", {"basis": [[0.0] * 24]}),
        (GradcheckError, "along the vectors of basis=", {"coefficients": torch.zeros(3)}),
        (GradcheckError, "site is int: write a site", {"site": 3}),
        (GradcheckError, r"coefficients has shape \[3\]; the basis has 2 vectors",
         {"basis": torch.ones(2, 24), "coefficients": torch.zeros(3)}),
        (GradcheckError, "logprob is one number", {"grad_outputs": "ones"}),
        (GradcheckError, r"grad_outputs has shape \[3\]; the metric returns \[61\]",
         {"metric": lambda logits, batch: logits, "grad_outputs": torch.ones(3)}),
        (GradcheckError, 'write "ones", or give a tensor',
         {"metric": lambda logits, batch: logits, "grad_outputs": "mean"}),
        (GradcheckError, r"returned \[1\] for 1 rows; it must return \[rows, entries\]",
         {"metric": lambda logits, batch: logits.sum(-1), "grad_outputs": "ones"}),
        (GradcheckError, r"returned \[\] for 1 rows",
         {"metric": lambda logits, batch: logits.sum(), "grad_outputs": "ones"}),
        (GradcheckError, "basis is empty", {"basis": torch.zeros(0, 24)}),
        (GradcheckError, "coefficients is list, not a tensor",
         {"basis": torch.ones(2, 24), "coefficients": [0.0, 0.0]}),
        (GradcheckError, "edits is float: write what", {"edits": 0.5}),
        (GradcheckError, "position goes with a site, not with the gates",
         {"site": "a1.h2", "position": 2}),
        (GradcheckError, "position goes with a site, not with a weight",
         {"site": "lm_head.weight", "position": 2}),
        (MetricError, 'several numbers a row is meant: grad_outputs="ones"',
         {"metric": lambda logits, batch: logits}),
        (MetricError, r"takes \(logits\), and is called with the logits and the batch",
         {"metric": lambda logits: logits[:, 3]}),
        (UnknownOptionError, r"directions have shape \[23\]", {"directions": torch.ones(23)}),
        (GradcheckError, "write 'float64' or 'native'", {"dtype": "float32"}),
    ],
)  # fmt: skip
def test_an_argument_that_does_not_fit_is_refused(error, said, options):
    refused(error, said, **options)


def test_a_position_behind_the_one_that_is_read_has_no_path():
    metric = hw.metric(lambda logits, batch: logits[:, 0, 5], positions=[-3])
    refused(
        NoPathError,
        r"no path from 'layers\.0\.resid_post' at position 4 \('w50'\).* at position 3:",
        metric=metric,
        position=4,
    )
    refused(NoPathError, "no other position's are read", site="final_norm", position=2)
    assert checked(metric=metric, position=3).verdict == "agree"


def test_the_last_token_predicts_none_that_cross_entropy_would_count():
    metric = hw.cross_entropy()
    refused(NoPathError, r"no path .* at position 5 .* at position 0, 1, 2, 3, 4:", metric=metric)
    assert checked(metric=metric, position=4).verdict == "agree"


def test_inside_no_grad_it_is_the_same_check():
    expected = gradient()
    with torch.no_grad():
        assert_close(gradient(), expected, rtol=0, atol=0)


def test_modes_under_which_the_numbers_would_be_others_are_refused():
    with torch.inference_mode():
        refused(ModelStateError, "inference_mode")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refused(ModelStateError, "autocast")


# --- cost ---------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch) -> list[tuple[int, int | None]]:
    """Rows and first layer of every run."""
    runs: list[tuple[int, int | None]] = []
    forward = Model.forward

    def counted(self: Model, ids: Tensor, **options: Any) -> Tensor:
        start = options.get("start")
        runs.append((len(ids), None if start is None else start[0]))
        return forward(self, ids, **options)

    monkeypatch.setattr(Model, "forward", counted)
    return runs


def test_a_direction_costs_two_suffix_rows_a_step_one_for_the_middle_and_one_for_forward_mode(ran):
    rows = {}
    for count in (1, 2, 5):
        ran.clear()
        directions = torch.randn(count, 24, generator=torch.Generator().manual_seed(0))
        checked(site="layers.1.mlp.out", directions=directions, coordinates=None, steps=12)
        rows[count] = sum(rows for rows, start in ran if start == 1)
        assert [start for _, start in ran].count(None) == 1  # the run that finds the residual
    assert rows[2] - rows[1] == 2 * 12 + 1 + 1
    assert rows[5] - rows[1] == 4 * (2 * 12 + 1 + 1)
    # the value, two at the middle, the gradient, the value removed
    assert rows[1] - (2 * 12 + 1 + 1) <= 5


@pytest.mark.parametrize(
    ("site", "first"), [("layers.1.attn.q", 1), ("final_norm", 2), ("lm_head.weight", 2)]
)
def test_layers_before_the_value_run_once(site, first):
    module = build("Llama")
    calls: list[int] = []
    for number in (0, 1):
        layer = module.get_submodule(f"model.layers.{number}")
        # a copy of the layer has this hook as well
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    found = hw.wrap(module, tokenizer())
    calls.clear()
    checked(found, site)
    runs_in_its_own_numbers = 2  # for the residual, and for the gradient's precision
    for number in range(first):
        assert calls.count(number) == 1
    if first < 2:
        assert calls.count(first) > runs_in_its_own_numbers


def test_a_prompt_too_long_for_one_stacked_run_gives_the_same_values_in_parts(ran, monkeypatch):
    prompt = text([5 + i % 50 for i in range(40)])
    direction = torch.linspace(-1, 1, 24)[None]

    def slopes(rows: int) -> np.ndarray:
        monkeypatch.setitem(TOKENS, "cpu", 40 * rows)
        ran.clear()
        report = hw.gradcheck(
            model("GPT-2"), prompt, site="layers.1.mlp.out", metric=METRIC, directions=direction
        )
        assert report.verdict == "agree"
        found = report.checks[0].directions[0].difference
        assert len(found.steps) >= 20  # the shortest are rounded away
        return (found.central * found.steps)[:20]

    whole = slopes(49)
    assert 49 in [rows for rows, _ in ran]
    parts = slopes(20)
    counts = [rows for rows, start in ran if start == 1]
    assert max(counts) <= 20
    # 48 points, and in every part the middle
    assert sorted(counts)[-3:] == [17, 17, 17]
    alone = slopes(1)
    assert max(rows for rows, _ in ran) == 1
    # changes of a value of about 4, which is rounded to 1e-15
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-13)
    np.testing.assert_allclose(alone, whole, rtol=0, atol=1e-13)


def test_native_is_as_coarse_as_the_model_even_where_the_value_is_not():
    # Mamba carries its residual in float32 and computes in bfloat16
    found = hw.wrap(build("Mamba", dtype=torch.bfloat16), tokenizer())
    report = checked(found, dtype="native")
    assert report.checks[0].value.dtype == torch.float32
    assert report.verdict == "unresolved"
    assert "in bfloat16" in report.title()
    assert checked(found).verdict == "agree"


def test_a_corrupted_prompt_beside_a_site_is_refused():
    refused(GradcheckError, "corrupted= is what closed gates put", corrupted=PROMPT)
    assert checked(site="a1.h2", corrupted=PROMPT.replace("w20", "w21")).verdict == "agree"
