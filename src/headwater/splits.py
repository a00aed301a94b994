"""A tensor that a mixer splits between two of its steps, where no module is called and hooks reach.

Mamba-2 convolves x, B and C together, splits them, and hands them to its scan, all in one function.
The split is a torch call with sizes that no other call of the mixer has, so it can be seen there.
Costs about a microsecond for each torch call of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, no_type_check

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Replace = Callable[[Tensor], Tensor]
"""Gets the tensor that is about to be split; returns the one that is split instead."""

_SPLITS = {torch.split, Tensor.split, torch.split_with_sizes, Tensor.split_with_sizes}


class SplitTaps(TorchFunctionMode):
    """Shows the tensors that are split while a module is under way, and replaces them.

    Entered around a run; `begin` and `end` say which module is under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self._awaited: tuple[tuple[int, ...], Replace] | None = None

    def begin(self, parts: tuple[int, ...], replace: Replace) -> None:
        """Await one split of the last axis into parts of these sizes.

        Args:
            parts: The sizes.
            replace: What to call with the tensor.
        """
        self._awaited = parts, replace

    def end(self) -> None:
        """Await nothing any more."""
        self._awaited = None

    @no_type_check  # runs at every torch call: checking shapes here would double each test
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._awaited is None or func not in _SPLITS or len(args) < 2:
            return func(*args, **kwargs)
        parts, replace = self._awaited
        value, sizes = args[0], args[1]
        if not isinstance(sizes, (list, tuple)) or tuple(sizes) != parts:
            return func(*args, **kwargs)
        self._awaited = None
        return func(replace(value), *args[1:], **kwargs)
