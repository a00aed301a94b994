"""A model in a fresh thread, under `CallerState`, finds what it finds in the caller's thread."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from headwater.errors import TraceError
from headwater.precision import true_float64
from headwater.trace import context
from headwater.trace.context import CallerState, refuse_transforms

# torch loads its derivatives in forward mode by torch.jit.script, at their first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")
torch.manual_seed(0)
LAYER = nn.Linear(3, 3)
NORM = nn.Sequential(nn.Linear(3, 3), nn.Softmax(-1)).double()
INPUT = torch.randn(2, 3)


class Case(NamedTuple):
    """Something a caller can enter, and what a model sees of it."""

    enter: Callable[[], AbstractContextManager[Any]]
    seen: Callable[[Any], Any]


class NamedFunctionMode(TorchFunctionMode):
    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(f"{self.name} {func.__name__}")
        return func(*args, **(kwargs or {}))


class NamedDispatchMode(TorchDispatchMode):
    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(f"{self.name} {func}")
        return func(*args, **(kwargs or {}))


@contextmanager
def nested(mode: Callable[[str, list[str]], AbstractContextManager[Any]]) -> Iterator[list[str]]:
    calls: list[str] = []
    with mode("outer", calls), mode("inner", calls):
        yield calls


def calls_of_modes(calls: list[str]) -> list[str]:
    before = len(calls)
    LAYER(INPUT)
    return calls[before:]


@contextmanager
def fake_on_meta() -> Iterator[None]:
    with FakeTensorMode(), torch.device("meta"):
        yield


@contextmanager
def derivatives_in_inference() -> Iterator[None]:
    with torch.inference_mode(), torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


@contextmanager
def cuda_autocast() -> Iterator[None]:
    # torch.autocast("cuda") switches itself off where there is no such device
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


@contextmanager
def autocast_dtype_alone() -> Iterator[None]:
    before = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        yield
    finally:
        torch.set_autocast_dtype("cpu", before)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def saved_hooks() -> Iterator[list[str]]:
    seen: list[str] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append("pack")
        return tensor.detach()

    def unpack(tensor: Tensor) -> Tensor:
        seen.append("unpack")
        return tensor

    graph = torch.autograd.graph
    with graph.save_on_cpu(), graph.saved_tensors_hooks(pack, unpack):
        yield seen


@contextmanager
def variable() -> Iterator[None]:
    token = VARIABLE.set("set")
    try:
        yield
    finally:
        VARIABLE.reset(token)


@contextmanager
def forward_mode_off() -> Iterator[None]:
    with forward_ad._set_fwd_grad_enabled(False):
        yield


def hooks_called(seen: list[str]) -> list[str]:
    before = len(seen)
    leaf = INPUT.clone().requires_grad_()
    leaf.exp().sum().backward()
    return seen[before:]


def own_autocast(_: Any) -> torch.dtype:
    with torch.autocast("cpu"):
        return LAYER(INPUT).dtype


def weight_cast_once(_: Any) -> bool:
    first = LAYER(INPUT)
    with torch.autocast("cpu"):
        pass
    second = LAYER(INPUT)

    def cast(output: Tensor) -> Any:
        assert output.grad_fn is not None
        return output.grad_fn.next_functions[0][0]

    return output_is_low(first) and cast(first) is cast(second)


def output_is_low(output: Tensor) -> bool:
    return output.dtype is torch.bfloat16


def flops(counter: FlopCounterMode) -> int:
    before = counter.get_total_flops()
    LAYER(INPUT)
    return counter.get_total_flops() - before


def fake(_: Any) -> list[Any]:
    made = torch.ones(2) + 1
    found: list[Any] = [type(made) is FakeTensor]
    if found[0] and not torch.cuda.is_available():
        found.append(torch.tensor([1.0], device="cuda").device.type)
    return found


def float64_bits(_: Any) -> list[float]:
    logits = INPUT.double() * NORM[0].weight[0]
    weights = torch.softmax(logits, -1, dtype=torch.float32)
    return weights.double().flatten().tolist() + NORM(INPUT.double()).float().flatten().tolist()


def tangent(_: Any) -> bool:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(INPUT, torch.ones_like(INPUT))
        return forward_ad.unpack_dual(dual * 2).tangent is None


CASES = {
    "no grad": Case(torch.no_grad, lambda _: LAYER(INPUT).requires_grad),
    "inference": Case(torch.inference_mode, lambda _: LAYER(INPUT).is_inference()),
    "derivatives in inference": Case(
        derivatives_in_inference,
        lambda _: (torch.is_inference_mode_enabled(), torch.is_grad_enabled()),
    ),
    "autocast": Case(lambda: torch.autocast("cpu", torch.float16), lambda _: LAYER(INPUT).dtype),
    "autocast of cuda": Case(
        cuda_autocast,
        lambda _: (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")),
    ),
    "autocast without cache": Case(
        lambda: torch.autocast("cpu", cache_enabled=False),
        lambda _: torch.is_autocast_cache_enabled(),
    ),
    "autocast's dtype alone": Case(autocast_dtype_alone, own_autocast),
    "autocast inside autocast": Case(lambda: torch.autocast("cpu"), weight_cast_once),
    "with a device": Case(lambda: torch.device("meta"), lambda _: torch.ones(2).device.type),
    "default device": Case(default_device, lambda _: torch.get_default_device().type),
    "function modes": Case(lambda: nested(NamedFunctionMode), calls_of_modes),
    "dispatch modes": Case(lambda: nested(NamedDispatchMode), calls_of_modes),
    "fake tensors": Case(FakeTensorMode, fake),
    "fake tensors on meta": Case(
        fake_on_meta,
        lambda _: (type(torch.ones(2)) is FakeTensor, torch.ones(2).device.type),
    ),
    "flops": Case(lambda: FlopCounterMode(display=False), flops),
    "true float64": Case(true_float64, float64_bits),
    "saved-tensor hooks": Case(saved_hooks, hooks_called),
    "context variable": Case(variable, lambda _: VARIABLE.get()),
    "no forward-mode derivatives": Case(forward_mode_off, tangent),
    "view replay": Case(
        lambda: torch.autograd.grad_mode._force_original_view_tracking(True),
        lambda _: torch._C._is_view_replay_enabled(),
    ),
}
if hasattr(torch.autograd, "enforce_grad_layout_policy"):
    CASES["gradients' layout"] = Case(
        lambda: torch.autograd.enforce_grad_layout_policy(False),
        lambda _: torch._C._is_grad_layout_enforcement_enabled(),
    )
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def left_in_thread() -> dict[str, Any]:
    """All that a `CallerState` may have left behind."""
    nesting = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return {
        "switches": context.switches(),
        "inference": torch.is_inference_mode_enabled(),
        "multithreading": torch._C._is_multithreading_enabled(),
        "autocast": [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        "autocast dtype": [torch.get_autocast_dtype(device) for device in ("cpu", "cuda")],
        "nesting": nesting,
        "saved hooks": context._saved_hooks(),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "variable": VARIABLE.get(),
    }


def in_thread(function: Callable[[], Any]) -> Any:
    """Call `function` in a fresh thread; return what it returns, raise what it raises."""
    returned: list[Any] = []
    raised: list[BaseException] = []

    def body() -> None:
        try:
            returned.append(function())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return returned[0]


def in_worker(state: CallerState, function: Callable[..., Any], *args: Any) -> Any:
    """Call `function` in a fresh thread under `state`, which must leave the thread as it was."""

    def body() -> Any:
        before = left_in_thread()
        try:
            return state.run(function, *args)
        finally:
            assert left_in_thread() == before

    return in_thread(body)


@every_case
def test_the_model_sees_what_the_caller_entered(case: Case) -> None:
    with case.enter() as entered:
        here = case.seen(entered)
    with case.enter() as entered:
        there = in_worker(CallerState.capture(), case.seen, entered)
    with case.enter() as entered:
        without = in_thread(lambda: case.seen(entered))
    assert there == here
    assert without != here, "this case would pass without carrying anything"


@every_case
def test_an_error_of_the_model_leaves_nothing_behind(case: Case) -> None:
    def fail() -> None:
        NamedFunctionMode("abandoned", []).__enter__()
        NamedDispatchMode("abandoned", []).__enter__()
        raise ValueError("of the model")

    with case.enter(), pytest.raises(ValueError, match="of the model"):
        in_worker(CallerState.capture(), fail)


@every_case
def test_what_the_caller_enters_later_does_not_reach_the_model(case: Case) -> None:
    state = CallerState.capture()
    with case.enter() as entered:
        before = in_thread(lambda: case.seen(entered))
        assert in_worker(state, case.seen, entered) == before


@every_case
def test_what_the_model_enters_does_not_reach_the_caller(case: Case) -> None:
    before = left_in_thread()
    open_now, go_on = threading.Event(), threading.Event()

    def model() -> None:
        with case.enter():
            open_now.set()
            assert go_on.wait(60)

    state = CallerState.capture()
    thread = threading.Thread(target=state.run, args=(model,))
    thread.start()
    assert open_now.wait(60)
    try:
        assert left_in_thread() == before
    finally:
        go_on.set()
        thread.join()


def test_one_state_serves_several_threads_apart() -> None:
    state = CallerState.capture()
    in_worker(state, VARIABLE.set, "by the first")
    assert in_worker(state, VARIABLE.get) == "unset"
    # Side by side, too
    assert in_worker(state, in_worker, state, VARIABLE.get) == "unset"


def test_arguments_and_result_pass_through() -> None:
    state = CallerState.capture()
    assert state.grad
    assert not state.inference
    assert in_worker(state, divmod, 7, 2) == (3, 1)
    with torch.no_grad():
        assert not CallerState.capture().grad


def test_casts_of_the_model_are_not_used_again_after_an_edit_of_its_weights() -> None:
    layer = nn.Linear(3, 3, bias=False)
    with torch.autocast("cpu"):
        state = CallerState.capture()
    assert in_worker(state, layer, INPUT).ne(0).all()
    with torch.no_grad():
        layer.weight.zero_()
    with torch.autocast("cpu"):
        assert layer(INPUT).eq(0).all()


def test_a_default_device_set_by_the_model_does_not_stay() -> None:
    in_worker(CallerState.capture(), torch.set_default_device, "meta")
    assert torch.ones(1).device.type == "cpu"


@pytest.mark.parametrize("enter", [torch.enable_grad, torch.inference_mode])
def test_backward_passes_of_the_worker_stay_in_its_thread(enter: Any) -> None:
    with enter():
        assert not in_worker(CallerState.capture(), torch._C._is_multithreading_enabled)


def test_modes_do_not_see_how_the_state_is_entered() -> None:
    with nested(NamedFunctionMode) as calls, torch.no_grad(), torch.autocast("cpu"):
        state = CallerState.capture()
        calls.clear()
        in_worker(state, int)
        assert not calls


def test_a_mode_is_not_entered_a_second_time() -> None:
    entries = []

    class Counted(NamedFunctionMode):
        def __enter__(self) -> Counted:
            entries.append(self.name)
            return super().__enter__()

    with Counted("mode", []):
        in_worker(CallerState.capture(), int)
    assert entries == ["mode"]


PROCESS_WIDE = {
    "default dtype": (torch.set_default_dtype, torch.get_default_dtype, torch.float64),
    "deterministic": (
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled,
        True,
    ),
    "anomaly": (torch.autograd.set_detect_anomaly, torch.is_anomaly_enabled, True),
    "threads": (torch.set_num_threads, torch.get_num_threads, 2),
    "kernels": (torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.flash_sdp_enabled, False),
}


@pytest.mark.parametrize("name", PROCESS_WIDE)
def test_what_belongs_to_the_process_needs_no_carrying(name: str) -> None:
    change, look, value = PROCESS_WIDE[name]
    before = look()
    change(value)
    try:
        assert before != value
        assert in_thread(look) == value
    finally:
        change(before)


def test_forward_mode_derivatives_pass_through_the_worker() -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(INPUT, torch.full_like(INPUT, 2.0))
        tripled = in_worker(CallerState.capture(), lambda: dual * 3)
        derivative = forward_ad.unpack_dual(tripled).tangent
    assert derivative is not None
    assert derivative.eq(6.0).all()


class FakeCuda(threading.local):
    """Two devices, with the current device and streams of one thread, as torch.cuda keeps them."""

    def __init__(self) -> None:
        self.device = 0
        self.streams = [(0, "default"), (1, "default")]

    def set_device(self, device: int) -> None:
        self.device = device

    def set_stream(self, stream: tuple[int, str]) -> None:
        self.device = stream[0]
        self.streams[stream[0]] = stream

    def seen(self) -> tuple[int, list[tuple[int, str]]]:
        return self.device, list(self.streams)


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("with_streams", [(), (0,), (1,), (0, 1)])
def test_the_current_cuda_device_and_streams_are_the_callers(
    monkeypatch: pytest.MonkeyPatch, device: int, with_streams: tuple[int, ...]
) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: cuda.device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda place: cuda.streams[place])
    monkeypatch.setattr(torch.cuda, "set_device", cuda.set_device)
    monkeypatch.setattr(torch.cuda, "set_stream", cuda.set_stream)
    for place in with_streams:
        cuda.set_stream((place, "side"))
    cuda.set_device(device)
    state = CallerState.capture()

    def body() -> None:
        before = cuda.seen()
        assert state.run(cuda.seen) == (device, state.cuda and list(state.cuda[1]))
        assert cuda.seen() == before

    assert state.cuda == (device, tuple(cuda.streams))
    in_thread(body)


def test_cuda_is_left_alone_until_it_is_initialized() -> None:
    if torch.cuda.is_initialized():
        pytest.skip("another test has used the device")
    assert CallerState.capture().cuda is None


def refused(*_: Any) -> Tensor:
    refuse_transforms()
    return torch.zeros(())


TRANSFORMS = {
    "torch.func.grad": lambda body: torch.func.grad(body)(INPUT),
    "torch.func.vmap": lambda body: torch.func.vmap(body)(INPUT),
    "torch.func.jvp": lambda body: torch.func.jvp(body, (INPUT,), (INPUT,)),
    "torch.func.functionalize": lambda body: torch.func.functionalize(body)(INPUT),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_refused_by_name(name: str) -> None:
    with pytest.raises(TraceError) as raised:
        TRANSFORMS[name](refused)
    assert f"a trace inside {name}" in str(raised.value)
    assert f"outside of {name}" in str(raised.value)
    assert "Leave worker='thread' out" in str(raised.value)


def test_the_refused_gradient_would_have_been_zero() -> None:
    def loss(x: Tensor) -> Tensor:
        return in_worker(CallerState.capture(), lambda: (x * x).sum())

    assert torch.func.grad(loss)(INPUT).eq(0).all()


def test_recordings_of_a_model_are_refused_by_name() -> None:
    with pytest.raises(TraceError, match=r"a trace inside torch\.jit\.trace"):
        torch.jit.trace(refused, (INPUT,))

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            refuse_transforms()
            return x

    with pytest.raises(TraceError, match=r"a trace inside torch\.compile or torch\.export"):
        torch.export.export(Module(), (INPUT,), strict=False)


def test_nothing_is_refused_outside() -> None:
    with torch.no_grad(), torch.autocast("cpu"), torch.device("meta"):
        refuse_transforms()


def test_a_torch_without_a_private_function_is_told_by_its_name() -> None:
    missing = context.private("_C._gone_from_torch")
    with pytest.raises(TraceError, match=r"no torch\._C\._gone_from_torch.*\nInstall a torch"):
        missing(1, 2)


def test_a_state_that_cannot_be_entered_is_left_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "push_function", context.private("_C._gone_from_torch"))
    with nested(NamedFunctionMode), torch.inference_mode(), torch.autocast("cpu"):
        state = CallerState.capture()
    with pytest.raises(TraceError, match="_gone_from_torch"):
        in_worker(state, int)


def test_saved_tensor_hooks_that_cannot_be_read_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(context, "top_saved_hooks", None)
    assert CallerState.capture().saved_hooks is None
    with torch.autograd.graph.disable_saved_tensors_hooks("by the caller"):
        assert CallerState.capture().saved_hooks is None
        assert context.disabled_saved_hooks() == "by the caller"
    with saved_hooks() as seen:
        with pytest.raises(TraceError, match=r"_top_saved_tensors_default_hooks.*\n.*torch 2\.8"):
            CallerState.capture()
        assert hooks_called(seen) == ["pack", "unpack"]
