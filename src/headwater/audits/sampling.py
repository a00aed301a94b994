"""Which components an audit checks: a sample stratified over top, middle and tail of the estimate.

The strongest are all checked, because they are what a reader will quote. The rest is drawn at
random: half from the middle (the components that hold most of what the top leaves), half from the
tail, because an estimate that misses a component puts it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from headwater.errors import ResultError

TOP, MIDDLE, TAIL = "top", "middle", "tail"

MIDDLE_SHARE = 0.75
"""The middle holds this share of the sum of |estimate| that the top leaves."""

FEWEST_BELOW_TOP = 6
"""Checks kept for middle and tail; a sample that has fewer left checks less of the top."""


@dataclass(frozen=True)
class Stratum:
    """A group of components of similar estimated strength, and those of them that are checked."""

    name: str
    members: tuple[int, ...]
    """Columns, strongest first."""
    checked: tuple[int, ...]
    """Columns drawn at random from `members`, strongest first."""

    @property
    def complete(self) -> bool:
        """Whether every member is checked."""
        return len(self.checked) == len(self.members)

    @property
    def weight(self) -> float:
        """How many members each checked one stands for."""
        return len(self.members) / len(self.checked)


@dataclass(frozen=True)
class AuditSample:
    """The components an audit checks, and how many others each of them stands for."""

    count: int
    """Components in all."""
    strata: tuple[Stratum, ...]

    @classmethod
    def draw(
        cls,
        estimate: Float[np.ndarray, " component"] | Sequence[float],
        *,
        sample: int = 32,
        seed: int = 0,
        top: int = 10,
    ) -> AuditSample:
        """Draw `sample` components, stratified by |estimate|.

        The draw depends on the estimate and `seed` only, not on torch's or numpy's global state.

        Args:
            estimate: One number a component: the score averaged over pairs.
            sample: Components to check; at least as many as there are checks all of them.
            seed: The same seed draws the same sample.
            top: How many of the strongest are checked with certainty, if `sample` leaves room.

        Returns:
            The sample.

        Raises:
            ResultError: If there is no component, or `sample` or `top` is below 1.
        """
        estimate = np.asarray(estimate, dtype=np.float64)
        _refuse(len(estimate), sample, top)
        order = np.argsort(-np.abs(estimate), kind="stable")
        groups = _groups(np.abs(estimate)[order], min(sample, len(order)), top)
        generator = np.random.Generator(np.random.PCG64(seed))
        strata, start = [], 0
        for name, size, checks in groups:
            members = order[start : start + size]
            start += size
            drawn = np.sort(generator.permutation(size)[:checks])
            strata.append(Stratum(name, _ints(members), _ints(members[drawn])))
        return cls(len(estimate), tuple(strata))

    @property
    def indices(self) -> tuple[int, ...]:
        """The checked columns, strongest first."""
        return tuple(column for stratum in self.strata for column in stratum.checked)

    @property
    def labels(self) -> tuple[str, ...]:
        """The stratum of each of `indices`."""
        return tuple(stratum.name for stratum in self.strata for _ in stratum.checked)

    @property
    def weights(self) -> tuple[float, ...]:
        """How many components each of `indices` stands for; they sum to `count` if `covers`."""
        return tuple(stratum.weight for stratum in self.strata for _ in stratum.checked)

    @property
    def complete(self) -> bool:
        """Whether every component is checked."""
        return len(self.indices) == self.count

    @property
    def covers(self) -> bool:
        """Whether every component had a chance to be drawn; not so for a sample of one."""
        return sum(len(stratum.members) for stratum in self.strata) == self.count

    def checked(self, name: str) -> int:
        """Return how many components of a stratum are checked."""
        return sum(len(stratum.checked) for stratum in self.strata if stratum.name == name)


def _refuse(count: int, sample: int, top: int) -> None:
    if count == 0:
        raise ResultError("there are no components to audit.\nAttribute at least one.")
    if sample < 1:
        raise ResultError(
            f"sample={sample}: an audit checks at least one component.\n"
            "Type sample=32, or more for narrower intervals."
        )
    if top < 1:
        raise ResultError(f"top={top}: the top has at least one component.\nType top=10.")


def _groups(
    strength: Float[np.ndarray, " component"], sample: int, top: int
) -> list[tuple[str, int, int]]:
    """Return name, size and number of checks of each stratum, strongest first."""
    count = len(strength)
    fits = sample - top >= FEWEST_BELOW_TOP or sample == count
    certain = min(top, count) if fits else max(1, sample // 3)
    rest, checks = count - certain, sample - certain
    groups = [(TOP, certain, certain)]
    if checks == 0:
        return groups
    if checks == 1:
        return [*groups, (TAIL, rest, 1)]
    middle_checks = (checks + 1) // 2
    middle = _middle_size(strength[certain:], middle_checks, checks - middle_checks)
    # A middle smaller than its share of the checks is checked whole; the tail gets what is over.
    middle_checks = min(middle_checks, middle)
    return [
        *groups,
        (MIDDLE, middle, middle_checks),
        (TAIL, rest - middle, checks - middle_checks),
    ]


def _middle_size(
    strength: Float[np.ndarray, " component"], middle_checks: int, tail_checks: int
) -> int:
    """Return how many of the components below the top are the middle."""
    held = np.cumsum(strength)
    enough = int(np.searchsorted(held, held[-1] * MIDDLE_SHARE)) + 1
    return min(max(enough, middle_checks), len(strength) - tail_checks)


def _ints(columns: np.ndarray) -> tuple[int, ...]:
    return tuple(int(column) for column in columns)
