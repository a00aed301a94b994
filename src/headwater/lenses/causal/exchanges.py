"""What a lens reads, put to the test as a whole: one residual in place of another.

The residual at a row is replaced by that of another position. The lens predicts how the
log-probabilities change; the model runs on from there, and shows how they do at its output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.lenses.causal.claims import Cell
from headwater.lenses.causal.places import Place, every_token
from headwater.lenses.causal.reader import Reader

BEST = 20
"""Best tokens of each reading whose changes are compared."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """What putting another residual in did, beside what the lens says it does."""

    cell: Cell
    donor: tuple[int, int]
    """Prompt and position whose residual was put in."""
    tokens: tuple[int, ...]
    """The best tokens of the lens before and after, and of the output before."""
    predicted: Float[Tensor, " token"]
    """Changes of their log-probabilities in the lens, minus the mean change ..."""
    actual: Float[Tensor, " token"]
    """... and at the output."""
    kl_lens: float
    """KL(before || after) of the lens, in nats ..."""
    kl_output: float
    """... and of the output."""
    size: float
    """Length of the difference of the two residuals, as a share of the one that was there."""
    noise: float
    """Largest change of the tokens' log-probabilities at the output with the own value put in."""


def exchanged(
    reader: Reader,
    place: Place,
    cell: Cell,
    donor: tuple[int, int],
    value: Float[Tensor, " d_model"],
) -> Exchange:
    """Test what a lens reads at one place.

    Args:
        reader: The lens.
        place: The prompt up to the cell's position.
        cell: The row is read of it.
        donor: Where the other residual comes from.
        value: The other residual, of the same row.
    """
    own = place.values(cell.row)[cell.position]
    both = torch.stack([own, value])
    lens = reader.logprobs(both, cell.row).to("cpu", torch.float64)
    patches = [(cell.position, one) for one in both]
    output = place.after(cell.row, patches, every_token).to("cpu", torch.float64)
    best = torch.cat([lens, output[:1]]).topk(min(BEST, lens.shape[-1])).indices
    tokens = best.unique()
    clean = place.logprobs.to("cpu", torch.float64)
    return Exchange(
        cell=cell,
        donor=donor,
        tokens=tuple(tokens.tolist()),
        predicted=_centered((lens[1] - lens[0])[tokens]),
        actual=_centered((output[1] - output[0])[tokens]),
        kl_lens=_kl(lens),
        kl_output=_kl(output),
        size=float((value - own).norm() / own.norm()),
        noise=float((output[0] - clean)[tokens].abs().max()),
    )


def _centered(changes: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    # log-probabilities share their normalization, which says nothing of single tokens
    return changes - changes.mean()


def _kl(pair: Float[Tensor, "two vocab"]) -> float:
    known = pair[0] > -torch.inf
    return float((pair[0].exp() * (pair[0] - pair[1]))[known].sum())
