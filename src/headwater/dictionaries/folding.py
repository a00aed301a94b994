"""What a file leaves to be done to an input, done to the weights instead.

Sums are taken in float64, so folding adds no error beyond the weights' own rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from headwater.dictionaries.dictionary import Dictionary
from headwater.errors import UnsupportedDictionaryError


def noted(dictionary: Dictionary, note: str) -> Dictionary:
    """Return a dictionary whose origin says one thing more.

    Args:
        dictionary: The dictionary.
        note: A sentence.
    """
    origin = dictionary.origin
    return replace(dictionary, origin=replace(origin, notes=(*origin.notes, note)))


def input_bias_folded(dictionary: Dictionary, bias: Float[Tensor, " d_in"]) -> Dictionary:
    """Return the dictionary that takes `bias` from its scaled input before it encodes.

    Args:
        dictionary: One that does not.
        bias: Mostly the decoder's.
    """
    shift = bias.double() @ dictionary.encoder.double()
    folded = (dictionary.encoder_bias.double() - shift).to(dictionary.encoder_bias.dtype)
    return noted(
        replace(dictionary, encoder_bias=folded),
        "The bias taken from the input is folded into the encoder's.",
    )


def input_scale_folded(dictionary: Dictionary, scale: float) -> Dictionary:
    """Return the dictionary for `x` of one that was trained on `scale * x`.

    Args:
        dictionary: One that encodes and decodes `scale * x`.
        scale: The factor.
    """
    folded = replace(
        dictionary,
        encoder=dictionary.encoder * scale,
        decoder=dictionary.decoder / scale,
        decoder_bias=dictionary.decoder_bias / scale,
    )
    return noted(folded, f"Trained on inputs times {scale:g}: the factor is folded in.")


def centered(dictionary: Dictionary) -> Dictionary:
    """Return the dictionary for any residual of one that was trained on centered ones.

    The mean over the width is taken away by the encoder (and by a skip connection): each feature's
    direction loses its own mean. Doing it twice changes nothing.

    Args:
        dictionary: One that encodes residuals whose mean over the width is zero.

    Raises:
        UnsupportedDictionaryError: If it divides its input by a norm, which the mean is a part of.
    """
    if dictionary.scaling == "constant_norm":
        raise UnsupportedDictionaryError(
            f"{dictionary.origin.path}: it divides its input by its norm and was trained on "
            "centered residuals; the norm of one that is not centered is another.\n"
            "Use a dictionary trained without center_writing_weights."
        )
    folded = replace(
        dictionary,
        encoder=_without_mean(dictionary.encoder),
        skip=None if dictionary.skip is None else _without_mean(dictionary.skip),
        centered=True,
    )
    return noted(folded, "Trained on centered residuals: the encoder takes the mean away itself.")


def _without_mean(matrix: Float[Tensor, "d_in column"]) -> Float[Tensor, "d_in column"]:
    exact = matrix.double()
    return (exact - exact.mean(0)).to(matrix.dtype)


def norm_weight_folded(
    dictionary: Dictionary, factor: Float[Tensor, " d_in"], shift: Float[Tensor, " d_in"]
) -> Dictionary:
    """Return the dictionary for what a norm hands on of one for what its weight multiplies.

    Args:
        dictionary: One of `n`, the normalized residual before the norm's weight.
        factor: The norm hands on `n * factor + shift`.
        shift: See there.

    Returns:
        One that encodes `n * factor + shift`, and decodes to it unless it is a transcoder.

    Raises:
        UnsupportedDictionaryError: If the weight is zero somewhere, or inputs are scaled again.
    """
    if dictionary.scaling != "none" or not bool((factor != 0).all()):
        raise UnsupportedDictionaryError(
            f"{dictionary.origin.path} is of {dictionary.origin.hook!r}, which lies before the "
            "norm's weight, and that cannot be folded: "
            + ("it is zero somewhere." if dictionary.scaling == "none" else
               f"inputs are scaled again ({dictionary.scaling}).")
        )  # fmt: skip
    factor, shift = (one.to(dictionary.encoder.device) for one in (factor, shift))
    exact = dictionary.encoder.double() / factor[:, None]
    new: dict[str, Tensor] = {
        "encoder": exact,
        "encoder_bias": dictionary.encoder_bias.double() - shift @ exact,
    }
    if not dictionary.transcoder:
        new["decoder"] = dictionary.decoder.double() * factor
        new["decoder_bias"] = dictionary.decoder_bias.double() * factor + shift
    elif dictionary.skip is not None:
        new["skip"] = dictionary.skip.double() / factor[:, None]
        new["decoder_bias"] = dictionary.decoder_bias.double() - shift @ new["skip"]
    typed: dict[str, Any] = {key: one.to(dictionary.encoder.dtype) for key, one in new.items()}
    return noted(
        replace(dictionary, **typed),
        f"Of {dictionary.origin.hook}, before the norm's weight: the weight is folded in.",
    )
