"""The places in a model where a tensor flows, under the same names for every architecture.

A site is a layer number and a name, printed as `layers.3.attn.q`; three sites have no layer:
`embed`, `final_norm` and `logits`. Printing and parsing are inverse.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from headwater.errors import UnknownSiteError, did_you_mean

GLOBAL_NAMES: dict[str, tuple[str, str]] = {
    "embed": ("batch pos d_model", "what enters the first layer"),
    "final_norm": ("batch pos d_model", "what the final norm hands to the unembedding"),
    "logits": ("batch pos vocab", "the model's output"),
}
"""Names without a layer: their axes and what they hold."""

LAYER_NAMES: dict[str, tuple[str, str]] = {
    "resid_pre": ("batch pos d_model", "residual stream entering the layer"),
    "attn.q": ("batch pos head d_head", "queries as the scores see them (after rotary and q norm)"),
    "attn.k": ("batch pos kv_head d_head", "keys as the scores see them (after rotary and k norm)"),
    "attn.v": ("batch pos kv_head d_head", "values"),
    "attn.pattern": ("batch head query key", "attention weights, rows sum to 1"),
    "attn.z": ("batch pos head d_head", "what each head read, before the output projection"),
    "attn.out": ("batch pos d_model", "what attention writes to the residual stream"),
    "resid_mid": ("batch pos d_model", "residual stream between attention and MLP"),
    "mlp.in": ("batch pos d_model", "normed residual entering the MLP"),
    "mlp.pre": ("batch pos d_mlp", "input of the MLP's nonlinearity"),
    "mlp.gate": ("batch pos d_mlp", "gate of a gated MLP, before its nonlinearity"),
    "mlp.up": ("batch pos d_mlp", "what the gate multiplies"),
    "mlp.post": ("batch pos d_mlp", "neurons: input of the MLP's down projection"),
    "mlp.out": ("batch pos d_model", "what the MLP writes to the residual stream"),
    "mixer.in": ("batch pos d_model", "normed residual entering the state-space mixer"),
    "mixer.conv": (
        "batch pos d_conv",
        "what enters the mixer's convolution: x in Mamba; x, B and C in Mamba-2",
    ),
    "mixer.ssm": (
        "batch pos d_conv",
        "what drives the state-space model: the convolution's activated output",
    ),
    "mixer.y": ("batch pos ssm_head d_ssm", "what each head of Mamba-2 read from its state"),
    "mixer.post": ("batch pos d_inner", "channels: input of the mixer's output projection"),
    "mixer.out": ("batch pos d_model", "what the mixer writes to the residual stream"),
    "resid_post": ("batch pos d_model", "residual stream leaving the layer"),
}
"""Names inside a layer, in the order in which a forward pass computes them."""

_BEFORE, _AFTER = ("embed",), ("final_norm", "logits")
_PLACES = {name: place for place, name in enumerate(LAYER_NAMES)}

_IN_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Site:
    """One place where a tensor flows, for example `Site(3, "attn.q")`.

    Args:
        layer: The layer number from 0, or None for `embed`, `final_norm` and `logits`.
        name: The name inside the layer, as listed in `LAYER_NAMES`.

    Raises:
        UnknownSiteError: If there is no such name.
    """

    layer: int | None
    name: str

    def __post_init__(self) -> None:
        known = GLOBAL_NAMES if self.layer is None else LAYER_NAMES
        if self.name not in known:
            raise UnknownSiteError(_unknown(str(self), self.layer or 0))

    def __str__(self) -> str:
        return self.name if self.layer is None else f"layers.{self.layer}.{self.name}"

    @property
    def axes(self) -> str:
        """The axes of the tensor a tap sees here, for example `batch pos head d_head`."""
        return (GLOBAL_NAMES if self.layer is None else LAYER_NAMES)[self.name][0]

    @property
    def meaning(self) -> str:
        """One phrase that says what flows here."""
        return (GLOBAL_NAMES if self.layer is None else LAYER_NAMES)[self.name][1]

    @property
    def order(self) -> tuple[float, int]:
        """What sorts sites as a forward pass computes them."""
        if self.layer is not None:
            return self.layer, _PLACES[self.name]
        if self.name in _BEFORE:
            return -1, 0
        return math.inf, _AFTER.index(self.name)

    @staticmethod
    def is_path(path: str) -> bool:
        """Whether `path` has the form of a site; costs no search for close names."""
        inside = _IN_LAYER.fullmatch(path)
        return path in GLOBAL_NAMES or (inside is not None and inside[2] in LAYER_NAMES)

    @classmethod
    def parse(cls, path: str) -> Site:
        """Read a printed site, the inverse of `str(site)`.

        Args:
            path: For example `layers.3.attn.q` or `embed`.

        Returns:
            The site.

        Raises:
            UnknownSiteError: If the path has no meaning; the closest ones are offered.
        """
        inside = _IN_LAYER.fullmatch(path)
        if inside is not None and inside[2] in LAYER_NAMES:
            return cls(int(inside[1]), inside[2])
        if path in GLOBAL_NAMES:
            return cls(None, path)
        raise UnknownSiteError(_unknown(path, int(inside[1]) if inside else 0))


EMBED = Site(None, "embed")
"""What enters the first layer."""


def _unknown(path: str, layer: int) -> str:
    candidates = [*GLOBAL_NAMES, *(f"layers.{layer}.{name}" for name in LAYER_NAMES)]
    return (
        f"no site {path!r}.{did_you_mean(path, candidates)}\n"
        "All sites of a model: `headwater sites MODEL`."
    )
