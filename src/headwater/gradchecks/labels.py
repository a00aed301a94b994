"""What the entries of a value are called: `n128`, `h2.5`, `d17@3`; of a weight `[3, 1]`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from headwater.sites import Site

_LETTERS = {
    "d_model": "d",
    "d_mlp": "n",
    "head": "h",
    "kv_head": "kv",
    "d_head": ".",
    "key": ".k",
    "vocab": "v",
    "d_inner": "c",
    "d_conv": "x",
    "ssm_head": "h",
    "d_ssm": ".",
}
"""What precedes an index along an axis."""


def namer(
    site: Site, shape: tuple[int, ...], positions: Sequence[int] | None
) -> Callable[[int], str]:
    """Return the function that names an entry of a site's value by its flat index.

    Args:
        site: The site.
        shape: The value's shape.
        positions: Those along its position axis; None if it has none.
    """
    position = {"pos", "query"}
    axes = [axis for axis in site.axes.split()[1:] if positions is not None or axis not in position]

    def name(index: int) -> str:
        words, at = "", ""
        for place, axis in enumerate(axes):
            step = prod(shape[place + 1 :])
            number, index = divmod(index, step)
            if positions is not None and axis in position:
                at = f"@{positions[number]}"
            else:
                words += f"{_LETTERS[axis]}{number}"
        return words + at

    return name


def indexed(shape: tuple[int, ...]) -> Callable[[int], str]:
    """Return the function that names an entry of a tensor by its index along every axis."""

    def name(index: int) -> str:
        indices: list[int] = []
        for size in reversed(shape):
            index, number = divmod(index, size)
            indices.insert(0, number)
        return str(indices)

    return name
