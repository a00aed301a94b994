"""What one pass over the logits adds up: every statistic but those of mixtures comes from these.

Logits come in tiles, some positions, all rows and some tokens at a time. Of each position and row
the sums keep the largest logit `m` so far, `S = sum exp(z - m)`, and of each pair of rows `(l, k)`

    C[l, k] = sum exp(z_l - m_l) (z_k - m_k),

one batched matrix product a tile, from which KL(l || k) follows for every pair both ways. All are
rescaled where `m` grows. Sums over a tile are in the logits' own format, across tiles in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.errors import NonFiniteError
from headwater.lenses.readout import Tile


class Sums:
    """Running sums over the vocabulary.

    Args:
        wanted: Logit of each target, from `Readout.at`.
        targets: Tokens of each position that are ranked.
        best: How many of the best tokens to keep.
        where: Names a position and row, for refusals.
    """

    def __init__(
        self,
        wanted: Float[Tensor, "position row target"],
        targets: Int[Tensor, "position target"],
        best: int,
        where: Callable[[int, int], str] = "position {}, row {}".format,
    ) -> None:
        positions, rows, _ = wanted.shape
        self.wanted, self.targets, self.where = wanted, targets, where
        double = {"dtype": torch.float64, "device": wanted.device}
        self.largest = torch.full((positions, rows), -torch.inf, **double)
        self.total = torch.zeros(positions, rows, **double)
        self.cross = torch.zeros(positions, rows, rows, **double)
        self.apart = torch.zeros(positions, rows, rows, dtype=torch.bool, device=wanted.device)
        """Pairs of which the second gives no probability to what the first has some for."""
        self.logits = torch.zeros(positions, rows, **double)
        self.finite = torch.zeros(positions, rows, **double)
        """How many tokens have a finite logit: all but masked ones."""
        self.above = torch.zeros(wanted.shape, **double)
        self.level = torch.zeros(wanted.shape, **double)
        self.best = wanted.new_full((positions, rows, best), -torch.inf)
        self.tokens = torch.zeros(positions, rows, best, dtype=torch.long, device=wanted.device)
        self._flags = wanted.new_empty(0)
        self._powers = wanted.new_empty(0)

    def add(self, tile: Tile) -> None:
        """Take one tile in; its logits are used up.

        Raises:
            NonFiniteError: If a logit is NaN or plus infinity.
        """
        place = slice(tile.first, tile.first + len(tile.logits))
        highest = tile.logits.amax(-1)
        if not bool((highest < torch.inf).all()):  # false for NaN too
            self._refuse(tile, highest)
        self._count(place, tile)
        self._keep_best(place, tile, highest)
        self._accumulate(place, tile.logits, highest)

    def _accumulate(
        self,
        place: slice,
        logits: Float[Tensor, "position row token"],
        highest: Float[Tensor, "position row"],
    ) -> None:
        before = self.largest[place]
        largest = torch.maximum(before, highest.to(torch.float64))
        # minus infinity while all tokens so far are masked: then there is nothing to shift
        shift = torch.where(largest.isinf(), torch.zeros_like(largest), largest).to(logits.dtype)
        grown = torch.where(before.isinf(), torch.zeros_like(before), before - largest)
        shrink = torch.where(before.isinf(), torch.zeros_like(before), grown.exp())
        plain = logits.sum(-1)
        powers = self._room("_powers", logits)
        torch.exp(logits.sub_(shift[..., None]), out=powers)
        total = powers.sum(-1)
        cross = torch.bmm(powers, logits.mT)
        if not bool(plain.isfinite().all()):
            plain, cross = self._without_masked(place, logits, powers, shift)
        else:
            self.finite[place] += logits.shape[-1]
        old = self.total[place]
        moved = self.cross[place] + old[..., None] * grown[:, None, :]
        self.cross[place] = shrink[..., None] * moved + cross
        self.total[place] = shrink * old + total
        self.largest[place] = largest
        self.logits[place] += plain

    def _without_masked(
        self, place: slice, logits: Tensor, powers: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sums over tokens that are not masked by minus infinity: 0 log 0 is 0."""
        masked = logits.isinf()
        self.apart[place] |= torch.bmm(powers, masked.to(powers.dtype).mT) > 0
        self.finite[place] += (~masked).sum(-1)
        logits.masked_fill_(masked, 0.0)
        kept = (~masked).sum(-1)
        return logits.sum(-1) + kept * shift, torch.bmm(powers, logits.mT)

    def _count(self, place: slice, tile: Tile) -> None:
        """Count the tokens above each target and level with it, the target itself left out."""
        logits, wanted = tile.logits, self.wanted[place]
        own = self.targets[place] - tile.token
        here = (own >= 0) & (own < logits.shape[-1])
        flags = self._room("_flags", logits)
        for target in range(wanted.shape[-1]):
            bar = wanted[..., target, None]
            at_least = torch.ge(logits, bar, out=flags).sum(-1)
            above = torch.gt(logits, bar, out=flags).sum(-1)
            there = here[:, target].nonzero()[:, 0]
            if len(there):
                mine = logits[there, :, own[there, target]]
                at_least[there] -= (mine >= bar[there, :, 0]).to(at_least.dtype)
                above[there] -= (mine > bar[there, :, 0]).to(above.dtype)
            self.above[place, :, target] += above
            self.level[place, :, target] += at_least - above

    def _keep_best(self, place: slice, tile: Tile, highest: Tensor) -> None:
        """Merge the tile's best tokens with those so far, where it has any."""
        count = self.best.shape[-1]
        if count == 0:
            return
        logits = tile.logits.flatten(0, 1)
        best, tokens = self.best[place].flatten(0, 1), self.tokens[place].flatten(0, 1)
        better = (highest.flatten() > best[:, -1]).nonzero()[:, 0]
        if not len(better):
            return
        some = logits if 2 * len(better) > len(logits) else logits[better]
        values, places = some.topk(min(count, logits.shape[-1]), dim=-1)
        if some is logits:
            values, places = values[better], places[better]
        values = torch.cat([best[better], values], dim=-1)
        ids = torch.cat([tokens[better], places + tile.token], dim=-1)
        values, order = values.topk(count, dim=-1)
        best[better], tokens[better] = values, ids.gather(-1, order)
        self.best[place] = best.view_as(self.best[place])
        self.tokens[place] = tokens.view_as(self.tokens[place])

    def _room(self, name: str, like: Tensor) -> Tensor:
        """Return memory of a tile's shape, the same for every tile."""
        room: Tensor = getattr(self, name)
        if room.numel() < like.numel():
            room = torch.empty_like(like, memory_format=torch.contiguous_format).flatten()
            setattr(self, name, room)
        return room[: like.numel()].view(like.shape)

    def _refuse(self, tile: Tile, highest: Float[Tensor, "position row"]) -> None:
        position, row = (~(highest < torch.inf)).nonzero()[0].tolist()
        value = "NaN" if highest[position, row].isnan() else "plus infinity"
        raise NonFiniteError(
            f"a logit is {value} at {self.where(tile.first + position, row)}, so there is no "
            "prediction to read.\nLook for overflow before it (float16?): load the model with "
            "dtype='float32' or 'bfloat16'."
        )

    # what follows from the sums

    def log_norm(self) -> Float[Tensor, "position row"]:
        """Return the logarithm of the sum of exponentials."""
        return self.largest + self.total.log()

    def entropy(self) -> Float[Tensor, "position row"]:
        """Return `-sum p log p` in nats."""
        own = self.cross.diagonal(dim1=-2, dim2=-1)
        return self.total.log() - own / self.total

    def divergences(self) -> Float[Tensor, "position row row"]:
        """Return `KL(l || k)` in nats for every pair of rows, `l` before `k`."""
        spread = self.total.log()
        means = self.cross / self.total[..., None]
        own = means.diagonal(dim1=-2, dim2=-1)
        found = own[..., None] - means - spread[..., None] + spread[:, None, :]
        return found.masked_fill(self.apart, torch.inf)

    def mean_logit(self) -> Float[Tensor, "position row"]:
        """Return the mean over the tokens that are not masked."""
        return self.logits / self.finite

    def ranks(
        self,
    ) -> tuple[Float[Tensor, "position row target"], Float[Tensor, "position row target"]]:
        """Return the strict rank of each target, from 1, and how many others tie with it."""
        return self.above + 1, self.level


class Mixtures:
    """What a second pass adds up: Jensen-Shannon divergence and total variation.

    Args:
        log_norm: Of every position and row, from the first pass.
        against: The rows that all others are compared with.
    """

    def __init__(self, log_norm: Float[Tensor, "position row"], against: tuple[int, ...]) -> None:
        self.log_norm, self.against = log_norm, against
        shape = (*log_norm.shape, len(against))
        self.js = torch.zeros(shape, dtype=torch.float64, device=log_norm.device)
        self.tv = torch.zeros(shape, dtype=torch.float64, device=log_norm.device)

    def add(self, tile: Tile) -> None:
        """Take one tile in; its logits are used up."""
        place = slice(tile.first, tile.first + len(tile.logits))
        p = tile.logits.sub_(self.log_norm[place][..., None].to(tile.logits.dtype)).exp_()
        for number, row in enumerate(self.against):
            q = p[:, row : row + 1]
            total = p + q
            # p = m (1 - r), q = m (1 + r): both terms are right down to small differences
            r = (q - p).div_(total.clamp(min=torch.finfo(p.dtype).tiny))
            self.tv[place, :, number] += 0.5 * (q - p).abs_().sum(-1)
            terms = torch.special.xlog1py(1 - r, -r).add_(torch.special.xlog1py(1 + r, r))
            self.js[place, :, number] += 0.25 * terms.mul_(total).sum(-1)
