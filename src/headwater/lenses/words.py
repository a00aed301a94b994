"""A lens in words and plain tables, for terminals and notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    return [title(lens), CONVENTION, *table(lens)]


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
