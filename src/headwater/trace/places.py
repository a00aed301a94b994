"""One module as one run sees it: how often it was called, and what is wanted of it.

The model's side of a trace is here: every call of a watched module goes through `Place.dispatch`,
so it does next to nothing for a module of which nothing is wanted.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from headwater.trace.context import inside_transform
from headwater.trace.dispatch import ABSENT, Watch, as_ever
from headwater.trace.handed import Where


@runtime_checkable
class Watching(Protocol):
    """The run, as far as a call of a module needs it."""

    turn: greenlet | None
    """Where the model runs, while it has the turn."""
    clock: int
    leaves: frozenset[nn.Module]
    skips: dict[tuple[nn.Module, int], Any]
    skipped: frozenset[nn.Module]
    edited: frozenset[nn.Module]
    wanted: dict[Where, Any]
    keeping: dict[tuple[nn.Module, str], str]

    def refuse_to_go_on(self) -> None:
        """End a model whose run is to end."""
        ...

    def wants(self, where: Where) -> bool:
        """Whether somebody waits for this value, or it is to be kept."""
        ...

    def arrive(self, where: Where, value: Any) -> Any:
        """Hand a value over; return what flows on."""


class Place(Watch):
    """One module in one run.

    Args:
        module: The module.
        forward: The run.
        clear: Whether its first call is the one meant unless another one is named: it was not
            called unseen, stands in one place, and all above and beside it are watched.
    """

    # slots, and few: there is one for every child of every module above what is asked for
    __slots__ = (
        "begun",
        "clear",
        "done",
        "forward",
        "input_wanted",
        "last",
        "live",
        "output_wanted",
    )

    def __init__(self, module: nn.Module, forward: Watching, *, clear: bool = False) -> None:
        self.module = module  # as in Watch, without the call
        self.before = ABSENT
        self.forward = forward
        self.clear = clear
        self.input_wanted = False
        """Whether an input of it was ever wanted or kept in this run."""
        self.output_wanted = False
        self.begun = 0
        self.done = 0
        self.last: int | None = None
        """The moment after its last call ended."""
        self.live: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        """The arguments of the call under way."""

    @property
    def edited(self) -> bool:
        """Whether the run has changed a value of this module."""
        return self.module in self.forward.edited

    def watch_for(self, side: str) -> None:
        """Look from now on whether somebody waits for what the module gets, or for its output."""
        if side == "output":
            self.output_wanted = True
        else:
            self.input_wanted = True

    def is_due(self) -> bool:
        """Whether a call here and now is one of the run's model."""
        return self.forward.turn is getcurrent()

    def dispatch(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the module; hand over what somebody waits for.

        Args:
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What the caller of the module gets.

        Raises:
            Abandoned: If the run is to end.
        """
        forward = self.forward
        # not by the thread: the model's own hooks may trace it again, in the same one
        if forward.turn is not getcurrent():
            forward.refuse_to_go_on()
            return as_ever(self, args, kwargs)
        self.begun = number = self.begun + 1
        self.live = args, kwargs
        if self.input_wanted:
            where = (self.module, "input", number)
            if where in forward.wanted or (forward.keeping and forward.wants(where)):
                self.live = args, kwargs = forward.arrive(where, (args, kwargs))
        if forward.skips and (self.module, number) in forward.skips:
            output = forward.skips.pop((self.module, number))
            forward.skipped |= {self.module}
        else:
            output = self.module._call_impl(*args, **kwargs)
        if forward.leaves and self.module in forward.leaves:
            output = _leaf(output)
        self.live = None
        self.done += 1
        self.last = forward.clock + 1
        if self.output_wanted:
            where = (self.module, "output", number)
            if where in forward.wanted or (forward.keeping and forward.wants(where)):
                return forward.arrive(where, output)
        return output


def embeddings(module: nn.Module) -> frozenset[nn.Module]:
    """Where gradients can begin: the input embeddings of a model, of an encoder and of a decoder.

    Args:
        module: The whole model.

    Returns:
        The modules; none if the model does not name them.
    """
    found = {_asked(module, "get_input_embeddings")}
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        # the encoder's and the decoder's may be modules of their own that share a weight
        for part in (_asked(module, "get_encoder"), _asked(module, "get_decoder")):
            found.add(None if part is None else _asked(part, "get_input_embeddings"))
    return frozenset(one for one in found if one is not None)


def _asked(module: nn.Module, name: str) -> nn.Module | None:
    find = getattr(module, name, None)
    if find is None:
        return None
    with suppress(NotImplementedError, AttributeError):
        return find()
    return None


def _leaf(output: Any) -> Any:
    """Have gradients begin at an embedding's output when the weights ask for none."""
    if not isinstance(output, Tensor) or output.requires_grad or not torch.is_grad_enabled():
        return output
    if output.is_inference() or not output.is_floating_point():
        return output
    if inside_transform():
        return output  # torch.func has gradients of its own
    # the leaf itself may not be written to; the model and the user may write to its copy
    return output.detach().requires_grad_().clone()
