"""circuit-tracer: one transcoder a layer, `layer_3.safetensors`, and `config.yaml` for all.

Both matrices are [feature, d_model]. A skip connection is [out, in].
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from headwater.dictionaries.activations import Activation, JumpRelu, Relu, TopK
from headwater.dictionaries.dictionary import Dictionary, Origin
from headwater.dictionaries.source import Source
from headwater.errors import DictionaryError, UnsupportedDictionaryError

_THRESHOLD = "activation_function.threshold"
_NAMED = frozenset({"W_enc", "W_dec", "b_enc", "b_dec"})
_CROSS = re.compile(r"W_(enc|dec)_\d+")
_FILE = re.compile(r"layer_(\d+)")


def fits(source: Source) -> bool:
    """Whether a file is of this format."""
    if "model_kind" in source.config or any(_CROSS.fullmatch(key) for key in source.keys):
        return True
    if not source.keys >= _NAMED:
        return False
    encoder = source.shape("W_enc")
    # only here are the encoder's rows features
    rows = encoder == source.shape("W_dec") and encoder[:1] == source.shape("b_enc")
    return _THRESHOLD in source.keys or (rows and len(set(encoder)) == 2)


def read(source: Source) -> Dictionary:
    """Read a transcoder.

    Args:
        source: The file.

    Raises:
        DictionaryError: If its tensors do not fit together.
        UnsupportedDictionaryError: If it is a cross-layer transcoder.
    """
    _refuse_cross_layer(source)
    features, d_model = (*source.shape("W_enc"), 0, 0)[:2]
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (features, d_model),
        "W_dec": (features, d_model),
        "b_enc": (features,),
        "b_dec": (d_model,),
    }
    shapes |= {_THRESHOLD: (features,)} if _THRESHOLD in source.keys else {}
    shapes |= {"W_skip": (d_model, d_model)} if "W_skip" in source.keys else {}
    tensors = source.tensors(shapes, because=f"W_enc {list(source.shape('W_enc'))}", ignored=("k",))
    layer = _FILE.search(source.path.stem)
    return Dictionary(
        encoder=tensors["W_enc"].T.contiguous(),
        encoder_bias=tensors["b_enc"],
        decoder=tensors["W_dec"],
        decoder_bias=tensors["b_dec"],
        activation=_activation(source, tensors),
        skip=tensors["W_skip"].T.contiguous() if "W_skip" in tensors else None,
        transcoder=True,
        origin=Origin(
            path=str(source.path),
            format="circuit-tracer",
            kind="skip_transcoder" if "W_skip" in tensors else "transcoder",
            hook=_hook(source, "feature_input_hook", layer),
            hook_out=_hook(source, "feature_output_hook", layer),
            model=source.config.get("model_name"),
            sha256=source.sha256,
            notes=() if layer is None else ("Its layer is taken from its file's name.",),
            config=source.config,
        ),
    )


def _refuse_cross_layer(source: Source) -> None:
    if any(_CROSS.fullmatch(key) for key in source.keys) or (
        source.config.get("model_kind") == "cross_layer_transcoder"
    ):
        raise UnsupportedDictionaryError(
            f"{source.path} is part of a cross-layer transcoder: its features write to every layer "
            "after theirs, and a dictionary here writes one site.\n"
            "Use per-layer transcoders (model_kind: transcoder_set)."
        )


def _activation(source: Source, tensors: dict[str, Tensor]) -> Activation:
    said: Any = source.config.get("activation")
    k = source.integer("k") or source.config.get("k")
    if said == "topk" and k is None:
        raise DictionaryError(
            f"{source.path} is a TopK transcoder (activation: topk), and neither it nor "
            "config.yaml says k.\nAdd a line `k: 128` (its own number) to config.yaml."
        )
    if k is not None and said in (None, "topk"):
        return TopK(int(k))
    if _THRESHOLD in tensors and said != "relu":
        return JumpRelu(tensors[_THRESHOLD])
    return Relu()


def _hook(source: Source, key: str, layer: re.Match[str] | None) -> str | None:
    name = source.config.get(key)
    if name is None or layer is None:
        return None
    name = str(name).replace("{layer}", layer[1])
    return name if name.startswith("blocks.") else f"blocks.{layer[1]}.{name}"
