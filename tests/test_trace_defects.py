"""What goes wrong in other tracing libraries, one test each: each would fail there.

Gradients and values are compared with plain PyTorch on a small residual network in float64.
"""

from __future__ import annotations

import code
import contextlib
import contextvars
import copy
import functools
import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import headwater as hw
import tiny_models
from headwater.errors import (
    AmbiguousTraceError,
    GradientError,
    HeadwaterError,
    HeadwaterNotice,
    LateWriteError,
    NeverRanError,
    OutOfOrderError,
    OutsideTraceError,
    TraceError,
    UnknownModuleError,
)
from headwater.models import Model
from trace_models import (
    IDS,
    ONE,
    PROMPT,
    UNPATCHED,
    assert_all_close,
    assert_nothing_left,
    first,
    forget_gradients,
    hooked,
    loaded_model,
    loss_of,
    net,
    parameter_gradients,
    shared_model,
    worker_threads,
    x,
)

NO_ID = re.compile(r"^(?!.*\d{7,}).*$", re.DOTALL)
"""Matches a message without Python ids."""


@pytest.fixture
def model() -> Iterator[Model]:
    made = net()
    yield made
    assert_nothing_left(made.module)


def here() -> int:
    """The line this is called on."""
    return sys._getframe(1).f_lineno


def values_of(module: nn.Module, *paths: str) -> dict[str, Tensor]:
    """Outputs of the plain module, with their graph."""
    kept: dict[str, Tensor] = {}
    keep = {path: functools.partial(kept.__setitem__, path) for path in paths}
    with hooked(module, keep):
        kept["output"] = module(x())
    return kept


def in_a_row(*modules: nn.Module) -> nn.Sequential:
    """Modules under the names `first`, `second`, `third`."""
    return nn.Sequential(OrderedDict(zip(("first", "second", "third"), modules, strict=False)))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# ---- 1, 2: gradients are handed out as copies ----------------------------------------------------


def test_a_branch_zeroed_in_place_leaves_the_skip_connection_its_gradient(model):
    with model.trace(x()):
        stream = model.blocks[0].output
        branch = model.blocks[1].branch.output
        joined = model.blocks[1].output
        with model.output.square().sum().backward():
            arrived = joined.grad.clone()
            branch.grad[:] = 0
            upstream = stream.grad.clone()
    # d(stream + branch(stream)) with the branch cut is the identity
    assert float(arrived.abs().max()) > 0.01
    close(upstream, arrived)


def test_a_branch_zeroed_in_place_in_gpt_2_is_like_a_detached_one():
    gpt = shared_model("GPT-2")
    forget_gradients(gpt)
    cut = {"transformer.h.1.attn": lambda output: (output[0].detach(), *output[1:])}
    with hooked(gpt.module, cut):
        loss_of(gpt.module(IDS).logits).backward()
    expected = parameter_gradients(gpt.module)
    forget_gradients(gpt)
    with gpt.trace(IDS):
        attn_out = gpt.transformer.h[1].attn.output[0]
        with loss_of(gpt.output.logits).backward():
            attn_out.grad[:] = 0
    assert_all_close(parameter_gradients(gpt.module), expected)
    forget_gradients(gpt)
    assert_nothing_left(gpt.module)


def test_the_expanded_gradient_of_a_sum_is_writable(model):
    with model.trace(x()):
        earlier = model.blocks[0].output
        hidden = model.blocks[1].output
        with hidden.sum().backward():
            assert bool((hidden.grad == 1).all())
            hidden.grad[:, 0] = 0
            hidden.grad[0] *= 3
            arrived = earlier.grad.clone()
    weights = torch.ones(5, 4, dtype=torch.float64)
    weights[:, 0] = 0
    weights[0] *= 3
    plain = values_of(model.module, "blocks.0", "blocks.1")
    loss = (plain["blocks.1"] * weights).sum()
    close(arrived, torch.autograd.grad(loss, plain["blocks.0"])[0])


def test_editing_one_gradient_changes_no_other_that_was_read(model):
    with model.trace(x()):
        stream, branch = model.blocks[0].output, model.blocks[1].branch.output
        joined = model.blocks[1].output
        with model.output.square().sum().backward():
            joined_grad, branch_grad = joined.grad, branch.grad
            before = joined_grad.clone()
            branch_grad.mul_(-7)
            after = joined_grad.clone()
            stream.grad.zero_()
    assert torch.equal(before, after)
    close(branch_grad, -7 * before)


def test_one_value_under_two_names_has_one_gradient(model):
    with model.trace(x()):
        earlier = model.embed.output
        left, entering = model.blocks[0].output, model.blocks[1].input
        with model.output.square().sum().backward():
            once = left.grad.clone()
            left.grad *= 2
            entering.grad *= 3
            six = left.grad.clone()
            arrived = earlier.grad.clone()
    plain = values_of(model.module, "embed", "blocks.0")
    loss, at = plain["output"].square().sum(), [plain["embed"], plain["blocks.0"]]
    expected = torch.autograd.grad(loss, at)
    close(once, expected[1])
    close(six, 6 * expected[1])
    close(arrived, 6 * expected[0])


def test_a_replaced_value_and_its_replacement_have_their_own_gradients(model):
    with model.trace(x()):
        hidden = model.blocks[1].output
        doubled = hidden * 2
        model.blocks[1].output = doubled
        with model.output.square().sum().backward():
            of_doubled = doubled.grad.clone()
            of_hidden = hidden.grad.clone()
    kept: dict[str, Tensor] = {}

    def double(output: Tensor) -> Tensor:
        kept["hidden"], kept["doubled"] = output, output * 2
        return kept["doubled"]

    with hooked(model.module, {"blocks.1": double}):
        loss = model.module(x()).square().sum()
    expected = torch.autograd.grad(loss, [kept["doubled"], kept["hidden"]])
    close(of_doubled, expected[0])
    close(of_hidden, expected[1])


def test_an_edit_is_gone_in_the_next_pass(model):
    with model.trace(x()):
        earlier, hidden = model.embed.output, model.blocks[1].output
        loss = model.output.square().sum()
        with loss.backward():
            hidden.grad[:] = 0
            cut = earlier.grad.clone()
        with loss.backward():
            whole = earlier.grad.clone()
    plain = values_of(model.module, "embed")
    assert not cut.any()
    close(whole, torch.autograd.grad(plain["output"].square().sum(), plain["embed"])[0])


def test_an_edit_of_the_output_gradient_scales_everything(model):
    with model.trace(x()):
        out = model.output
        with out.square().sum().backward():
            out.grad *= -3
    found = parameter_gradients(model.module)
    forget_gradients(model)
    (-3 * model.module(x()).square().sum()).backward()
    assert_all_close(found, parameter_gradients(model.module), rtol=1e-12)


def test_a_block_without_a_read_is_a_whole_backward_pass(model):
    with model.trace(x()):
        model.blocks[0].output.save()
        with model.output.square().sum().backward():
            pass
    found = parameter_gradients(model.module)
    forget_gradients(model)
    model.module(x()).square().sum().backward()
    assert_all_close(found, parameter_gradients(model.module), rtol=1e-12)


def test_an_error_in_a_backward_block_is_the_users_own(model):
    raised = KeyError("mine")

    def body() -> None:
        with model.trace(x()):
            hidden = model.blocks[0].output
            loss = model.output.sum()
            with loss.backward():
                hidden.grad.clone()
                raise raised

    with pytest.raises(KeyError) as caught:
        body()
    assert caught.value is raised


class _RaisesBackward(torch.autograd.Function):
    error = LookupError("from the backward pass")

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise _RaisesBackward.error


def test_an_error_of_the_backward_pass_reaches_the_block(model):
    def body() -> None:
        with model.trace(x()):
            hidden = model.blocks[0].output
            model.blocks[1].output = _RaisesBackward.apply(model.blocks[1].output)
            loss = model.output.sum()
            with loss.backward():
                hidden.grad.clone()

    with pytest.raises(LookupError, match="from the backward pass"):
        body()


# ---- 3: a bare call is torch's own ---------------------------------------------------------------


def _in_with(loss: Tensor) -> None:
    with contextlib.nullcontext():
        loss.backward()


def _as_argument_of_with(loss: Tensor) -> None:
    with contextlib.nullcontext(loss.backward()):
        pass


def _one_line_with(loss: Tensor) -> None:
    exec("with contextlib.nullcontext(): loss.backward()", globals(), {"loss": loss})


def _comprehension(loss: Tensor) -> None:
    with contextlib.nullcontext([loss.backward() for _ in range(1)]):
        pass


def _lambda(loss: Tensor) -> None:
    with contextlib.nullcontext((lambda: loss.backward())()):
        pass


def _partial(loss: Tensor) -> None:
    functools.partial(torch.Tensor.backward, loss)()


def _returned(loss: Tensor) -> None:
    def run() -> None:
        return loss.backward()

    with contextlib.nullcontext(run()):
        pass


def _helper_that_is_a_context_manager(loss: Tensor) -> None:
    @contextlib.contextmanager
    def helper() -> Iterator[None]:
        loss.backward()
        yield

    with helper():
        pass


def _assigned(loss: Tensor) -> None:
    result = loss.backward()
    assert result is None


def _condition(loss: Tensor) -> None:
    with contextlib.nullcontext() if loss.backward() is None else loss:
        pass


BARE = [
    _in_with,
    _as_argument_of_with,
    _one_line_with,
    _comprehension,
    _lambda,
    _partial,
    _returned,
    _helper_that_is_a_context_manager,
    _assigned,
    _condition,
]


@pytest.mark.parametrize("bare", BARE)
@pytest.mark.parametrize("where", ["in a trace", "outside"])
def test_a_bare_backward_is_done_when_it_returns(model, bare: Callable[[Tensor], None], where: str):
    leaf = torch.ones(3, requires_grad=True)
    open_trace = model.trace(x()) if where == "in a trace" else contextlib.nullcontext()
    with open_trace:
        if where == "in a trace":
            model.blocks[0].output.save()
        bare((leaf * torch.tensor([1.0, 2, 3])).sum())
        assert leaf.grad.tolist() == [1, 2, 3]


@contextlib.contextmanager
def _entered(stack_or_block: Any) -> Iterator[Any]:
    with stack_or_block as block:
        yield block


def test_every_spelling_of_the_block_is_a_block(model):
    plain = values_of(model.module, "blocks.0")
    expected = torch.autograd.grad(plain["output"].square().sum(), plain["blocks.0"])[0]
    read = []
    with model.trace(x()):
        hidden = model.blocks[0].output
        loss = model.output.square().sum()
        with loss.backward():
            read.append(hidden.grad.clone())
        with loss.backward() as block:
            read.append(hidden.grad.clone())
        with contextlib.nullcontext(), loss.backward(retain_graph=True):
            read.append(hidden.grad.clone())
        with (
            contextlib.nullcontext(),
            loss.backward(
                torch.tensor(1.0, dtype=torch.float64),
            ),
        ):
            read.append(hidden.grad.clone())
        with hw.backward(loss):
            read.append(hidden.grad.clone())
        with contextlib.ExitStack() as stack:
            stack.enter_context(hw.backward(loss))
            read.append(hidden.grad.clone())
        explicit = hw.backward(loss)
        with explicit:
            read.append(hidden.grad.clone())
        with _entered(hw.backward(loss)):
            read.append(hidden.grad.clone())
        assert block is not None
    assert len(read) == 8
    for gradient in read:
        close(gradient, expected)


def test_backward_with_a_gradient_and_inputs_as_in_torch(model):
    given = torch.linspace(0, 1, 10, dtype=torch.float64).reshape(5, 2)
    plain = values_of(model.module, "blocks.0")
    expected = torch.autograd.grad(plain["output"], plain["blocks.0"], given)[0]
    weight = model.module.embed.weight
    with model.trace(x()):
        hidden = model.blocks[0].output
        with model.output.backward(gradient=given, inputs=[weight]):
            gradient = hidden.grad.clone()
    close(gradient, expected)
    assert weight.grad is not None
    assert model.module.head.weight.grad is None


def test_generate_under_no_grad_returns_ids():
    gpt = shared_model("GPT-2")
    expected = gpt.module.generate(ONE, max_new_tokens=3, do_sample=False)
    with torch.no_grad():
        out = gpt.generate(ONE, max_new_tokens=3, do_sample=False)
    assert torch.equal(out, expected)
    with contextlib.nullcontext(gpt.generate(ONE, max_new_tokens=3, do_sample=False)) as again:
        assert torch.equal(again, expected)


def test_backward_outside_traces_has_blocks_by_name():
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    doubled = leaf * 2
    with hw.backward(doubled.square().sum()):
        gradient = doubled.grad.clone()
        doubled.grad[0] = 0
    assert gradient.tolist() == [4, 8]
    assert leaf.grad.tolist() == [0, 16]
    assert_nothing_left()


# ---- 4: `.grad` of others ------------------------------------------------------------------------


def test_other_threads_read_and_write_grad_while_a_block_is_open(model):
    leaf = torch.ones(2, requires_grad=True)
    leaf.grad = torch.tensor([3.0, 4.0])
    found: list[Any] = []

    def elsewhere() -> None:
        try:
            found.append(leaf.grad.tolist())
            leaf.grad = torch.zeros(2)
            (leaf * 5).sum().backward()
            found.append(leaf.grad.tolist())
        except BaseException as error:
            found.append(error)

    with model.trace(x()):
        hidden = model.blocks[0].output
        with model.output.sum().backward():
            assert hidden.grad is not None
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join(10)
    assert found == [[3, 4], [5, 5]]


def test_hooks_after_accumulation_read_grad_while_a_block_is_open(model):
    seen: dict[str, Tensor] = {}
    handles = []
    for name, parameter in model.module.named_parameters():

        def after(parameter: Tensor, name: str = name) -> None:
            seen[name] = parameter.grad.clone()
            parameter.grad = None  # as an optimizer in the backward pass does

        handles.append(parameter.register_post_accumulate_grad_hook(after))
    with model.trace(x()):
        hidden = model.blocks[0].output
        with model.output.square().sum().backward():
            assert hidden.grad is not None
    for handle in handles:
        handle.remove()
    model.module(x()).square().sum().backward()
    expected = {
        name: parameter.grad
        for name, parameter in model.module.named_parameters()
        if parameter.grad is not None
    }
    assert_all_close({name: seen[name] for name in expected}, expected)
    assert list(seen) != []


def test_the_models_own_hooks_on_tensors_read_grad(model):
    seen = []

    def keep(_: nn.Module, args: Any, output: Tensor) -> None:
        output.retain_grad()
        output.register_hook(lambda gradient: seen.append((output.grad is None, gradient.clone())))

    handle = model.module.blocks[1].register_forward_hook(keep)
    with model.trace(x()):
        hidden = model.blocks[1].output
        with model.output.square().sum().backward():
            gradient = hidden.grad.clone()
    handle.remove()
    assert seen[0][0]
    close(seen[0][1], gradient)


# ---- 5, 6: modes and context variables -----------------------------------------------------------


def test_no_grad_in_the_body_does_not_reach_the_model(model):
    with model.trace(x()):
        with torch.no_grad():
            hidden = model.blocks[0].output
            assert not torch.is_grad_enabled()
        assert torch.is_grad_enabled()
        later = model.blocks[1].output
    assert hidden.requires_grad
    assert hidden.grad_fn is not None
    assert later.requires_grad


def test_set_grad_enabled_in_the_body_does_not_reach_the_model(model):
    with model.trace(x()):
        torch.set_grad_enabled(False)
        try:
            hidden = model.blocks[0].output
        finally:
            torch.set_grad_enabled(True)
    assert hidden.requires_grad


def test_a_no_grad_model_does_not_reach_the_body():
    gpt = shared_model("GPT-2")
    with gpt.generate(ONE, max_new_tokens=3) as run:
        modes = []
        for _ in run.steps():
            logits = gpt.output.logits
            modes.append((torch.is_grad_enabled(), logits.requires_grad))
        product = logits * torch.ones(1, requires_grad=True, dtype=torch.float64)
    assert modes == [(True, False)] * 3
    assert product.requires_grad


def test_a_trace_under_no_grad_makes_no_graph(model):
    with torch.no_grad(), model.trace(x()):
        hidden = model.blocks[0].output
        with torch.enable_grad():
            later = model.blocks[1].output
    assert not hidden.requires_grad
    assert not later.requires_grad


def test_inference_mode_reaches_the_model_and_edits_land(model):
    with torch.inference_mode(), model.trace(x()):
        hidden = model.blocks[0].output
        hidden[:] = 0
        later = model.blocks[1].output
        out = model.output
    assert hidden.is_inference()
    close(later.clone(), model.module.blocks[1](torch.zeros(5, 4, dtype=torch.float64)).detach())
    assert not out.requires_grad


def test_autocast_reaches_the_model_and_stays_out_of_the_body():
    wrapped = hw.wrap(in_a_row(nn.Linear(3, 4), nn.Linear(4, 2)))
    with torch.autocast("cpu", torch.bfloat16), wrapped.trace(torch.ones(2, 3)):
        hidden = wrapped.first.output
    assert hidden.dtype == torch.bfloat16
    with wrapped.trace(torch.ones(2, 3)):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = wrapped.first.output
        later = wrapped.second.output
    assert hidden.dtype == torch.float32
    assert later.dtype == torch.float32


class _CountingFunctions(TorchFunctionMode):
    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += func is nn.functional.linear
        return func(*args, **(kwargs or {}))


class _CountingDispatch(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += "addmm" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [_CountingFunctions, _CountingDispatch])
def test_modes_of_the_caller_reach_the_model(model, mode):
    with mode() as counting, model.trace(x()):
        hidden = model.blocks[2].output
    assert hidden.shape == (5, 4)
    assert counting.calls == 5  # embed, three branches, head


def test_saved_tensor_hooks_of_the_caller_reach_the_model(model):
    packed = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t),
        model.trace(x()),
    ):
        model.blocks[2].output.save()
    expected = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: expected.append(t) or t, lambda t: t):
        model.module(x())
    assert len(packed) == len(expected) > 0


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_forward_mode_derivatives_pass_through_a_trace(model):
    direction = torch.ones(5, 3, dtype=torch.float64)
    expected = torch.func.jvp(model.module, (x(),), (direction,))[1]
    with forward_ad.dual_level():
        with model.trace(forward_ad.make_dual(x(), direction)):
            out = model.output
        close(forward_ad.unpack_dual(out).tangent, expected)


def test_torch_func_is_right_or_refused_but_never_silently_zero(model):
    def loss(given: Tensor) -> Tensor:
        with model.trace(given):
            model.blocks[0].output.save()
            return model.output.square().sum()

    expected = torch.func.grad(lambda given: model.module(given).square().sum())(x())
    try:
        gradient = torch.func.grad(loss)(x())
    except HeadwaterError as error:
        assert "torch.func" in str(error) or "functorch" in str(error)  # noqa: PT017
    else:
        close(gradient, expected)


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


class _ReadsContext(nn.Module):
    def forward(self, given: Tensor) -> tuple[Tensor, str]:
        return given, VARIABLE.get()


def test_context_variables_are_seen_by_body_and_model():
    wrapped = hw.wrap(in_a_row(_ReadsContext()))
    token = VARIABLE.set("outside")
    try:
        with wrapped.trace(torch.ones(1)):
            in_body = VARIABLE.get()
            in_model = wrapped.first.output[1]
            VARIABLE.set("inside")
        assert (in_body, in_model, VARIABLE.get()) == ("outside", "outside", "inside")
    finally:
        VARIABLE.reset(token)


# ---- 7: errors name modules ----------------------------------------------------------------------


def test_a_late_gradient_assignment_names_the_module(model):
    def late() -> None:
        with model.trace(x()):
            early, hidden = model.embed.output, model.blocks[1].output
            with model.output.sum().backward():
                early.grad.clone()
                hidden.grad = torch.zeros_like(hidden)

    with pytest.raises(LateWriteError, match=r"blocks\[1\]") as caught:
        late()
    assert NO_ID.match(str(caught.value))


def test_a_late_gradient_edit_in_place_names_the_module(model):
    def late() -> None:
        with model.trace(x()):
            early, hidden = model.embed.output, model.blocks[1].output
            with model.output.sum().backward():
                gradient = hidden.grad
                early.grad.clone()
                gradient[:] = 0

    with pytest.raises(LateWriteError, match=r"blocks\[1\]") as caught:
        late()
    assert NO_ID.match(str(caught.value))


def test_a_gradient_that_does_not_exist_names_the_module(model):
    def absent() -> None:
        with model.trace(x()):
            hidden, later = model.blocks[0].output, model.blocks[1].output
            with hidden.sum().backward():
                later.grad.clone()

    with pytest.raises(GradientError, match=r"blocks\[1\]") as caught:
        absent()
    assert NO_ID.match(str(caught.value))


def test_a_gradient_of_a_loss_without_the_model_names_the_module(model):
    def absent() -> None:
        leaf = torch.ones((), requires_grad=True)
        with model.trace(x()):
            hidden = model.blocks[1].output
            with leaf.square().backward():
                hidden.grad.clone()

    with pytest.raises(GradientError, match=r"blocks\[1\]"):
        absent()


def test_a_backward_of_a_run_without_graph_is_torchs_error(model):
    def absent() -> None:
        with torch.no_grad(), model.trace(x()), model.output.sum().backward():
            pass

    with pytest.raises(RuntimeError):
        absent()


def test_a_read_that_came_too_late_names_the_module(model):
    def late() -> None:
        with model.trace(x()):
            model.blocks[1].output.save()
            model.blocks[0].branch.output.save()

    with pytest.raises(OutOfOrderError, match=r"blocks\[0\]\.branch") as caught:
        late()
    assert NO_ID.match(str(caught.value))


def test_an_input_that_came_too_late_names_the_module(model):
    def late() -> None:
        with model.trace(x()):
            model.blocks[1].output.save()
            model.blocks[0].input.save()

    with pytest.raises(OutOfOrderError, match=r"blocks\[0\]"):
        late()


def test_late_reads_of_what_was_handed_out_or_kept_are_served(model):
    with model.trace(x()) as run:
        run.keep(["blocks.0.branch", model.embed])
        joined = model.blocks[0].output
        out = model.output
        kept = model.blocks[0].branch.output
        again = model.blocks[0].output
        by_path = run["blocks.0.branch"].output
        embedded = model.embed.output
    assert again is joined
    assert by_path is kept
    plain = values_of(model.module, "embed", "blocks.0.branch")
    close(kept, plain["blocks.0.branch"])
    close(embedded, plain["embed"])
    close(out, plain["output"])


def test_keep_as_an_option_of_the_trace(model):
    with model.trace(x(), keep=["blocks.0.branch"]):
        model.output.save()
        kept = model.blocks[0].branch.output
    close(kept, values_of(model.module, "blocks.0.branch")["blocks.0.branch"])


def test_keep_all_serves_every_output(model):
    with model.trace(x()) as run:
        run.keep("all")
        out = model.output
        first_branch = model.blocks[0].branch.output
        embedded = model.embed.output
    plain = values_of(model.module, "embed", "blocks.0.branch")
    close(embedded, plain["embed"])
    close(first_branch, plain["blocks.0.branch"])
    assert out.shape == (5, 2)


def test_a_module_that_never_ran_is_named(model):
    def absent() -> None:
        with model.trace(x()):
            model.unused.output.save()

    with pytest.raises(NeverRanError, match="unused"):
        absent()


def test_a_call_that_did_not_happen_is_named(model):
    def absent() -> None:
        with model.trace(x()) as run:
            run.calls(model.blocks[0])[2].output.save()

    with pytest.raises(NeverRanError, match=r"blocks\[0\]"):
        absent()


def test_a_value_outside_a_trace_names_the_module(model):
    with pytest.raises(OutsideTraceError, match=r"blocks\[0\]"):
        _ = model.blocks[0].output


def test_a_misspelt_module_is_offered_the_closest(model):
    with pytest.raises(UnknownModuleError, match="blocks"), model.trace(x()):
        _ = model.blokcs
    with pytest.raises(UnknownModuleError, match="branch"), model.trace(x()):
        _ = model.blocks[0].brunch
    with pytest.raises(UnknownModuleError), model.trace(x()):
        _ = model.blocks[3]


def test_two_open_traces_of_one_model_must_be_told_apart(model):
    def ambiguous() -> None:
        with model.trace(x()) as run_a, model.trace(x() * 2) as run_b:
            run_b.blocks[0].output = run_a.blocks[0].output
            model.blocks[1].output.save()

    with pytest.raises(AmbiguousTraceError, match=r"blocks\[1\]"):
        ambiguous()


def test_two_traces_in_lockstep(model):
    with model.trace(x()) as run_a, model.trace(x() * 2) as run_b:
        run_b.blocks[0].output = run_a.blocks[0].output
        patched = run_b.output
    close(patched, model.module(x()))


# ---- 8: a model's error is raised at the line that waited ----------------------------------------


def _lines_in(error: BaseException, function: str) -> list[int]:
    return [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.name == function]


def test_a_model_error_is_raised_where_the_body_waits_and_tells_the_last_edit(model):
    waiting = []

    def body() -> None:
        with model.trace(x()):
            model.blocks[0].output.save()
            model.blocks[1].output = torch.zeros(5, 7, dtype=torch.float64)
            unrelated = 1
            waiting.append(here() + 1)
            model.blocks[2].output.save()
            assert unrelated

    with pytest.raises(RuntimeError, match="shapes") as caught:
        body()
    assert _lines_in(caught.value, "body") == waiting
    notes = "\n".join(caught.value.__notes__)
    assert "blocks[1]" in notes
    assert "output" in notes
    assert NO_ID.match(notes)
    assert not isinstance(caught.value, HeadwaterError)


def test_a_model_error_after_the_last_read_is_raised_by_the_block(model):
    def body() -> None:
        with model.trace(x()):
            model.blocks[1].output = torch.zeros(5, 7, dtype=torch.float64)

    with pytest.raises(RuntimeError, match="shapes") as caught:
        body()
    assert "blocks[1]" in "\n".join(caught.value.__notes__)


class _Raises(nn.Module):
    error = LookupError("from the model")

    def forward(self, given: Tensor) -> Tensor:
        raise self.error


def test_a_model_error_is_the_same_object():
    wrapped = hw.wrap(in_a_row(nn.Linear(3, 3), _Raises(), nn.Linear(3, 3)))

    def body() -> None:
        with wrapped.trace(torch.ones(1, 3)):
            wrapped.first.output.save()
            wrapped.third.output.save()

    for _ in range(2):
        with pytest.raises(LookupError) as caught:
            body()
        assert caught.value is _Raises.error
        # the model's own frames are there as well
        assert "forward" in [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
        _Raises.error.__traceback__ = None
    assert_nothing_left(wrapped.module)


def test_a_model_error_can_be_caught_in_the_body(model):
    with model.trace(x()):
        try:
            model.blocks[0].output = torch.zeros(5, 7, dtype=torch.float64)
            model.blocks[2].output.save()
        except RuntimeError as error:
            message = str(error)
    assert "shapes" in message


def test_an_error_of_the_body_is_the_users_own(model):
    raised = KeyError("mine")
    after = []
    handle = model.module.head.register_forward_hook(lambda *_: after.append(True))

    def body() -> None:
        with model.trace(x()):
            model.blocks[0].output.save()
            raise raised

    with pytest.raises(KeyError) as caught:
        body()
    handle.remove()
    assert caught.value is raised
    assert caught.value.__context__ is None
    assert after == []


# ---- 9: late writes ------------------------------------------------------------------------------


def test_a_late_write_in_place_is_refused_at_the_next_request(model):
    def late() -> None:
        with model.trace(x()):
            early = model.blocks[0].output
            model.blocks[1].output.save()
            early[:] = 0
            model.blocks[2].output.save()

    with pytest.raises(LateWriteError, match=r"blocks\[0\]") as caught:
        late()
    assert NO_ID.match(str(caught.value))


def test_a_late_write_in_place_is_refused_at_the_end(model):
    def late() -> None:
        with torch.no_grad(), model.trace(x()):
            early = model.blocks[0].output
            model.output.save()
            early.mul_(2)

    with pytest.raises(LateWriteError, match=r"blocks\[0\]"):
        late()


def test_a_late_write_through_a_view_is_refused(model):
    def late() -> None:
        with torch.no_grad(), model.trace(x()):
            row = model.blocks[0].output[1]
            model.blocks[1].output.save()
            row += 1

    with pytest.raises(LateWriteError, match=r"blocks\[0\]"):
        late()


def test_a_late_assignment_is_refused_at_its_line(model):
    lines = []

    def late() -> None:
        with model.trace(x()):
            early = model.blocks[0].output
            model.blocks[1].output.save()
            lines.append(here() + 1)
            model.blocks[0].output = early * 0

    with pytest.raises(LateWriteError, match=r"blocks\[0\]") as caught:
        late()
    assert _lines_in(caught.value, "late") == lines


def test_a_late_assignment_of_an_input_is_refused(model):
    def late() -> None:
        with model.trace(x()):
            model.blocks[1].output.save()
            model.blocks[1].input = torch.zeros(5, 4, dtype=torch.float64)

    with pytest.raises(LateWriteError, match=r"blocks\[1\]"):
        late()


class _Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.outer = nn.Linear(3, 3)

    def forward(self, given: Tensor) -> Tensor:
        hidden = self.inner(given)
        hidden += given
        return self.outer(hidden.relu_())


def test_what_the_model_writes_in_place_is_a_notice_and_no_late_write():
    wrapped, given = hw.wrap(_Adds()), torch.ones(2, 3)

    def read() -> tuple[Tensor, Tensor]:
        with wrapped.trace(given):
            inner = wrapped.inner.output
            inner[:, 0] = 0
            outer = wrapped.outer.output
            assert bool((inner >= 0).all())  # the very tensor: it holds what came later
            return outer, wrapped.output

    with pytest.warns(HeadwaterNotice, match=r"inner\.output"):
        outer, out = read()
    plain = wrapped.module
    hidden = plain.inner(given).detach()
    hidden[:, 0] = 0
    torch.testing.assert_close(out, plain.outer((hidden + 1).relu()))
    assert outer is out
    assert_nothing_left(plain)


@pytest.mark.filterwarnings("ignore:the model itself has changed")
def test_the_gradient_of_a_value_the_model_changed_is_that_of_what_was_read():
    wrapped, given = hw.wrap(_Adds()), torch.linspace(-1, 1, 6).reshape(2, 3)
    with wrapped.trace(given):
        inner = wrapped.inner.output
        with wrapped.output.square().sum().backward():
            gradient = inner.grad.clone()
            inner.grad[0] = 0
    plain = wrapped.module
    found = plain.inner.weight.grad.clone()
    hidden = plain.inner(given).detach().requires_grad_()
    loss = plain.outer((hidden + given).relu()).square().sum()
    expected = torch.autograd.grad(loss, hidden)[0]
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(found, expected[1:].T @ given[1:])


def test_edits_of_copies_and_results_are_no_late_writes(model):
    with model.trace(x()):
        early = model.blocks[0].output
        copy = early.detach().clone()
        model.blocks[1].output.save()
        copy[:] = 0
        product = early * 2
        product[:] = 0
        out = model.output
    close(out, model.module(x()))


def test_an_early_write_lands_though_another_name_holds_the_value(model):
    with model.trace(x()):
        alias = model.blocks[0].output
        alias[:] = 1
        later = model.blocks[1].output
    ones = torch.ones(5, 4, dtype=torch.float64)
    close(later, model.module.blocks[1](ones))


def test_the_embedding_of_a_frozen_model_can_be_edited_in_place():
    tiny = loaded_model("tiny-gpt2")
    with tiny.trace(PROMPT):
        embedded = tiny.transformer.wte.output
        embedded[:, -1] = 0
        logits = tiny.output.logits
        with logits.square().sum().backward():
            gradient = embedded.grad.clone()
    zero = {"transformer.wte": lambda output: output.index_fill(1, last, 0.0)}
    ids = torch.tensor(tiny.tokenizer(PROMPT)["input_ids"])[None]
    last = torch.tensor([ids.shape[1] - 1])
    with torch.no_grad(), hooked(tiny.module, zero):
        expected = tiny.module(ids).logits
    torch.testing.assert_close(logits.detach(), expected, rtol=1e-4, atol=1e-4)
    assert gradient.shape == embedded.shape
    assert bool(gradient.any())


# ---- 10: bodies of any shape ---------------------------------------------------------------------


def test_the_first_statement_may_be_a_try(model):
    with model.trace(x()):
        try:
            hidden = model.blocks[0].output
        finally:
            done = True
    close(hidden, values_of(model.module, "blocks.0")["blocks.0"])
    assert done


def test_the_body_may_return(model):
    def read() -> Tensor:
        with model.trace(x()):
            return model.blocks[0].output

    close(read(), values_of(model.module, "blocks.0")["blocks.0"])


def test_a_body_that_returns_still_runs_the_model_out(model):
    ran = []
    handle = model.module.head.register_forward_hook(lambda *_: ran.append(True))

    def read() -> Tensor:
        with model.trace(x()):
            return model.blocks[0].output

    read()
    handle.remove()
    assert ran == [True]


def test_the_body_may_break_and_continue_a_loop_around_it(model):
    read = []
    for block in (2, 0, 1):
        with model.trace(x()):
            if block == 2:
                continue
            read.append(model.blocks[block].output)
            break
    close(read[0], values_of(model.module, "blocks.0")["blocks.0"])
    assert len(read) == 1


def test_the_body_may_yield(model):
    def reads() -> Iterator[Tensor]:
        with model.trace(x()):
            for block in model.blocks:
                yield block.output

    plain = values_of(model.module, "blocks.0", "blocks.2")
    read = list(reads())
    close(read[2], plain["blocks.2"])
    partial = reads()
    close(next(partial), plain["blocks.0"])
    partial.close()


def test_the_body_rebinds_names_of_its_function(model):
    count, hidden = 0, None

    def body() -> None:
        nonlocal count, hidden
        with model.trace(x()):
            for block in model.blocks:
                count += 1
                hidden = block.output

    body()
    assert count == 3
    close(hidden, values_of(model.module, "blocks.2")["blocks.2"])


def test_the_body_may_be_a_lambda_a_comprehension_and_a_nested_function(model):
    with model.trace(x()):
        norms = [block.output.norm() for block in model.blocks]
        final = (lambda: model.output)()

        def total() -> Tensor:
            return final.sum()

        summed = total()
    plain = values_of(model.module, "blocks.0", "blocks.1", "blocks.2")
    for number, norm in enumerate(norms):
        close(norm, plain[f"blocks.{number}"].norm())
    close(summed, plain["output"].sum())


ONE_LINERS = """
def one_line(model, x):
    with model.trace(x): hidden = model.blocks[0].output
    return hidden

def two_on_a_line(model, x):
    with model.trace(x): hidden = model.blocks[0].output; loss = model.output.sum()
    return hidden

def backward(model, x):
    with model.trace(x): h = model.blocks[0].output; model.output.sum().backward()
    return h

def block(model, x):
    with model.trace(x):
        h = model.blocks[0].output
        with model.output.square().sum().backward(): g = h.grad
    return g
"""


def _check_one_liners(model: Model, names: dict[str, Any]) -> None:
    plain = values_of(model.module, "blocks.0")
    for name in ("one_line", "two_on_a_line", "backward"):
        close(names[name](model, x()), plain["blocks.0"])
    loss = plain["output"].square().sum()
    close(names["block"](model, x()), torch.autograd.grad(loss, plain["blocks.0"])[0])


def test_one_line_bodies(model, tmp_path):
    path = tmp_path / "one_liners.py"
    path.write_text(ONE_LINERS)
    names: dict[str, Any] = {}
    exec(compile(ONE_LINERS, str(path), "exec"), names)
    _check_one_liners(model, names)


def test_code_without_source(model):
    names: dict[str, Any] = {}
    exec(ONE_LINERS, names)
    _check_one_liners(model, names)
    again: dict[str, Any] = {}
    exec(compile(ONE_LINERS, "/no/such/file.py", "exec"), again)
    _check_one_liners(model, again)


def test_code_typed_at_a_prompt(model):
    plain = values_of(model.module, "blocks.0")
    names: dict[str, Any] = {"model": model, "x": x()}
    console = code.InteractiveConsole(names)
    for line in [
        "with model.trace(x) as run:",
        "    h = model.blocks[0].output",
        "    with model.output.square().sum().backward():",
        "        g = h.grad",
        "",
    ]:
        console.push(line)
    close(names["h"], plain["blocks.0"])
    loss = plain["output"].square().sum()
    close(names["g"], torch.autograd.grad(loss, plain["blocks.0"])[0])


def test_code_read_from_standard_input(model):
    names: dict[str, Any] = {}
    exec(compile(ONE_LINERS, "<stdin>", "exec"), names)
    _check_one_liners(model, names)


@pytest.mark.slow
def test_code_piped_to_the_interpreter():
    program = """
        import torch
        import headwater as hw
        module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        model = hw.wrap(module)
        with model.trace(torch.ones(1, 2)):
            h = model[0].output
            with model.output.sum().backward():
                g = h.grad
        assert torch.equal(g, module[1].weight), g
        print("right")
    """
    done = subprocess.run(
        [sys.executable, "-"],
        input=textwrap.dedent(program),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "right", done.stderr


def test_asserts_in_the_body_are_explained_by_pytest(model):
    def body() -> None:
        one = 1
        with model.trace(x()):
            hidden = model.blocks[0].output
            assert hidden.shape[0] == 5
            assert one + 1 == hidden.shape[1]

    with pytest.raises(AssertionError, match=r"assert \(1 \+ 1\) == 4"):
        body()


# ---- 11, 12: nested blocks, loops ----------------------------------------------------------------


def test_a_backward_block_inside_another(model):
    with model.trace(x()):
        hidden, later = model.blocks[0].output, model.blocks[1].output
        total = model.output.square().sum()
        other = later.sum()
        with total.backward():
            outer_later = later.grad.clone()
            with other.backward():
                inner = hidden.grad.clone()
                inner_later = later.grad.clone()
            outer = hidden.grad.clone()
    plain = values_of(model.module, "blocks.0", "blocks.1")
    inputs = [plain["blocks.0"], plain["blocks.1"]]
    loss = plain["output"].square().sum()
    expected = torch.autograd.grad(loss, inputs, retain_graph=True)
    close(outer, expected[0])
    close(outer_later, expected[1])
    close(inner, torch.autograd.grad(inputs[1].sum(), inputs[0])[0])
    assert bool((inner_later == 1).all())


def test_an_edit_in_a_nested_block_stays_in_it(model):
    with model.trace(x()):
        hidden, later = model.blocks[0].output, model.blocks[1].output
        total = model.output.square().sum()
        with total.backward():
            with later.sum().backward():
                later.grad[:] = 0
                inner = hidden.grad.clone()
            outer = hidden.grad.clone()
    plain = values_of(model.module, "blocks.0")
    expected = torch.autograd.grad(plain["output"].square().sum(), plain["blocks.0"])[0]
    assert not inner.any()
    close(outer, expected)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("nested", [False, True])
def test_second_derivatives(model, nested: bool):
    with model.trace(x()):
        hidden = model.blocks[0].output
        loss = model.output.pow(3).sum()
        if nested:
            with loss.backward(create_graph=True):
                gradient = hidden.grad
                with gradient.square().sum().backward():
                    second = hidden.grad.clone()
        else:
            with loss.backward(create_graph=True):
                gradient = hidden.grad
            with gradient.square().sum().backward():
                second = hidden.grad.clone()
    plain = values_of(model.module, "blocks.0")
    at = plain["blocks.0"]
    one = torch.autograd.grad(plain["output"].pow(3).sum(), at, create_graph=True)[0]
    close(second, torch.autograd.grad(one.square().sum(), at)[0])
    forget_gradients(model)


def test_autograd_grad_inside_a_trace(model):
    with model.trace(x()):
        hidden = model.blocks[0].output
        loss = model.output.square().sum()
        gradient = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
        with loss.backward():
            other = torch.autograd.grad(5 * hidden.sum(), hidden)[0]
            same = hidden.grad.clone()
            inside = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
            again = hidden.grad.clone()
    plain = values_of(model.module, "blocks.0")
    expected = torch.autograd.grad(plain["output"].square().sum(), plain["blocks.0"])[0]
    assert bool((other == 5).all())
    for found in (gradient, same, inside, again):
        close(found, expected)


def test_a_bare_backward_inside_a_block_is_another_pass(model):
    with model.trace(x()):
        earlier, hidden = model.embed.output, model.blocks[0].output
        loss = model.output.square().sum()
        with loss.backward():
            hidden.sum().backward(retain_graph=True)
            gradient = hidden.grad.clone()
            (5 * hidden.sum()).backward(retain_graph=True)
            arrived = earlier.grad.clone()
    plain = values_of(model.module, "embed", "blocks.0")
    at = [plain["embed"], plain["blocks.0"]]
    expected = torch.autograd.grad(plain["output"].square().sum(), at)
    close(gradient, expected[1])
    close(arrived, expected[0])


def test_a_loss_taken_before_the_model_has_finished(model):
    with model.trace(x()):
        hidden = model.blocks[0].output
        later = model.blocks[1].output
        with later.square().sum().backward():
            gradient = hidden.grad.clone()
        model.blocks[1].output = later + gradient.detach()
        out = model.output
    plain = values_of(model.module, "blocks.0", "blocks.1")
    expected = torch.autograd.grad(plain["blocks.1"].square().sum(), plain["blocks.0"])[0]
    close(gradient, expected)
    patched = {"blocks.1": lambda output: output + expected}
    with hooked(model.module, patched):
        close(out, model.module(x()))


def test_statements_after_a_loop_over_steps_run():
    gpt = shared_model("GPT-2")
    expected = gpt.module.generate(ONE, max_new_tokens=4, do_sample=False)
    with gpt.generate(ONE, max_new_tokens=4, do_sample=False) as run:
        picked, after = [], []
        for _ in run.steps():
            picked.append(gpt.output.logits[:, -1].argmax(-1))
        after.append("ran")
        result = run.result
    new = expected[:, ONE.shape[1] :]
    assert after == ["ran"]
    assert torch.equal(torch.stack(picked, 1)[:, : new.shape[1]], new)
    assert torch.equal(result, expected)
    assert torch.equal(run.result, expected)
    assert_nothing_left(gpt.module)


def test_a_loop_left_early_lets_the_generation_finish():
    gpt = shared_model("GPT-2")
    expected = gpt.module.generate(ONE, max_new_tokens=4, do_sample=False)
    with gpt.generate(ONE, max_new_tokens=4, do_sample=False) as run:
        for _ in run.steps():
            gpt.transformer.h[0].output.save()
            break
        after = True
    assert after
    assert torch.equal(run.result, expected)


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 3)

    def forward(self, given: Tensor) -> Tensor:
        for _ in range(4):
            given = self.shared(given)
        return given


def test_a_loop_over_the_calls_of_a_module_ends_by_itself():
    wrapped = hw.wrap(_Twice())
    with wrapped.trace(torch.ones(2, 3)) as run:
        seen = []
        for call in run.calls(wrapped.shared):
            value = wrapped.shared.output
            assert call.output is value
            seen.append(value)
            if call.index == 1:
                wrapped.shared.output = value * 0
        after = True
        out = run.result
    shared = wrapped.module.shared
    zero = shared(shared(torch.zeros(2, 3)))
    assert len(seen) == 4
    assert after
    torch.testing.assert_close(out, zero)


# ---- section 7: runs, threads, interrupts --------------------------------------------------------


def test_nothing_runs_before_the_block_and_everything_in_it(model):
    ran = []
    handle = model.module.register_forward_hook(lambda *_: ran.append(True))
    trace = model.trace(x())
    assert ran == []
    with trace:
        pass
    handle.remove()
    assert ran == [True]


def test_stop_leaves_the_rest_of_the_model_unrun(model):
    ran = []
    handles = [
        getattr(model.module, name).register_forward_hook(lambda *_, name=name: ran.append(name))
        for name in ("embed", "head")
    ]
    with model.trace(x()) as run:
        hidden = model.blocks[0].output
        run.stop()
    for handle in handles:
        handle.remove()
    assert ran == ["embed"]
    close(hidden, values_of(model.module, "blocks.0")["blocks.0"])


def test_a_skipped_module_is_not_called(model):
    ran = []
    handle = model.module.blocks[1].branch.register_forward_hook(lambda *_: ran.append(True))
    substitute = torch.ones(5, 4, dtype=torch.float64)
    with model.trace(x()):
        model.blocks[1].skip(substitute)
        later = model.blocks[2].output
    handle.remove()
    assert ran == []
    close(later, model.module.blocks[2](substitute))


def test_a_module_is_called_by_hand_without_a_trace_of_it(model):
    with model.trace(x()):
        early = model.head(model.blocks[0].output)
        out = model.output
    plain = values_of(model.module, "blocks.0")
    close(early, model.module.head(plain["blocks.0"]))
    close(out, plain["output"])


def test_bodies_as_functions_share_one_forward(model):
    calls = []
    handle = model.module.embed.register_forward_hook(lambda *_: calls.append(True))

    def reads(run: Any) -> Tensor:
        return run.blocks[0].output

    def edits(run: Any) -> Tensor:
        run.blocks[1].output = run.blocks[1].output * 0
        return run.output

    hidden, out = model.run(x(), reads, edits)
    handle.remove()
    assert calls == [True]
    close(hidden, values_of(model.module, "blocks.0")["blocks.0"])
    zero = torch.zeros(5, 4, dtype=torch.float64)
    close(out, model.module.head(model.module.blocks[2](zero)))
    close(model.run(x(), reads), hidden)


def test_hooks_of_the_user_run_once_and_before_the_trace_reads(model):
    calls = []

    def double(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        calls.append("after")
        return output * 2

    handles = [
        model.module.blocks[0].register_forward_hook(double),
        model.module.blocks[0].register_forward_pre_hook(lambda *_: calls.append("before")),
    ]
    with model.trace(x()):
        hidden = model.blocks[0].output
        out = model.output
    expected = model.module(x())
    for handle in handles:
        handle.remove()
    assert calls == ["before", "after"] * 2
    close(hidden, 2 * values_of(model.module, "blocks.0")["blocks.0"])
    close(out, expected)


def test_backward_hooks_of_the_user_fire(model):
    seen = []
    handle = model.module.blocks[0].register_full_backward_hook(
        lambda module, given, got: seen.append(got[0].clone())
    )
    with model.trace(x()):
        hidden = model.blocks[0].output
        with model.output.square().sum().backward():
            gradient = hidden.grad.clone()
    handle.remove()
    plain = values_of(model.module, "blocks.0")
    expected = torch.autograd.grad(plain["output"].square().sum(), plain["blocks.0"])[0]
    close(gradient, expected)
    close(seen[0], expected)


def test_two_threads_trace_one_model_each_with_its_own_values(model):
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def work(number: int) -> None:
        for _ in range(5):
            with model.trace(x() * number):
                hidden = model.blocks[1].output
                with model.output.square().sum().backward():
                    gradient = hidden.grad.clone()
            found[number] = hidden.detach(), gradient

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for number in (1, 2, 3):
        kept: dict[str, Tensor] = {}
        with hooked(model.module, {"blocks.1": functools.partial(kept.__setitem__, "hidden")}):
            loss = model.module(x() * number).square().sum()
        close(found[number][0], kept["hidden"])
        close(found[number][1], torch.autograd.grad(loss, kept["hidden"])[0])


class _Sleeps(nn.Module):
    def forward(self, given: Tensor) -> Tensor:
        for _ in range(100):
            time.sleep(0.01)
        return given


@pytest.mark.skipif(os.name == "nt", reason="signals are sent to the process")
def test_an_interrupt_ends_the_wait_and_leaves_nothing():
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread gets KeyboardInterrupt")
    wrapped = hw.wrap(in_a_row(nn.Linear(3, 3), _Sleeps(), nn.Linear(3, 3)))
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))

    def body() -> None:
        with wrapped.trace(torch.ones(1, 3)):
            wrapped.first.output.save()
            timer.start()
            wrapped.third.output.save()

    with pytest.raises(KeyboardInterrupt):
        body()
    timer.join()
    # forward sleeps to its end at most; the worker is gone afterwards
    deadline = time.monotonic() + 4
    while worker_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert_nothing_left(wrapped.module)
    wrapped.module.second.forward = lambda given: given
    with wrapped.trace(torch.ones(1, 3)):
        out = wrapped.third.output
    torch.testing.assert_close(out, wrapped.module(torch.ones(1, 3)))


@pytest.mark.parametrize("worker", ["greenlet", "thread"])
def test_a_trace_entered_and_never_left_is_cleared_away(worker):
    wrapped = net()
    trace = wrapped.trace(x(), worker=worker)
    trace.__enter__()
    held = weakref.ref(wrapped.blocks[0].output)
    assert bool(worker_threads()) is (worker == "thread")
    assert torch.Tensor.backward is not UNPATCHED["backward"]
    del trace
    gc.collect()
    assert_nothing_left(wrapped.module)
    assert held() is None


def test_values_are_freed_without_the_garbage_collector(model):
    gc.collect()
    gc.disable()
    try:
        with model.trace(x()):
            hidden = model.blocks[0].output
            with model.output.sum().backward():
                gradient = hidden.grad
        refs = [weakref.ref(hidden), weakref.ref(gradient)]
        del hidden, gradient
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


def test_values_are_freed_after_an_error_without_the_garbage_collector(model):
    refs = []

    def body() -> None:
        with model.trace(x()):
            refs.append(weakref.ref(model.blocks[0].output))
            model.blocks[1].output = torch.zeros(5, 7, dtype=torch.float64)
            model.blocks[2].output.save()

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(RuntimeError):
            body()
        assert [ref() for ref in refs] == [None]
    finally:
        gc.enable()


def test_a_line_tracer_sees_the_body_and_stays(model):
    lines: set[int] = set()

    def tracer(frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code.co_name == "body" and event == "line":
            lines.add(frame.f_lineno)
        return tracer

    def body() -> tuple[int, Tensor, Tensor]:
        with model.trace(x()):
            start = here()
            hidden = model.blocks[0].output
            with model.output.square().sum().backward():
                gradient = hidden.grad
        return start, hidden, gradient

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        start, hidden, gradient = body()
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert {start, start + 1, start + 2, start + 3} <= lines
    plain = values_of(model.module, "blocks.0")
    close(hidden, plain["blocks.0"])
    loss = plain["output"].square().sum()
    close(gradient, torch.autograd.grad(loss, plain["blocks.0"])[0])


def test_a_trace_opened_by_an_exit_stack(model):
    with contextlib.ExitStack() as stack:
        stack.enter_context(model.trace(x()))
        hidden = model.blocks[0].output
        out = model.output
    plain = values_of(model.module, "blocks.0")
    close(hidden, plain["blocks.0"])
    close(out, plain["output"])


def test_a_trace_does_not_warn_of_reading_gradients(model):
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        with model.trace(x()):
            hidden = model.blocks[0].output
            with model.output.sum().backward():
                hidden.grad.clone()
    assert [str(one.message) for one in noted] == []


def test_the_greenlet_worker_gives_the_same(model):
    pytest.importorskip("greenlet")
    with model.trace(x(), worker="greenlet"):
        hidden = model.blocks[0].output
        with torch.no_grad():
            branch = model.blocks[1].branch.output
        with model.output.square().sum().backward():
            branch.grad[:] = 0
            gradient = hidden.grad.clone()
    assert branch.requires_grad
    cut = {"blocks.1.branch": torch.detach}
    with hooked(model.module, cut):
        plain = values_of(model.module, "blocks.0")
    close(gradient, torch.autograd.grad(plain["output"].square().sum(), plain["blocks.0"])[0])


@pytest.mark.filterwarnings("ignore:the model itself has changed")
@pytest.mark.parametrize("family", ["GPT-2", "Llama", "GPT-J", "Falcon", "BLOOM", "Mamba"])
def test_every_module_that_runs_can_be_read_in_the_order_it_runs(family: str):
    wrapped = hw.wrap(tiny_models.shared(family))
    order: list[str] = []
    calls: dict[str, int] = {}
    expected: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[Any], None]:
        def note(output: Any) -> None:
            calls[path] = calls.get(path, 0) + 1
            if isinstance(first(output), Tensor):
                order.append(path)
                expected[path] = first(output).clone()

        return note

    paths = [path for path, _ in wrapped.module.named_modules() if path]
    with torch.no_grad(), hooked(wrapped.module, {path: keep(path) for path in paths}):
        wrapped.module(IDS, use_cache=False)
    with torch.no_grad(), wrapped.trace(IDS, use_cache=False) as run:
        read = {path: first(run[path].output).clone() for path in order if calls[path] == 1}
    assert len(read) > 10
    for path, value in read.items():
        torch.testing.assert_close(value, expected[path], msg=lambda m, path=path: f"{path}: {m}")
    assert_nothing_left(wrapped.module)


def test_errors_of_traces_are_trace_errors():
    kinds = (
        OutsideTraceError,
        OutOfOrderError,
        LateWriteError,
        NeverRanError,
        AmbiguousTraceError,
        GradientError,
    )
    assert all(issubclass(kind, TraceError) for kind in kinds)
    assert issubclass(TraceError, HeadwaterError)
    assert issubclass(TraceError, RuntimeError)


def test_gradients_begin_at_the_embedding_of_a_body_that_was_replaced_since():
    wrapped = hw.wrap(copy.deepcopy(tiny_models.shared("Llama")).requires_grad_(False))

    def gradient() -> Tensor:
        with wrapped.trace(IDS):
            embedded = wrapped.model.embed_tokens.output
            with wrapped.output.logits.sum().backward():
                return embedded.grad

    before = gradient()
    wrapped.module.model = copy.deepcopy(wrapped.module.model)
    close(gradient(), before)
    assert_nothing_left(wrapped.module)
