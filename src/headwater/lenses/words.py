"""A lens in words and plain tables, for terminals and notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwater.lenses.result import Lens

CONVENTION = (
    "Position i has read the tokens up to and including i and predicts token i + 1: 'input' is "
    "the token read at a position, 'next' the one that follows."
)


def title(lens: Lens) -> str:
    """Return what was read, on one line."""
    prompts, tokens = len(lens.texts), int(lens.mask.sum())
    model = lens.provenance.get("model", {}).get("name", "a model")
    many = "prompt" if prompts == 1 else "prompts"
    return f"Lens of {model}: {prompts} {many}, {tokens:,} tokens, {len(lens.layers)} rows"


def told(lens: Lens) -> list[str]:
    """Return the lines of the printed result."""
    return [title(lens), CONVENTION, *table(lens), *sentences(lens)]


def sentences(lens: Lens) -> list[str]:
    """Return what to read first: when the model decides, and its steps against both ends."""
    said = [decision(lens), *lens.jumps().sentences()]
    if least := noise(lens):
        said.append(least)
    for one in lens.added.values():
        said += one["sentences"]
    return said


def decision(lens: Lens) -> str:
    """Return after which row the final prediction stands."""
    at = lens.decided().at[lens.mask]
    stream = [number for number, row in enumerate(lens.layers) if row.is_stream]
    counts = {number: int((at == number).sum()) for number in stream}
    most = max(counts, key=lambda number: counts[number])
    early = sum(count for number, count in counts.items() if number != stream[-1])
    share = 100 * early / max(len(at), 1)
    return (
        f"The model's best token stands before the last layer at {share:.0f} % of positions; most "
        f"often from {lens.names[most]} on ({counts[most]} of {len(at)})."
    )


def noise(lens: Lens) -> str:
    """Return how far below 0 rounding took a divergence; nothing if that is not worth a word."""
    lowest = float(lens.arrays.kl.nan_to_num(0).min())
    if lowest > -1e-5:
        return ""
    said = f"Rounding took a KL divergence to {lowest:.1e} nats"
    return f"{said}: differences of that size mean nothing."


COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("kl(final||layer)", "KL(fin||row)", "mean"),
    ("kl(layer||final)", "KL(row||fin)", "mean"),
    ("kl(first||layer)", "KL(in||row)", "mean"),
    ("kl(layer||first)", "KL(row||in)", "mean"),
    ("agrees", "top1=fin", "mean"),
    ("rank(input)", "rank input", "median"),
    ("rank(next)", "rank next", "median"),
    ("entropy", "entropy", "mean"),
    ("rms", "size", "mean"),
)
"""Statistic, heading, and how positions are put together."""


def means(lens: Lens) -> Iterator[dict[str, Any]]:
    """Yield one mapping a row, with the mean of every statistic over all positions."""
    for number, name in enumerate(lens.names):
        found = {key: float(lens.tally.mean(key)[number]) for key in lens.tally.keys}
        yield {"row": name, **found}


def table(lens: Lens) -> list[str]:
    """Return one line a row, with means over all positions (ranks: medians)."""
    known = [one for one in COLUMNS if one[0] in lens.arrays.values]
    lines = ["".join([f"{'row':<8}", *(f"{heading:>13}" for _, heading, _ in known)])]
    for number in reversed(range(len(lens.layers))):
        cells = [f"{lens.names[number]:<8}"]
        for key, _, how in known:
            values = lens.arrays.values[key][number]
            value = values.nanmedian() if how == "median" else values.nanmean()
            cells.append(f"{float(value):>13.4g}")
        lines.append("".join(cells))
    return lines
