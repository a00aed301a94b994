"""What a reference is, and the two that need no sample of prompts: zero and the corrupted run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from headwater.architectures.adapter import Adapter
from headwater.coding import Place, keepers
from headwater.errors import MissingFieldError
from headwater.models import Model
from headwater.prompts import Batch, Task

Values = Mapping[Place, Tensor]
"""Value at each place, broadcastable to the canonical shape a tap sees, or to a coded site's."""


@dataclass(frozen=True)
class OffValues:
    """The off values of one batch, and the logits of the run they came from, if any."""

    values: Values
    logits: Tensor | None = None
    forwards: int = 0
    """Prompts run to get them."""


class Off(ABC):
    """A reference made ready for one model, task and set of sites."""

    prepared: int = 0
    """Prompts run to make it ready."""
    draws: int = 1
    """How many off values each pair has; numbers are averaged over them."""

    @abstractmethod
    def __call__(self, batch: Batch, draw: int = 0) -> OffValues:
        """Return the off values at every gated site for the rows of `batch`."""


@torch.no_grad()
def capture(
    model: Model, ids: Tensor, batch: Batch, places: Iterable[Place]
) -> tuple[dict[Place, Tensor], Tensor]:
    """Run prompts once and keep the values at `places`.

    Returns:
        The values, in each site's canonical shape (of coded sites features and error), and the
        logits the metric reads.
    """
    kept: dict[Place, Tensor] = {}
    logits = model.forward(
        ids,
        mask=batch.mask,
        position_ids=batch.position_ids,
        taps=keepers(kept, places),
        read=batch.read,
    )
    return kept, logits


@dataclass(frozen=True)
class Reference(ABC):
    """What a component is set to when its gate closes."""

    name: ClassVar[str]
    """The command line's word."""
    corrupted_run: ClassVar[bool] = False
    """Whether closing a gate puts the value of the pair's own corrupted prompt there."""
    aligned: ClassVar[bool] = False
    """Whether each pair's two prompts must have the same length."""

    @abstractmethod
    def prepare(
        self, model: Model, task: Task, batches: Sequence[Batch], places: Sequence[Place]
    ) -> Off:
        """Return the off values as a function of a batch."""

    def doubt(self, adapter: Adapter) -> str:
        """Return why slopes say little about effects with this reference; mostly nothing."""
        return ""

    def to_dict(self) -> dict[str, object]:
        """Return name and fields as plain data, for manifests."""
        return {"name": self.name}

    def keeping(self, off: Off) -> Reference:
        """Return this reference with what was measured once and for all; itself by default.

        An audit uses what is returned, so that its off values are those of the estimate.

        Args:
            off: What `prepare` returned.
        """
        return self

    def anew(self) -> Reference:
        """Return this reference without anything it kept from another model; itself by default."""
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Return what it kept, to be saved with the scores; nothing by default."""
        return {}


@dataclass(frozen=True)
class Zero(Reference):
    """Set a closed component to zero.

    In a pre-norm model the residual's scale then changes too; gradients are poor estimates there.
    """

    name: ClassVar[str] = "zero"

    def doubt(self, adapter: Adapter) -> str:
        """Return that the norm's scale changes with what is set to zero, in pre-norm models."""
        if adapter.family.post_norm:
            return ""
        return (
            "reference zero in a pre-norm model: what is set to zero changes the scale that the "
            "next norm divides by, so slopes say little about effects. Use hw.Exact(), or "
            "reference=hw.Corrupted()."
        )

    def prepare(
        self, model: Model, task: Task, batches: Sequence[Batch], places: Sequence[Place]
    ) -> Off:
        """Return zeros."""
        return _Zeros(tuple(places))


@dataclass(frozen=True)
class _Zeros(Off):
    places: tuple[Place, ...]

    def __call__(self, batch: Batch, draw: int = 0) -> OffValues:
        return OffValues({place: torch.zeros(()) for place in self.places})


@dataclass(frozen=True)
class Corrupted(Reference):
    """Set a closed component to its value in the pair's corrupted prompt, position by position."""

    name: ClassVar[str] = "corrupted"
    corrupted_run: ClassVar[bool] = True
    aligned: ClassVar[bool] = True

    def prepare(
        self, model: Model, task: Task, batches: Sequence[Batch], places: Sequence[Place]
    ) -> Off:
        """Return the corrupted prompts' values.

        Raises:
            MissingFieldError: If the task has no corrupted prompts.
        """
        if any(batch.corrupted is None for batch in batches):
            raise no_corrupted("hw.Corrupted()", task)
        return _CorruptedRun(model, tuple(places))


@dataclass(frozen=True)
class _CorruptedRun(Off):
    model: Model
    places: tuple[Place, ...]

    def __call__(self, batch: Batch, draw: int = 0) -> OffValues:
        assert batch.corrupted is not None
        values, logits = capture(self.model, batch.corrupted, batch, self.places)
        return OffValues(values, logits, forwards=len(batch))


def prompt_mask(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """Return where the prompt's own tokens are: neither padding nor a teacher-forced answer."""
    length = batch.mask.shape[1]
    ending = batch.mask.sum(1) - batch.prompt_lengths()
    column = torch.arange(length, device=batch.mask.device)
    return batch.mask & (column < length - ending[:, None])


def no_corrupted(who: str, task: Task) -> MissingFieldError:
    """Return the error that a reference needs corrupted prompts where there are none."""
    lacking = [i for i, pair in enumerate(task.pairs) if pair.corrupted is None]
    which = "this task has none"
    if len(lacking) < len(task.pairs):
        which = f"pair {lacking[0]} has none ({len(lacking)} of {len(task.pairs)} pairs lack one)"
    return MissingFieldError(
        f"{who} needs corrupted prompts, and {which}.\n"
        'Add a "corrupted" prompt to each pair, or use a reference that needs none: '
        'hw.Zero(), or hw.Mean(over="clean").'
    )
