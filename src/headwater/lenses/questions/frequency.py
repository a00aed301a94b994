"""How common each token is: counts of your own, of the corpus read, or the tokenizer's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headwater.errors import UnknownOptionError, did_you_mean
from headwater.lenses.tally.types import Types

Counts: TypeAlias = str | Mapping[str, float] | Mapping[int, float] | Tensor
"""`"corpus"`, `"tokenizer"`, counts by token text or id, or a tensor `[vocab]`."""

ADDED = 0.5
"""Added to every count, so that tokens that were never counted have a logarithm too."""


@dataclass(frozen=True, eq=False)
class Frequency:
    """A number of each type, larger for commoner ones, and where it comes from."""

    values: Float[np.ndarray, " type"]
    source: str
    note: str = ""
    by_id: bool = False
    """Whether the values are ids with a minus sign, rather than counts."""

    @property
    def added(self) -> float:
        """What counts were raised by; nothing, where they are none."""
        return 0.0 if self.by_id else ADDED

    def told(self, lowest: float, highest: float) -> str:
        """Return the frequencies of a bin in words.

        Args:
            lowest: The smallest value in it, without what was added.
            highest: The largest.
        """
        if self.by_id:
            return f"ids {-highest:.0f} to {-lowest:.0f}"
        return f"{lowest:.4g} to {highest:.4g}"


def frequency(types: Types, counts: Counts, vocabulary: Mapping[int, str] | None) -> Frequency:
    """Return how common each type is.

    Args:
        types: The types that were seen.
        counts: Where frequencies come from.
        vocabulary: Texts of tokens, for counts by text.

    Raises:
        UnknownOptionError: If counts are of no known kind, do not reach to a token, or are of no
            token at all.
    """
    tokens = types.tokens
    if isinstance(counts, str):
        return _named(types, counts)
    if isinstance(counts, Tensor):
        return Frequency(_looked_up(counts, max(tokens)).numpy()[tokens] + ADDED, "your counts")
    if isinstance(counts, Mapping):
        return _mapped(tokens, counts, vocabulary)
    raise UnknownOptionError(
        f"counts={counts!r:.60} ({type(counts).__name__}) are none.\n"
        "Give 'corpus', 'tokenizer', a mapping from tokens to counts, or a tensor [vocab]."
    )


def _named(types: Types, counts: str) -> Frequency:
    if counts == "corpus":
        return Frequency(types.of("count").sum(-1).numpy() + ADDED, "counts in what was read")
    if counts == "tokenizer":
        return Frequency(
            -np.array(types.tokens, dtype=np.float64),
            "the order of token ids",
            "A low id is an early merge of the tokenizer, which stands for a common token only "
            "roughly.",
            by_id=True,
        )
    raise UnknownOptionError(
        f"counts={counts!r} is unknown.{did_you_mean(counts, ('corpus', 'tokenizer'))}\n"
        "Give 'corpus', 'tokenizer', a mapping from tokens to counts, or a tensor [vocab]."
    )


def _looked_up(counts: Tensor, largest: int) -> Tensor:
    counts = counts.detach().cpu().double()
    if counts.ndim != 1 or len(counts) <= largest or not bool((counts >= 0).all()):
        raise UnknownOptionError(
            f"counts of shape {list(counts.shape)}: token {largest} was read, and each token needs "
            f"a count that is not negative.\nGive a tensor [vocab], such as "
            "torch.bincount(ids, minlength=vocab)."
        )
    return counts


def _mapped(
    tokens: list[int], counts: Mapping[str, float] | Mapping[int, float], vocabulary: object
) -> Frequency:
    texts = vocabulary if isinstance(vocabulary, Mapping) else {}
    by_text = any(isinstance(key, str) for key in counts)
    named = [texts.get(token) if by_text else token for token in tokens]
    known = [name for name in named if name in counts]
    if not known:
        shown = next(iter(counts), "")
        near = did_you_mean(str(shown), [str(name) for name in named if name is not None])
        raise UnknownOptionError(
            f"counts= has no token that was read: {shown!r} is none.{near}\n"
            "Write tokens as they stand in running text, with the blank in front, or give ids."
        )
    values = np.array([float(counts.get(name, 0.0)) for name in named])  # pyright: ignore
    if not (values >= 0).all():
        raise UnknownOptionError("counts= has a negative count.\nGive how often each token occurs.")
    missing = len(tokens) - len(known)
    note = f"{missing:,} of {len(tokens):,} tokens read have no count: 0." if missing else ""
    return Frequency(values + ADDED, "your counts", note)


def quantile_bins(values: Float[np.ndarray, " type"], bins: int) -> list[np.ndarray]:
    """Return the types of each quantile, commonest first; equal values are never parted.

    Args:
        values: Frequency of each type.
        bins: How many quantiles; there are fewer where many values are equal.
    """
    ordered, which = np.unique(values, return_inverse=True)
    sizes = np.bincount(which, minlength=len(ordered))
    middle = (np.cumsum(sizes) - sizes / 2) / len(values)
    place = bins - 1 - np.floor(middle * bins).astype(int).clip(0, bins - 1)
    found = [np.flatnonzero(place[which] == number) for number in range(bins)]
    return [one for one in found if len(one)]
