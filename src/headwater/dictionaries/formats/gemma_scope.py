"""Gemma Scope: `params.npz` without a configuration, in folders that name model, site and layer."""

from __future__ import annotations

import re
from pathlib import Path

from headwater.dictionaries.activations import JumpRelu
from headwater.dictionaries.dictionary import Dictionary, Origin
from headwater.dictionaries.folding import input_scale_folded
from headwater.dictionaries.hooks import NORMALIZED
from headwater.dictionaries.source import Source
from headwater.errors import DictionaryError

_RELEASE = re.compile(r"gemma-scope-(\w+)-(pt|it)-(res|mlp|att|transcoders)")
_LAYER = re.compile(r"layer_(\d+)")
_HOOKS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


def fits(source: Source) -> bool:
    """Whether a file is of this format."""
    return source.path.suffix == ".npz" and "W_enc" in source.keys


def read(source: Source) -> Dictionary:
    """Read a dictionary.

    Args:
        source: The file.

    Raises:
        DictionaryError: If its tensors do not fit together.
    """
    seen = source.shape("W_enc")
    if len(seen) != 2:
        raise DictionaryError(f"{source.path}: W_enc has shape {list(seen)}; it must be a matrix.")
    d_in, features = seen
    d_out = source.shape("b_dec")[0] if source.shape("b_dec") else d_in
    tensors = source.tensors(
        {
            "W_enc": (d_in, features),
            "W_dec": (features, d_out),
            "b_enc": (features,),
            "b_dec": (d_out,),
            "threshold": (features,),
        },
        because=f"W_enc {list(seen)}",
    )
    hook, hook_out, model = _place(source.path)
    notes = ("The decoder's bias is not taken from the input, as Gemma Scope defines it.",)
    origin = Origin(
        path=str(source.path),
        format="Gemma Scope",
        kind="jumprelu" if hook_out is None else "jumprelu_transcoder",
        hook=hook,
        hook_out=hook_out,
        model=model,
        sha256=source.sha256,
        notes=notes if hook is None else (*notes, "Its place is taken from its folders' names."),
    )
    dictionary = Dictionary(
        encoder=tensors["W_enc"],
        encoder_bias=tensors["b_enc"],
        decoder=tensors["W_dec"],
        decoder_bias=tensors["b_dec"],
        activation=JumpRelu(tensors["threshold"]),
        transcoder=hook_out is not None,
        origin=origin,
    )
    if hook == "hook_embed":
        # trained on embeddings before Gemma multiplies them by the square root of the width
        dictionary = input_scale_folded(dictionary, d_in**-0.5)
    return dictionary


def _place(path: Path) -> tuple[str | None, str | None, str | None]:
    """The places read and written and the model, by the folders of the release."""
    whole = path.absolute().as_posix()
    release, layer = _RELEASE.search(whole), _LAYER.search(whole)
    if release is None:
        return None, None, None
    size, tuned, kind = release.groups()
    model = f"google/gemma-2-{size}" + ("-it" if tuned == "it" else "")
    if layer is None:
        return ("hook_embed" if "/embedding/" in whole else None), None, model
    if kind == "transcoders":
        block = f"blocks.{layer[1]}"
        return f"{block}.{NORMALIZED}", f"{block}.hook_mlp_out", model
    return f"blocks.{layer[1]}.{_HOOKS[kind]}", None, model
