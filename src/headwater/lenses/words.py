"""A lens in words and plain tables, for terminals and notebooks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from headwater.lenses.result import Lens

ENDS = ("final", "first")
CELL = 10
"""Most characters of a token in a grid."""
CONVENTION = (
    "Position i has read the tokens up to and including i and predicts token i + 1: 'input' is "
    "the token read at a position, 'next' the one that follows."
)


def title(lens: Lens) -> str:
    """Return what was read, on one line."""
    prompts, tokens = len(lens.texts), int(lens.mask.sum())
    model = lens.provenance.get("model", {}).get("name", "a model")
    read = f"{_many(prompts, 'prompt')}, {_many(tokens, 'token')}"
    return f"Lens of {model}: {read}, {len(lens.layers)} rows"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def told(lens: Lens) -> list[str]:
    """Return the lines of the printed result."""
    return [title(lens), CONVENTION, *table(lens), *sentences(lens)]


def sentences(lens: Lens) -> list[str]:
    """Return what to read first: when the model decides, and its steps against both ends."""
    said = [decision(lens), *lens.jumps(of="kl", direction="ref||layer").sentences()]
    if least := noise(lens):
        said.append(least)
    for one in lens.added.values():
        said += one["sentences"][:1]
    return said


def decision(lens: Lens) -> str:
    """Return after which row the final prediction stands."""
    at = lens.decided().at[lens.mask]
    stream = [number for number, row in enumerate(lens.layers) if row.is_stream]
    counts = {number: int((at == number).sum()) for number in stream}
    most = max(counts, key=lambda number: counts[number])
    early = sum(count for number, count in counts.items() if number != stream[-1])
    share = 100 * early / max(len(at), 1)
    own = lens.provenance.get("options", {}).get("decode_with", "unembedding") == "unembedding"
    whose = "The model's best token" if own else "The last row's best token, by the embedding,"
    return (
        f"{whose} stands before the last layer at {share:.0f} % of positions; most "
        f"often from {lens.names[most]} on ({counts[most]} of {len(at)})."
    )


def noise(lens: Lens) -> str:
    """Return how far below 0 rounding took a divergence; nothing if that is not worth a word."""
    lowest = float(lens.arrays.kl.nan_to_num(0).min())
    if lowest > -1e-5:
        return ""
    said = f"Rounding took a KL divergence to {lowest:.1e} nats"
    return f"{said}: differences of that size mean nothing."


def means(lens: Lens) -> Iterator[dict[str, Any]]:
    """Yield one mapping a row, with the mean of every statistic over all positions.

    Infinite values are left out of means, and counted.
    """
    for number, name in enumerate(lens.names):
        found = {key: float(lens.tally.mean(key)[number]) for key in lens.tally.keys}
        of_words = {
            key: float(lens[key][number].nanmean())
            for word in lens.tokens
            for key in (f"rank({word})", f"logprob({word})")
        }
        infinite = int(sum(lens.tally.infinite(key)[number] for key in lens.tally.keys))
        yield {"row": name, **found, **of_words, "infinite": infinite}


def table(lens: Lens, against: Sequence[str | int] = ENDS) -> list[str]:
    """Return one line a row, the final one first: means over all positions, medians of ranks.

    Args:
        lens: What was read.
        against: The rows that all are compared with.
    """
    columns: list[tuple[str, Tensor]] = []
    for one in against:
        name = one if one in ENDS else lens.names[lens.row(one)]
        columns.append((f"KL({name}||row)", _mean(lens.kl(one))))
        columns.append((f"KL(row||{name})", _mean(lens.kl(one, "layer||ref"))))
    columns.append(("best = final", _mean(lens.agrees())))
    columns += [(f"rank {of}", _median(lens.rank(of))) for of in ("input", "next", *lens.tokens)]
    columns.append(("entropy", _mean(lens.entropy())))
    columns.append(("size", _mean(lens.rms())))
    infinite = int(lens.arrays.kl.isinf().any(0).any(0).sum())
    note = f"Infinite divergences, at {infinite} positions, are left out of means."
    return [*aligned(lens.names, columns), *([note] if infinite else [])]


def aligned(names: Sequence[str], columns: Sequence[tuple[str, Tensor]]) -> list[str]:
    """Return columns of numbers as lines under their headings, the last row first."""
    first = max(5, *map(len, names)) + 1
    wide = [max(len(heading), 8) + 2 for heading, _ in columns]
    heads = "".join(
        f"{heading:>{width}}" for (heading, _), width in zip(columns, wide, strict=True)
    )
    lines = [f"{'row':<{first}}{heads}"]
    for number in reversed(range(len(names))):
        cells = "".join(
            f"{_number(float(values[number])):>{width}}"
            for (_, values), width in zip(columns, wide, strict=True)
        )
        lines.append(f"{names[number]:<{first}}{cells}")
    return lines


def grid(lens: Lens, prompt: int = 0, width: int = 100) -> list[str]:
    """Return the best token of every row and position of a prompt, the last that fit.

    Args:
        lens: What was read.
        prompt: The prompt's number.
        width: Characters of a line.
    """
    length = int(lens.mask[prompt].sum())
    best = lens.topk(1).ids[:, prompt, :length, 0].tolist()
    read = [_visible(lens.text_of(one)) for one in lens.arrays.ids[prompt, :length].tolist()]
    rows = [[_visible(lens.text_of(one)) for one in row] for row in best]
    first = max(5, *map(len, lens.names)) + 1
    wide = [min(CELL, max(map(len, column))) + 1 for column in zip(read, *rows, strict=True)]
    shown, left = length, width - first
    for place in reversed(range(length)):
        if left < wide[place] and place < length - 1:
            break
        left, shown = left - wide[place], place
    places = range(shown, length)

    def line(name: str, cells: Sequence[str]) -> str:
        parts = [f"{_cut(cells[one], wide[one] - 1):<{wide[one]}}" for one in places]
        return f"{name:<{first}}{''.join(parts)}".rstrip()

    told = [line(lens.names[row], rows[row]) for row in reversed(range(len(rows)))]
    cut = f" (the last {length - shown} of {length} positions)" if shown else ""
    return [
        f"Best next token of each row and position{cut}; below the line, what was read",
        *told,
        line("read", read),
    ]


def _mean(values: Tensor) -> Tensor:
    """Return each row's mean over what is finite, as everywhere in the library."""
    return values.masked_fill(values.isinf(), math.nan).nanmean((1, 2))


def _median(values: Tensor) -> Tensor:
    return values.flatten(1).nanmedian(1).values


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _visible(text: str) -> str:
    marked = text.replace("\n", "\u21b5").replace("\t", "\u21e5").replace(" ", "\u2423")
    return "".join(one if one.isprintable() else "\ufffd" for one in marked)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "\u2026"
