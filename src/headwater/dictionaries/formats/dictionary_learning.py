"""dictionary_learning: `ae.pt`, a state_dict, and `config.json`, which the first releases lack.

The class is told by the tensors' names; two classes have the same ones, and then only the
configuration tells. Linear layers keep [out, in].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from headwater.dictionaries.activations import Activation, Gated, JumpRelu, Relu, TopK
from headwater.dictionaries.dictionary import Dictionary, Origin
from headwater.dictionaries.folding import input_bias_folded, noted
from headwater.dictionaries.source import Source
from headwater.errors import DictionaryError, UnsupportedDictionaryError

_LINEAR = ("encoder.weight", "decoder.weight")
_MATRICES = ("W_enc", "W_dec")


@dataclass(frozen=True)
class _Class:
    """What a class of dictionaries keeps."""

    weights: tuple[str, str]
    per_feature: tuple[str, ...]
    per_input: tuple[str, ...]
    single: tuple[str, ...] = ()
    groups: bool = False
    input_bias: bool = True
    """Whether the decoder's bias is taken from the input."""

    def shapes(self, d_in: int, features: int, groups: Sequence[int]) -> dict[str, Sequence[int]]:
        encoder, decoder = self.weights
        linear = self.weights == _LINEAR
        return {
            encoder: (features, d_in) if linear else (d_in, features),
            decoder: (d_in, features) if linear else (features, d_in),
            **dict.fromkeys(self.per_feature, (features,)),
            **dict.fromkeys(self.per_input, (d_in,)),
            **dict.fromkeys(self.single, ()),
            **({"group_sizes": groups} if self.groups else {}),
        }

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(self.shapes(1, 1, (1,)))


_TOPK = _Class(_LINEAR, ("encoder.bias",), ("b_dec",), ("k", "threshold"))
CLASSES: dict[str, _Class] = {
    "AutoEncoder": _Class(_LINEAR, ("encoder.bias",), ("bias",)),
    "GatedAutoEncoder": _Class(_LINEAR, ("r_mag", "gate_bias", "mag_bias"), ("decoder_bias",)),
    "JumpReluAutoEncoder": _Class(_MATRICES, ("b_enc", "threshold"), ("b_dec",), input_bias=False),
    "AutoEncoderNew": _Class(_LINEAR, ("encoder.bias",), ("decoder.bias",), input_bias=False),
    "AutoEncoderTopK": _TOPK,
    "BatchTopKSAE": _TOPK,
    "MatryoshkaBatchTopKSAE": _Class(
        _MATRICES, ("b_enc",), ("b_dec",), ("k", "threshold"), groups=True
    ),
}
"""By name."""

_OF_TRAINER = {
    "StandardTrainer": "AutoEncoder",
    "GatedSAETrainer": "GatedAutoEncoder",
    "JumpReluTrainer": "JumpReluAutoEncoder",
    "StandardTrainerAprilUpdate": "AutoEncoder",
    "TopKTrainer": "AutoEncoderTopK",
    "BatchTopKTrainer": "BatchTopKSAE",
    "MatryoshkaBatchTopKTrainer": "MatryoshkaBatchTopKSAE",
}
_BACKUP = {"step", "ae", "optimizer"}


def fits(source: Source) -> bool:
    """Whether a file is of this format."""
    if "trainer" in source.config or source.keys >= _BACKUP:
        return True
    # SAELens keeps the same names, and what they mean stands in its configuration
    own = source.path.suffix != ".safetensors" or set(_LINEAR) <= source.keys
    return own and bool(_classes(source.keys))


def read(source: Source) -> Dictionary:
    """Read a dictionary.

    Args:
        source: The file.

    Raises:
        DictionaryError: If tensors and configuration do not fit together, or the class is open.
        UnsupportedDictionaryError: If the class is none of the seven.
    """
    trainer: Mapping[str, Any] = source.config.get("trainer") or {}
    source, note = _finished(source, trainer)
    name = _class_of(source, trainer)
    tensors = _tensors(source, name, trainer)
    kind = CLASSES[name]
    encoder, decoder = (tensors[key] for key in kind.weights)
    linear = kind.weights == _LINEAR
    dictionary = Dictionary(
        encoder=encoder.T.contiguous() if linear else encoder,
        encoder_bias=_encoder_bias(tensors, encoder),
        decoder=decoder.T.contiguous() if linear else decoder,
        decoder_bias=tensors[kind.per_input[0]],
        activation=_activation(source, name, tensors),
        origin=Origin(
            path=str(source.path),
            format="dictionary_learning",
            kind=name,
            hook=_hook(source, trainer),
            model=trainer.get("lm_name"),
            sha256=source.sha256,
            config=source.config,
        ),
    )
    if kind.input_bias:
        dictionary = input_bias_folded(dictionary, tensors[kind.per_input[0]])
    return dictionary if note is None else noted(dictionary, note)


def _finished(source: Source, trainer: Mapping[str, Any]) -> tuple[Source, str | None]:
    """Return a dictionary's tensors, out of a backup if need be, and what is to be said of that."""
    inside = source.content.get("ae")
    if not isinstance(inside, Mapping):
        return source, None
    factor = source.content.get("norm_factor") or trainer.get("norm_factor")
    note = f"The backup of a run at step {source.content.get('step')}, not what it ended with."
    if factor is None:
        return replace(source, content=inside), note
    # a finished file's biases are in units of the activations, a backup's of normalized ones
    scaled = {key: _scaled(key, value, float(factor)) for key, value in inside.items()}
    note += f" Its biases are multiplied by its norm_factor, {float(factor):g}."
    return replace(source, content=scaled), note


def _scaled(key: str, value: Tensor, factor: float) -> Tensor:
    if key in (*_LINEAR, *_MATRICES, "r_mag", "k", "group_sizes"):
        return value
    if key == "threshold" and value.ndim == 0 and value < 0:
        return value  # never trained
    return value * factor


def _classes(keys: frozenset[str]) -> list[str]:
    return [name for name, kind in CLASSES.items() if kind.keys == keys]


def _class_of(source: Source, trainer: Mapping[str, Any]) -> str:
    by_keys = _classes(source.keys)
    said = trainer.get("dict_class") or _OF_TRAINER.get(str(trainer.get("trainer_class")))
    if said is not None and said not in CLASSES:
        raise UnsupportedDictionaryError(
            f"{source.path}: dict_class {said!r} is not supported.\nRead are: {', '.join(CLASSES)}."
        )
    if said is not None and said not in by_keys:
        likely = f"which {' or '.join(by_keys)} holds" if by_keys else "which no known class holds"
        raise DictionaryError(
            f"{source.path}: {_config_name(source)} says {said}, but the file holds "
            f"{source.listing()}, {likely}.\n{said} holds {', '.join(sorted(CLASSES[said].keys))}."
        )
    if said is not None:
        return said
    if len(by_keys) == 1:
        return by_keys[0]
    if not by_keys:
        raise DictionaryError(
            f"{source.path} holds {source.listing()}, which no class of dictionary_learning "
            f"holds.\nRead are: {', '.join(CLASSES)}."
        )
    raise DictionaryError(
        f"{source.path} may be {' or '.join(by_keys)}: both hold {source.listing()}, and they "
        "encode in different ways.\nPut the run's config.json beside it, or one that says "
        f'{{"trainer": {{"dict_class": "{by_keys[0]}"}}}}.'
    )


def _tensors(source: Source, name: str, trainer: Mapping[str, Any]) -> dict[str, Tensor]:
    kind = CLASSES[name]
    seen = source.shape(kind.weights[0])
    if len(seen) != 2:
        raise DictionaryError(
            f"{source.path}: {kind.weights[0]} has shape {list(seen)}; it must be a matrix."
        )
    features, d_in = seen if kind.weights == _LINEAR else reversed(seen)
    because = f"{name} and {kind.weights[0]} {list(seen)}"
    if "activation_dim" in trainer and "dict_size" in trainer:
        d_in, features = int(trainer["activation_dim"]), int(trainer["dict_size"])
        because = f"{name}, activation_dim={d_in} and dict_size={features} ({_config_name(source)})"
    shapes = kind.shapes(d_in, features, source.shape("group_sizes"))
    return source.tensors(shapes, because=because)


def _encoder_bias(tensors: Mapping[str, Tensor], encoder: Tensor) -> Tensor:
    for name in ("encoder.bias", "b_enc"):
        if name in tensors:
            return tensors[name]
    return encoder.new_zeros(len(encoder))  # gated: [feature, d_in]


def _activation(source: Source, name: str, tensors: Mapping[str, Tensor]) -> Activation:
    if name == "GatedAutoEncoder":
        return Gated(tensors["gate_bias"], tensors["mag_bias"], tensors["r_mag"].exp())
    if name == "JumpReluAutoEncoder":
        return JumpRelu(tensors["threshold"])
    if name == "AutoEncoderTopK":
        return TopK(int(tensors["k"]))
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        threshold = tensors["threshold"]
        if threshold < 0:
            raise UnsupportedDictionaryError(
                f"{source.path}: {name} with threshold {float(threshold):g}: the threshold by "
                "which single inputs are encoded was never trained.\n"
                "Use a checkpoint from after threshold_start_step."
            )
        features = next(len(tensors[key]) for key in ("encoder.bias", "b_enc") if key in tensors)
        return JumpRelu(threshold.expand(features).contiguous())
    return Relu()


def _hook(source: Source, trainer: Mapping[str, Any]) -> str | None:
    """The place in the file's own words: a module's name, and `.input` if its input was taken."""
    buffer: Mapping[str, Any] = source.config.get("buffer") or {}
    name, side = trainer.get("submodule_name"), buffer.get("io", "out")
    if side == "in_and_out":
        raise UnsupportedDictionaryError(
            f"{source.path}: io='in_and_out' of {name!r} is a transcoder whose output no tensor "
            "tells apart from its input.\nSave it as a transcoder of SAELens, which names both."
        )
    if name is None:
        return None
    return f"{name}.input" if side == "in" else str(name)


def _config_name(source: Source) -> str:
    return "its configuration" if source.config_path is None else source.config_path.name
