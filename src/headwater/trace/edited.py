"""Gradients that were handed out after others had been edited, and which others.

Such a gradient may be no derivative of the loss. What is remembered is the memory in which it lies,
for as long as that exists: views have the same, copies have one of their own and are not known.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

_edits: WeakKeyDictionary[torch.UntypedStorage, tuple[str, ...]] = WeakKeyDictionary()


def remember(gradient: Tensor, edits: tuple[str, ...]) -> None:
    """Remember that values had had their gradients edited before this one.

    Args:
        gradient: What the user has.
        edits: What the user calls the values, in the order of the edits.
    """
    storage = _storage(gradient) if edits else None
    if storage is not None:
        _edits[storage] = edits


def edits_before(gradient: Tensor) -> tuple[str, ...]:
    """Of which values the gradient was edited before this one was handed out.

    Args:
        gradient: The gradient read in a backward block, or a view of it.

    Returns:
        What the user calls the values, in the order of the edits, this one's own included. Empty if
        there was no edit, or if the tensor is no gradient of a block, or a copy of one.
    """
    storage = _storage(gradient)
    return () if storage is None else _edits.get(storage, ())


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # tensors without storage
        return None
