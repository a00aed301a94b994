"""Off values: what a component is set to when its gate closes.

A `Reference` is the user's choice; `prepare` turns it into an `Off`, which gives the values at the
gated sites for one batch. Estimates and exact effects both read the same `Off`.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import (
    MissingFieldError,
    UnfitReferenceError,
    UnknownOptionError,
    did_you_mean,
)
from headwater.models import Model
from headwater.prompts import Batch, Task, prompt_batches
from headwater.sites import Site

Values = Mapping[Site, Tensor]
"""Value at each site, broadcastable to the canonical shape a tap sees."""


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

    @abstractmethod
    def __call__(self, batch: Batch) -> OffValues:
        """Return the off values at every gated site for the rows of `batch`."""


@torch.no_grad()
def capture(
    model: Model, ids: Tensor, batch: Batch, sites: Iterable[Site]
) -> tuple[dict[Site, Tensor], Tensor]:
    """Run prompts once and keep the values at `sites`.

    Returns:
        The values, in each site's canonical shape, and the logits the metric reads.
    """
    kept: dict[Site, Tensor] = {}

    def keep(site: Site):
        def tap(value: Tensor) -> None:
            kept[site] = value.detach().clone()

        return tap

    logits = model.forward(
        ids,
        mask=batch.mask,
        position_ids=batch.position_ids,
        taps={site: keep(site) for site in sites},
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
        self, model: Model, task: Task, batches: Sequence[Batch], sites: Sequence[Site]
    ) -> Off:
        """Return the off values as a function of a batch."""

    def to_dict(self) -> dict[str, object]:
        """Return name and fields as plain data, for manifests."""
        return {"name": self.name}


@dataclass(frozen=True)
class Zero(Reference):
    """Set a closed component to zero.

    In a pre-norm model the residual's scale then changes too; gradients are poor estimates there.
    """

    name: ClassVar[str] = "zero"

    def prepare(
        self, model: Model, task: Task, batches: Sequence[Batch], sites: Sequence[Site]
    ) -> Off:
        """Return zeros."""
        return _Zeros(tuple(sites))


@dataclass(frozen=True)
class _Zeros(Off):
    sites: tuple[Site, ...]

    def __call__(self, batch: Batch) -> OffValues:
        return OffValues({site: torch.zeros(()) for site in self.sites})


@dataclass(frozen=True)
class Corrupted(Reference):
    """Set a closed component to its value in the pair's corrupted prompt, position by position."""

    name: ClassVar[str] = "corrupted"
    corrupted_run: ClassVar[bool] = True
    aligned: ClassVar[bool] = True

    def prepare(
        self, model: Model, task: Task, batches: Sequence[Batch], sites: Sequence[Site]
    ) -> Off:
        """Return the corrupted prompts' values.

        Raises:
            MissingFieldError: If the task has no corrupted prompts.
        """
        if any(batch.corrupted is None for batch in batches):
            raise _no_corrupted("hw.Corrupted()", task)
        return _CorruptedRun(model, tuple(sites))


@dataclass(frozen=True)
class _CorruptedRun(Off):
    model: Model
    sites: tuple[Site, ...]

    def __call__(self, batch: Batch) -> OffValues:
        assert batch.corrupted is not None
        values, logits = capture(self.model, batch.corrupted, batch, self.sites)
        return OffValues(values, logits, forwards=len(batch))


@dataclass(frozen=True)
class Resample(Reference):
    """Set a closed component to its value in another pair's corrupted prompt of the same length.

    Each pair draws its donor once, with the given seed; no pair is its own donor. Tasks without
    corrupted prompts draw from the other clean prompts.
    """

    seed: int = 0
    """Seed of the draw."""
    name: ClassVar[str] = "resample"
    aligned: ClassVar[bool] = True

    def prepare(
        self, model: Model, task: Task, batches: Sequence[Batch], sites: Sequence[Site]
    ) -> Off:
        """Return the donors' values.

        Raises:
            UnfitReferenceError: If a pair has no other pair of its length to draw from.
        """
        prompts: dict[int, Tensor] = {}
        by_length: dict[int, list[int]] = {}
        for batch in batches:
            ids = batch.clean if batch.corrupted is None else batch.corrupted
            for row, pair in enumerate(batch.pairs):
                prompts[pair] = ids[row][_prompt_mask(batch)[row]]
                by_length.setdefault(len(prompts[pair]), []).append(pair)
        donors: dict[int, Tensor] = {}
        chooser = random.Random(self.seed)
        for length, group in sorted(by_length.items()):
            if len(group) == 1:
                raise UnfitReferenceError(
                    f"pair {group[0]} is the only one with {length} tokens, so hw.Resample has no "
                    "other prompt of its length to draw from.\n"
                    "Add pairs of that length, or use hw.Mean()."
                )
            shuffled = sorted(group)
            chooser.shuffle(shuffled)
            for pair, donor in zip(shuffled, shuffled[1:] + shuffled[:1], strict=True):
                donors[pair] = prompts[donor]
        return _Donors(model, tuple(sites), donors)

    def to_dict(self) -> dict[str, object]:
        """Return name and seed."""
        return {"name": self.name, "seed": self.seed}


@dataclass(frozen=True)
class _Donors(Off):
    model: Model
    sites: tuple[Site, ...]
    donors: Mapping[int, Tensor]

    def __call__(self, batch: Batch) -> OffValues:
        ids, own = batch.clean.clone(), _prompt_mask(batch)
        for row, pair in enumerate(batch.pairs):
            ids[row][own[row]] = self.donors[pair].to(ids.device)
        values, _ = capture(self.model, ids, batch, self.sites)
        return OffValues(values, forwards=len(batch))


Over = Literal["corrupted", "clean"] | Sequence[str] | Task


@dataclass(frozen=True)
class Mean(Reference):
    """Set a closed component to its mean over prompts and positions; padding never enters."""

    over: Over = "corrupted"
    """Prompts to average over: the task's `"corrupted"` or `"clean"` prompts, your own list of
    strings, or another task (its clean prompts)."""
    name: ClassVar[str] = "mean"
    positional: ClassVar[bool] = False

    def prepare(
        self, model: Model, task: Task, batches: Sequence[Batch], sites: Sequence[Site]
    ) -> Off:
        """Return the means; costs one forward over the prompts averaged.

        Raises:
            UnfitReferenceError: If a query or key is averaged over positions: both carry their
                position by rotary embedding, so such a mean is no query or key at all.
            MissingFieldError: If the task has no corrupted prompts to average.
        """
        rotated = [site for site in sites if site.name in ("attn.q", "attn.k")]
        if rotated and not self.positional:
            raise UnfitReferenceError(
                f"'{rotated[0]}' carries its position (by rotary embedding in most families): a "
                "mean over positions is not a query or key.\n"
                "Use reference=hw.PositionalMean()."
            )
        moments = _Moments(positional=self.positional)
        for batch in self._batches(model, task, batches):
            values, _ = capture(model, batch.clean, batch, sites)
            moments.prompts += len(batch)
            for site, value in values.items():
                moments.add(site, value, batch)
        return _Means(moments.means(), self.positional, moments.seen, moments.prompts)

    def _batches(self, model: Model, task: Task, batches: Sequence[Batch]) -> Sequence[Batch]:
        if self.over == "clean":
            return batches
        return prompt_batches(
            self._prompts(task),
            model.tokenizer,
            batch_size=max(len(batch) for batch in batches),
            device=model.device,
            pad=model.anatomy().pads,
        )

    def _prompts(self, task: Task) -> list[str]:
        if isinstance(self.over, Task):
            return [pair.clean for pair in self.over.pairs]
        if not isinstance(self.over, str):
            return list(self.over)
        corrupted = [pair.corrupted for pair in task.pairs if pair.corrupted is not None]
        if len(corrupted) < len(task.pairs):
            raise _no_corrupted(f"hw.{type(self).__name__}()", task)
        return corrupted

    def to_dict(self) -> dict[str, object]:
        """Return the name and what is averaged over."""
        over = [p.clean for p in self.over.pairs] if isinstance(self.over, Task) else self.over
        return {"name": self.name, "over": over if isinstance(over, str) else list(over)}


@dataclass(frozen=True)
class PositionalMean(Mean):
    """Set a closed component to its mean over prompts at the same position from the start."""

    name: ClassVar[str] = "positional-mean"
    positional: ClassVar[bool] = True


@dataclass
class _Moments:
    """Sums and counts over real tokens, in float64."""

    positional: bool
    sums: dict[Site, Tensor] = field(default_factory=dict)
    counts: dict[Site, Tensor] = field(default_factory=dict)
    seen: int = 0
    """Longest prompt averaged, in tokens."""
    prompts: int = 0

    def add(self, site: Site, value: Float[Tensor, "batch pos ..."], batch: Batch) -> None:
        mask = batch.mask.to(value.device)
        slots = batch.position_ids.to(value.device) if self.positional else mask.long() * 0
        length = int(mask.sum(1).max())
        self.seen = max(self.seen, length)
        size = length if self.positional else 1
        real = value[mask].to(torch.float64)
        sums = torch.zeros((size, *real.shape[1:]), dtype=torch.float64, device=value.device)
        counts = torch.zeros(size, dtype=torch.float64, device=value.device)
        sums.index_add_(0, slots[mask], real)
        counts.index_add_(0, slots[mask], torch.ones_like(slots[mask], dtype=torch.float64))
        if site in self.sums:
            sums, counts = (
                _padded_sum(self.sums[site], sums),
                _padded_sum(self.counts[site], counts),
            )
        self.sums[site], self.counts[site] = sums, counts

    def means(self) -> dict[Site, Tensor]:
        return {
            site: sums / self.counts[site].reshape(-1, *[1] * (sums.ndim - 1))
            for site, sums in self.sums.items()
        }


def _padded_sum(a: Tensor, b: Tensor) -> Tensor:
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    total = long.clone()
    total[: len(short)] += short
    return total


@dataclass(frozen=True)
class _Means(Off):
    means: Mapping[Site, Tensor]
    positional: bool
    seen: int
    prepared: int = 0

    def __call__(self, batch: Batch) -> OffValues:
        if not self.positional:
            return OffValues({site: mean[None] for site, mean in self.means.items()})
        longest = int(batch.mask.sum(1).max())
        if longest > self.seen:
            raise UnfitReferenceError(
                f"a prompt of this task has {longest} tokens{_with_answer(batch)}, but the longest "
                "prompt averaged has "
                f"{self.seen}: hw.PositionalMean has no mean at position {self.seen}.\n"
                "Give longer prompts in over=, or use hw.Mean()."
            )
        return OffValues(
            {site: mean[batch.position_ids.to(mean.device)] for site, mean in self.means.items()}
        )


def _with_answer(batch: Batch) -> str:
    return "" if batch.ending is None else " with the answer behind it"


def _prompt_mask(batch: Batch) -> Tensor:
    """True at the prompt's own tokens: neither padding nor a teacher-forced answer."""
    length = batch.mask.shape[1]
    ending = batch.mask.sum(1) - batch.prompt_lengths()
    column = torch.arange(length, device=batch.mask.device)
    return batch.mask & (column < length - ending[:, None])


def _no_corrupted(who: str, task: Task) -> MissingFieldError:
    lacking = [i for i, pair in enumerate(task.pairs) if pair.corrupted is None]
    which = "this task has none"
    if len(lacking) < len(task.pairs):
        which = f"pair {lacking[0]} has none ({len(lacking)} of {len(task.pairs)} pairs lack one)"
    return MissingFieldError(
        f"{who} needs corrupted prompts, and {which}.\n"
        'Add a "corrupted" prompt to each pair, or use a reference that needs none: '
        'hw.Zero(), or hw.Mean(over="clean").'
    )


REFERENCES: dict[str, type[Reference]] = {
    kind.name: kind for kind in (Corrupted, Mean, PositionalMean, Resample, Zero)
}
"""The command line's words."""


def reference_from_dict(data: Mapping[str, Any]) -> Reference:
    """Return the reference that `to_dict` described.

    Raises:
        UnknownOptionError: If there is no such reference.
    """
    options = dict(data)
    name = str(options.pop("name"))
    if name not in REFERENCES:
        raise UnknownOptionError(
            f"no reference {name!r}.{did_you_mean(name, REFERENCES)} "
            f"References: {', '.join(REFERENCES)}."
        )
    return REFERENCES[name](**options)
