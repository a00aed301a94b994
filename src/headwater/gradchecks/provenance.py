"""What a check was asked, as plain data: two checks are the same if these are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headwater.components import Selection
from headwater.references import Reference


def asked_of(**arguments: Any) -> dict[str, Any]:
    """Return the arguments that were given as plain data; tensors by shape and hash."""
    return {name: _plain(value) for name, value in arguments.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        data = value.detach().cpu().double().contiguous().numpy().tobytes()
        return f"tensor {list(value.shape)}, sha256 {hashlib.sha256(data).hexdigest()[:16]}"
    if isinstance(value, Selection):
        return value.to_list()
    if isinstance(value, Reference):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | range):
        return [_plain(one) for one in value]
    return getattr(value, "__name__", type(value).__name__)
