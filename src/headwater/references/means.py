"""Off values that are means: over the task's prompts, a list, or a dataset that is streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.coding import Place
from headwater.errors import UnfitReferenceError, UnknownOptionError, did_you_mean
from headwater.models import Model
from headwater.prompts import Batch, Task, prompt_batches
from headwater.prompts.streams import Lost, Once, Reading, described, refuse_unreadable
from headwater.references.reference import (
    Off,
    OffValues,
    Reference,
    capture,
    no_corrupted,
    prompt_mask,
)

Over = (
    Literal["corrupted", "clean"]
    | Sequence[str]
    | Task
    | Path
    | Iterable[Any]
    | Callable[[], Iterable[Any]]
)


@dataclass(frozen=True, eq=False)
class Measured:
    """Means over prompts that were streamed once, by place, and what identifies those prompts."""

    means: Mapping[str, Tensor]
    prompts: int
    sha256: str
    """Of the prompts, in their order."""


@dataclass(frozen=True)
class Mean(Reference):
    """Set a closed component to its mean over prompts and positions; padding never enters.

    Words, lists and tasks are written to the manifest in full, and averaged again for an audit.
    Everything else is streamed: prompts are read in small batches, once. Their hash goes to the
    manifest, and the means stay with the result and its folder, so that the audit's exact effects
    have the off values of the estimate.

    Example:
        ```python
        hw.Mean(over=pathlib.Path("prompts.txt"))  # one prompt a line; or .jsonl
        hw.Mean(over=dataset["text"], limit=10_000)  # a column of Hugging Face datasets
        hw.Mean(over=lambda: (row["text"] for row in rows))  # a function that makes a generator
        ```
    """

    over: Over = "corrupted"
    """Prompts to average over: the task's `"corrupted"` or `"clean"` prompts, your own list of
    strings, or another task (its clean prompts); or, streamed, a `pathlib.Path` of a text or JSON
    lines file with one prompt a line, anything that can be iterated over, or a function that
    returns such a thing. Rows with fields give their `text`, `prompt` or `clean`."""
    limit: int | None = None
    """Take only the first so many prompts."""
    measured: Measured | None = field(default=None, repr=False, compare=False)
    """What was found over a stream; filled when it has been read."""
    name: ClassVar[str] = "mean"
    positional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UnfitReferenceError(
                f"{self._who}(limit={self.limit}) averages over nothing.\nType limit=1000."
            )
        if isinstance(self.over, str):
            self._refuse_word(self.over)
        elif not self._is_listed:
            refuse_unreadable(self.over)
            if isinstance(self.over, Iterator):
                object.__setattr__(self, "over", Once(self.over))

    def prepare(
        self, model: Model, task: Task, batches: Sequence[Batch], places: Sequence[Place]
    ) -> Off:
        """Return the means; costs one forward over the prompts averaged, if not measured before.

        Raises:
            UnfitReferenceError: If a query or key is averaged over positions: both carry their
                position by rotary embedding, so such a mean is no query or key at all. If the
                prompts are gone, none, or others than those measured before.
            MissingFieldError: If the task has no corrupted prompts to average.
            PromptError: If a prompt cannot be used.
        """
        self._refuse_rotated(places)
        known = {} if self.measured is None else self.measured.means
        if self.measured is not None and all(str(place) in known for place in places):
            return _Means({place: known[str(place)] for place in places}, self.positional)
        moments = _Moments(positional=self.positional)
        size = max(len(batch) for batch in batches)
        if self._is_listed:
            for batch, counted in self._listed(model, task, batches):
                moments.take(model, batch, places, counted)
            return _Means(moments.means(), self.positional, moments.prompts)
        reading = Reading(self.over, self.limit)  # pyright: ignore[reportArgumentType]
        for batch in reading.batches(model, size):
            moments.take(model, batch, places, batch.mask)
        self._refuse_others(reading)
        return _Means(moments.means(), self.positional, moments.prompts, reading.sha256)

    def _listed(
        self, model: Model, task: Task, batches: Sequence[Batch]
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Yield batches of the prompts that the manifest lists, and which tokens count."""
        if self.over == "clean":
            for batch in batches:
                among = [self.limit is None or pair < self.limit for pair in batch.pairs]
                counted = torch.tensor(among, device=batch.mask.device)[:, None]
                # the answer's own tokens are no prompt; by position they have means of their own
                mask = batch.mask if self.positional else prompt_mask(batch)
                if any(among):
                    yield batch, mask & counted
            return
        listed = prompt_batches(
            islice(self._prompts(task), self.limit),
            model.tokenizer,
            batch_size=max(len(batch) for batch in batches),
            device=model.device,
            pad=model.anatomy().pads,
        )
        for batch in listed:
            yield batch, batch.mask

    def _prompts(self, task: Task) -> list[str]:
        if isinstance(self.over, Task):
            return [pair.clean for pair in self.over.pairs]
        if isinstance(self.over, list | tuple):
            return list(self.over)
        corrupted = [pair.corrupted for pair in task.pairs if pair.corrupted is not None]
        if len(corrupted) < len(task.pairs):
            raise no_corrupted(f"{self._who}()", task)
        return corrupted

    # --- what is kept ----------------------------------------------------------------------

    def keeping(self, off: Off) -> Mean:
        """Return this reference with the means of a stream, so that it is read only once."""
        if not isinstance(off, _Means) or off.sha256 is None:
            return self
        before = {} if self.measured is None else self.measured.means
        found = {str(place): mean for place, mean in off.means.items()}
        measured = Measured({**before, **found}, off.prepared, off.sha256)
        return replace(self, measured=measured)

    def anew(self) -> Mean:
        """Return this reference without means that were measured on another model."""
        return self if self.measured is None else replace(self, measured=None)

    def tensors(self) -> dict[str, Tensor]:
        """Return the means of a stream by place."""
        return {} if self.measured is None else dict(self.measured.means)

    def to_dict(self) -> dict[str, object]:
        """Return the name and what is averaged over; of a stream where it came from and a hash."""
        limit = {} if self.limit is None else {"limit": self.limit}
        return {"name": self.name, "over": self._over_as_data(), **limit}

    def _over_as_data(self) -> object:
        if isinstance(self.over, str):
            return self.over
        if isinstance(self.over, Task):
            return [pair.clean for pair in self.over.pairs]
        if isinstance(self.over, list | tuple):
            return list(self.over)
        is_file = isinstance(self.over, Path)
        where = {"file": str(self.over)} if is_file else {"stream": described(self.over)}  # pyright: ignore[reportArgumentType]
        if self.measured is None:
            return where
        return {**where, "prompts": self.measured.prompts, "sha256": self.measured.sha256}

    @classmethod
    def read_back(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mean:
        """Return the reference of a saved run.

        Args:
            options: What `to_dict` returned, without the name.
            tensors: What `tensors` returned.
        """
        over = options["over"]
        if not isinstance(over, Mapping):
            return cls(**options)
        measured = None
        if "sha256" in over:
            measured = Measured(tensors, over["prompts"], over["sha256"])
        source = Path(over["file"]) if "file" in over else Lost(over["stream"])
        return cls(over=source, limit=options.get("limit"), measured=measured)

    # --- what is refused -------------------------------------------------------------------

    @property
    def _who(self) -> str:
        return f"hw.{type(self).__name__}"

    @property
    def _is_listed(self) -> bool:
        return isinstance(self.over, str | Task | list | tuple)

    def _refuse_word(self, word: str) -> None:
        if word in ("corrupted", "clean"):
            return
        advice = 'Write "corrupted" or "clean", or a list of texts.'
        if Path(word).suffix or Path(word).is_file():
            advice = f"A file of prompts is given as a path: over=pathlib.Path({word!r})."
        raise UnknownOptionError(
            f"{self._who}(over={word!r:.60}) is unknown."
            f"{did_you_mean(word, ('corrupted', 'clean'))}\n{advice}"
        )

    def _refuse_rotated(self, places: Sequence[Place]) -> None:
        rotated = [place for place in places if place.name in ("attn.q", "attn.k")]
        if rotated and not self.positional:
            raise UnfitReferenceError(
                f"'{rotated[0]}' carries its position (by rotary embedding in most families): a "
                "mean over positions is not a query or key.\n"
                "Use reference=hw.PositionalMean()."
            )

    def _refuse_others(self, reading: Reading) -> None:
        """Refuse prompts that are not those of the means measured before."""
        before = self.measured
        if before is not None and before.sha256 != reading.sha256:
            raise UnfitReferenceError(
                f"{described(reading.over)} in over= gave {reading.count:,} prompts with the hash "
                f"{reading.sha256[:12]}; the mean of this run was over {before.prompts:,} with "
                f"{before.sha256[:12]}.\n"
                "Give the prompts of that run, or attribute again with these."
            )


@dataclass(frozen=True)
class PositionalMean(Mean):
    """Set a closed component to its mean over prompts at the same position from the start.

    Answers of several tokens are fed behind the prompt; `over="clean"` has means of those positions
    too, anything else must hold prompts as long as prompt and answer together.
    """

    name: ClassVar[str] = "positional-mean"
    positional: ClassVar[bool] = True


@dataclass
class _Moments:
    """Sums and counts over real tokens, in float64."""

    positional: bool
    sums: dict[Place, Tensor] = field(default_factory=dict)
    counts: dict[Place, Tensor] = field(default_factory=dict)
    dtypes: dict[Place, torch.dtype] = field(default_factory=dict)
    prompts: int = 0

    def take(
        self,
        model: Model,
        batch: Batch,
        places: Sequence[Place],
        counted: Bool[Tensor, "batch pos"],
    ) -> None:
        """Run a batch and add its values at the tokens that count."""
        values, _ = capture(model, batch.clean, batch, places)
        self.prompts += len(batch)
        for place, value in values.items():
            self._add(place, value, counted, batch.position_ids)

    def _add(
        self,
        place: Place,
        value: Float[Tensor, "batch pos ..."],
        counted: Bool[Tensor, "batch pos"],
        position_ids: Tensor,
    ) -> None:
        mask = counted.to(value.device)
        slots = position_ids.to(value.device) if self.positional else mask.long() * 0
        size = int(mask.sum(1).max()) if self.positional else 1
        real = value[mask].to(torch.float64)
        sums = torch.zeros((size, *real.shape[1:]), dtype=torch.float64, device=value.device)
        counts = torch.zeros(size, dtype=torch.float64, device=value.device)
        sums.index_add_(0, slots[mask], real)
        counts.index_add_(0, slots[mask], torch.ones_like(slots[mask], dtype=torch.float64))
        if place in self.sums:
            sums, counts = (
                _padded_sum(self.sums[place], sums),
                _padded_sum(self.counts[place], counts),
            )
        self.sums[place], self.counts[place], self.dtypes[place] = sums, counts, value.dtype

    def means(self) -> dict[Place, Tensor]:
        """Return the mean at each place, in the dtype of its values; by position if positional."""
        return {
            place: (sums / self.counts[place].reshape(-1, *[1] * (sums.ndim - 1))).to(
                self.dtypes[place]
            )
            for place, sums in self.sums.items()
        }


def _padded_sum(a: Tensor, b: Tensor) -> Tensor:
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    total = long.clone()
    total[: len(short)] += short
    return total


@dataclass(frozen=True)
class _Means(Off):
    means: Mapping[Place, Tensor]
    positional: bool
    prepared: int = 0
    sha256: str | None = None
    """Of the prompts, where they were streamed just now."""

    def __call__(self, batch: Batch, draw: int = 0) -> OffValues:
        if not self.positional:
            return OffValues(
                {place: _before(place, mean[None], batch) for place, mean in self.means.items()}
            )
        longest = int(batch.mask.sum(1).max())
        seen = min(len(mean) for mean in self.means.values())
        if longest > seen:
            raise UnfitReferenceError(
                f"a prompt of this task has {longest} tokens{_with_answer(batch)}, but the longest "
                "prompt averaged has "
                f"{seen}: hw.PositionalMean has no mean at position {seen}.\n"
                "Give longer prompts in over=, or use hw.Mean()."
            )
        at_position = {
            place: mean[batch.position_ids.to(mean.device)] for place, mean in self.means.items()
        }
        return OffValues({place: _before(place, at, batch) for place, at in at_position.items()})


def _before(place: Place, mean: Tensor, batch: Batch) -> Tensor:
    """Put nothing before a prompt where the model carries it into the prompt (Mamba)."""
    if place.name not in ("mixer.conv", "mixer.ssm") or bool(batch.mask.all()):
        return mean
    return mean * batch.mask.to(mean.device)[..., None]


def _with_answer(batch: Batch) -> str:
    return "" if batch.ending is None else " with the answer behind it"
