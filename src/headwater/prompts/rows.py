"""From pairs to encoded rows: what the metric needs, aligned and checked, pair by pair."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headwater.errors import AnswerError, HeadwaterError, MissingFieldError
from headwater.metrics import METRICS, FunctionMetric, Metric
from headwater.prompts.alignment import refuse_unaligned
from headwater.prompts.batches import Row
from headwater.prompts.encoding import Encoder, Ids, show_tokens
from headwater.prompts.pairs import Answer, Pair

SIDES = ("answer", "wrong")


def encode_rows(
    pairs: Sequence[Pair], metric: Metric, encoder: Encoder, *, align: bool = True
) -> list[Row]:
    """Encode every pair for a metric.

    Args:
        pairs: The pairs, in task order.
        metric: Says which answers are needed, and whether they may be several tokens.
        encoder: The tokenizer.
        align: If false, corrupted prompts are left out and so may have any length.

    Returns:
        One row a pair.

    Raises:
        HeadwaterError: For the first pair that cannot be used, by number and file line.
    """
    rows_encoder = RowEncoder.of(pairs, metric, encoder, align=align)
    rows = []
    for number, pair in enumerate(pairs):
        try:
            rows.append(rows_encoder.row(number, pair))
        except HeadwaterError as error:
            raise type(error)(f"{where(number, pair)}: {error}") from None
    rows_encoder.warn_of_joined_words(pairs)
    return rows


def where(number: int, pair: Pair) -> str:
    """Return how errors name a pair: `pair 3 (pairs.jsonl, line 4)`."""
    return f"pair {number} ({pair.origin})" if pair.origin else f"pair {number}"


def _is_used(side: str, pairs: Sequence[Pair], metric: Metric) -> bool:
    return side in metric.needs or (
        side in metric.wants and all(getattr(pair, side) for pair in pairs)
    )


@dataclass(frozen=True)
class RowEncoder:
    """Encodes pairs one by one, all in the same way."""

    encoder: Encoder
    metric: Metric
    sides: tuple[str, ...]
    """Which answers are encoded: those needed, and those wanted that every pair has."""
    twins: bool
    """Whether corrupted prompts are encoded."""

    @classmethod
    def of(
        cls, pairs: Sequence[Pair], metric: Metric, encoder: Encoder, *, align: bool = True
    ) -> "RowEncoder":
        """Return the encoder of a task's pairs, which decide together what is encoded."""
        rows_encoder = cls(
            encoder,
            metric,
            sides=tuple(side for side in SIDES if _is_used(side, pairs, metric)),
            twins=align and all(pair.corrupted is not None for pair in pairs),
        )
        rows_encoder.prime(pairs)
        return rows_encoder

    def prime(self, pairs: Sequence[Pair]) -> None:
        """Encode all texts at once, which is several times faster than one by one."""
        prompts = [pair.clean for pair in pairs]
        prompts += [pair.corrupted for pair in pairs if self.twins and pair.corrupted is not None]
        self.encoder.prime(prompts)
        self.encoder.prime(prompts, special=True)
        self.encoder.prime(
            pair.clean + one
            for pair in pairs
            for side in self.sides
            for one in self.given(pair, side)
            if isinstance(one, str)
        )

    def given(self, pair: Pair, side: str) -> tuple[Answer, ...]:
        """Return a pair's answers, or the metric's own where it has one."""
        fixed = self.metric.fixed_answer if side == "answer" else ()
        return fixed or getattr(pair, side)

    def row(self, number: int, pair: Pair) -> Row:
        """Encode one pair."""
        clean, corrupted = self.prompts(pair)
        answer, wrong = self.answers(pair)
        self.refuse_unreadable(answer, wrong)
        if answer and len(answer[0]) > 1:
            # The last token is only predicted, never read by the model.
            ending = answer[0][:-1]
            twin = None if corrupted is None else corrupted + ending
            return Row(number, clean + ending, twin, target=answer[0], ending=len(ending))
        # Two texts may share a token; it counts once.
        right, others = (tuple(dict.fromkeys(ids[0] for ids in one)) for one in (answer, wrong))
        return Row(number, clean, corrupted, right, others)

    def prompts(self, pair: Pair) -> tuple[Ids, Ids | None]:
        """Return the ids of a pair's clean prompt and, where it is used, of its twin."""
        clean = self.encoder.prompt(pair.clean)
        if not self.twins or pair.corrupted is None:
            return clean, None
        corrupted = self.encoder.prompt(pair.corrupted)
        refuse_unaligned(self.encoder.tokenizer, clean, corrupted)
        return clean, corrupted

    def answers(self, pair: Pair) -> tuple[list[Ids], list[Ids]]:
        """Return the ids of each right and each wrong answer that is used."""
        answer, wrong = (self._answers(pair, side) for side in SIDES)
        return answer, wrong

    def refuse_unreadable(self, answer: Sequence[Ids], wrong: Sequence[Ids]) -> None:
        """Raise if the metric cannot read the answers, or they cancel."""
        for ids in (*answer, *wrong):
            if len(ids) > 1 and not (self.metric.several_tokens and len(answer) == 1):
                raise AnswerError(self._several_tokens(ids, len(answer)))
        shared = next((ids for ids in answer if ids in wrong), None)
        if shared is not None:
            raise AnswerError(
                f"{show_tokens(self.encoder.tokenizer, shared)} is the token of an answer and of "
                "a wrong one, so the two cancel. Give it on one side only."
            )

    def warn_of_joined_words(self, pairs: Sequence[Pair]) -> None:
        """Warn once if answers go on the prompt's last word but could be words of their own."""
        found = list(self._joined_words(pairs))
        if found:
            number, pair, answer = found[0]
            last_word = pair.clean.split()[-1]
            warnings.warn(
                f"{where(number, pair)}: the answer {answer!r} was read as the end of "
                f"{last_word + answer!r}, for {len(found)} of {len(pairs)} pairs. "
                f"If it is a word of its own, write {' ' + answer!r}.",
                stacklevel=4,
            )

    def _joined_words(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Pair, str]]:
        # "...a drink to" with "John" asks for the word "toJohn", which is rarely what is meant.
        for number, pair in enumerate(pairs):
            for answer in self.given(pair, "answer") if "answer" in self.sides else ():
                if not isinstance(answer, str):
                    continue
                if not (pair.clean[-1].isalpha() and answer[0].isalpha()):
                    continue
                read = self.encoder.answer(pair.clean, answer)
                stem = len(self.encoder.bare(pair.clean))
                blank = self.encoder.bare(f"{pair.clean} {answer}")[stem:]
                if read != blank and len(read) == len(blank) == 1:
                    yield number, pair, answer
                    break

    def _answers(self, pair: Pair, side: str) -> list[Ids]:
        if side not in self.sides:
            return []
        given = self.given(pair, side)
        if not given:
            raise MissingFieldError(self._missing(side))
        return [self.encoder.answer(pair.clean, one) for one in given]

    def _missing(self, side: str) -> str:
        lighter = [name for name, kind in METRICS.items() if side not in kind().needs]
        return (
            f"the pair has no `{side}`, which the metric {self.metric.name} needs. "
            f"Give it one, or choose a metric that needs none: {', '.join(lighter)}."
        )

    def _several_tokens(self, ids: Ids, answers: int) -> str:
        shown = show_tokens(self.encoder.tokenizer, ids)
        several = f"an answer is {len(ids)} tokens, {shown}"
        if self.metric.several_tokens:
            return (
                f"{several}, and one of {answers} answers; {self.metric.name} follows several "
                "tokens only for a pair with one answer. Keep one, or give answers of one token."
            )
        own = (
            ", or hw.metric(function, needs=()) if the function reads no answers"
            if isinstance(self.metric, FunctionMetric)
            else ""
        )
        return (
            f"{several}; the metric {self.metric.name} reads one token. Choose answers of one "
            f'token, or metric="logprob", which follows several{own}.'
        )
