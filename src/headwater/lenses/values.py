"""The statistics of a lens as arrays `[row, prompt, position]`.

Position i has read the tokens up to and including i and predicts token i + 1. Arrays are padded on
the right with NaN (token ids with -1) where prompts have different lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwater.errors import UnknownOptionError, did_you_mean
from headwater.lenses.arrays import Arrays
from headwater.lenses.rows import Row, index_of
from headwater.lenses.statistics import TARGETS, not_computed

Direction = Literal["ref||layer", "layer||ref"]
Ties = Literal["mid", "strict", "ties"]


@dataclass(frozen=True)
class Decided:
    """Where the final row's best token is the best; -1 where there is no token."""

    at: Int[Tensor, "prompt position"]
    """The first row from which on no other token is above it, at any later row."""
    first: Int[Tensor, "prompt position"]
    """The first row at which no other token is above it, whatever comes after."""


@dataclass(frozen=True)
class TopK:
    """The best tokens of each row and position, best first."""

    ids: Int[Tensor, "row prompt position best"]
    logprobs: Float[Tensor, "row prompt position best"]


@dataclass(frozen=True, eq=False, repr=False)
class LensValues:
    """What every row predicts at every position of every prompt, in numbers."""

    layers: tuple[Row, ...]
    """The rows, from the input to the final residual."""
    arrays: Arrays
    texts: tuple[str | None, ...]
    """The prompts; None where token ids were given."""
    vocabulary: Mapping[int, str]
    """The texts of all tokens that occur."""
    tokens: tuple[str, ...] = ()
    """Words that were ranked too."""

    @property
    def names(self) -> tuple[str, ...]:
        """The rows' names, from `input` to that of the last layer."""
        return tuple(row.name for row in self.layers)

    @property
    def mask(self) -> Bool[Tensor, "prompt position"]:
        """Where there is a token."""
        return self.arrays.ids >= 0

    def text_of(self, token: int) -> str:
        """Return a token's text."""
        return self.vocabulary.get(token, f"[{token}]")

    def row(self, which: str | int) -> int:
        """Return the number of a row: `"final"`, `"first"`, a name, or a layer's number.

        Raises:
            UnknownOptionError: If there is no such row.
        """
        return index_of(self.layers, which)

    def __getitem__(self, key: str) -> Float[Tensor, "row prompt position"]:
        """Return a statistic by its key, such as `"kl(final||layer)"`.

        Raises:
            UnknownOptionError: If there is no such statistic, or it was not computed.
        """
        if key in self.arrays.values:
            return self.arrays.values[key]
        found = self._spelled(key)
        if found is not None:
            return found
        raise not_computed(key, self.arrays.values)

    def kl(
        self, against: str | int = "final", direction: Direction = "ref||layer"
    ) -> Float[Tensor, "row prompt position"]:
        """Return the KL divergence between each row and one of them, in nats.

        Args:
            against: `"final"` (the model's own prediction), `"first"` (the residual entering
                layer 0), any row's name or a layer's number.
            direction: `"ref||layer"` is the sum of p log(p/q) with p of `against` and q of the
                row; `"layer||ref"` the other way round. KL is no metric: read both.

        Raises:
            UnknownOptionError: If there is no such row or direction.
        """
        reference = self.row(against)
        if direction == "ref||layer":
            return self.arrays.kl[reference]
        if direction == "layer||ref":
            return self.arrays.kl[:, reference]
        raise UnknownOptionError(
            f"direction={direction!r} is unknown.\nWrite 'ref||layer' or 'layer||ref'."
        )

    def js(self, against: str = "final") -> Float[Tensor, "row prompt position"]:
        """Return the Jensen-Shannon divergence to `"final"` or `"first"`, in nats: 0 to ln 2.

        Raises:
            UnknownOptionError: If it is against another row, or was not computed.
        """
        return self[f"js({_end(against)})"]

    def tv(self, against: str = "final") -> Float[Tensor, "row prompt position"]:
        """Return the total variation to `"final"` or `"first"`: 0 to 1.

        Raises:
            UnknownOptionError: If it is against another row, or was not computed.
        """
        return self[f"tv({_end(against)})"]

    def entropy(self) -> Float[Tensor, "row prompt position"]:
        """Return the entropy in nats; its exponential is the number of tokens in play."""
        return self["entropy"]

    def rms(self) -> Float[Tensor, "row prompt position"]:
        """Return the root mean square of what is read, before any norm."""
        return self["rms"]

    def max_prob(self) -> Float[Tensor, "row prompt position"]:
        """Return the probability of the best token."""
        return self["max-prob"]

    def margin(self) -> Float[Tensor, "row prompt position"]:
        """Return the best logit minus the second best."""
        return self["margin"]

    def agrees(self) -> Float[Tensor, "row prompt position"]:
        """Return 1 where no token is above the final row's best one, else 0."""
        return self["agrees"]

    def cross_entropy(self) -> Float[Tensor, "row prompt position"]:
        """Return minus the log-probability of the next token; NaN at a prompt's last position."""
        return -self["logprob(next)"]

    def bits_per_byte(self) -> Float[Tensor, " row"]:
        """Return the cross-entropy of all next tokens in bits, a byte of UTF-8 that they spell.

        What a prompt's first token spells is read and not predicted, so its bytes do not count; a
        start token spells nothing.

        Raises:
            UnknownOptionError: If token ids were given, whose text is not known.
        """
        size = 0
        for text, first in zip(self.texts, self.arrays.ids[:, 0].tolist(), strict=True):
            if text is None:
                raise UnknownOptionError(
                    "bits per byte are of texts, and token ids were given.\nUse cross_entropy()."
                )
            size += len(text.removeprefix(self.text_of(first)).encode())
        return self.cross_entropy().nansum((1, 2)) / (math.log(2) * size)

    def rank(
        self, of: str | int = "next", ties: Ties = "mid"
    ) -> Float[Tensor, "row prompt position"]:
        """Return a token's rank among all tokens, from 1.

        Args:
            of: `"input"` (the token read), `"next"` (the one that follows), `"final"` (the final
                row's best), or one of the words given as `tokens=`.
            ties: `"mid"` counts those level with it half, `"strict"` not at all; `"ties"` returns
                how many there are.

        Raises:
            UnknownOptionError: If the token was not ranked.
        """
        if ties not in ("mid", "strict", "ties"):
            raise UnknownOptionError(f"ties={ties!r} is unknown.\nWrite 'mid', 'strict' or 'ties'.")
        target = self._target(of)
        strict, level = self.arrays.strict[target], self.arrays.ties[target]
        return {"mid": strict + level / 2, "strict": strict, "ties": level}[ties]

    def logprob(self, of: str | int = "next") -> Float[Tensor, "row prompt position"]:
        """Return a token's log-probability; `of` as for `rank`."""
        return self.arrays.logprob[self._target(of)]

    def topk(self, k: int | None = None) -> TopK:
        """Return the best tokens of every row and position.

        Args:
            k: How many; None for all that were kept.

        Raises:
            UnknownOptionError: If fewer were kept.
        """
        kept = self.arrays.top.shape[-1]
        k = kept if k is None else k
        if not 1 <= k <= kept:
            raise UnknownOptionError(
                f"topk({k}): {kept} of the best tokens were kept.\n"
                + (f"Write hw.lens(..., best={k})." if k > kept else "Ask for 1 at least.")
            )
        return TopK(self.arrays.top[..., :k], self.arrays.top_logprob[..., :k])

    def jaccard(self, k: int = 10) -> Float[Tensor, "row prompt position"]:
        """Return the overlap of each row's k best tokens with the final row's: |both| / |either|.

        Raises:
            UnknownOptionError: If fewer were kept.
        """
        ids = self.topk(k).ids
        both = (ids[..., :, None] == ids[-1][..., None, :]).any(-1).sum(-1)
        found = both / (2 * k - both)
        return found.masked_fill(~self.mask, torch.nan)

    def decided(self) -> Decided:
        """Return from which row on, and at which row first, the final best token is the best."""
        stream = [number for number, row in enumerate(self.layers) if row.is_stream]
        agrees = self.arrays.strict[TARGETS["final"]][stream] == 1
        index = torch.tensor(stream)
        first = index[agrees.to(torch.uint8).argmax(0)]
        # from the end: the longest run of agreement that reaches the final row
        lasting = agrees.flip(0).cumprod(0).sum(0).clamp(min=1)
        at = index[len(stream) - lasting]
        return Decided(at.masked_fill(~self.mask, -1), first.masked_fill(~self.mask, -1))

    def _spelled(self, key: str) -> Float[Tensor, "row prompt position"] | None:
        """Return what is computed of other rows and words: `kl(r1||layer)`, `rank(Mary)`."""
        name, _, inside = key.removesuffix(")").partition("(")
        if name in ("rank", "logprob") and inside in self.tokens:
            return self.rank(inside) if name == "rank" else self.logprob(inside)
        first, bars, second = inside.partition("||")
        if name == "kl" and bars and "layer" in (first, second):
            forward = second == "layer"
            return self.kl(first if forward else second, "ref||layer" if forward else "layer||ref")
        return None

    def _target(self, of: str | int) -> int:
        names = [*TARGETS, *self.tokens]
        name = self.text_of(of) if isinstance(of, int) else of
        if name in names:
            return names.index(str(name))
        raise UnknownOptionError(
            f"no token {of!r} was ranked.{did_you_mean(str(of), names)}\n"
            f"Ranked: {', '.join(map(repr, names))}; for another write "
            f"hw.lens(..., tokens=[{of!r}])."
        )


def _end(against: Any) -> str:
    if against in ("final", "first"):
        return against
    raise UnknownOptionError(
        f"against={against!r}: mixtures are computed against 'final' and 'first'.\n"
        "Use kl(against=...), which there is for every pair of rows."
    )
