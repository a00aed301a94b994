"""What one node site of one batch is: features, error, how far each is from its reference, slopes.

Made from the site's value and slope when it is needed and dropped after: the largest tensors here
are [batch, pos, feature], a few at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.feature_circuits.sites import NodeSite


@dataclass(frozen=True)
class SiteState:
    """A node site in the clean run of one batch, beside its reference.

    Every difference is clean minus reference: positive weights support the behavior.
    """

    node: NodeSite
    read: Float[Tensor, "batch pos d_in"]
    """What is encoded; heads side by side."""
    written: Float[Tensor, "batch pos d_out"]
    """What the nodes add up to."""
    slope: Float[Tensor, "batch pos d_out"]
    """`df/d written`, in the clean run or averaged along the site's path."""
    off: Float[Tensor, "..."]
    """Features and error of the reference, side by side; 0 for all."""
    off_read: Float[Tensor, "..."] | None
    """What the reference's features were read from, for a transcoder; None: what they decode to."""

    @cached_property
    def pre(self) -> Float[Tensor, "batch pos feature"]:
        """Pre-activations."""
        return self.node.dictionary.pre(self.read)

    @cached_property
    def features(self) -> Float[Tensor, "batch pos feature"]:
        """Activations."""
        return self.node.dictionary.activated(self.pre, self.read)

    @cached_property
    def change(self) -> Float[Tensor, "batch pos feature"]:
        """How far each feature is from its reference."""
        return self.features - self.node.coded.split(self.off)[0]

    @cached_property
    def error_change(self) -> Float[Tensor, "batch pos d_out"]:
        """How far the error is from its reference."""
        error = self.node.dictionary.error(self.features, self.written)
        return error - self.node.coded.split(self.off)[1]

    @cached_property
    def reference(self) -> Float[Tensor, "batch pos d_out"]:
        """The whole site at its reference: what `moved` leaves of it."""
        features, error = self.node.coded.split(self.off)
        dictionary = self.node.dictionary
        value = dictionary.decode(features) + error if features.ndim else dictionary.decoder_bias
        return value.to(self.written.device).expand_as(self.written)

    @cached_property
    def moved(self) -> Float[Tensor, "batch pos d_out"]:
        """How far the whole site is from its reference: what all its nodes' changes add up to."""
        return self.change @ self.node.dictionary.decoder + self.error_change

    @cached_property
    def feature_slope(self) -> Float[Tensor, "batch pos feature"]:
        """`df/d feature`: what the slope of the site is along each decoder row."""
        return self.slope.to(self.node.dictionary.decoder.dtype) @ self.node.dictionary.decoder.T

    def effects(self) -> Float[Tensor, "batch pos node"]:
        """Return the first-order effect of every node: features, then the error."""
        error = (self.slope.to(self.error_change.dtype) * self.error_change).sum(-1, keepdim=True)
        return torch.cat([self.feature_slope * self.change, error], -1)

    @cached_property
    def gradient_slopes(self) -> Float[Tensor, "batch pos feature"]:
        """`d feature/d pre` in the clean run."""
        return self.node.dictionary.slope(self.pre, self.read)

    def secant_slopes(
        self, steepest: float
    ) -> tuple[Float[Tensor, "batch pos feature"], Bool[Tensor, "batch pos feature"]]:
        """Return `(f - f_ref) / (pre - pre_ref)`, and where the gradient took its place.

        For a dictionary that scales its input the divisor is what the clean run's slope says of
        that difference, so that what flows in adds up to the change of the feature.

        Where pre-activations do not differ, or so little that the quotient exceeds `steepest` in
        size (a feature of a TopK dictionary that others push out, a jump), the slope is the clean
        run's, and the second result is true if that leaves a part of the change out.
        """
        moved = self.moved if self.off_read is None else self.read - self.off_read
        apart = self.node.dictionary.pre_along(self.read, moved.to(self.read.dtype))
        quotient = self.change / torch.where(apart == 0, torch.ones_like(apart), apart)
        steep = (apart == 0) | ~(quotient.abs() <= steepest)
        return torch.where(steep, self.gradient_slopes, quotient), steep & (self.change != 0)
