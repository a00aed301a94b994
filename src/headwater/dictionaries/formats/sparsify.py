"""sparsify (EleutherAI): a folder of `cfg.json` and `sae.safetensors`, named after the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headwater.dictionaries.activations import TopK
from headwater.dictionaries.dictionary import Dictionary, Origin
from headwater.dictionaries.folding import input_bias_folded, noted
from headwater.dictionaries.hooks import named_by
from headwater.dictionaries.source import Source
from headwater.errors import DictionaryError, UnsupportedDictionaryError

_ENCODER = "encoder.weight"
_REFUSED = {
    "embed_skip": "it adds a map of the model's embedding, which is another site",
    "gram_lookup": "it adds a table of means by preceding tokens, which is no part of the file",
}


def fits(source: Source) -> bool:
    """Whether a file is of this format."""
    return {_ENCODER, "W_dec"} <= source.keys


def read(source: Source) -> Dictionary:
    """Read a dictionary.

    Args:
        source: The file.

    Raises:
        DictionaryError: If tensors and configuration do not fit together.
        UnsupportedDictionaryError: If it is more than an encoder, TopK and a decoder.
    """
    config = source.config
    _refuse(source)
    d_in = int(config["d_in"])
    features = int(config.get("num_latents") or 0) or d_in * int(config.get("expansion_factor", 32))
    shapes: dict[str, tuple[int, ...]] = {
        _ENCODER: (features, d_in),
        "encoder.bias": (features,),
        "W_dec": (features, d_in),
        "b_dec": (d_in,),
    }
    if source.shape("W_dec") == (d_in, features):
        shapes["W_dec"] = (d_in, features)  # files of some releases; never square
    shapes |= {"W_skip": (d_in, d_in)} if "W_skip" in source.keys else {}
    tensors = source.tensors(
        shapes, because=f"d_in={d_in} and num_latents={features} ({_config_name(source)})"
    )
    transcodes = bool(config.get("transcode"))
    hook = named_by(source.path)
    decoder = tensors["W_dec"]
    dictionary = Dictionary(
        encoder=tensors[_ENCODER].T.contiguous(),
        encoder_bias=tensors["encoder.bias"],
        decoder=decoder if shapes["W_dec"][0] == features else decoder.T.contiguous(),
        decoder_bias=tensors["b_dec"],
        activation=TopK(int(config["k"]), signed=bool(config.get("signed"))),
        skip=tensors["W_skip"].T.contiguous() if "W_skip" in tensors else None,
        transcoder=transcodes,
        origin=Origin(
            path=str(source.path),
            format="sparsify",
            kind="transcoder" if transcodes else "sae",
            hook=f"{hook}.input" if transcodes and hook is not None else hook,
            hook_out=hook if transcodes else None,
            sha256=source.sha256,
            config=config,
        ),
    )
    if hook is not None:
        dictionary = noted(dictionary, f"Its place is taken from its folder's name, {hook}.")
    return dictionary if transcodes else input_bias_folded(dictionary, tensors["b_dec"])


def _refuse(source: Source) -> None:
    config: Mapping[str, Any] = source.config
    lacking = [key for key in ("d_in", "k") if key not in config]
    if lacking:
        raise DictionaryError(
            f"{source.path} holds {source.listing()}, as sparsify writes it, but its cfg.json "
            f"with {' and '.join(lacking)} is missing.\nPut it beside the weights."
        )
    if config.get("activation", "topk") != "topk":
        raise UnsupportedDictionaryError(
            f"{source.path}: activation {config['activation']!r} is not supported, only 'topk'."
        )
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise UnsupportedDictionaryError(f"{source.path}: {key} is not supported: {reason}.")


def _config_name(source: Source) -> str:
    return "cfg.json" if source.config_path is None else source.config_path.name
