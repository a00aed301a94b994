"""What a model runs on: rows of token ids, padded on the left, with mask and position ids.

A row is one pair. Padding is always on the left, whatever the tokenizer prefers, so that the last
position of every row is its last token; position ids start at 0 on the first real token, so padding
changes no number.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwater.errors import PromptError
from headwater.prompts.encoding import token_texts

Read = int | tuple[int, ...]
"""Positions to unembed: the last `k`, or these columns of the padded batch."""


@dataclass(frozen=True)
class Row:
    """One encoded pair, not padded yet."""

    pair: int
    clean: tuple[int, ...]
    corrupted: tuple[int, ...] | None = None
    answer: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()
    target: tuple[int, ...] = ()
    ending: int = 0
    """How many of the last tokens of both prompts are the target's, not the prompt's own."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Encoded pairs that run together, one row each."""

    pairs: tuple[int, ...]
    """Index of each row's pair in its task."""

    clean: Int[Tensor, "batch pos"]
    """Ids of the clean prompts."""

    corrupted: Int[Tensor, "batch pos"] | None
    """Ids of the corrupted prompts, padded exactly as `clean`."""

    mask: Bool[Tensor, "batch pos"]
    """True at real tokens, False at padding."""

    position_ids: Int[Tensor, "batch pos"]
    """Distance from the row's first real token; 0 at padding."""

    answer: Int[Tensor, "batch n_answer"] | None = None
    """Ids of the right next tokens; rows with fewer are filled, see `answer_mask`."""

    answer_mask: Bool[Tensor, "batch n_answer"] | None = None
    """True where `answer` holds an id."""

    wrong: Int[Tensor, "batch n_wrong"] | None = None
    """Ids of the wrong next tokens."""

    wrong_mask: Bool[Tensor, "batch n_wrong"] | None = None
    """True where `wrong` holds an id."""

    target: Int[Tensor, "batch n_target"] | None = None
    """An answer of several tokens, right-aligned: its column `j` is what read position `j` should
    predict. All but its last token are appended to both prompts."""

    target_mask: Bool[Tensor, "batch n_target"] | None = None
    """True where `target` holds an id."""

    ending: Int[Tensor, " batch"] | None = None
    """How many tokens of its target stand behind each row's prompt; None if no row has any.

    They run and are masked in like the prompt, but are no positions of it."""

    read: Read = 1
    """Positions the metric reads."""

    clean_logits: Float[Tensor, "batch read vocab"] | None = None
    """Logits of the clean run at the read positions, for metrics that compare with it."""

    def __len__(self) -> int:
        return len(self.pairs)

    def repeat(self, settings: int) -> "Batch":
        """Tile the rows, setting-major: row `s * batch + b` is row `b` of this batch."""
        return self._map(
            lambda tensor: tensor.repeat(settings, *[1] * (tensor.ndim - 1)), self.pairs * settings
        )

    def rows(self, start: int, stop: int) -> "Batch":
        """Return the rows from `start` up to `stop`, padded as they are here."""
        return self._map(lambda tensor: tensor[start:stop], self.pairs[start:stop])

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def with_read(self, read: Read) -> "Batch":
        """Return the same batch with the positions a metric reads."""
        return replace(self, read=read)

    def with_clean_logits(self, logits: Float[Tensor, "batch read vocab"]) -> "Batch":
        """Return the same batch with the clean run's logits at the read positions."""
        return replace(self, clean_logits=logits.detach())

    def read_columns(self) -> list[int]:
        """Return the columns of the padded batch that `read` names, in the order of the logits."""
        width = self.clean.shape[1]
        return (
            list(range(width - self.read, width)) if isinstance(self.read, int) else list(self.read)
        )

    def prompt_lengths(self) -> Int[Tensor, " batch"]:
        """Return how many tokens each row's prompt has, without padding and ending."""
        real = self.mask.sum(dim=1)
        return real if self.ending is None else real - self.ending

    def tokens(self, tokenizer: Any, side: str = "clean") -> list[list[str]]:
        """Return the tokens of each row's prompt as texts to show, padding and ending left out.

        Args:
            tokenizer: The tokenizer that encoded the batch.
            side: `"clean"` or `"corrupted"`.
        """
        ids = self.clean if side == "clean" else self.corrupted
        if ids is None:
            raise PromptError("this batch has no corrupted prompts. Ask for side='clean'.")
        return [
            token_texts(tokenizer, row[real].tolist()[:length])
            for row, real, length in zip(
                ids, self.mask, self.prompt_lengths().tolist(), strict=True
            )
        ]

    def _map(
        self, change: Callable[[Tensor], Tensor], pairs: tuple[int, ...] | None = None
    ) -> "Batch":
        changed = {
            one.name: change(value)
            for one in fields(self)
            if isinstance(value := getattr(self, one.name), Tensor)
        }
        return replace(self, pairs=self.pairs if pairs is None else pairs, **changed)


def pack(rows: Iterable[Row], *, batch_size: int, pad_id: int, pad: bool = True) -> list[Batch]:
    """Group rows of similar length into batches with as little padding as sorting can reach.

    Args:
        rows: Encoded pairs, in any order.
        batch_size: The most rows in a batch.
        pad_id: Any valid token id; it is masked.
        pad: If false, only rows of equal length share a batch.

    Returns:
        Batches from the shortest rows to the longest; the same rows always give the same batches.
    """
    if batch_size < 1:
        raise PromptError(f"batch_size is {batch_size}; it must be at least 1.")
    groups: dict[tuple[bool, int], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (len(row.clean), row.pair)):
        # Rows with a target read other positions, so they do not share a batch with the others.
        groups[bool(row.target), 0 if pad else len(row.clean)].append(row)
    return [
        _stack(group[start : start + batch_size], pad_id)
        for _, group in sorted(groups.items())
        for start in range(0, len(group), batch_size)
    ]


def _stack(rows: Sequence[Row], pad_id: int) -> Batch:
    clean, mask = _left_padded([row.clean for row in rows], pad_id)
    twins = [row.corrupted for row in rows if row.corrupted is not None]
    # A task in which only some pairs have a twin has none that all rows could use.
    corrupted = _left_padded(twins, pad_id)[0] if len(twins) == len(rows) else None
    answer, answer_mask = _ragged([row.answer for row in rows])
    wrong, wrong_mask = _ragged([row.wrong for row in rows])
    target, target_mask = _ragged([row.target for row in rows])
    endings = [row.ending for row in rows]
    return Batch(
        pairs=tuple(row.pair for row in rows),
        clean=clean,
        corrupted=corrupted,
        mask=mask,
        position_ids=(mask.long().cumsum(dim=1) - 1).clamp(min=0),
        answer=answer,
        answer_mask=answer_mask,
        wrong=wrong,
        wrong_mask=wrong_mask,
        target=target,
        target_mask=target_mask,
        ending=torch.tensor(endings) if any(endings) else None,
    )


def _ragged(ids: Sequence[Sequence[int]]) -> tuple[Tensor | None, Tensor | None]:
    return _left_padded(ids, fill=0) if all(ids) else (None, None)


def _left_padded(ids: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in ids)
    padded = [[fill] * (width - len(row)) + list(row) for row in ids]
    real = [[False] * (width - len(row)) + [True] * len(row) for row in ids]
    return torch.tensor(padded), torch.tensor(real)
