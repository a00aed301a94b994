"""The calling thread's torch state, for the thread that runs the model.

Torch keeps most of what a `with` statement changes for one thread only: grad and inference mode,
autocast, the default device and other modes, saved-tensor hooks, the CUDA stream. A model that runs
in another thread must find what it would find in the caller's, or it computes something else
without a word. Both sides are then independent: what the caller changes later does not reach the
model, and what the model changes does not reach the caller.

The default dtype, deterministic algorithms, anomaly detection, the choice of attention kernels, the
number of threads and the level of forward-mode derivatives belong to the process: nothing to carry.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from operator import attrgetter
from threading import Thread
from typing import Any, NamedTuple

import torch

from headwater.errors import TraceError


def private(name: str) -> Callable[..., Any]:
    """Look up a private function of torch; where it is gone, return one that says so by name."""
    try:
        return attrgetter(name)(torch)
    except AttributeError:

        def missing(*_: Any) -> Any:
            raise TraceError(
                f"torch {torch.__version__} has no torch.{name}, by which the model of a trace "
                "keeps grad mode and the like to itself.\nInstall a torch that has it; headwater "
                "is tested with 2.13."
            )

        return missing


_peek_transform = private("_C._functorch.peek_interpreter_stack")
transform_level = private("_C._functorch.maybe_current_level")
_is_jit_tracing = private("jit.is_tracing")
set_multithreading = private("_C._set_multithreading_enabled")
is_any_autocast_enabled = private("_C._is_any_autocast_enabled")
_autocast_devices = private("_C._autocast_supported_devices")
push_saved_hooks = private("_C._autograd._push_saved_tensors_default_hooks")
pop_saved_hooks = private("_C._autograd._pop_saved_tensors_default_hooks")
disable_saved_hooks = private("_C._autograd._saved_tensors_hooks_disable")
enable_saved_hooks = private("_C._autograd._saved_tensors_hooks_enable")
disabled_saved_hooks = private("_C._autograd._saved_tensors_hooks_get_disabled_error_message")
top_saved_hooks: Callable[[bool], Any] | None = getattr(
    attrgetter("_C._autograd")(torch), "_top_saved_tensors_default_hooks", None
)
functions_length = private("_C._len_torch_function_stack")
function_at = private("_C._get_function_stack_at")
push_function = private("_C._push_on_torch_function_stack")
pop_function = private("_C._pop_torch_function_stack")
dispatches_length = private("_C._len_torch_dispatch_stack")
dispatch_at = private("_C._get_dispatch_stack_at")
push_dispatch = private("_C._push_on_torch_dispatch_stack")
pop_dispatch = partial(private("_C._pop_torch_dispatch_stack"), None)

default_device: Any = getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None)

_USUAL = ("cpu", "cuda")
# Switches of one thread. Those that this torch does not have cannot be set in the caller either.
SWITCHES: tuple[tuple[Callable[[], bool], Callable[[bool], Any]], ...] = tuple(
    (getattr(torch._C, getter), private(f"_C.{setter}"))
    for getter, setter in (
        ("is_grad_enabled", "_set_grad_enabled"),
        ("_is_fwd_grad_enabled", "_set_fwd_grad_enabled"),
        ("_is_view_replay_enabled", "_set_view_replay_enabled"),
        ("is_autocast_cache_enabled", "set_autocast_cache_enabled"),
        ("_is_grad_layout_enforcement_enabled", "_set_grad_layout_enforcement_enabled"),
        # part of FakeTensorMode: torch.tensor(..., device="cuda") without such a device
        ("_only_lift_cpu_tensors", "_set_only_lift_cpu_tensors"),
    )
    if hasattr(torch._C, getter)
)


class CallerState(NamedTuple):
    """What `capture` found in one thread, to be entered in fresh ones.

    Costs a few microseconds, because only what differs in the fresh thread is entered. Modes are
    the caller's own objects and are not entered a second time: a `FlopCounterMode` goes on
    counting, a `with torch.device(...)` stays the outermost.
    """

    switches: tuple[bool, ...]
    inference: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    saved_hooks: tuple[Callable[..., Any], Callable[..., Any]] | None
    cuda: tuple[int, tuple[Any, ...]] | None
    dispatches: tuple[Any, ...]
    functions: tuple[Any, ...]
    context: contextvars.Context

    @classmethod
    def capture(cls) -> CallerState:
        """Capture the calling thread's state.

        Raises:
            TraceError: This torch cannot say what the state is.
        """
        return cls(
            switches(),
            torch.is_inference_mode_enabled(),
            autocasts(),
            _saved_hooks(),
            cuda_place() if torch.cuda.is_initialized() else None,
            tuple(map(dispatch_at, range(dispatches_length()))),
            tuple(map(function_at, range(functions_length()))),
            contextvars.copy_context(),
        )

    @property
    def grad(self) -> bool:
        """Whether grad mode was on."""
        return self.switches[0]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Enter the state in the current thread, which must be a fresh one; leave it on exit.

        Backward passes started inside run in this thread, also those over CUDA tensors: a hook that
        pauses must not hold up the thread that autograd keeps for a device.
        """
        # A list of what to undo: ExitStack would take longer than all the rest
        undo: list[Callable[[], Any]] = []
        try:
            # Grad mode and the like come first: modes would see them being set
            if (self.switches, self.inference, self.autocast) != _of_fresh_threads():
                if self.inference:
                    guard = torch.inference_mode()
                    guard.__enter__()
                    undo.append(partial(guard.__exit__, None, None, None))
                enter_switches(undo, self.switches)
                _enter_autocast(undo, self.autocast)
            set_multithreading(False)
            undo.append(partial(set_multithreading, True))
            if self.saved_hooks is not None:
                push_saved_hooks(*self.saved_hooks)
                undo.append(pop_saved_hooks)
            if self.cuda is not None:
                enter_cuda(undo, *self.cuda)
            undo.append(partial(pop_all, dispatches_length, pop_dispatch))
            for mode in self.dispatches:
                push_dispatch(mode)
            undo.append(partial(pop_all, functions_length, pop_function))
            for mode in self.functions:
                push_function(mode)
            yield
        finally:
            while undo:
                undo.pop()()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function(*args)` in this state and in a copy of the caller's context variables.

        Args:
            function: What to call, in a fresh thread.
            *args: Its arguments.

        Returns:
            What `function` returns.
        """
        return self.context.copy().run(self._call, function, args)

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        with self.entered():
            return function(*args)


def inside_transform() -> bool:
    """Whether a torch.func transform is active in this thread."""
    return _peek_transform() is not None


def refuse_transforms() -> None:
    """Refuse to run a model in another thread where that would be wrong without an error.

    Raises:
        TraceError: The calling thread is inside a torch.func transform (in another thread the
            gradient would silently be 0), or inside torch.jit.trace or torch.export.
    """
    transform = _peek_transform()
    if transform is not None:
        name = f"torch.func.{transform.key().name.lower()}"
        consequence = "the derivatives would silently be 0"
    elif _is_jit_tracing():
        name, consequence = "torch.jit.trace", "nothing of it would be recorded"
    elif torch.compiler.is_compiling():
        name, consequence = "torch.compile or torch.export", "nothing of it would be recorded"
    else:
        return
    raise TraceError(
        f"a trace inside {name}: the model would run in a thread of its own, which {name} does "
        f"not reach, and {consequence}.\nLeave worker='thread' out, or open the trace outside of "
        f"{name}."
    )


def condition() -> tuple[Any, ...]:
    """What of the calling thread's torch state a model may leave changed, to be compared."""
    return (
        switches(),
        torch.is_inference_mode_enabled(),
        autocasts(),
        functions_length(),
        dispatches_length(),
        disabled_saved_hooks(),
        None if top_saved_hooks is None else top_saved_hooks(True),
        # torch.set_default_device keeps its mode here as well
        getattr(default_device, "device_context", None),
    )


def switches() -> tuple[bool, ...]:
    """What `SWITCHES` are now."""
    return tuple([getter() for getter, _ in SWITCHES])


def enter_switches(undo: list[Callable[[], Any]], values: Sequence[bool]) -> None:
    """Make the switches what `switches` said; add what undoes it to `undo`."""
    for (getter, setter), value in zip(SWITCHES, values, strict=True):
        before = getter()
        if before != value:
            setter(value)
            undo.append(partial(setter, before))


def autocasts() -> tuple[tuple[str, bool, torch.dtype], ...]:
    """Autocast of each device type; the dtype counts also where it is off, for a model's own."""
    if not is_any_autocast_enabled():
        return tuple([(device, False, torch.get_autocast_dtype(device)) for device in _USUAL])
    return tuple(
        [
            (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in _autocast_devices()
        ]
    )


def _enter_autocast(
    undo: list[Callable[[], Any]], autocast: tuple[tuple[str, bool, torch.dtype], ...]
) -> None:
    nested = False
    for device, enabled, dtype in autocast:
        before = torch.get_autocast_dtype(device)
        if before != dtype:
            torch.set_autocast_dtype(device, dtype)
            undo.append(partial(torch.set_autocast_dtype, device, before))
        if enabled:
            torch.set_autocast_enabled(device, True)
            undo.append(partial(torch.set_autocast_enabled, device, False))
            nested = True
    if nested:
        # One level down, or the model's own autocast would empty the cache each time it ends
        torch.autocast_increment_nesting()
        undo.append(_leave_autocast)


def _leave_autocast() -> None:
    if torch.autocast_decrement_nesting() == 0:
        torch.clear_autocast_cache()


def _saved_hooks() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """The hooks in force (pack, unpack), or None; only the innermost pair ever is."""
    if top_saved_hooks is not None:
        return top_saved_hooks(True)
    # Before torch 2.8 they cannot be read. Disabling fails where there are any.
    if disabled_saved_hooks() is not None:
        return None
    try:
        disable_saved_hooks("headwater looks whether there are any")
    except RuntimeError:
        raise TraceError(
            "saved-tensor hooks are in force (save_on_cpu, saved_tensors_hooks), and torch "
            f"{torch.__version__} has no torch._C._autograd._top_saved_tensors_default_hooks to "
            "hand them to the thread that runs the model.\nInstall torch 2.8 or newer, or leave "
            'worker="thread" out.'
        ) from None
    finally:
        enable_saved_hooks()
    return None


def cuda_place() -> tuple[int, tuple[Any, ...]]:
    """The current device, and the current stream of every device."""
    streams = [torch.cuda.current_stream(device) for device in range(torch.cuda.device_count())]
    return torch.cuda.current_device(), tuple(streams)


def enter_cuda(undo: list[Callable[[], Any]], device: int, streams: tuple[Any, ...]) -> None:
    """Make what `cuda_place` said current; add what undoes it to `undo`."""
    # Setting a stream also sets its device, so the device comes last, here and on the way out
    undo.append(partial(torch.cuda.set_device, torch.cuda.current_device()))
    for place, stream in enumerate(streams):
        before = torch.cuda.current_stream(place)
        if before != stream:
            torch.cuda.set_stream(stream)
            undo.append(partial(torch.cuda.set_stream, before))
    torch.cuda.set_device(device)


def pop_all(length: Callable[[], int], pop: Callable[[], Any]) -> None:
    """Pop every mode, also what the model left behind, by torch.set_default_device say."""
    while length():
        pop()


@cache
def _of_fresh_threads() -> tuple[Any, ...]:
    """What a thread starts with, asked of one rather than written down for each torch."""
    found: list[Any] = []

    def look() -> None:
        found.extend((switches(), torch.is_inference_mode_enabled(), autocasts()))

    thread = Thread(target=look, name="headwater-trace")
    thread.start()
    thread.join()
    return tuple(found)
