"""What a change of one entry does: adding to it, scaling it, setting it to zero.

The three have three signs. Adding moves the objective as the gradient g says; scaling an entry a up
moves it as a * g says, which is the other way where a is negative; setting it to zero takes a * g
away, to first order. A score, as everywhere in headwater, is what the objective loses: +a * g.
Costs three runs an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.gradchecks.lines import Weighed

NUDGE = 1e-3
"""What is added, in units of the value's size, and the share by which an entry is scaled."""
WAY = 0.999
"""Share of the way to zero that counts as all of it."""
CLEAR = 20
"""Times the noise from which on a change has a sign."""


@dataclass(frozen=True)
class Effects:
    """One entry: what it is, its gradient, and three measured changes."""

    name: str
    index: int
    activation: float
    gradient: float
    adding: float
    """Change of the objective when a little is added, over what is added: as `gradient`."""
    scaling: float
    """Change when it is scaled by (1 + e), over e: as `activation * gradient`."""
    zeroing: float
    """Change when it is set to zero: about minus `activation * gradient`, if in reach."""
    reach: float | None
    """Longest step on which the slope holds within a tenth, as a share of the way to zero."""

    @property
    def product(self) -> float:
        """Activation times gradient: the first-order estimate of the score."""
        return self.activation * self.gradient

    @property
    def is_inside(self) -> bool:
        """Whether the slope holds all the way to zero."""
        return self.reach is not None and self.reach >= WAY

    @property
    def score(self) -> float:
        """What the objective loses when the entry is set to zero: positive if it supports it."""
        return -self.zeroing

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain data."""
        return asdict(self) | {"product": self.product, "score": self.score}


@dataclass(frozen=True)
class SignCount:
    """Over many entries: how often a sign says what the change did."""

    entries: int
    """Entries that were tried."""
    negative: int
    """Entries that are negative."""
    adding: tuple[int, int]
    """How often adding moved the objective as g says, of how many that moved it visibly."""
    scaling: tuple[int, int]
    """How often scaling up moved it as a * g says, likewise."""
    scaling_by_gradient: tuple[int, int]
    """How often scaling up moved it as g alone says: the usual misreading."""
    misread_negative: int
    """How many of those it misread have a negative activation."""
    zeroing: tuple[int, int]
    """How often setting to zero moved it as -a * g says."""
    nudge: float
    """What was added, in units of the value's size, and the share by which was scaled."""
    noise: float
    """Changes of the objective up to 20 times this are not counted."""

    def is_visible(self, change: float) -> bool:
        """Whether a change of the objective stands clear of the noise."""
        return abs(change) > CLEAR * self.noise

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Reach:
    """The whole value set to zero, beside what the gradient says of it."""

    estimate: float
    """Activation times gradient, summed."""
    exact: float
    """What the objective loses when the whole value is set to zero."""
    linear: float | None
    """Share of the way to zero on which the slope holds within a tenth; None if nowhere."""

    @property
    def is_inside(self) -> bool:
        """Whether the gradient's line holds all the way."""
        return self.linear is not None and self.linear >= WAY

    def to_dict(self) -> dict[str, Any]:
        """Return the two numbers as plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Measured:
    """The raw changes of many entries."""

    indices: tuple[int, ...]
    activation: Float[Tensor, " entry"]
    gradient: Float[Tensor, " entry"]
    adding: Float[Tensor, " entry"]
    scaling: Float[Tensor, " entry"]
    zeroing: Float[Tensor, " entry"]
    nudge: float
    added: float
    """What was added to each entry."""

    def only(self, indices: Sequence[int]) -> Measured:
        """Return the changes of some of the entries, in this order."""
        place = {index: at for at, index in enumerate(self.indices)}
        chosen = torch.tensor([place[index] for index in indices], dtype=torch.long)
        tensors = {
            name: getattr(self, name)[chosen]
            for name in ("activation", "gradient", "adding", "scaling", "zeroing")
        }
        return replace(self, indices=tuple(indices), **tensors)


@torch.no_grad()
def measure(
    function: Weighed, gradient: Float[Tensor, "*shape"], indices: Sequence[int], size: float
) -> Measured:
    """Change entries one at a time: add, scale, set to zero.

    Args:
        function: What is run.
        gradient: The gradient at the point.
        indices: Which entries, flattened.
        size: The value's typical size.
    """
    value = function.function.value
    eps = torch.finfo(value.dtype).eps
    nudge = max(NUDGE, eps ** (1 / 3))
    flat = value.flatten()
    chunk = max(1, (function.function.stacked - 1) // 3)
    changes: list[Tensor] = []
    for first in range(0, len(indices), chunk):
        points = [value]
        for index in indices[first : first + chunk]:
            entry = flat[index]
            for new in (entry + nudge * size, entry * (1 + nudge), torch.zeros_like(entry)):
                point = flat.clone()
                point[index] = new
                points.append(point.reshape(value.shape))
        values = function.anywhere(torch.stack(points)).double().cpu()
        changes.append((values[1:] - values[0]).reshape(-1, 3))
    changed = torch.cat(changes) if changes else torch.zeros(0, 3, dtype=torch.float64)
    chosen = torch.tensor(list(indices), dtype=torch.long)
    return Measured(
        indices=tuple(indices),
        activation=flat.double().cpu()[chosen],
        gradient=gradient.flatten().double().cpu()[chosen],
        adding=changed[:, 0],
        scaling=changed[:, 1],
        zeroing=changed[:, 2],
        nudge=nudge,
        added=nudge * size,
    )


def rows(
    measured: Measured, name_of: Callable[[int], str], linear: Sequence[float | None]
) -> tuple[Effects, ...]:
    """Return one row an entry.

    Args:
        measured: The raw changes.
        name_of: The name of an entry.
        linear: How far each entry can be moved on its slope.
    """
    found = []
    for place, index in enumerate(measured.indices):
        activation, far = float(measured.activation[place]), linear[place]
        reach = None if far is None or activation == 0 else far / abs(activation)
        found.append(
            Effects(
                name=name_of(index),
                index=index,
                activation=activation,
                gradient=float(measured.gradient[place]),
                adding=float(measured.adding[place]) / measured.added,
                scaling=float(measured.scaling[place]) / measured.nudge,
                zeroing=float(measured.zeroing[place]),
                reach=reach,
            )
        )
    return tuple(found)


def count(measured: Measured, noise: float) -> SignCount:
    """Count how often each sign says what the change did, among changes clear of the noise."""
    product = measured.activation * measured.gradient

    def agreed(change: Tensor, said: Tensor) -> tuple[int, int]:
        clear = change.abs() > CLEAR * noise
        return int(((change.sign() == said.sign()) & clear).sum()), int(clear.sum())

    clear = measured.scaling.abs() > CLEAR * noise
    misread = clear & (measured.scaling.sign() != measured.gradient.sign())
    return SignCount(
        entries=len(measured.indices),
        negative=int((measured.activation < 0).sum()),
        adding=agreed(measured.adding, measured.gradient),
        scaling=agreed(measured.scaling, product),
        scaling_by_gradient=agreed(measured.scaling, measured.gradient),
        misread_negative=int((misread & (measured.activation < 0)).sum()),
        zeroing=agreed(measured.zeroing, -product),
        nudge=measured.nudge,
        noise=noise,
    )
