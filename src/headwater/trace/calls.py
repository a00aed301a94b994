"""The calls of a module that runs several times: shared layers, the steps of a generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from headwater.errors import NeverRanError
from headwater.trace.submodules import Submodule

if TYPE_CHECKING:
    from headwater.trace.handed import Where
    from headwater.trace.run import Run


class Call(Submodule):
    """One call of a module; `index` counts from 0."""

    __slots__ = ()

    @property
    def index(self) -> int:
        """The number of the call, from 0."""
        return (self._call or 1) - 1

    def __repr__(self) -> str:
        return f"<call {self.index} of {self._name()}>"


class Calls:
    """All calls of one module in a run.

    Args:
        run: The run.
        module: The module.
    """

    def __init__(self, run: Run, module: Submodule) -> None:
        self._run = run
        self._module = module
        if run._state is not None:  # calls have numbers from the first one on
            run._forward(None, f"run.calls({module._name()})").look_at(module.module, module.path)

    def __iter__(self) -> Iterator[Call]:
        """Go to each call that has not begun; ends when the model makes no more."""
        run, proxy = self._run, self._module
        forward = run._forward(None, f"run.calls({proxy._name()})")
        window, number = forward.window(proxy.module, proxy.path)
        end = self._end_of_outer_call()
        run._windows.append(window)
        try:
            while True:
                number += 1
                where = (proxy.module, "input", number)
                if where not in forward.values:
                    if forward.ended or (end is not None and forward.is_over(end)):
                        return
                    run._settle(forward)
                    run._wait(forward, where, end)
                if where not in forward.values:
                    return
                forward.advance(window, proxy.module, number)
                yield self._at(number)
        finally:
            run._windows.remove(window)

    def _end_of_outer_call(self) -> Where | None:
        """Where the call of the loop around this one ends, if the module is inside that one's."""
        module = self._module.module
        for outer in reversed(self._run._windows):
            if module in outer.members and module is not outer.module:
                return (outer.module, "output", outer.number)
        return None

    def __getitem__(self, index: int) -> Call:
        """The call number `index`, from 0; its values are read like those of a module."""
        if not isinstance(index, int) or index < 0:
            raise NeverRanError(
                f"calls have numbers from 0, and {index!r} is none: how many there will be is not "
                "known before the model is through."
            )
        return self._at(index + 1)

    def __repr__(self) -> str:
        return f"<calls of {self._module._name()}>"

    def _at(self, number: int) -> Call:
        proxy: Any = self._module
        return Call(proxy._model, proxy.module, proxy.path, self._run, number)
