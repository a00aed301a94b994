"""A dictionary: features that a vector is written in, whatever file it came from.

    pre = scaled(x) @ encoder + encoder_bias        [..., feature]
    f   = activation(pre) * scale(x)                [..., feature]
    x   = f @ decoder + decoder_bias + error        exactly

The error is whatever the features leave out, so the last line holds for every dictionary. `scale`
is 1 for most. Dictionaries that normalize their input (SAELens' `layer_norm`,
`constant_norm_rescale`) multiply what they decode by the scale they divided by; here that factor is
part of the activation, so features are measured in units of the residual stream and decoding is the
same linear map at every position. What such a dictionary adds beside its features (the mean, the
scaled bias), and the skip connection of a transcoder, are in the error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.dictionaries.activations import Activation, Relu
from headwater.errors import DictionaryError

Scaling = Literal["none", "layer_norm", "constant_norm"]
"""What `x` is divided by before it is encoded: nothing; its standard deviation, after its mean is
taken away; its norm over the square root of the width."""

LAYER_NORM_EPS = 1e-5
"""Added to the standard deviation that `layer_norm` divides by, as SAELens does."""


@dataclass(frozen=True)
class Origin:
    """Where a dictionary came from, and what its file says of its place in a model."""

    path: str = ""
    """The file of its weights."""
    format: str = ""
    """For example `SAELens` or `dictionary_learning`."""
    kind: str = ""
    """What the file calls it: `standard`, `BatchTopKSAE`, ..."""
    hook: str | None = None
    """The place it was trained on, in the file's own words: `blocks.3.hook_mlp_out`."""
    hook_out: str | None = None
    """A transcoder's place of writing, likewise."""
    model: str | None = None
    """The model it was trained on, as the file names it."""
    sha256: str = ""
    """Of the weights' file."""
    scale: float | None = None
    """What inputs were multiplied by in training, where whoever read the file had to say so."""
    notes: tuple[str, ...] = ()
    """What was assumed or folded while reading, in sentences."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The file's own configuration, as it is."""


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    """Features of one site: an encoder, a decoder, and what lies between.

    Raises:
        DictionaryError: If tensors do not fit together, or hold NaN or infinity; from the readers,
            naming file and tensor.
    """

    encoder: Float[Tensor, "d_in feature"]
    encoder_bias: Float[Tensor, " feature"]
    decoder: Float[Tensor, "feature d_out"]
    decoder_bias: Float[Tensor, " d_out"]
    activation: Activation = field(default_factory=Relu)
    scaling: Scaling = "none"
    skip: Float[Tensor, "d_in d_out"] | None = None
    """A transcoder's linear path beside its features; part of the error."""
    centered: bool = False
    """Whether it was trained on residuals whose mean over the width is zero; the encoder takes the
    mean away itself then."""
    transcoder: bool = False
    """Whether it reads one place and writes another."""
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        self._refuse_unfit()

    def __repr__(self) -> str:
        kind = self.origin.kind or self.activation.name
        width = f"{self.d_in}" if self.d_in == self.d_out else f"{self.d_in} -> {self.d_out}"
        where = self.origin.path or "made here"
        return f"Dictionary of {self.features:,} features ({kind}), width {width}: {where}"

    def _refuse_unfit(self) -> None:
        """Refuse tensors that do not fit together, or are no numbers."""
        features, d_in, d_out = self.features, self.d_in, self.d_out
        expected = {
            "encoder": (self.encoder, (d_in, features)),
            "encoder_bias": (self.encoder_bias, (features,)),
            "decoder": (self.decoder, (features, d_out)),
            "decoder_bias": (self.decoder_bias, (d_out,)),
            **{name: (value, (features,)) for name, value in self.activation.tensors.items()},
        }
        if self.skip is not None:
            expected["skip"] = (self.skip, (d_in, d_out))
        where = f"{self.origin.path}: " if self.origin.path else ""
        for name, (tensor, shape) in expected.items():
            if tuple(tensor.shape) != shape:
                raise DictionaryError(
                    f"{where}{name} has shape {list(tensor.shape)}; with an encoder of "
                    f"[d_in={d_in}, feature={self.encoder.shape[1]}] and a decoder of "
                    f"[feature={features}, d_out={d_out}] it must be {list(shape)}."
                )
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise DictionaryError(
                    f"{where}{name} {list(tensor.shape)} holds {bad:,} values that are NaN or "
                    "infinite.\nFetch the file again, or use another checkpoint."
                )
        if d_in != d_out and not self.transcoder:
            raise DictionaryError(
                f"{where}it encodes {d_in} numbers and decodes {d_out}: a dictionary of one site "
                "has one width.\nA transcoder is given as Dictionary(..., transcoder=True)."
            )

    @property
    def d_in(self) -> int:
        """Width of what is encoded."""
        return self.encoder.shape[0]

    @property
    def d_out(self) -> int:
        """Width of what is decoded."""
        return self.decoder.shape[1]

    @property
    def features(self) -> int:
        """How many features there are."""
        return self.decoder.shape[0]

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Dictionary:
        """Return the same dictionary in another number type or on another device."""
        where: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        where |= {} if device is None else {"device": torch.device(device)}
        tensors = {
            name: value
            for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "skip")
            if (value := getattr(self, name)) is not None
        }
        everything = (*tensors.values(), *self.activation.tensors.values())
        if all(
            getattr(one, what) == wanted for one in everything for what, wanted in where.items()
        ):
            return self  # nothing to convert, and nothing to check again
        tensors = {name: value.to(**where) for name, value in tensors.items()}
        return replace(self, **tensors, activation=self.activation.to(**where))

    def pre(self, x: Float[Tensor, "*at d_in"]) -> Float[Tensor, "*at feature"]:
        """Return the pre-activations: affine in what the input is scaled to."""
        return self._scaled(x.to(self.encoder.dtype)) @ self.encoder + self.encoder_bias

    def encode(
        self, x: Float[Tensor, "*at d_in"], columns: Tensor | None = None
    ) -> Float[Tensor, "*at feature"]:
        """Return the features of `x`, in units of what they are decoded to.

        Args:
            x: What is encoded.
            columns: Only these features; by default all.
        """
        if columns is None or self.activation.couples:
            found = self.activated(self.pre(x), x)
            return found if columns is None else found[..., columns]
        x = x.to(self.encoder.dtype)
        pre = self._scaled(x) @ self.encoder[:, columns] + self.encoder_bias[columns]
        found = self.activation.only(columns)(pre)
        return found if self.scaling == "none" else found * self._scale(x)

    def activated(
        self, pre: Float[Tensor, "*at feature"], x: Float[Tensor, "*at d_in"]
    ) -> Float[Tensor, "*at feature"]:
        """Return the features whose pre-activations are known; `x` gives the scale."""
        found = self.activation(pre)
        return found if self.scaling == "none" else found * self._scale(x.to(pre.dtype))

    def slope(
        self, pre: Float[Tensor, "*at feature"], x: Float[Tensor, "*at d_in"]
    ) -> Float[Tensor, "*at feature"]:
        """Return `df/dpre`, the scale of `x` held fixed."""
        slope = self.activation.slope(pre)
        return slope if self.scaling == "none" else slope * self._scale(x.to(pre.dtype))

    def decode(self, features: Float[Tensor, "*at feature"]) -> Float[Tensor, "*at d_out"]:
        """Return what the features stand for: `f @ decoder + decoder_bias`."""
        return features @ self.decoder + self.decoder_bias

    def error(
        self, features: Float[Tensor, "*at feature"], written: Float[Tensor, "*at d_out"]
    ) -> Float[Tensor, "*at d_out"]:
        """Return what the features leave out of `written`."""
        return written.to(features.dtype) - self.decode(features)

    def reconstruct(
        self, x: Float[Tensor, "*at d_in"], features: Float[Tensor, "*at feature"] | None = None
    ) -> Float[Tensor, "*at d_out"]:
        """Return what the dictionary itself makes of `x`: with the mean, the scaled bias, the skip.

        This is what its training compared with the truth, and what explained variance is of.

        Args:
            x: What is encoded.
            features: Of `x`, where they are known.
        """
        x = x.to(self.encoder.dtype)
        found = (self.encode(x) if features is None else features) @ self.decoder
        if self.scaling == "none":
            found = found + self.decoder_bias
        else:
            found = found + self.decoder_bias * self._scale(x)
        if self.scaling == "layer_norm":
            found = found + x.mean(-1, keepdim=True)
        return found if self.skip is None else found + x @ self.skip

    def pre_along(
        self, x: Float[Tensor, "*at d_in"], change: Float[Tensor, "*at d_in"]
    ) -> Float[Tensor, "*at feature"]:
        """Return how fast the pre-activations change when `x` moves along `change`."""
        change = change.to(self.encoder.dtype)
        if self.scaling == "none":
            return change @ self.encoder
        _, slope, divisor, moved = self._scale_at(x)
        if self.scaling == "layer_norm":
            change = change - change.mean(-1, keepdim=True)
        faster = (slope * change).sum(-1, keepdim=True)
        return (change / divisor - moved * faster / divisor**2) @ self.encoder

    def pulled(
        self,
        x: Float[Tensor, "*at d_in"],
        columns: Sequence[int] | Tensor,
        weights: Float[Tensor, "*at row"],
        slopes: Float[Tensor, "*at row"],
        *,
        whole: bool = True,
    ) -> Float[Tensor, "row *at d_in"]:
        """Return `weights[..., j] * df_j/dx` for some features, one row each.

        Args:
            x: What is encoded.
            columns: Which features: as many as there are rows.
            weights: What multiplies each derivative.
            slopes: `df/dpre` of these features, from `slope` or a secant.
            whole: With the derivative of the factor that an input scale puts on activations;
                false for secants, which hold the whole change.
        """
        direction = self.encoder[:, columns].T
        direction = direction.reshape(len(direction), *[1] * (x.ndim - 1), self.d_in)
        through = (weights * slopes).movedim(-1, 0)[..., None] * direction
        if self.scaling == "none":
            return through
        active = None
        if whole:
            active = (weights * self.encode(x)[..., columns]).movedim(-1, 0)[..., None]
        return self._through_scale(x, through, active)

    def pulled_sum(
        self,
        x: Float[Tensor, "*at d_in"],
        weights: Float[Tensor, "*at feature"],
        slopes: Float[Tensor, "*at feature"],
        *,
        whole: bool = True,
    ) -> Float[Tensor, "*at d_in"]:
        """Return the sum over all features of `weights[..., j] * df_j/dx`; see `pulled`."""
        through = (weights * slopes) @ self.encoder.T
        if self.scaling == "none":
            return through
        active = (weights * self.encode(x)).sum(-1, keepdim=True) if whole else None
        return self._through_scale(x, through, active)

    def _scaled(self, x: Tensor) -> Tensor:
        if self.scaling == "none":
            return x
        if self.scaling == "constant_norm":
            return x / self._scale(x)
        return (x - x.mean(-1, keepdim=True)) / (self._scale(x) + LAYER_NORM_EPS)

    def _scale(self, x: Tensor) -> Float[Tensor, "*at one"]:
        if self.scaling == "constant_norm":
            return x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return x.std(-1, keepdim=True)

    def _scale_at(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the scale, its gradient, what is divided by, and what is divided."""
        x = x.to(self.encoder.dtype)
        scale, width = self._scale(x), x.shape[-1]
        if self.scaling == "constant_norm":
            return scale, x / (width * scale), scale, x
        moved = x - x.mean(-1, keepdim=True)
        return scale, moved / ((width - 1) * scale), scale + LAYER_NORM_EPS, moved

    def _through_scale(self, x: Tensor, through: Tensor, active: Tensor | None) -> Tensor:
        """Pull a cotangent of the scaled input back to the input, and add what the factor gives.

        Args:
            x: The input.
            through: Cotangent of `_scaled(x)`.
            active: Sum of cotangent times feature, of which each is proportional to the scale;
                None to leave that out.
        """
        scale, slope, divisor, moved = self._scale_at(x)
        inner = (through * moved).sum(-1, keepdim=True)
        if self.scaling == "layer_norm":
            through = through - through.mean(-1, keepdim=True)
        found = through / divisor - slope * inner / divisor**2
        return found if active is None else found + active / scale * slope
