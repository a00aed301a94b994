"""Which pairs of a task a tokenizer lets its metric read, and why not the others.

Pairs made for one tokenizer often do not fit another: an answer is several tokens there, or the two
prompts of a pair differ in length. `Task.batches` refuses such a task; here its pairs are told
apart, and none is left out without being counted.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headwater.errors import (
    AnswerError,
    HeadwaterError,
    MissingFieldError,
    PromptError,
    UnalignedPromptsError,
    UnknownWordError,
)
from headwater.prompts.batches import pack
from headwater.prompts.encoding import Encoder, show_tokens
from headwater.prompts.pairs import Pair
from headwater.prompts.rows import SIDES, RowEncoder, where

if TYPE_CHECKING:
    from headwater.prompts.task import Task

SEVERAL_TOKENS = "an answer of several tokens"
UNEQUAL_LENGTH = "prompts of unequal length"

REASONS: dict[type[HeadwaterError], str] = {
    UnalignedPromptsError: UNEQUAL_LENGTH,
    UnknownWordError: "a word without a token",
    MissingFieldError: "an answer missing",
    AnswerError: "an answer that cannot be read",
    HeadwaterError: "a prompt that cannot be used",
}
"""What a pair's error is counted as, unless it is `SEVERAL_TOKENS`; bases stand last."""


@dataclass(frozen=True)
class LeftOut:
    """A pair that cannot be used."""

    number: int
    """Its index in the task."""

    faults: Mapping[str, str]
    """Each reason it was left out for, and the message that says it in full."""


@dataclass(frozen=True, repr=False)
class Usable:
    """The pairs of a task that can be used, and the others counted by reason."""

    whole: "Task"
    """The task as it was."""

    left_out: tuple[LeftOut, ...]
    """The pairs that cannot be used, in task order."""

    condition: str
    """With what the others can be used, in words."""

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices of the pairs that can be used."""
        others = {one.number for one in self.left_out}
        return tuple(number for number in range(len(self.whole)) if number not in others)

    @property
    def reasons(self) -> dict[str, int]:
        """How many pairs were left out for each reason, the most frequent first.

        A pair counts for every reason it has.
        """
        return dict(Counter(reason for one in self.left_out for reason in one.faults).most_common())

    @property
    def task(self) -> "Task":
        """The task of the pairs that can be used; its `source` tells how many were left out.

        Raises:
            PromptError: If there are none.
        """
        if not self.left_out:
            return self.whole
        if not self.kept:
            raise PromptError(f"{self}\n{self._way_out()}")
        task = self.whole._with_pairs([self.whole.pairs[number] for number in self.kept])
        task.source = f"{task.source or task.name}: {self.summary()}"
        return task

    def summary(self) -> str:
        """Return how many pairs can be used, and why the others cannot, on one line."""
        kept = f"{len(self.kept)} of {len(self.whole)} pairs can be used with {self.condition}"
        if not self.left_out:
            return kept
        reasons = ", ".join(f"{count} for {reason}" for reason, count in self.reasons.items())
        several = sum(len(one.faults) > 1 for one in self.left_out)
        overlap = f" ({several} for more than one reason)" if several else ""
        return f"{kept}; left out: {reasons}{overlap}"

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain data."""
        return {
            "pairs": len(self.whole),
            "kept": len(self.kept),
            "condition": self.condition,
            "left_out": self.reasons,
        }

    def _way_out(self) -> str:
        if UNEQUAL_LENGTH not in self.reasons:
            return "A task needs at least one pair: change what the first one is left out for."
        return (
            'A reference that needs no corrupted prompt, reference=hw.Mean(over="clean"), also '
            "takes prompts of unequal length: usable(tokenizer, align=False)."
        )

    def __repr__(self) -> str:
        lines = [f"Task {self.whole.name!r}: {self.summary()}"]
        for reason in self.reasons:
            first = next(one for one in self.left_out if reason in one.faults)
            pair = where(first.number, self.whole.pairs[first.number])
            lines.append(f"  {pair}: {first.faults[reason].splitlines()[0]}")
        return "\n".join(lines)


def find_usable(task: "Task", encoder: Encoder, *, align: bool, one_token: bool) -> Usable:
    """Try every pair of a task by itself.

    Args:
        task: The pairs and the metric that reads them.
        encoder: The tokenizer.
        align: Whether corrupted prompts must be as long as clean ones.
        one_token: Whether every answer must be one token, even where the metric reads several.
    """
    left_out: dict[int, LeftOut] = {}
    kept = list(range(len(task)))
    while kept:
        pairs = [task.pairs[number] for number in kept]
        rows_encoder = RowEncoder.of(pairs, task.metric, encoder, align=align)
        found = {}
        for number, pair in zip(kept, pairs, strict=True):
            faults = _faults(rows_encoder, number, pair, one_token=one_token)
            if faults:
                found[number] = LeftOut(number, faults)
        # What all pairs have is used: without a pair that lacked it, more is asked of the others.
        if not found:
            break
        left_out |= found
        kept = [number for number in kept if number not in found]
    condition = f"this tokenizer and the metric {task.metric.name}"
    if one_token:
        condition += ", answers of one token"
    return Usable(task, tuple(left_out[number] for number in sorted(left_out)), condition)


def _faults(
    rows_encoder: RowEncoder, number: int, pair: Pair, *, one_token: bool
) -> dict[str, str]:
    """Return every reason against a pair with its message: of its prompts, then of its answers."""
    faults: dict[str, str] = {}
    try:
        rows_encoder.prompts(pair)
    except HeadwaterError as error:
        faults[_reason(error)] = str(error)
    try:
        _try_answers(rows_encoder, pair, one_token=one_token)
    except _SeveralTokensError as error:
        faults[SEVERAL_TOKENS] = str(error)
    except HeadwaterError as error:
        faults[_reason(error)] = str(error)
    if not faults:
        try:
            _try_reading(rows_encoder, number, pair)
        except HeadwaterError as error:
            faults[_reason(error)] = str(error).removeprefix(f"pair {number}: ")
    return faults


class _SeveralTokensError(Exception):
    """The metric reads one token, or one was asked for; never leaves this file."""


def _try_answers(rows_encoder: RowEncoder, pair: Pair, *, one_token: bool) -> None:
    answer, wrong = rows_encoder.answers(pair)
    try:
        rows_encoder.refuse_unreadable(answer, wrong)
    except AnswerError as error:
        if any(len(ids) > 1 for ids in (*answer, *wrong)):
            raise _SeveralTokensError(str(error)) from None
        raise
    # Also the answers that this metric does not read: another might be asked of the same pairs.
    for text in (text for side in SIDES * one_token for text in rows_encoder.given(pair, side)):
        ids = rows_encoder.encoder.answer(pair.clean, text)
        if len(ids) > 1:
            shown = show_tokens(rows_encoder.encoder.tokenizer, ids)
            raise _SeveralTokensError(
                f"an answer is {len(ids)} tokens, {shown}; one was asked for."
            )


def _try_reading(rows_encoder: RowEncoder, number: int, pair: Pair) -> None:
    # A metric may need more of a prompt than its tokens: cross-entropy needs two.
    row = rows_encoder.row(number, pair)
    (batch,) = pack([row], batch_size=1, pad_id=rows_encoder.encoder.pad_id)
    rows_encoder.metric.read(batch)


def _reason(error: HeadwaterError) -> str:
    return next(reason for kind, reason in REASONS.items() if isinstance(error, kind))
