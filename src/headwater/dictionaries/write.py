"""Write a dictionary as SAELens does: `sae_weights.safetensors`, then `cfg.json`.

A folder holds a dictionary exactly if it holds the configuration, which is written last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from headwater import strict_json
from headwater.dictionaries.activations import Gated, JumpRelu, Relu, TopK
from headwater.dictionaries.dictionary import Dictionary
from headwater.dictionaries.hooks import hook_of
from headwater.errors import DictionaryError, UnsupportedDictionaryError
from headwater.files import make_writable, write_atomically, write_text
from headwater.sites import Site

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
VERSION = "6.0.0"
"""Of SAELens, whose format is written."""

_NORMALIZE = {"none": "none", "layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}
_HEAD_WISE = "hook_z"
_DTYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def write_dictionary(
    dictionary: Dictionary,
    folder: str | os.PathLike[str],
    *,
    hook: str | Site | None = None,
    hook_out: str | Site | None = None,
    model: str | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a dictionary in SAELens' format, whole or not at all.

    Args:
        dictionary: The dictionary.
        folder: Where; made if it does not exist. Other files there stay.
        hook: The place it is of: a site or its path (`layers.3.mlp.out`), which is written in
            TransformerLens' words, or these (`blocks.3.hook_mlp_out`); by default the one it came
            with.
        hook_out: A transcoder's place of writing, likewise.
        model: The model's name; by default the one it came with.
        dtype: Of the numbers on disk; by default the dictionary's own.
        metadata: More to keep under `metadata`: plain data.
        overwrite: Replace a dictionary that is there.

    Returns:
        The folder.

    Raises:
        DictionaryError: If the folder holds a dictionary, or no hook is known.
        UnsupportedDictionaryError: If SAELens has no name for it.
        RunFolderError: If the folder cannot be written.
    """
    folder, origin = Path(folder), dictionary.origin
    dtype = dtype or dictionary.encoder.dtype
    hook, hook_out = _words(hook or origin.hook), _words(hook_out or origin.hook_out)
    architecture, fields = _architecture(dictionary)
    _refuse(dictionary, folder, (hook, hook_out), dtype, overwrite=overwrite)
    told = {"model_name": model or origin.model, "hook_name": hook, **(metadata or {})}
    if dictionary.transcoder:
        told["hook_name_out"] = hook_out
    config = {"architecture": architecture, **fields, **_config(dictionary, told, dtype)}
    tensors = {name: _typed(name, one, dtype) for name, one in _tensors(dictionary).items()}
    make_writable(folder)
    (folder / CONFIG).unlink(missing_ok=True)
    write_atomically(folder / WEIGHTS, lambda there: save_file(tensors, there))
    write_text(folder / CONFIG, strict_json.dumped(config))
    return folder


def _config(dictionary: Dictionary, told: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return what every architecture's configuration says."""
    metadata = {"sae_lens_version": VERSION, **told}
    if dictionary.centered:
        metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    by_head = str(told["hook_name"]).endswith(_HEAD_WISE)
    return {
        "d_in": dictionary.d_in,
        "d_sae": dictionary.features,
        **({"d_out": dictionary.d_out} if dictionary.transcoder else {}),
        "dtype": _DTYPES[dtype],
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": _NORMALIZE[dictionary.scaling],
        "reshape_activations": _HEAD_WISE if by_head else "none",
        "metadata": metadata,
    }


def _typed(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    typed = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
    if not torch.isfinite(typed).all():
        raise DictionaryError(
            f"{name} {list(tensor.shape)} holds numbers up to {float(tensor.abs().max()):.3g}, "
            f"which {dtype} cannot hold.\nWrite it in another: "
            "write_dictionary(..., dtype=torch.float32)."
        )
    return typed


def _words(hook: str | Site | None) -> str | None:
    if isinstance(hook, str) and Site.is_path(hook):
        hook = Site.parse(hook)
    return hook_of(hook) if isinstance(hook, Site) else hook


def _refuse(
    dictionary: Dictionary,
    folder: Path,
    hooks: tuple[str | None, str | None],
    dtype: torch.dtype,
    *,
    overwrite: bool,
) -> None:
    if (folder / CONFIG).exists() and not overwrite:
        raise DictionaryError(
            f"{folder} holds a dictionary already.\n"
            "Choose another folder, or write_dictionary(..., overwrite=True)."
        )
    if hooks[0] is None or (dictionary.transcoder and hooks[1] is None):
        raise DictionaryError(
            "a dictionary is written with the place that it is of (a transcoder with both).\n"
            "Say which: write_dictionary(dictionary, folder, hook='layers.3.mlp.out'), for a "
            "transcoder hook='layers.3.mlp.in', hook_out='layers.3.mlp.out'."
        )
    if dtype not in _DTYPES:
        raise DictionaryError(f"dtype={dtype} is no floating-point type of a dictionary.")
    norms = dictionary.activation.tensors.get("norms")
    if norms is not None and not torch.allclose(norms, dictionary.decoder.norm(dim=-1)):
        raise UnsupportedDictionaryError(
            "this TopK chooses features by norms that are not those of its decoder's rows, and "
            "SAELens has no place for them.\nScale its decoder's rows to these norms, or leave "
            "norms=None."
        )


def _architecture(dictionary: Dictionary) -> tuple[str, dict[str, Any]]:
    """Return what SAELens calls a dictionary, and the fields that only this kind has."""
    activation = dictionary.activation
    jump = isinstance(activation, JumpRelu)
    if dictionary.transcoder:
        if (not jump and not isinstance(activation, Relu)) or dictionary.scaling != "none":
            raise UnsupportedDictionaryError(
                f"SAELens has no transcoder with {type(activation).__name__} and scaling "
                f"{dictionary.scaling!r}: only ReLU and JumpReLU, of the input as it is."
            )
        skip = "" if dictionary.skip is None else "skip_"
        return ("jumprelu_" if jump else "") + skip + "transcoder", {}
    if dictionary.skip is not None:
        raise UnsupportedDictionaryError("SAELens knows a skip connection in transcoders only.")
    if isinstance(activation, TopK):
        fields = {"k": activation.k, "rescale_acts_by_decoder_norm": activation.norms is not None}
        return "abstopk" if activation.signed else "topk", fields
    return activation.name, {}


def _tensors(dictionary: Dictionary) -> dict[str, Tensor]:
    tensors = {
        "W_enc": dictionary.encoder,
        "b_enc": dictionary.encoder_bias,
        "W_dec": dictionary.decoder,
        "b_dec": dictionary.decoder_bias,
    }
    activation = dictionary.activation
    if isinstance(activation, JumpRelu):
        tensors["threshold"] = activation.threshold
    if isinstance(activation, Gated):
        # both of its paths see the encoder's bias
        bias = tensors.pop("b_enc")
        tensors["b_gate"] = activation.gate_bias + bias
        tensors["b_mag"] = activation.magnitude_bias + activation.scale * bias
        tensors["r_mag"] = activation.scale.log()
    if dictionary.skip is not None:
        tensors["W_skip"] = dictionary.skip.T
    return tensors
