"""Hashes that say whether two results came from the same model.

Costs one read of the small parameters and a sample of the large ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

WHOLE = 2**20
"""Tensors up to this many elements are hashed whole."""
SAMPLED = 2**16
"""Larger ones are hashed at about this many evenly spaced elements."""

_UNSTABLE = ("transformers_version", "_name_or_path", "_attn_implementation_autoset")


def config_hash(config: Any) -> str:
    """Hash a Hugging Face configuration, without its path and library version.

    Args:
        config: The configuration.

    Returns:
        64 hexadecimal digits.
    """
    fields = {key: value for key, value in config.to_dict().items() if key not in _UNSTABLE}
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_hash(module: nn.Module) -> str:
    """Hash names, shapes, types and values of every parameter.

    Values of tensors with more than `WHOLE` elements are sampled evenly: a change of single
    elements there can go unnoticed, another checkpoint can not.

    Args:
        module: The network, on any device.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters(), key=lambda pair: pair[0]):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype};".encode())
        digest.update(_bytes(parameter.detach()))
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash what turns text into tokens.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Returns:
        64 hexadecimal digits.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text = backend.to_str()
    else:
        text = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def differing(there: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """Return which hashes of a model are not those that a result recorded.

    Args:
        there: What the result says of its model; hashes it lacks are not compared.
        now: The model's own hashes.
    """
    return [key for key, value in now.items() if key in there and there[key] != value]


def _bytes(values: Tensor) -> bytes:
    if values.device.type == "meta":
        return b"not loaded"
    try:
        flat = values.reshape(-1)
        if flat.numel() > WHOLE:
            flat = flat[:: flat.numel() // SAMPLED]
        return flat.contiguous().cpu().view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError, NotImplementedError):
        # quantized tensor subclasses need not support views: their type and shape must do
        return type(values).__name__.encode()
