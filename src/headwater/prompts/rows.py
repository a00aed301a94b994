"""From pairs to encoded rows: what the metric needs, aligned and checked, pair by pair."""

import warnings
from collections.abc import Iterator, Sequence

from headwater.errors import (
    AnswerError,
    HeadwaterError,
    MissingFieldError,
    PromptError,
    UnalignedPromptsError,
)
from headwater.metrics import METRICS, FunctionMetric, Metric
from headwater.prompts.batches import Row
from headwater.prompts.encoding import Encoder, show_tokens, token_texts
from headwater.prompts.pairs import Answer, Pair

Ids = tuple[int, ...]


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
    sides = _sides(pairs, metric)
    twins = align and all(pair.corrupted is not None for pair in pairs)
    _prime(pairs, metric, encoder, sides, twins=twins)
    rows = []
    for number, pair in enumerate(pairs):
        try:
            rows.append(_encode_row(number, pair, metric, encoder, sides, twins=twins))
        except HeadwaterError as error:
            raise type(error)(f"{where(number, pair)}: {error}") from None
    if "answer" in sides:
        _warn_of_joined_words(pairs, metric, encoder)
    return rows


def where(number: int, pair: Pair) -> str:
    """Return how errors name a pair: `pair 3 (pairs.jsonl, line 4)`."""
    return f"pair {number} ({pair.origin})" if pair.origin else f"pair {number}"


def _sides(pairs: Sequence[Pair], metric: Metric) -> set[str]:
    """Return which of `answer` and `wrong` to encode: what is needed, or wanted and there."""
    required = metric.needs
    return {
        side
        for side in ("answer", "wrong")
        if side in required or (side in metric.wants and all(getattr(pair, side) for pair in pairs))
    }


def _encode_row(
    number: int, pair: Pair, metric: Metric, encoder: Encoder, sides: set[str], *, twins: bool
) -> Row:
    clean = encoder.prompt(pair.clean)
    corrupted = encoder.prompt(pair.corrupted) if twins and pair.corrupted is not None else None
    if corrupted == clean:
        raise PromptError(
            "clean and corrupted have the same tokens, "
            f"{show_tokens(encoder.tokenizer, clean)}, so every effect would be "
            "0. Change the word that carries the behavior."
        )
    if corrupted is not None and len(corrupted) != len(clean):
        raise UnalignedPromptsError(_unaligned(encoder, clean, corrupted))
    encoded = {
        side: [encoder.answer(pair.clean, one) for one in _present(pair, side, metric, sides)]
        for side in ("answer", "wrong")
    }
    answer, wrong = encoded["answer"], encoded["wrong"]
    for ids in (*answer, *wrong):
        if len(ids) > 1 and not (metric.several_tokens and len(answer) == 1):
            raise AnswerError(_several_tokens(encoder, metric, ids, len(answer)))
    shared = {ids for ids in answer if ids in wrong}
    if shared:
        raise AnswerError(
            f"{show_tokens(encoder.tokenizer, shared.pop())} is the token of both an answer and "
            "a wrong one, so the two cancel. Give it on one side only."
        )
    if answer and len(answer[0]) > 1:
        target = answer[0]
        # The last token is only predicted, never read by the model.
        ending = target[:-1]
        twin = None if corrupted is None else corrupted + ending
        return Row(number, clean + ending, twin, target=target)
    # Two texts may share a token; it counts once.
    right, others = (tuple(dict.fromkeys(ids[0] for ids in one)) for one in (answer, wrong))
    return Row(number, clean, corrupted, right, others)


def _present(pair: Pair, side: str, metric: Metric, sides: set[str]) -> tuple[Answer, ...]:
    if side not in sides:
        return ()
    given = (metric.fixed_answer if side == "answer" else ()) or getattr(pair, side)
    if not given:
        free = [name for name, kind in METRICS.items() if not kind().needs & {"answer", "wrong"}]
        one_sided = [name for name, kind in METRICS.items() if "wrong" not in kind().needs]
        others = free if side == "answer" else one_sided
        raise MissingFieldError(
            f"no `{side}`, which the metric {metric.name} needs. "
            f"Give the pair a `{side}`, or use a metric that needs none: {', '.join(others)}."
        )
    return given


def _prime(
    pairs: Sequence[Pair], metric: Metric, encoder: Encoder, sides: set[str], *, twins: bool
) -> None:
    prompts = [pair.clean for pair in pairs]
    prompts += [pair.corrupted for pair in pairs if twins and pair.corrupted is not None]
    encoder.prime(prompts)
    encoder.prime(prompts, special=True)
    fixed = metric.fixed_answer
    encoder.prime(
        pair.clean + one
        for pair in pairs
        for side in sorted(sides)
        for one in (fixed if side == "answer" and fixed else getattr(pair, side))
        if isinstance(one, str)
    )


def _unaligned(encoder: Encoder, clean: Ids, corrupted: Ids) -> str:
    texts = [token_texts(encoder.tokenizer, ids) for ids in (clean, corrupted)]
    same = (one == other for one, other in zip(clean, corrupted, strict=False))
    part = next((position for position, equal in enumerate(same) if not equal), -1)
    if part < 0:
        part = min(len(clean), len(corrupted))
    there = [repr(text[part]) if part < len(text) else "the end" for text in texts]
    return (
        f"clean has {len(clean)} tokens, corrupted {len(corrupted)}; they part at position {part} "
        f"({' / '.join(there)}).\n"
        f"  clean:     {show_tokens(encoder.tokenizer, clean)}\n"
        f"  corrupted: {show_tokens(encoder.tokenizer, corrupted)}\n"
        "Rewrite one of them, or use a reference that needs no corrupted prompt: "
        "reference=hw.Mean()."
    )


def _several_tokens(encoder: Encoder, metric: Metric, ids: Ids, answers: int) -> str:
    several = f"the answer is {len(ids)} tokens, {show_tokens(encoder.tokenizer, ids)}"
    if metric.several_tokens:
        return (
            f"{several}, and one of {answers} answers; {metric.name} follows several tokens only "
            "for a pair with one answer. Keep one, or give answers of one token each."
        )
    return (
        f"{several}; the metric {metric.name} reads one token. "
        'Choose an answer of one token, or metric="logprob", which follows several'
        f"{_OWN_FUNCTION if isinstance(metric, FunctionMetric) else '.'}"
    )


_OWN_FUNCTION = ", or hw.metric(function, needs=()) if the function reads no answers."


def _warn_of_joined_words(pairs: Sequence[Pair], metric: Metric, encoder: Encoder) -> None:
    found = list(_joined_words(pairs, metric, encoder))
    if found:
        number, pair, answer, blank = found[0]
        last_word = pair.clean.split()[-1]
        warnings.warn(
            f"{where(number, pair)}: the answer {answer!r} was read as the end of "
            f"{last_word + answer!r}, for {len(found)} of {len(pairs)} pairs. "
            f"If it is a word of its own, write {blank!r}.",
            stacklevel=4,
        )


def _joined_words(
    pairs: Sequence[Pair], metric: Metric, encoder: Encoder
) -> Iterator[tuple[int, Pair, str, str]]:
    """Yield the pairs whose answer goes on the prompt's last word but is a token with a blank too.

    `"...a drink to"` with `"John"` asks for the word "toJohn", which is rarely what is meant.
    """
    for number, pair in enumerate(pairs):
        for answer in metric.fixed_answer or pair.answer:
            if not isinstance(answer, str) or not (
                pair.clean[-1].isalpha() and answer[0].isalpha()
            ):
                continue
            stem, blank = len(encoder.bare(pair.clean)), f" {answer}"
            read = encoder.answer(pair.clean, answer)
            spaced = encoder.bare(pair.clean + blank)[stem:]
            if read != spaced and len(read) == len(spaced) == 1:
                yield number, pair, answer, blank
                break
