"""Views of values that were handed out: `output[0]` is not on the model's path, its base is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.trace.handed import share_memory


def viewed(view: Tensor, wholes: Sequence[Tensor]) -> Tensor | None:
    """The tensor that `view` is a part of.

    Args:
        view: A tensor.
        wholes: Tensors that were handed out, in order.

    Returns:
        The smallest that holds all of `view`, the last of equals; None if there is none, or if
        `view` is no view of one in the graph: memory alone is shared by what was detached, too.
    """
    if view._base is None or not view.requires_grad or view.is_leaf:
        return None
    holding = [whole for whole in reversed(wholes) if _related(whole, view) and _holds(whole, view)]
    return min(holding, key=lambda whole: whole.numel(), default=None)


def laid_out_as(whole: Tensor, gradient: Tensor) -> Tensor:
    """A copy of a gradient with the strides of the tensor it belongs to.

    Args:
        whole: The tensor.
        gradient: Its gradient.

    Returns:
        The copy.
    """
    copy = torch.empty_strided(
        whole.shape, whole.stride(), dtype=gradient.dtype, device=gradient.device
    )
    return copy.copy_(gradient)


def part_of(gradient: Tensor, whole: Tensor, view: Tensor) -> Tensor:
    """The part of a gradient that belongs to a view.

    Args:
        gradient: The gradient of `whole`, with the same strides.
        whole: The tensor.
        view: A view of it.

    Returns:
        A view of `gradient`.
    """
    offset = gradient.storage_offset() + view.storage_offset() - whole.storage_offset()
    return gradient.as_strided(view.shape, view.stride(), offset)


def _related(whole: Tensor, view: Tensor) -> bool:
    """Whether autograd knows both as views of one tensor, and their elements are the same numbers.

    A view as another dtype, or of conjugates, has a gradient of its own kind.
    """
    same_tensor = view._base is (whole if whole._base is None else whole._base)
    same_numbers = view.dtype == whole.dtype and view.is_conj() == whole.is_conj()
    return same_tensor and same_numbers and view.is_neg() == whole.is_neg()


def _holds(whole: Tensor, part: Tensor) -> bool:
    if whole is part or not share_memory(whole, part):
        return False
    start, end = _extent(whole)
    first, last = _extent(part)
    if first < start or last > end:
        return False
    if whole.numel() == end - start + 1:
        return True
    # chunks of one tensor lie between each other: look at every element
    inside = torch.zeros(end - start + 1, dtype=torch.bool, device="cpu")
    inside.as_strided(whole.shape, whole.stride(), 0).fill_(True)
    return bool(inside.as_strided(part.shape, part.stride(), first - start).all())


def _extent(tensor: Tensor) -> tuple[int, int]:
    start = int(tensor.storage_offset())
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return start, start + sum(int((size - 1) * stride) for size, stride in steps if size)
