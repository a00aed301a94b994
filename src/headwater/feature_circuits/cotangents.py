"""What of a node's weight falls on each coordinate of the values it is read from.

A node's weight is `g_j z_j`: the metric's slope at the node times the node. Its gradient, with `g`
held, is `g_j sigma'_j W_enc_j` for a feature, and for the error whatever of `g_e` does not pass
through a feature. No autograd runs through a dictionary, and [row, batch, pos, feature] never
exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.feature_circuits.state import SiteState
from headwater.sites import Site

Cotangents = dict[Site, Float[Tensor, "row batch pos width"]]


@dataclass(frozen=True)
class Rows:
    """Nodes of one site whose incoming edges are wanted: one row each."""

    features: tuple[int, ...]
    """Numbers of features."""
    error: bool
    """Whether the last row is the error."""

    def __len__(self) -> int:
        return len(self.features) + self.error

    @property
    def indices(self) -> list[int]:
        """The features' numbers; -1 for the error."""
        return [*self.features, *([-1] if self.error else [])]


@dataclass(frozen=True)
class Weights:
    """What multiplies each node of a site, and the slopes of its encoder."""

    features: Float[Tensor, "batch pos feature"]
    """`df/d feature`, zero where a node is masked."""
    error: Float[Tensor, "batch pos d_out"]
    """`df/d error`, zero where it is masked."""
    error_features: Float[Tensor, "batch pos feature"]
    """`error` along each decoder row: what of it passes through a feature."""
    slopes: Float[Tensor, "batch pos feature"]
    """`d feature/d pre`: the clean run's, or secants."""
    secant: bool

    @classmethod
    def of(
        cls,
        state: SiteState,
        slopes: Float[Tensor, "batch pos feature"],
        mask: Bool[Tensor, "batch pos node"] | None,
        *,
        secant: bool,
    ) -> Weights:
        """Return the weights of a site.

        Args:
            state: The site.
            slopes: Of its encoder.
            mask: Where nodes count; None: everywhere.
            secant: Whether the slopes are secants.
        """
        features, error = state.feature_slope, state.slope.to(state.features.dtype)
        through = features
        if mask is not None:
            features = features * mask[..., :-1]
            error, through = error * mask[..., -1:], through * mask[..., -1:]
        return cls(features, error, through, slopes, secant)


def cotangents(
    state: SiteState, weights: Weights, rows: Sequence[int], position: Sequence[int] | None = None
) -> Cotangents:
    """Return the cotangents of some nodes at the sites that a node site is read from.

    Args:
        state: The node site.
        weights: What multiplies its nodes.
        rows: Numbers of features, and -1 for the error, which comes last if at all.
        position: For each row the only position that counts; None: all.

    Returns:
        By site, one row a node.
    """
    dictionary, node = state.node.dictionary, state.node
    columns = [row for row in rows if row >= 0]
    place = torch.tensor(columns, device=state.features.device, dtype=torch.long)
    counted = torch.ones(len(rows), 1, state.read.shape[1], 1).to(state.features)
    if position is not None:
        counted.zero_()
        counted[range(len(rows)), 0, list(position)] = 1
    chosen, slopes = weights.features[..., place], weights.slopes[..., place]
    whole = not weights.secant
    features = dictionary.pulled(state.read, place, chosen, slopes, whole=whole)
    features = features * counted[: len(columns)]
    errors = weights.error * counted[len(columns) :]
    if not len(errors):
        return {node.reads[0]: features}
    through = torch.stack(
        [
            dictionary.pulled_sum(
                state.read, weights.error_features * one, weights.slopes, whole=whole
            )
            for one in counted[len(columns) :]
        ]
    )
    if not node.coded.transcodes:
        return {node.site: torch.cat([features, errors - through])}
    silent = errors.new_zeros(len(columns), *errors.shape[1:])
    return {
        node.reads[0]: torch.cat([features, -through]),
        node.site: torch.cat([silent, errors]),
    }
