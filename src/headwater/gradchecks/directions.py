"""Along which directions a gradient is checked.

A random direction shows any error with probability one; coordinates say where it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import UnknownOptionError

Kind = Literal["gradient", "random", "activation", "coordinate", "given"]

Coordinates = Literal["all"] | int | Sequence[int] | None
"""Which entries of the value, flattened, are checked one by one: every one, the `n` with the
largest gradients and `n` drawn at random, those of a list, or 8 and 8."""

RANDOM, LARGEST = 3, 8


@dataclass(frozen=True, eq=False)
class Direction:
    """A line through the point, scaled so that its largest entry is 1."""

    name: str
    kind: Kind
    whole: Float[Tensor, "*shape"]
    """The vector; of a coordinate the point, whose shape and format the vector has."""
    longest: float
    """The longest step: the value's size, or as far as zero where that is further."""
    index: int | None = None
    """Which entry of the value, flattened, for a coordinate."""

    @property
    def vector(self) -> Float[Tensor, "*shape"]:
        """The vector; a coordinate's is made when asked for, or all would fill a square."""
        if self.index is None:
            return self.whole
        unit = torch.zeros_like(self.whole).flatten()
        unit[self.index] = 1.0
        return unit.reshape(self.whole.shape)


def choose(
    value: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    name_of: Callable[[int], str],
    coordinates: Coordinates,
    given: Tensor | None,
    seed: int,
    size: float,
) -> list[Direction]:
    """Return the directions of a check.

    Args:
        value: The point.
        gradient: The gradient to check there.
        name_of: The name of an entry.
        coordinates: Which entries are checked one by one.
        given: Directions of the user's, one or several stacked, checked instead of the gradient's,
            random ones and the value's own.
        seed: For random directions and coordinates.
        size: The value's size, the unit of steps.

    Returns:
        Along the gradient, 3 Gaussian ones, the value itself (which scales it), coordinates.

    Raises:
        UnknownOptionError: If a given direction or coordinate does not fit the value.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Direction] = []
    if given is not None:
        found += _given(value, given, size)
    else:
        found += _scaled("gradient", "gradient", gradient, size)
        if value.numel() > 1:
            for number in range(RANDOM):
                drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                found += _scaled(f"random {number + 1}", "random", drawn.to(value), size)
        found += _scaled("activation", "activation", value, float(value.abs().max()))
    for index in picked(gradient, coordinates, generator, bare=given is not None):
        longest = max(size, abs(float(value.flatten()[index])))
        found.append(Direction(name_of(index), "coordinate", value, longest, index))
    return found


def picked(
    gradient: Float[Tensor, "*shape"],
    coordinates: Coordinates,
    generator: torch.Generator,
    *,
    bare: bool,
) -> list[int]:
    """Return the entries that are checked one by one: the steepest first, then random ones."""
    count = gradient.numel()
    if coordinates == "all":
        return list(range(count))
    if coordinates is None:
        coordinates = 0 if bare else LARGEST
    if isinstance(coordinates, str) or (isinstance(coordinates, int) and coordinates < 0):
        raise UnknownOptionError(
            f'coordinates={coordinates!r}: write "all", a number, or a list of numbers.'
        )
    if not isinstance(coordinates, int):
        try:
            listed = [operator.index(one) for one in coordinates]
        except TypeError:
            raise UnknownOptionError(
                f'coordinates={coordinates!r}: write "all", a number, or a list of whole numbers.'
            ) from None
        outside = [one for one in listed if not -count <= one < count]
        if outside:
            raise UnknownOptionError(
                f"coordinate {outside[0]} does not exist: the value has {count} entries, "
                f"0 to {count - 1}."
            )
        return list(dict.fromkeys(one % count for one in listed))
    size = gradient.flatten().abs()
    order = size.argsort(descending=True, stable=True).cpu()
    largest = [one for one in order[:coordinates].tolist() if size[one] > 0]
    taken = set(largest)
    # as many as there could be taken ones among them, and no list of a whole embedding
    drawn = torch.randperm(count, generator=generator)[: 2 * coordinates + len(largest)]
    rest = [one for one in drawn.tolist() if one not in taken]
    return largest + rest[: 2 * coordinates - len(largest)]


def _given(value: Tensor, given: Tensor, size: float) -> list[Direction]:
    if given.shape == value.shape:
        given = given[None]
    if given.shape[1:] != value.shape:
        raise UnknownOptionError(
            f"directions have shape {list(given.shape)}; the value has {list(value.shape)}.\n"
            f"Give one direction of that shape, or several stacked: [n, ...]."
        )
    if not len(given):
        raise UnknownOptionError("directions is empty: there are none to check.")
    found = []
    for number, vector in enumerate(given.detach().to(value)):
        if not vector.isfinite().all():
            raise UnknownOptionError(f"direction {number} is not finite, so it leads nowhere.")
        scaled = _scaled(f"direction {number}", "given", vector, size)
        if not scaled:
            raise UnknownOptionError(f"direction {number} is zero, so nothing moves along it.")
        found += scaled
    return found


def _scaled(name: str, kind: Kind, vector: Tensor, longest: float) -> list[Direction]:
    """Return a direction whose largest entry is 1; none for a vector of zeros."""
    largest = vector.abs().max() if vector.numel() else vector.new_zeros(())
    if not largest > 0:
        return []
    return [Direction(name, kind, vector / largest, longest)]
