"""A task: pairs of prompts, and the metric that says how present the behavior is in a run."""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch

from headwater.errors import HeadwaterError, PromptError
from headwater.metrics import Metric, cross_entropy, logit_diff, logprob, resolve_metric
from headwater.prompts.batches import Batch, pack
from headwater.prompts.encoding import Encoder, Tokenizer
from headwater.prompts.formats import as_pair
from headwater.prompts.pairs import Pair
from headwater.prompts.readers import read_pairs
from headwater.prompts.rows import encode_rows, where
from headwater.prompts.usable import Usable, find_usable


class Task:
    """Pairs of prompts and a metric.

    Example:
        ```python
        task = hw.Task([{"clean": "Mary and John went out. John called",
                         "corrupted": "Mary and John went out. Mary called",
                         "answer": " Mary", "wrong": " John"}])
        ```
    """

    pairs: tuple[Pair, ...]
    """The rows, in the order given."""

    metric: Metric
    """What is computed from the logits of each run."""

    name: str
    """Shown in results."""

    source: str
    """The file the pairs came from, or empty."""

    def __init__(
        self,
        pairs: Iterable[Any],
        metric: Any = None,
        *,
        name: str = "task",
        source: str = "",
    ) -> None:
        """Check the pairs and choose the metric.

        Args:
            pairs: `hw.Pair` objects, mappings with the same fields, a `datasets.Dataset`, or a
                pandas table with the fields as columns (missing cells count as left out).
            metric: A name, an `hw` metric or a function. Left out: `logit_diff` if every pair has
                `answer` and `wrong`, `logprob` if every pair has `answer`, else `cross_entropy`.
            name: Shown in results.
            source: Where the pairs came from, for provenance.

        Raises:
            PromptError: If there is no pair, or one cannot be used; the message says which.
            UnknownOptionError: If no metric has the name.
        """
        self.pairs = tuple(_checked(pairs))
        self.name = name
        self.source = source
        self._metric_given = metric is not None
        self.metric = _default_metric(self.pairs) if metric is None else resolve_metric(metric)

    @classmethod
    def read(
        cls,
        path: str | Path,
        metric: Any = None,
        *,
        corrupted: str | None = None,
        name: str | None = None,
    ) -> "Task":
        """Read a file of pairs: JSON lines, a JSON list, CSV or clusters, told apart by content.

        The fields are headwater's own (`clean`, `corrupted`, `answer`, `wrong`, `label`), those of
        feature-circuits, or those of EAP-IG and MIB. A file of clusters, `{id: {"context": [...],
        "answer": "..."}}`, has no corrupted prompts; its ids become labels.

        Args:
            path: The file.
            metric: As for `Task`; the year files of EAP-IG choose `prob_diff` of themselves.
            corrupted: The field to take corrupted prompts from, for example `"corrupted_hard"`.
            name: Shown in results; the file's name without its ending if left out.

        Raises:
            PairFileError: If there is no such file, or a line of it cannot be read.
        """
        path = Path(path)
        pairs, usual = read_pairs(path, corrupted=corrupted)
        return cls(pairs, metric or usual, name=name or path.stem, source=str(path))

    @property
    def has_corrupted(self) -> bool:
        """Whether every pair has a corrupted prompt."""
        return self.lacking_corrupted() is None

    def lacking_corrupted(self) -> int | None:
        """Return the index of the first pair without a corrupted prompt; None if all have one."""
        lacking = (index for index, pair in enumerate(self.pairs) if pair.corrupted is None)
        return next(lacking, None)

    def batches(
        self,
        tokenizer: Tokenizer | None,
        *,
        batch_size: int = 32,
        device: torch.device | str = "cpu",
        pad: bool = True,
        align: bool = True,
    ) -> list[Batch]:
        """Encode the pairs into batches for a model.

        Args:
            tokenizer: The model's.
            batch_size: The most pairs in a batch.
            device: Where the tensors go.
            pad: If false, only prompts of equal length share a batch; nothing is padded then.
            align: If false, corrupted prompts are left out, and may differ in length from the
                clean ones; for references that need none.

        Returns:
            Batches from the shortest prompts to the longest, always the same for the same task;
            `batch.pairs` tells which rows they hold.

        Raises:
            UnalignedPromptsError: If a pair's two prompts differ in length.
            AnswerError: If the metric cannot read an answer.
            UnknownWordError: If the tokenizer has no token for a word.
            MissingFieldError: If a pair lacks what the metric needs.
        """
        encoder = Encoder(tokenizer)
        rows = encode_rows(self.pairs, self.metric, encoder, align=align)
        packed = pack(rows, batch_size=batch_size, pad_id=encoder.pad_id, pad=pad)
        return [batch.with_read(self.metric.read(batch)).to(device) for batch in packed]

    def with_metric(self, metric: Any) -> "Task":
        """Return the same pairs with another metric."""
        return Task(self.pairs, metric, name=self.name, source=self.source)

    def sample(self, count: int, seed: int = 0) -> "Task":
        """Return `count` pairs drawn at random without repetition, in task order."""
        if not 0 < count <= len(self):
            raise PromptError(f"asked for a sample of {count} of the {len(self)} pairs.")
        drawn = sorted(random.Random(seed).sample(range(len(self)), count))
        return self._with_pairs([self.pairs[index] for index in drawn])

    def usable(
        self, tokenizer: Tokenizer | None, *, align: bool = True, one_token: bool = False
    ) -> Usable:
        """Tell the pairs that `batches` takes from the others, and why it does not take those.

        Nothing is left out silently: the result counts and quotes every reason, and its `task`
        carries the count in `source`.

        Args:
            tokenizer: The model's.
            align: As for `batches`; if false, the two prompts of a pair may differ in length.
            one_token: Whether every answer must be one token, as feature-circuits asks, even if
                the metric reads several.

        Returns:
            `usable.task`, the pairs that can be used, and `usable.left_out`, the others.

        Raises:
            PromptError: If there is no tokenizer.
        """
        return find_usable(self, Encoder(tokenizer), align=align, one_token=one_token)

    def by_length(self, tokenizer: Tokenizer | None) -> dict[int, "Task"]:
        """Split the task so that position 5 is the same place in every prompt.

        Args:
            tokenizer: The model's.

        Returns:
            A task for each number of tokens of a clean prompt, the shortest first.

        Raises:
            UnknownWordError: If the tokenizer has no token for a word.
        """
        encoder = Encoder(tokenizer)
        prompts = [pair.clean for pair in self.pairs]
        encoder.prime(prompts)
        encoder.prime(prompts, special=True)
        groups: dict[int, list[Pair]] = defaultdict(list)
        for number, pair in enumerate(self.pairs):
            try:
                groups[len(encoder.prompt(pair.clean))].append(pair)
            except HeadwaterError as error:
                raise type(error)(f"{where(number, pair)}: {error}") from None
        return {length: self._with_pairs(groups[length]) for length in sorted(groups)}

    def prompts_hash(self) -> str:
        """Return a SHA-256 of prompts and answers; equal for equal pairs, whatever their file."""
        rows = [pair.to_dict() for pair in self.pairs]
        text = json.dumps(rows, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the whole task as plain data for a manifest."""
        return {
            "name": self.name,
            "source": self.source,
            "metric": self.metric.to_dict(),
            "prompts_hash": self.prompts_hash(),
            "pairs": [pair.to_dict() for pair in self.pairs],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, metric: Any = None) -> "Task":
        """Return the task that `to_dict` described.

        Args:
            data: What `to_dict` returned.
            metric: Replaces the saved one; required if that was a function.

        Raises:
            MetricError: If the metric was a function and none is given.
            PromptError: If the pairs were changed since their hash was taken.
        """
        chosen = data["metric"] if metric is None else metric
        task = cls(data["pairs"], chosen, name=data["name"], source=data["source"])
        if data.get("prompts_hash", task.prompts_hash()) != task.prompts_hash():
            raise PromptError(
                f"the pairs of task {task.name!r} do not match their saved hash "
                f"{data['prompts_hash'][:12]}...; they were edited after saving."
            )
        return task

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> "Task": ...
    def __getitem__(self, index: int | slice) -> "Pair | Task":
        """Return one pair, or a task of several."""
        return (
            self._with_pairs(self.pairs[index]) if isinstance(index, slice) else self.pairs[index]
        )

    def __repr__(self) -> str:
        chosen = (
            "" if self._metric_given else f" (the default: {_DEFAULT_BECAUSE[self.metric.name]})"
        )
        first = self.pairs[0]
        lines = [
            f"Task {self.name!r}: {len(self)} pair{'s' * (len(self) > 1)}, "
            f"metric {self.metric.name}{chosen}",
            f"  clean:     {first.clean!r}",
        ]
        if first.corrupted is not None:
            lines.append(f"  corrupted: {first.corrupted!r}")
        for side in ("answer", "wrong"):
            values = getattr(first, side)
            more = f" and {len(values) - 5} more" if len(values) > 5 else ""
            if values:
                shown = ", ".join(map(repr, islice(values, 5)))
                lines.append(f"  {side + ':':<10} {shown}{more}")
        return "\n".join(lines)

    def _with_pairs(self, pairs: Sequence[Pair]) -> "Task":
        task = Task(pairs, self.metric, name=self.name, source=self.source)
        task._metric_given = self._metric_given
        return task


def prompt_batches(
    prompts: Iterable[str],
    tokenizer: Tokenizer | None,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    pad: bool = True,
) -> list[Batch]:
    """Encode prompts without pairs or answers, for example those a mean is taken over.

    Args:
        prompts: The texts.
        tokenizer: The model's.
        batch_size: The most prompts in a batch.
        device: Where the tensors go.
        pad: If false, only prompts of equal length share a batch.

    Returns:
        Batches with `clean`, `mask` and `position_ids`; `batch.pairs` indexes `prompts`.
    """
    pairs = [Pair(prompt) for prompt in prompts]
    encoder = Encoder(tokenizer)
    rows = encode_rows(pairs, cross_entropy(), encoder)
    packed = pack(rows, batch_size=batch_size, pad_id=encoder.pad_id, pad=pad)
    return [batch.to(device) for batch in packed]


_DEFAULT_BECAUSE = {
    "logit-diff": "every pair has answer and wrong",
    "logprob": "every pair has an answer",
    "cross-entropy": "not every pair has an answer",
}


def _default_metric(pairs: Sequence[Pair]) -> Metric:
    if not all(pair.answer for pair in pairs):
        return cross_entropy()
    return logit_diff() if all(pair.wrong for pair in pairs) else logprob()


def _checked(pairs: Any) -> list[Pair]:
    _refuse_no_list(pairs)
    if hasattr(pairs, "iterrows"):
        # A pandas table iterates over its column names, and has NaN where a cell is missing.
        pairs = pairs.astype(object).where(pairs.notna(), None).to_dict("records")
    checked = []
    for number, row in enumerate(pairs):
        try:
            checked.append(as_pair(row))
        except HeadwaterError as error:
            raise type(error)(f"pair {number}: {error}") from None
    if not checked:
        raise PromptError("there are no pairs. A task needs at least one.")
    return checked


def _refuse_no_list(pairs: Any) -> None:
    """Raise if `pairs` is what one might take for pairs: a name, a file, a mapping."""
    if isinstance(pairs, str | Path):
        shown = repr(str(pairs))
        if isinstance(pairs, Path) or Path(pairs).suffix:
            raise PromptError(
                f"hw.Task takes pairs, not the file {shown}. Read it: hw.Task.read({shown})."
            )
        raise PromptError(
            f"hw.Task takes pairs, not the text {shown}. An embedded task: hw.task({shown}); "
            f"a file of pairs: hw.Task.read({shown})."
        )
    if isinstance(pairs, Mapping) and pairs:
        splits = ", ".join(map(repr, pairs))
        raise PromptError(
            f"hw.Task takes a list of pairs; this is a mapping with {splits}. Put a single pair "
            "in a list; of a `datasets.DatasetDict` choose one split."
        )
