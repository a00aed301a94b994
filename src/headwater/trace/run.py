"""A run as the user's code sees it: values by module, by index, by path and by site.

The user's code has the turn while the model is paused. Asking for a value gives the turn to the
model until it gets there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import get_ident
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from headwater.errors import (
    LateWriteError,
    OutOfOrderError,
    OutsideTraceError,
    TraceError,
    UnknownModuleError,
    UnknownNameError,
)
from headwater.sites import Site
from headwater.trace.forward import Forward, Window
from headwater.trace.frames import user_frame
from headwater.trace.handed import Entry, Outputs, Where, share_memory, tensors_in
from headwater.trace.names import typed
from headwater.trace.submodules import Submodule, at_path, refuse_elsewhere

if TYPE_CHECKING:
    from headwater.models import Model
    from headwater.trace.calls import Calls


class Run:
    """One open run. Its own names win over modules of the model of the same name.

    `run.model.layers[1].output` reads by attribute, `run["model.layers.1"].output` by path and
    `run["layers.1.resid_post"]` by site; each of the three can be assigned.

    Args:
        model: The model that runs.
        forward: The run, from the model's side.
        more: Attributes of a kind of run.
    """

    _model: Model
    _windows: list[Window]
    _retained: list[tuple[Tensor, Tensor]]
    _state: Forward | None
    _ident: int | None
    _kept: Mapping[Where, Any] = MappingProxyType({})
    _failed: AttributeError | None = None
    _shape: tuple[int, ...] = ()
    _threaded = False

    def __init__(self, model: Model, forward: Forward | None, **more: Any) -> None:
        # one update: every plain assignment would go through __setattr__
        self.__dict__.update(
            more, _model=model, _state=forward, _ident=None, _windows=[], _retained=[]
        )

    # ---- what users call ----------------------------------------------------------------------

    @property
    def output(self) -> Any:
        """The model's output; assign to replace it."""
        return self._root().output

    @output.setter
    def output(self, value: Any) -> None:
        self._root().output = value

    @property
    def input(self) -> Any:
        """The model's first argument."""
        return self._root().input

    @input.setter
    def input(self, value: Any) -> None:
        self._root().input = value

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The model's positional and keyword arguments."""
        return self._root().inputs

    @inputs.setter
    def inputs(self, value: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        self._root().inputs = value

    def calls(self, module: Submodule | str) -> Calls:
        """The calls of a module that is called several times in a run.

        Args:
            module: The module, or its path.

        Returns:
            Iterable: in the loop, `.output` of the module and of those inside it means that call.
            With an index, `run.calls(module)[2].output` is the third call.
        """
        from headwater.trace.calls import Calls

        found = self._submodule(module)
        return Calls(self, found)

    def steps(self) -> Calls:
        """The calls of the whole model: the steps of a generation.

        Returns:
            Iterable; the code behind the loop runs when there are no more.
        """
        return self.calls("")

    def stop(self) -> None:
        """End the model here; what it has not computed stays uncomputed."""
        raise NotImplementedError

    def keep(self, what: str | Submodule | Site | Iterable[str | Submodule | Site]) -> None:
        """Keep outputs for as long as the run is alive, to be read late and in any order.

        Args:
            what: `"all"` outputs of all modules, or a list of modules, paths and sites.

        Raises:
            OutOfOrderError: If the model has passed one of them.
            UnknownModuleError: If there is no such module.
        """
        forward = self._forward(None, "run.keep")
        if isinstance(what, str) and what == "all":
            forward.look_at_all()
            for path, module in self._model.module.named_modules():
                forward.keep(module, "output", f"{typed(path)}.output")
            return
        if not isinstance(what, (str, Submodule, Site, Iterable)):
            raise TraceError(
                f'run.keep({what!r}): give "all", or a list of modules, paths and sites.'
            )
        for one in [what] if isinstance(what, (str, Submodule, Site)) else what:
            if isinstance(one, Site) or (isinstance(one, str) and self._is_site(one)):
                from headwater.trace.sites import place

                module, path, side = place(self, str(one))
            else:
                found = self._submodule(one)
                module, path, side = found.module, found.path, "output"
            if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                raise TraceError(
                    f"{typed(path)} is a list of modules and is never called: keep its members, "
                    f"run.keep([*{typed(path)}])."
                )
            if forward.strict:
                raise OutOfOrderError(
                    'run.keep serves values late, which order="strict" refuses: leave one out.'
                )
            where = forward.find(module, path, side, self._windows, None)
            if where not in forward.values:
                forward.refuse_passed(where, path, side)
            forward.keep(module, side, f"{typed(path)}.{side}")

    @property
    def result(self) -> Any:
        """What the model returned: runs it to its end. Generated ids for `model.generate`."""
        raise NotImplementedError

    def save(self) -> Run:
        """Return the run: nothing needs saving."""
        return self

    def __getitem__(self, key: str) -> Any:
        """A value by site (`layers.1.resid_post`) or a module by path (`model.layers.1`)."""
        if not isinstance(key, (str, Site)):
            raise UnknownNameError(f"run[{key!r}]: give a module's path or a site as text.")
        if self._is_site(str(key)):
            from headwater.trace.sites import read

            return read(self, str(key))
        return at_path(self._root(), key)

    def __setitem__(self, key: str, value: Any) -> None:
        if self._is_site(str(key)):
            from headwater.trace.sites import write

            write(self, str(key), value)
            return
        at_path(self._root(), key)
        raise TraceError(f"assign run[{key!r}].output or .input, not the module itself.")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._reraise(name in ("output", "input", "inputs", "result"))
        return getattr(self._root(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or name in ("output", "input", "inputs"):
            object.__setattr__(self, name, value)
            return
        setattr(self._root(), name, value)

    def _reraise(self, own: bool) -> None:
        """Raise the model's AttributeError again, which Python takes for a missing property."""
        failed = self.__dict__.get("_failed")
        if own and failed is not None:
            try:
                raise failed
            finally:
                del failed  # or the error's frames and the error would hold each other

    # ---- what proxies call --------------------------------------------------------------------

    def _root(self) -> Submodule:
        return Submodule(self._model, self._model.module, "", self)

    def _submodule(self, module: Submodule | str) -> Submodule:
        if isinstance(module, str):
            return at_path(self._root(), module)
        if module is self._model:
            return self._root()
        if not isinstance(module, Submodule):
            raise UnknownModuleError(
                f"a {type(module).__name__} is no module of this model: write model.path.to.it "
                "or its path as text."
            )
        return module

    def _is_site(self, key: str) -> bool:
        return self._model.adapter is not None and Site.is_path(key)

    def _forward(self, path: str | None, what: str) -> Forward:
        """The run from the model's side; `path` and `what` name what is asked for."""
        forward = self._state
        if forward is None:
            name = what if path is None else f"{typed(path)}.{what}"
            raise OutsideTraceError(
                f"{name} is asked for outside of its run: it is over, or has not been entered.\n"
                "Read values inside: with model.trace(prompt) as run: ...; to have some afterwards "
                "write run.keep([...]) there."
            )
        if self._ident is not None and (self._ident != get_ident() or forward.turn is not None):
            refuse_elsewhere(inside=self._ident == get_ident())
        return forward

    def _notice_zero(self, path: str, value: Tensor) -> None:
        if value.ndim < 2 or value.is_nested or value.shape[0] < 2:
            return
        name = f"{typed(path)}.output"
        self._model._notice(
            name,
            f"{name} is a tensor, not a tuple: [0] is the first prompt of the batch. "
            f"Write {name} for all of them.",
            stacklevel=3,
        )

    def _read(self, proxy: Submodule, what: str) -> Any:
        value = self._value(proxy.module, proxy.path, "input", proxy._call, what)
        return value if what == "inputs" else first_of(*value, proxy.path)

    def _value(
        self, module: Any, path: str, side: str, call: int | None = None, what: str = ""
    ) -> Any:
        """The value at a place, after running the model up to it."""
        what = what or side
        own = self.__dict__  # several times as fast here as attributes: there is a __getattr__
        forward: Forward | None = own["_state"]
        if forward is None or forward.turn is not None or own["_ident"] != get_ident():
            if forward is None and (kept := self._kept.get((module, side, call or 1))) is not None:
                return kept
            forward = self._forward(path, what)
        place = forward.places.get(module)
        if place is not None and place.clear and call is None and not own["_windows"]:
            where = (module, side, 1)
        else:
            where = self._place(forward, module, path, side, call)
            place = forward.places[module]
        values = forward.values
        if where not in values:
            is_ahead = place.begun < where[2] and not forward.ended
            live = None if is_ahead else forward.find_passed(where, path, what)
            if live is None:
                if forward.handed.is_touched():
                    self._settle(forward)
                self._wait(forward, where)
                if where not in values:
                    forward.refuse_passed(where, path, what)
                    raise TraceError(forward.absent(where, path, what))
            elif forward.strict:
                raise OutOfOrderError(self._backwards(forward, path, what))
            else:
                values[where] = live
        elif forward.strict and where not in (forward.held, forward.latest):
            raise OutOfOrderError(self._backwards(forward, path, what))
        value = values[where]
        shown = value
        if what == "input":
            args, kwargs = value
            shown = first_of(args, kwargs, path)
        if isinstance(shown, Tensor):
            forward.handed.add_tensor(shown, (path, what), where)
        else:
            forward.handed.add(shown, (path, what), where)
        return value

    def _place(
        self, forward: Forward, module: Any, path: str, side: str, call: int | None
    ) -> Where:
        if call is not None and any(
            window.base.get(module) == call - 1 for window in self._windows
        ):
            forward.look_at(module, path)
            return (module, side, call)
        return forward.find(module, path, side, self._windows, call)

    def _write(self, proxy: Submodule, what: str, value: Any) -> None:
        side = "output" if what == "output" else "input"
        path = typed(proxy.path)
        forward = self._forward(proxy.path, what)
        where = self._place(forward, proxy.module, proxy.path, side, proxy._call)
        if type(value) is Outputs:
            value = tuple(value)
        if where not in forward.values:
            try:
                forward.refuse_passed(where, proxy.path, what)
            except OutOfOrderError:
                raise LateWriteError(self._late(forward, f"{path}.{what}")) from None
            self._value(proxy.module, proxy.path, side, proxy._call, what)
        if where != forward.held:
            raise LateWriteError(self._late(forward, f"{path}.{what}"))
        if what == "inputs":
            try:
                args, kwargs = value
                value = (tuple(args), dict(kwargs))
            except (TypeError, ValueError):
                raise TraceError(
                    f"{path}.inputs is a pair of arguments: assign ((first, second), {{}})."
                ) from None
        elif what == "input":
            self._compare(first_of(*forward.values[where], proxy.path), value, f"{path}.input")
            value = with_first(*forward.values[where], value, proxy.path)
        else:
            self._compare(forward.values[where], value, f"{path}.output")
        self._put(forward, where, value, f"{path}.{what}")

    def _compare(self, old: Any, new: Any, name: str) -> None:
        """Refuse a value of another kind; say once if torch would broadcast it without a word."""
        if isinstance(old, tuple) is not isinstance(new, tuple) and isinstance(
            old if isinstance(new, tuple) else new, Tensor
        ):
            raise TraceError(
                f"{name} is a tuple of {len(old)}, and a tensor was assigned.\n"
                f"Assign a tuple: {name} = (new, *{name}[1:])."
                if isinstance(old, tuple)
                else f"{name} is a tensor, and a tuple was assigned.\nAssign a tensor."
            )
        if not (isinstance(old, Tensor) and isinstance(new, Tensor)) or old.shape == new.shape:
            return
        if not expands_to(new.shape, old.shape):
            return  # if the model cannot use it, its error names the edit
        self._model._notice(
            f"shape of {name}",
            f"{name} has shape {tuple(old.shape)}, the tensor assigned {tuple(new.shape)}, "
            "which torch broadcasts: are these values meant for all prompts and positions?",
            stacklevel=5,
        )

    def _put(self, forward: Forward, where: Where, value: Any, name: str) -> None:
        self._settle_here()  # an edit of what is replaced was in time
        forward.values[where] = value
        forward.handed.add(value, name, where)
        forward.note_edit(where, f"an assignment to {name}{_line()}")

    def _skip(self, proxy: Submodule, value: Any) -> None:
        path = typed(proxy.path)
        forward = self._forward(proxy.path, "skip")
        module = proxy.module
        where = self._place(forward, module, proxy.path, "input", proxy._call)
        if where != forward.held and (
            forward.ended or forward.calls_begun(module) >= where[2] or where in forward.values
        ):
            raise LateWriteError(
                f"{path}.skip comes too late: the call has begun to run.\n"
                "Skip a module before the model reaches it, or while it waits at its input."
            )
        forward.skips[module, where[2]] = tuple(value) if type(value) is Outputs else value
        forward.note_edit(where, f"{path}.skip{_line()}")

    # ---- turns ----------------------------------------------------------------------------------

    def _close(self) -> None:
        """End the run where it is."""

    def _wait(self, forward: Forward, where: Where | None, end: Where | None = None) -> None:
        """Give the turn to the model until it is at `where`, or at `end` before, or through."""
        raise NotImplementedError

    def _arrange(self, errand: Callable[[], Any]) -> None:
        """Have something done to the model's configuration, undone when the run closes."""
        errand()

    def _settle(self, forward: Forward) -> None:
        """See what the body has edited in place while it had the turn."""
        handed = forward.handed
        if not handed.is_touched():
            return
        rebound = handed.rebound(forward.held)
        if rebound is not None:
            raise LateWriteError(self._late(forward, rebound, how="was given another tensor"))
        edited = handed.edited()
        if not edited:
            return
        held = forward.values.get(forward.held) if forward.held is not None else None
        current = [tensor for _, tensor in tensors_in(held)]
        for entry in edited:
            tensor = entry.reference()
            if tensor is None:
                continue
            if any(share_memory(tensor, one) for one in current) and forward.held is not None:
                forward.note_edit(forward.held, f"an edit in place of {entry.name}")
                continue
            raise LateWriteError(self._late(forward, entry.name, how="was edited in place"))

    def _settle_here(self) -> None:
        """The same where the body keeps the turn: a value edited by now is another one."""
        if self._state is not None:
            self._settle(self._state)

    def _tell_of(self, changed: list[Entry]) -> None:
        """The body has the turn again; say once if the model wrote into what it holds."""
        for entry in changed:
            self._model._notice(
                f"change of {entry.name}",
                f"the model itself has changed {entry.name} in place after handing it out: the "
                f"tensor now holds what came later. To keep it write {entry.name}.clone().",
                stacklevel=5,
            )

    def _late(self, forward: Forward, name: str, *, how: str = "is assigned") -> str:
        return (
            f"{name} {how} too late: the model has used it already and is at "
            f"{forward.position()}, so the edit would change nothing.\n"
            f"Edit {name} before reading what comes later in the model"
            + ("; to work on a copy, write .clone() first." if "in place" in how else ".")
        )

    def _backwards(self, forward: Forward, path: str, what: str) -> str:
        return (
            f'{typed(path)}.{what} is read out of order (order="strict"): the model is at '
            f"{forward.position()}.\nRead values in the order in which the model computes them, or "
            'use order="any", which serves values handed out or kept.'
        )

    def _entries(self) -> list[tuple[Entry, Tensor]]:
        """The tensors handed out in this run that still exist."""
        return [] if self._state is None else self._state.handed.alive()


def first_of(args: tuple[Any, ...], kwargs: dict[str, Any], path: str) -> Any:
    """The first argument of a call.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        path: The module's path.

    Returns:
        The first positional argument, else the first keyword argument.

    Raises:
        TraceError: If the module was called without arguments.
    """
    if args:
        return args[0]
    for value in kwargs.values():
        return value
    raise TraceError(f"{typed(path)} was called without arguments, so it has no input.")


def expands_to(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether torch broadcasts a shape to another one.

    Args:
        shape: The smaller one.
        to: The larger one.

    Returns:
        Whether it does.
    """
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(one in (1, other) for one, other in pairs)


def with_first(
    args: tuple[Any, ...], kwargs: dict[str, Any], value: Any, path: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with another first one.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        value: The new first argument.
        path: The module's path.

    Returns:
        Both.

    Raises:
        TraceError: If the module was called without arguments.
    """
    first_of(args, kwargs, path)
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): value}


def _line() -> str:
    """Where the user's code is, for the note about the last edit."""
    frame = user_frame()
    return f" ({frame.f_code.co_filename}:{frame.f_lineno})"
