"""KL(final || row) and its gradient, without logits of all positions at once.

With p the final prediction and q a row's, the derivative of KL(p || q) by the row's logits is
`q - p`. So a first pass over tiles of the vocabulary finds both normalizers and the divergence, and
a second one adds up `(q - p) W_U`, tile by tile, through whatever scale or soft cap the head has.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.lenses.readout import TILE, Readout
from headwater.lenses.sums import Sums


def divergence(
    readout: Readout,
    final: Float[Tensor, "position d_model"],
    normed: Float[Tensor, "position row d_model"],
) -> Float[Tensor, "position row"]:
    """Return KL(final || row) in nats; its gradient reaches `normed`, not `final`.

    Args:
        readout: The model's head.
        final: What the head reads of the final residual.
        normed: What it reads of each row, from `Readout.normed`.

    Returns:
        In float64.

    Raises:
        NonFiniteError: If a logit is NaN or plus infinity.
    """
    found = _Divergence.apply(normed, final.detach(), readout)
    assert isinstance(found, Tensor)
    return found


def log_norm(
    readout: Readout, normed: Float[Tensor, "position row d_model"]
) -> Float[Tensor, "position row"]:
    """Return the logarithm of each row's sum of exponentials, in float64.

    Raises:
        NonFiniteError: If a logit is NaN or plus infinity.
    """
    return _summed(readout, normed).log_norm()


def _summed(readout: Readout, normed: Tensor) -> Sums:
    """Return the sums over the vocabulary, of which no token is ranked and none kept."""
    positions, rows, _ = normed.shape
    none = torch.empty(positions, 0, dtype=torch.long, device=normed.device)
    sums = Sums(normed.new_empty(positions, rows, 0), none, best=0, where=_named)
    for tile in readout.tiles(normed):
        sums.add(tile)
    return sums


def _named(position: int, row: int) -> str:
    return "the final row" if row == 0 else "a row that is held against it"


class _Divergence(torch.autograd.Function):
    """The divergence, with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, normed: Any, final: Any, readout: Any) -> Any:
        both = torch.cat([final[:, None], normed.detach()], dim=1)
        sums = _summed(readout, both)
        ctx.readout = readout
        ctx.save_for_backward(both, sums.log_norm())
        return sums.divergences()[:, 0, 1:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        both, spread = ctx.saved_tensors
        through = _tiled if ctx.readout.head is not None else _replayed
        return through(ctx.readout, both, spread, grads[0]), None, None


def _tiled(readout: Readout, both: Tensor, spread: Tensor, grad: Tensor) -> Tensor:
    head: Any = readout.head
    found = torch.zeros_like(both[:, 1:])
    block: Any = None
    for tile in readout.tiles(both):
        if block is None or block[0] != tile.token:
            # tiles come token block by token block: its weights are fetched once
            end = tile.token + tile.logits.shape[-1]
            block = (tile.token, head.block(tile.token, end, readout.dtype).weight)
        place = slice(tile.first, tile.first + len(tile.logits))
        slope = head.scale
        if head.cap is not None:
            slope = slope * (1 - (tile.logits[:, 1:] / head.cap).square())
        pulled = _pull(tile.logits, spread[place], grad[place]) * slope
        found[place] += pulled @ block[1]
    return found


def _replayed(readout: Readout, both: Tensor, spread: Tensor, grad: Tensor) -> Tensor:
    """The same through the model's own head, a few positions at a time."""
    found = torch.zeros_like(both[:, 1:])
    positions, rows, _ = both.shape
    step = max(1, TILE // (rows * readout.vocab))
    for first in range(0, positions, step):
        place = slice(first, first + step)
        with torch.enable_grad():
            part = both[place].requires_grad_()
            logits = readout.replay(part.flatten(0, 1)).unflatten(0, part.shape[:2])
        pulled = torch.zeros_like(logits)
        pulled[:, 1:] = _pull(logits.detach().clone(), spread[place], grad[place])
        (whole,) = torch.autograd.grad(logits, part, pulled)
        found[place] = whole[:, 1:]
    return found


def _pull(logits: Tensor, spread: Tensor, grad: Tensor) -> Tensor:
    """Return `(q - p)` times the incoming gradient, for each row but the first."""
    chances = logits.sub(spread[..., None].to(logits.dtype)).exp_()
    return (chances[:, 1:] - chances[:, :1]) * grad[..., None].to(logits.dtype)
