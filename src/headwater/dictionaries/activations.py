"""What a dictionary's encoder does to its pre-activations, and the slope of that.

Each takes `pre`, [..., feature], and returns as much. A slope is `df/dpre` with everything that
chooses held fixed: which features are the largest, which gates are open.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Activation(ABC):
    """Pre-activations to activations."""

    name: ClassVar[str]
    """As SAELens calls a dictionary that has it."""
    couples: ClassVar[bool] = False
    """Whether one feature's activation depends on the pre-activations of others."""

    @abstractmethod
    def __call__(self, pre: Float[Tensor, "*at feature"]) -> Float[Tensor, "*at feature"]:
        """Return the activations."""

    @abstractmethod
    def slope(self, pre: Float[Tensor, "*at feature"]) -> Float[Tensor, "*at feature"]:
        """Return `df/dpre`."""

    @property
    def tensors(self) -> Mapping[str, Float[Tensor, " feature"]]:
        """What it keeps for each feature, by field name."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self, **where: Any) -> Activation:
        """Return it with its tensors in another number type or on another device."""
        return replace(self, **{name: value.to(**where) for name, value in self.tensors.items()})

    def only(self, columns: Sequence[int] | Tensor) -> Activation:
        """Return it for some features; not for one that couples them."""
        return replace(self, **{name: value[columns] for name, value in self.tensors.items()})


@dataclass(frozen=True, eq=False)
class Relu(Activation):
    """`max(pre, 0)`."""

    name: ClassVar[str] = "standard"

    def __call__(self, pre: Float[Tensor, "*at feature"]) -> Float[Tensor, "*at feature"]:
        """Return what is positive."""
        return pre.relu()

    def slope(self, pre: Float[Tensor, "*at feature"]) -> Float[Tensor, "*at feature"]:
        """Return 1 where `pre > 0`."""
        return (pre > 0).to(pre.dtype)


@dataclass(frozen=True, eq=False)
class JumpRelu(Activation):
    """`max(pre, 0)` where `pre` is above a threshold of the feature's own, else 0.

    What BatchTopK dictionaries do when they are used: one threshold for all features.
    """

    threshold: Float[Tensor, " feature"]
    name: ClassVar[str] = "jumprelu"

    def __call__(self, pre: Float[Tensor, "*at feature"]) -> Float[Tensor, "*at feature"]:
        """Return what is above both the threshold and zero."""
        return pre.relu() * (pre > self.threshold)

    def slope(self, pre: Float[Tensor, "*at feature"]) -> Float[Tensor, "*at feature"]:
        """Return 1 where a feature is on; the jump at the threshold has no slope."""
        return ((pre > self.threshold) & (pre > 0)).to(pre.dtype)


@dataclass(frozen=True, eq=False)
class TopK(Activation):
    """`max(pre, 0)` of the k largest features at each position, else 0."""

    k: int
    norms: Float[Tensor, " feature"] | None = None
    """The decoder rows' norms, by which `pre` is multiplied to find the largest (SAELens'
    `rescale_acts_by_decoder_norm`); None: as they are."""
    signed: bool = False
    """Choose by absolute value, and keep the sign."""
    name: ClassVar[str] = "topk"
    couples: ClassVar[bool] = True

    def __call__(self, pre: Float[Tensor, "*at feature"]) -> Float[Tensor, "*at feature"]:
        """Return the k largest, the first of equal ones."""
        return (pre if self.signed else pre.relu()) * self._chosen(pre)

    def slope(self, pre: Float[Tensor, "*at feature"]) -> Float[Tensor, "*at feature"]:
        """Return 1 where a feature is on."""
        chosen = self._chosen(pre)
        return (chosen if self.signed else chosen & (pre > 0)).to(pre.dtype)

    def _chosen(self, pre: Float[Tensor, "*at feature"]) -> Bool[Tensor, "*at feature"]:
        by = pre.detach() if self.norms is None else pre.detach() * self.norms
        by = by.abs() if self.signed else by
        places = by.topk(min(self.k, by.shape[-1]), dim=-1).indices
        return torch.zeros_like(by, dtype=torch.bool).scatter_(-1, places, value=True)


@dataclass(frozen=True, eq=False)
class Gated(Activation):
    """`max(scale * pre + magnitude_bias, 0)` where `pre + gate_bias > 0`, else 0.

    Source: Rajamanoharan et al., "Improving dictionary learning with gated sparse autoencoders"
    (arXiv 2404.16014), equation 6.
    """

    gate_bias: Float[Tensor, " feature"]
    magnitude_bias: Float[Tensor, " feature"]
    scale: Float[Tensor, " feature"]
    """`exp(r_mag)`."""
    name: ClassVar[str] = "gated"

    def __call__(self, pre: Float[Tensor, "*at feature"]) -> Float[Tensor, "*at feature"]:
        """Return the magnitudes whose gates are open."""
        return self._magnitude(pre).relu() * (pre + self.gate_bias > 0)

    def slope(self, pre: Float[Tensor, "*at feature"]) -> Float[Tensor, "*at feature"]:
        """Return `scale` where a feature is on."""
        on = (pre + self.gate_bias > 0) & (self._magnitude(pre) > 0)
        return on.to(pre.dtype) * self.scale

    def _magnitude(self, pre: Tensor) -> Tensor:
        return pre * self.scale + self.magnitude_bias
