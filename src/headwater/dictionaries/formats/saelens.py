"""SAELens: a folder of `cfg.json` and `sae_weights.safetensors`.

Since version 6 the configuration names an architecture and keeps what it says of the model under
`metadata`; before that it is flat, and TopK is told by its activation function. Checkpoints of
training (`batchtopk`) keep one threshold for all features, of pre-activations times decoder norms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headwater.dictionaries.activations import Activation, Gated, JumpRelu, Relu, TopK
from headwater.dictionaries.dictionary import Dictionary, Origin, Scaling
from headwater.dictionaries.folding import centered, input_bias_folded, input_scale_folded, noted
from headwater.dictionaries.source import Source
from headwater.errors import DictionaryError, UnsupportedDictionaryError

PLAIN = ("standard", "topk", "abstopk", "jumprelu", "gated")
TRANSCODERS = (
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)
CHECKPOINTS = ("batchtopk", "matryoshka_batchtopk")

_REFUSED = {
    "matching_pursuit": "its encoder is a search over the decoder's rows, one by one, so no "
    "feature has a pre-activation that the input enters linearly",
    "temporal": "its features depend on other positions of the prompt",
}
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_SCALINGS: dict[str, Scaling] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
    "expected_average_only_in": "none",
}
_AVERAGE = "expected_average_only_in"
_SCALER_FILE = "activation_scaler.json"
_IN_RESIDUAL = ("hook_resid", "hook_attn_out", "hook_mlp_out", "hook_embed", "hook_mlp_in")


@dataclass(frozen=True)
class _Config:
    """What a configuration says, of either version."""

    architecture: str
    d_in: int
    d_sae: int
    d_out: int
    b_dec_in: bool
    """Whether the decoder's bias is taken from the input."""
    normalize: str
    k: int | None
    by_norm: bool
    """Whether pre-activations are multiplied by the decoder rows' norms."""
    hook: str | None
    hook_out: str | None
    model: str | None
    loading: Mapping[str, Any] | None
    """How the model was loaded (keyword arguments of TransformerLens); None if it does not say."""


def fits(source: Source) -> bool:
    """Whether a file is of this format."""
    return {"d_in", "d_sae"} <= source.config.keys()


def read(source: Source, scale: float | None, is_centered: bool | None) -> Dictionary:
    """Read a dictionary.

    Args:
        source: The file.
        scale: What inputs were multiplied by, for `expected_average_only_in`.
        is_centered: Whether the model's residual was centered; None to go by the configuration.

    Raises:
        DictionaryError: If tensors and configuration do not fit together.
        UnsupportedDictionaryError: If its features are no affine maps of the input.
    """
    config = _parsed(source)
    tensors = _tensors(source, config)
    dictionary = Dictionary(
        encoder=tensors["W_enc"],
        encoder_bias=tensors.get("b_enc", tensors["W_enc"].new_zeros(config.d_sae)),
        decoder=tensors["W_dec"],
        decoder_bias=tensors["b_dec"],
        activation=_activation(source, config, tensors),
        scaling=_SCALINGS[config.normalize],
        skip=tensors["W_skip"].T.contiguous() if "W_skip" in tensors else None,
        transcoder=config.architecture in TRANSCODERS,
        origin=Origin(
            path=str(source.path),
            format="SAELens",
            kind=config.architecture,
            hook=config.hook,
            hook_out=config.hook_out,
            model=config.model,
            sha256=source.sha256,
            config=source.config,
        ),
    )
    factor = tensors.get("scaling_factor")
    if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
        dictionary = replace(dictionary, decoder=dictionary.decoder * factor[:, None])
        dictionary = noted(dictionary, "The features' scaling_factor is folded into the decoder.")
    if config.b_dec_in:
        dictionary = input_bias_folded(dictionary, tensors["b_dec"])
    if config.normalize == _AVERAGE:
        dictionary = input_scale_folded(dictionary, _scale(source, scale))
        dictionary = replace(dictionary, origin=replace(dictionary.origin, scale=scale))
    elif scale is not None:
        raise DictionaryError(
            f"{source.path}: scale={scale:g} was given, but its normalize_activations is "
            f"{config.normalize!r}; only {_AVERAGE!r} has an unknown factor.\nLeave out scale."
        )
    return _centered(dictionary, config, is_centered)


def _parsed(source: Source) -> _Config:
    flat = {_OLD_NAMES.get(key, key): value for key, value in source.config.items()}
    told: Mapping[str, Any] = {**flat, **(flat.get("metadata") or {})}
    architecture = str(flat.get("architecture") or "standard")
    k = flat.get("k")
    if "metadata" not in flat and flat.get("activation_fn") == "topk":
        architecture, k = "topk", (flat.get("activation_fn_kwargs") or {}).get("k")
    _refuse(source, architecture, flat, told)
    normalize = flat.get("normalize_activations") or "none"
    hook = told.get("hook_name")
    is_transcoder = architecture in TRANSCODERS
    return _Config(
        architecture=architecture,
        d_in=int(flat["d_in"]),
        d_sae=int(flat["d_sae"]),
        d_out=int(flat.get("d_out") or flat["d_in"]) if is_transcoder else int(flat["d_in"]),
        b_dec_in=bool(flat.get("apply_b_dec_to_input", True)) and not is_transcoder,
        normalize=_AVERAGE if normalize is True else str(normalize),
        k=None if k is None else int(k),
        # training takes it for granted, and its checkpoints always say so
        by_norm=bool(flat.get("rescale_acts_by_decoder_norm", False)),
        hook=hook,
        hook_out=told.get("hook_name_out") or told.get("out_hook_name"),
        model=told.get("model_name"),
        loading=_loading(flat, told),
    )


def _loading(flat: Mapping[str, Any], told: Mapping[str, Any]) -> Mapping[str, Any] | None:
    loading = told.get("model_from_pretrained_kwargs")
    # since version 6 a model is loaded without processing unless the file says otherwise
    return ({} if "metadata" in flat else None) if loading is None else loading


def _refuse(
    source: Source, architecture: str, flat: Mapping[str, Any], told: Mapping[str, Any]
) -> None:
    """Refuse what cannot be used, by name."""
    place = f"{source.path}: architecture {architecture!r}"
    if architecture in _REFUSED:
        raise UnsupportedDictionaryError(
            f"{place} is not supported: {_REFUSED[architecture]}.\n"
            "Use a dictionary with one encoder: standard, topk, jumprelu, gated or a transcoder."
        )
    known = (*PLAIN, *TRANSCODERS, *CHECKPOINTS)
    if architecture not in known:
        raise UnsupportedDictionaryError(f"{place} is unknown.\nRead are: {', '.join(known)}.")
    normalize = flat.get("normalize_activations") or "none"
    if normalize is not True and normalize not in _SCALINGS:
        raise UnsupportedDictionaryError(
            f"{source.path}: normalize_activations={normalize!r} is not supported.\n"
            "Save the dictionary with it folded into its weights (then it is 'none')."
        )
    if normalize in ("layer_norm", "constant_norm_rescale") and architecture in TRANSCODERS:
        raise UnsupportedDictionaryError(
            f"{place} with normalize_activations={normalize!r} is not supported: it divides its "
            "input by a scale and does not multiply what it writes by it."
        )
    if told.get("hook_head_index") is not None:
        raise UnsupportedDictionaryError(
            f"{source.path} was trained on head {told['hook_head_index']} of "
            f"{told.get('hook_name')!r} alone, and a dictionary here is of a whole site."
        )


def _tensors(source: Source, config: _Config) -> dict[str, Tensor]:
    features, (d_in, d_out) = config.d_sae, (config.d_in, config.d_out)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, features), "W_dec": (features, d_out)}
    if config.architecture == "gated":
        shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), (features,))
    else:
        shapes["b_enc"] = (features,)
    shapes["b_dec"] = (d_out,)
    if "jumprelu" in config.architecture:
        shapes["threshold"] = (features,)
    if "skip" in config.architecture:
        shapes["W_skip"] = (d_out, d_in)
    if config.architecture in CHECKPOINTS:
        shapes["topk_threshold"] = ()
    if "scaling_factor" in source.keys:
        shapes["scaling_factor"] = (features,)
    sizes = f"architecture {config.architecture!r}, d_in={d_in}, d_sae={features}"
    sizes += f", d_out={d_out}" if config.architecture in TRANSCODERS else ""
    named = "" if source.config_path is None else f" ({source.config_path.name})"
    return source.tensors(shapes, because=sizes + named)


def _activation(source: Source, config: _Config, tensors: Mapping[str, Tensor]) -> Activation:
    norms = tensors["W_dec"].norm(dim=-1) if config.by_norm else None
    if config.architecture in ("topk", "abstopk"):
        if config.k is None:
            raise DictionaryError(f"{source.config_path} names no k for {config.architecture!r}.")
        return TopK(config.k, norms, signed=config.architecture == "abstopk")
    if config.architecture in CHECKPOINTS:
        # the threshold is of pre-activations times norms
        alike = tensors["topk_threshold"].expand(config.d_sae)
        return JumpRelu((alike if norms is None else alike / norms).contiguous())
    if config.architecture == "gated":
        return Gated(tensors["b_gate"], tensors["b_mag"], tensors["r_mag"].exp())
    return JumpRelu(tensors["threshold"]) if "threshold" in tensors else Relu()


def _scale(source: Source, scale: float | None) -> float:
    beside = source.path.parent / _SCALER_FILE
    if scale is None and beside.is_file():
        scale = json.loads(beside.read_text()).get("scaling_factor")
    if scale is None:
        raise DictionaryError(
            f"{source.path}: normalize_activations={_AVERAGE!r}, so it was trained on activations "
            "multiplied by a constant, which its file does not hold.\n"
            "read_dictionary(path, scale=c), where c is the square root of d_in over the mean norm "
            "of the activations it was trained on."
        )
    return float(scale)


def _centered(dictionary: Dictionary, config: _Config, told: bool | None) -> Dictionary:
    """Have the encoder take the residual's mean away, if the model's was centered."""
    in_residual = config.hook is None or any(name in config.hook for name in _IN_RESIDUAL)
    if told is None and config.loading is None and in_residual:
        dictionary = noted(
            dictionary,
            "Its configuration does not say how the model was loaded. Dictionaries of GPT-2 from "
            "before SAELens said so were trained on centered residuals: if it explains little, "
            "read_dictionary(path, centered=True).",
        )
    if told is None:
        told = bool((config.loading or {}).get("center_writing_weights")) and in_residual
    return centered(dictionary) if told else dictionary
