"""A module of a model, as a trace sees it: where its output and input are read and written.

`output`, `input`, `inputs`, `skip`, `path` and `module` are the proxy's own; a submodule of one of
these names is reached by its path, `run["bert.encoder.layer.0.output"]`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from headwater.errors import (
    AmbiguousTraceError,
    OutsideTraceError,
    TraceError,
    UnknownModuleError,
    did_you_mean,
)
from headwater.trace.frames import user_frame
from headwater.trace.handed import Outputs
from headwater.trace.names import typed
from headwater.trace.opcodes import subscripts_zero
from headwater.trace.registry import run_here, runs_here

if TYPE_CHECKING:
    from headwater.models import Model
    from headwater.trace.run import Run

OWN = ("output", "input", "inputs", "skip", "path", "module")
"""Names of the proxy itself; they win over submodules of the same name."""


_ELSEWHERE = {
    "iter": "for step in run.steps()",
    "all": "for step in run.steps()",
    "next": "for call in run.calls(module)",
    "invoke": "model.run(inputs, body_a, body_b), or one batch and its rows,",
    "cache": 'run.keep("all")',
    "scan": "a plain trace: values have their shapes",
    "session": "several traces one after the other",
    "source": "run[site], for example run['layers.0.attn.pattern'],",
}


class Submodule:
    """A module at a path; its values belong to the run it is bound to, or to the one open here.

    Args:
        model: The model.
        module: The module.
        path: Its path in the model; empty for the model itself.
        run: The run it is bound to; None for the one open in the calling thread.
        call: The number of the call from 1 it is bound to; None for the first one.
    """

    __slots__ = ("_call", "_model", "_run", "module", "path")

    def __init__(
        self,
        model: Model,
        module: nn.Module,
        path: str,
        run: Run | None = None,
        call: int | None = None,
    ) -> None:
        _set_model(self, model)  # __setattr__ is for submodules
        _set_module(self, module)
        _set_path(self, path)
        _set_run(self, run)
        _set_call(self, call)

    @property
    def output(self) -> Any:
        """What the module returned, the very object: edits in place land.

        Outside loops over calls it is the module's first call. Assign to replace it.

        Raises:
            OutsideTraceError: If no run of this model is open here.
            OutOfOrderError: If the model has passed it and it was not kept.
            NeverRanError: If the module is not called in this run.
        """
        path, run = self.path, self._run
        if run is None:
            run = run_here(self._model) or open_run(self._model, path)
        value = run._value(self.module, path, "output", self._call)
        if type(value) is tuple:
            return Outputs(value)
        # blocks in a list used to return tuples: is the first item wanted, or the first prompt?
        if path[-1:].isdigit() and isinstance(value, Tensor):
            frame = sys._getframe(1)
            if frame.f_code.co_filename.startswith("<@beartype"):  # as while our tests run
                frame = user_frame()
            if subscripts_zero(frame):
                run._notice_zero(path, value)
        return value

    @output.setter
    def output(self, value: Any) -> None:
        self._bound()._write(self, "output", value)

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments of the call; assign a pair to replace them."""
        return self._bound()._read(self, "inputs")

    @inputs.setter
    def inputs(self, value: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        self._bound()._write(self, "inputs", value)

    @property
    def input(self) -> Any:
        """The first argument of the call; assign to change what this module alone gets.

        The tensor itself is handed out: an edit in place also changes it for everything else that
        reads it, for example the skip connection.
        """
        return self._bound()._read(self, "input")

    @input.setter
    def input(self, value: Any) -> None:
        self._bound()._write(self, "input", value)

    def skip(self, value: Any) -> None:
        """Leave the module out in this call: it returns `value` and does not run.

        Args:
            value: What its caller gets.

        Raises:
            LateWriteError: If the call has begun to run.
        """
        self._bound()._skip(self, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the module to values of yours; no run sees this call."""
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        reraise_in(self._model, name, self._run)
        return attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("output", "input", "inputs"):
            object.__setattr__(self, name, value)
            return
        if self.module._modules.get(name) is not None:
            raise UnknownModuleError(
                f"{self._name()}.{name} is a module: assign {self._name()}.{name}.output, or leave "
                f"it out with {self._name()}.{name}.skip(value)."
            )
        raise UnknownModuleError(
            f"cannot assign {self._name()}.{name}.{did_you_mean(name, ('output', 'input'))}\n"
            "Assign .output, .input or .inputs; for an attribute of the module write "
            f"model.module.get_submodule({self.path!r}).{name} = ..."
        )

    def __getitem__(self, key: int | slice | str) -> Any:
        children = self.module._modules
        if isinstance(key, slice):
            names = list(children)[key]
            return [self._child(name) for name in names]
        if isinstance(key, str):
            if children.get(key) is None:
                raise UnknownModuleError(
                    f"{self._name()} has no module {key!r}.{did_you_mean(key, children)}"
                )
            return self._child(key)
        if not children or not isinstance(self.module, (nn.ModuleList, nn.Sequential)):
            raise UnknownModuleError(
                f"{self._name()} is a {type(self.module).__name__}, not a list of modules.\n"
                f"Did you mean {self._name()}.output[{key!r}]?"
            )
        if not -len(children) <= key < len(children):
            raise UnknownModuleError(
                f"{self._name()}[{key}] is out of range: it has {len(children)} modules, "
                f"0 to {len(children) - 1}."
            )
        return self._child(list(children)[key])

    def __len__(self) -> int:
        return len(self.module._modules)

    def __iter__(self) -> Iterator[Submodule]:
        return iter([self._child(name) for name in self.module._modules])

    def __contains__(self, name: object) -> bool:
        return name in self.module._modules

    def __bool__(self) -> bool:
        return True

    def __dir__(self) -> list[str]:
        return sorted({*OWN, *self.module._modules, *dir(self.module)})

    def __repr__(self) -> str:
        kind = type(self.module).__name__
        return f"<{self._name()}: {kind} with {', '.join(self.module._modules) or 'no modules'}>"

    def _name(self) -> str:
        return typed(self.path)

    def _child(self, name: str) -> Submodule:
        module: Any = self.module._modules[name]
        path = f"{self.path}.{name}" if self.path else name
        return Submodule(self._model, module, path, self._run)

    def _bound(self) -> Run:
        return self._run if self._run is not None else open_run(self._model, self.path)


_set_model, _set_module, _set_path, _set_run, _set_call = (
    vars(Submodule)[name].__set__ for name in ("_model", "module", "path", "_run", "_call")
)


def open_run(model: Model, path: str) -> Run:
    """The one run of `model` that is open in this thread.

    Args:
        model: The model.
        path: What is asked for, for the error.

    Returns:
        The run.

    Raises:
        OutsideTraceError: If there is none.
        AmbiguousTraceError: If there are two.
    """
    found = None
    for run in runs_here():
        if run._model.module is model.module:
            if found is not None:
                raise _two_are_open(path)
            found = run
    if found is not None:
        return found
    raise OutsideTraceError(
        f"{typed(path)}: no trace of this model is open in this thread, so it has no output or "
        "input.\nRead them inside: with model.trace(prompt) as run: ..."
    )


def _two_are_open(path: str) -> AmbiguousTraceError:
    name = typed(path)
    tail = name.removeprefix("model")
    return AmbiguousTraceError(
        f"several traces of this model are open, so {name} does not say in which.\n"
        "Name it: with model.trace(a) as run_a, model.trace(b) as run_b: "
        f"run_a{tail}.output, run_b{tail}.output"
    )


def reraise_in(model: Model, name: str, run: Run | None = None) -> None:
    """Raise a model's AttributeError again: Python takes one in a property for its absence.

    Args:
        model: The model.
        name: What Python says is missing.
        run: The run; None for the one open here.

    Raises:
        AttributeError: The model's own.
    """
    if name in ("output", "input", "inputs"):
        for one in [run] if run is not None else runs_here():
            if one._model.module is model.module:
                one._reraise(True)


def attribute(proxy: Submodule, name: str) -> Any:
    """Look up a child module, or any other attribute of the module itself.

    Args:
        proxy: The proxy.
        name: The attribute.

    Returns:
        A proxy for a module, or the attribute.

    Raises:
        UnknownModuleError: If there is neither.
    """
    module = proxy.module
    if module._modules.get(name) is not None:
        return proxy._child(name)
    if isinstance(module, nn.ModuleDict) and name in ("items", "values"):
        children = {key: proxy._child(key) for key in module._modules}
        return getattr(children, name)
    try:
        return getattr(module, name)
    except AttributeError as error:
        if name.startswith("__"):
            raise
        known = [*module._modules, "output", "input", "inputs", "skip"]
        hint = did_you_mean(name, known) or f" It has: {', '.join(module._modules) or 'none'}."
        if name in _ELSEWHERE:
            hint = f"\nNNsight's {name} is {_ELSEWHERE[name]} here."
        raise UnknownModuleError(
            f"{proxy._name()} ({type(module).__name__}) has no module {name!r}.{hint}"
        ) from error


def at_path(proxy: Submodule, path: str) -> Submodule:
    """Follow a dotted path such as `model.layers.1.mlp`.

    Args:
        proxy: The proxy of the whole model.
        path: Names and numbers.

    Returns:
        The proxy at the path.

    Raises:
        UnknownModuleError: If there is no such module; the closest are offered.
    """
    here = proxy
    for name in path.split(".") if path else []:
        if here.module._modules.get(name) is None:
            known = [name for name, _ in proxy.module.named_modules() if name]
            adapter = proxy._model.adapter
            if adapter is not None:
                known += [str(site) for site in adapter.sites()]
            raise UnknownModuleError(
                f"no module or site {path!r}: {here._name()} has no {name!r}."
                f"{did_you_mean(path, known)}"
            )
        here = here._child(name)
    return here


def refuse_elsewhere(*, inside: bool) -> None:
    """Refuse to use a run from a thread that did not open it, or from inside its own model.

    Args:
        inside: Whether it is used by code that the model calls.

    Raises:
        TraceError: Always.
    """
    if inside:
        raise TraceError(
            "this run is used by code that its own model calls, a hook for example, while the "
            "model runs.\nUse it in the body of the trace, where the model waits."
        )
    raise TraceError(
        "this run was opened in another thread. Each thread opens its own trace: "
        "with model.trace(prompt) as run: ..."
    )
