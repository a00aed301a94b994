"""Gradients read in a trace after an edit of another: checked with the edit, refused without.

An edit that multiplies the gradient of a value h by c leaves the gradient of another function, in
which h enters as h0 + c * (h - h0). So differences of that function are what it is held against.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from headwater.errors import GradcheckError, LateWriteError
from headwater.gradchecks.report import GradientReport
from headwater.models import Model
from headwater.precision import true_float64
from headwater.trace import edited
from headwater.trace.edited import edits_before
from tiny_models import shared

PROMPT = "Mary and John went to the store , John gave a drink to"
SITE = "layers.1.mlp.post"
PATTERN = "layers.2.attn.pattern"
STREAM = "layers.3.resid_post"
STEEP = 1e-8
"""Relative difference along the gradient itself, in float64: the error bars there are below 1e-9.
Any edit of these tests changes that slope by more than 1e-3."""


@functools.cache
def tiny() -> Model:
    return hw.load("tiny", dtype="float64")


def traced(edit: Callable[[Any], None], *, late: bool = False, worker: str = "greenlet") -> Tensor:
    """The gradient of P(Mary) at the last token's neurons, of a backward pass with an edit.

    Args:
        edit: Edits gradients of values by their sites, between the loss and the neurons.
        late: Whether the gradient is read before the edit.
        worker: Where the model runs.
    """
    model = tiny()
    mary = model.tokenizer("Mary")["input_ids"][-1]
    with true_float64(), model.trace(PROMPT, worker=worker) as run:
        values = {name: run[name] for name in ("layers.0.attn.pattern", SITE, PATTERN, STREAM)}
        probability = model.output.logits[0, -1].softmax(-1)[mary]
        with probability.backward():
            if late:
                gradient = values[SITE].grad[0, -1]
                edit(values)
            else:
                edit(values)
                gradient = values[SITE].grad[0, -1]
    return gradient


def checked(gradient: Tensor, **options: Any) -> GradientReport:
    return hw.gradcheck(
        tiny(),
        PROMPT,
        site=SITE,
        metric=hw.prob("Mary"),
        gradient=gradient,
        coordinates=2,
        **options,
    )


def steepest_apart(report: GradientReport) -> float:
    """How far the gradient and the differences are apart along the gradient, relative."""
    found = next(one for one in report.checks[0].directions if one.name == "gradient")
    return abs(found.gradient / found.difference.slope - 1)


def no_edit(values: dict[str, Tensor]) -> None:
    pass


def cut(values: dict[str, Tensor]) -> None:
    values[PATTERN].grad[:] = 0


def halved(values: dict[str, Tensor]) -> None:
    values[PATTERN].grad = values[PATTERN].grad * 0.5


HEADS = torch.tensor([0.0, 1.0, -2.0, 0.25], dtype=torch.float64).reshape(4, 1, 1)
"""What each of the four heads' pattern is multiplied by."""


def by_heads(values: dict[str, Tensor]) -> None:
    values[PATTERN].grad.mul_(HEADS)


# --- an edit that multiplies is part of the function --------------------------------------------


@pytest.mark.parametrize("worker", ["greenlet", "thread"])
def test_an_unedited_gradient_of_a_trace_is_the_slope(worker: str):
    gradient = traced(no_edit, worker=worker)
    report = checked(gradient)
    assert report.verdict == "agree"
    assert steepest_apart(report) < STEEP


@pytest.mark.parametrize(("edit", "factor"), [(cut, 0), (halved, 0.5), (by_heads, HEADS)])
def test_an_edited_gradient_is_the_slope_of_the_function_with_the_edit(
    edit: Callable[[Any], None], factor: Any
):
    report = checked(traced(edit), edits={PATTERN: factor})
    assert report.verdict == "agree"
    assert steepest_apart(report) < STEEP


def test_an_edit_of_the_value_itself_is_part_of_the_function():
    def doubled(values: dict[str, Tensor]) -> None:
        values[SITE].grad.mul_(2)

    gradient = traced(doubled)
    assert_close(gradient, 2 * traced(no_edit), rtol=1e-12, atol=0)  # as in float64
    report = checked(gradient, edits={SITE: 2})
    assert report.verdict == "agree"
    assert steepest_apart(report) < STEEP


def test_the_factor_that_was_not_used_is_told_apart():
    report = checked(traced(halved), edits={PATTERN: 0})
    assert report.verdict == "disagree"
    assert steepest_apart(report) > 1e-3


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(lambda gradient: gradient + 1e-3, id="adds a constant"),
        pytest.param(lambda gradient: gradient.clamp_(-1e-4, 1e-4), id="clamps"),
    ],
)
def test_an_edit_that_does_not_multiply_is_refused_by_name(more: Callable[[Tensor], Tensor]):
    def edit(values: dict[str, Tensor]) -> None:
        values[PATTERN].grad = more(values[PATTERN].grad.clone())

    with pytest.raises(GradcheckError, match=rf"{PATTERN} does more than multiply it"):
        checked(traced(edit), edits={PATTERN: more})


# --- an edit that is not declared is an exception -----------------------------------------------


@pytest.mark.parametrize("worker", ["greenlet", "thread"])
@pytest.mark.parametrize("edit", [cut, halved, by_heads])
def test_a_gradient_read_after_an_edit_is_refused_without_it(
    edit: Callable[[Any], None], worker: str
):
    with pytest.raises(GradcheckError) as error:
        checked(traced(edit, worker=worker))
    assert str(error.value) == (
        "this gradient was read in a trace after an edit of the gradient of layers.2.attn.pattern, "
        "in one backward pass: it may be no derivative of prob:Mary alone.\n"
        "Declare each edit: edits={site: factor} says by what the gradient at a site was "
        "multiplied (0 cuts a path), edits={} that no edit lies between the value and the metric. "
        "Or give the gradient of a block without edits."
    )


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda values: values[SITE].grad.mul_(2), id="in place"),
        pytest.param(
            lambda values: setattr(values[SITE], "grad", values[SITE].grad * 2), id="assigned"
        ),
    ],
)
def test_a_gradient_that_was_edited_itself_is_refused(edit: Callable[[Any], None]):
    with pytest.raises(GradcheckError, match=f"edit of the gradient of {SITE},"):
        checked(traced(edit))


def test_an_edit_after_the_gradient_was_read_does_not_matter():
    def edit(values: dict[str, Tensor]) -> None:
        values["layers.0.attn.pattern"].grad[:] = 0

    assert checked(traced(edit, late=True)).verdict == "agree"


def test_edits_can_be_declared_to_lie_elsewhere():
    def edit(values: dict[str, Tensor]) -> None:
        values[STREAM].grad[:, 0] = 0  # no logits but the last token's are read: it is 0 there

    gradient = traced(edit)
    with pytest.raises(GradcheckError, match=STREAM):
        checked(gradient)
    assert checked(gradient, edits={}).verdict == "agree"


def test_a_copy_is_not_recognized_and_the_report_says_so():
    report = checked(traced(cut).clone())
    assert report.verdict == "disagree"
    assert any("after an edit of another" in note for note in report.checks[0].notes)
    assert any("after an edit of another" in line for line in str(report).splitlines())


def test_no_doubt_is_cast_on_a_gradient_that_agrees_or_has_its_edits_declared():
    declared = checked(traced(halved), edits={PATTERN: 0})
    for report in (checked(traced(no_edit)), declared):
        assert not any("after an edit of another" in note for note in report.checks[0].notes)


def test_check_gradient_refuses_it_as_well():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    inner = x.sin()
    with hw.backward((inner * x).sum()):
        inner.grad[:] = 0
        gradient = x.grad

    def product(x: Tensor) -> Tensor:
        return (x.sin() * x).sum()

    with pytest.raises(GradcheckError) as error:
        hw.check_gradient(product, x, gradient=gradient)
    assert str(error.value) == (
        "this gradient was read in a trace after an edit of the gradient of inner, in one backward "
        "pass: it may be no derivative of f alone.\n"
        "Have f do what the edit does: where the gradient of a value h was multiplied by c, let f "
        "go on with h0 + c * (h - h0), h0 being what h is at x. Or give the gradient of a block "
        "without edits."
    )
    held = x.detach().sin()
    assert hw.check_gradient(lambda x: (held * x).sum(), x, gradient=gradient.clone()).verdict == (
        "agree"
    )


def test_of_many_edited_values_three_are_named():
    a = torch.ones(3, requires_grad=True)
    b = a * 1
    c = b * 1
    d = c * 1
    e = d * 1
    f = e * 1
    with hw.backward(f.sum()):
        f.grad[:] = 0
        e.grad[:] = 0
        d.grad[:] = 0
        c.grad[:] = 0
        b.grad[:] = 0
        gradient = a.grad
    with pytest.raises(GradcheckError, match=r"of the gradient of f, e, d and 2 more, in one"):
        hw.check_gradient(torch.sum, a, gradient=gradient)


# --- what is remembered -------------------------------------------------------------------------


def chain(edit: str = "") -> tuple[Tensor, Tensor]:
    """A leaf and its gradient through a product; the gradient of `middle` may be edited."""
    x = torch.arange(6.0).reshape(2, 3).requires_grad_()
    middle = x * 2
    with hw.backward((middle * 3).sum()):
        if edit == "in place":
            middle.grad[0] = 0
        elif edit == "assigned":
            middle.grad = torch.zeros(2, 3)
        elif edit == "read":
            middle.grad.clone()
        gradient = x.grad
    return x, gradient


@pytest.mark.parametrize("edit", ["in place", "assigned"])
def test_edits_are_known_of_a_gradient_handed_out_later(edit: str):
    assert edits_before(chain(edit)[1]) == ("middle",)


@pytest.mark.parametrize("edit", ["", "read"])
def test_nothing_is_known_of_a_gradient_without_edits(edit: str):
    assert edits_before(chain(edit)[1]) == ()


@pytest.mark.parametrize(
    "view",
    [
        lambda gradient: gradient[0],
        lambda gradient: gradient[:, 1:],
        lambda gradient: gradient.detach(),
        lambda gradient: gradient.T,
        lambda gradient: gradient.flatten(),
        lambda gradient: gradient.to(torch.float32),  # torch returns the very tensor
        lambda gradient: gradient.cpu().float().contiguous()[0, 1],
    ],
)
def test_views_are_known(view: Callable[[Tensor], Tensor]):
    whole = view(chain("in place")[1])
    gc.collect()
    assert edits_before(whole) == ("middle",)


@pytest.mark.parametrize(
    "copy",
    [
        torch.clone,
        Tensor.double,
        lambda gradient: gradient[[0, 1]],
        lambda gradient: gradient * 1,
    ],
)
def test_copies_are_not_known(copy: Callable[[Tensor], Tensor]):
    assert edits_before(copy(chain("in place")[1])) == ()


def test_a_tensor_of_no_block_is_not_known():
    assert edits_before(torch.ones(3)) == ()


def test_what_is_remembered_goes_with_the_gradient():
    gc.collect()
    before = len(edited._edits)
    gradients = [chain("in place")[1] for _ in range(5)]
    assert len(edited._edits) >= before + 5
    gradients.clear()
    gc.collect()
    assert len(edited._edits) == before


def test_another_pass_over_the_same_graph_begins_without_edits():
    x = torch.ones(3, requires_grad=True)
    middle = x * 2
    loss = (middle * 3).sum()
    with hw.backward(loss):
        middle.grad[:] = 0
        first = x.grad
    with hw.backward(loss):
        second = x.grad
    assert edits_before(first) == ("middle",)
    assert edits_before(second) == ()


def test_a_gradient_that_came_before_the_edit_and_is_read_after_it_is_not_affected():
    model = tiny()
    with model.trace(PROMPT) as run:
        first, early, late = (run[f"layers.{layer}.resid_post"] for layer in (0, 1, 3))
        with model.output.logits.sum().backward():
            early.grad[:] = 0
            after = first.grad
            before = late.grad  # it has passed, and is kept
    assert edits_before(after) == ("layers.1.resid_post",)
    assert edits_before(before) == ()


def test_several_edits_are_named_in_their_order():
    model = tiny()
    with model.trace(PROMPT) as run:
        stream = run["layers.1.resid_post"]
        attention = model.model.layers[2].self_attn.output[0]
        pattern = run["layers.3.attn.pattern"]
        with model.output.logits.sum().backward():
            pattern.grad[:] = 0
            attention.grad[:, -1] = 0
            gradient = stream.grad
    assert edits_before(gradient) == (
        "layers.3.attn.pattern",
        "model.model.layers[2].self_attn.output[0]",
    )


def test_an_edit_of_a_part_is_an_edit_of_the_whole():
    x = torch.ones(2, 3, requires_grad=True)
    model = hw.wrap(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)))
    with model.trace(x) as run:
        hidden = run["0"].output
        with run.output.sum().backward():
            hidden[1].grad[:] = 0
            gradient = x.grad
    assert_close(gradient[1], torch.zeros(3))
    assert edits_before(gradient) == ("model[0].output",)


class Transposed(torch.nn.Module):
    """Hands out a value whose memory lies otherwise than its gradient's."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 2).T


def transposed(edit: Callable[[Any, Any], None]) -> tuple[Tensor, Tensor]:
    """The gradients of a transposed value's part and of what comes before it.

    Args:
        edit: Does something with the transposed value and the one after it.
    """
    x = torch.ones(2, 3, requires_grad=True)
    module = torch.nn.Sequential(Transposed(), torch.nn.Linear(2, 1))
    module[1].weight.data = torch.tensor([[1.0, 3.0]])
    model = hw.wrap(module.requires_grad_(False))
    with model.trace(x) as run:
        hidden, after = run["0"].output, run["1"].output
        with run.output.sum().backward():
            edit(hidden, after)
            return hidden[1].grad, x.grad


UNEDITED = torch.tensor([[2.0, 2.0, 2.0], [6.0, 6.0, 6.0]])
"""The gradient of the sum before the transposed value: twice the weights, in each column."""


def test_to_read_a_part_of_a_gradient_is_no_edit():
    part, before = transposed(lambda hidden, after: None)
    assert_close(before, UNEDITED)
    assert edits_before(part) == edits_before(before) == ()


def test_a_part_of_a_gradient_knows_the_edits_before_the_whole():
    part, before = transposed(lambda hidden, after: after.grad.mul_(2))
    assert_close(before, 2 * UNEDITED)
    assert edits_before(part) == edits_before(before) == ("model[1].output",)


def whole_edited(hidden: Any, after: Any) -> None:
    hidden.grad[1] = 0


def part_edited(hidden: Any, after: Any) -> None:
    hidden[1].grad[:] = 0


def whole_edited_after_a_part_was_read(hidden: Any, after: Any) -> None:
    gradient = hidden.grad
    assert_close(hidden[2].grad, torch.tensor([1.0, 3.0]))
    gradient[1] = 0


@pytest.mark.parametrize("edit", [whole_edited, part_edited, whole_edited_after_a_part_was_read])
def test_an_edit_flows_on_however_the_memory_lies(edit: Callable[[Any, Any], None]):
    part, before = transposed(edit)
    expected = UNEDITED.clone()
    expected[:, 1] = 0
    assert_close(before, expected)
    assert_close(part, torch.zeros(2))
    assert edits_before(part) == edits_before(before) == ("model[0].output",)


# --- names --------------------------------------------------------------------------------------


def edited_too_late() -> None:
    model = tiny()
    with model.trace(PROMPT) as run:
        stream, heads = run["layers.1.resid_post"], run["layers.3.attn.z"]
        with model.output.logits.sum().backward():
            gradient = heads.grad
            assert stream.grad.shape == stream.shape  # the pass goes on
            gradient[:] = 0


def test_a_value_read_by_its_site_is_called_by_it():
    with pytest.raises(LateWriteError, match=r"^layers\.3\.attn\.z\.grad is edited too late"):
        edited_too_late()


def test_a_site_that_is_half_of_a_tensor_gives_it_no_name():
    model = hw.wrap(shared("Phi-3"))
    ids = torch.tensor([[7, 20, 33]])
    with model.trace(ids) as run:
        stream = run["layers.0.resid_pre"]
        gate = run["layers.1.mlp.gate"]
        run["layers.1.mlp.up"]  # the other half of the same tensor
        with model.output.logits.sum().backward():
            gate.grad[:] = 0
            gradient = stream.grad
    assert edits_before(gradient) == ("model.model.layers[1].mlp.gate_up_proj.output",)
