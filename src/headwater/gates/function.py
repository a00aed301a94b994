"""The gated function: a metric as a function of gates, which is all that an estimator sees.

`f(m)` takes gates `m`, [setting, batch, component], and returns the metric, [setting, batch].
A gate at 1 leaves its component as it is in the clean run, a gate at 0 puts the reference there.
Estimators and audits accept any `GatedFunction`: a model's, a closed form, or your own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import (
    GateError,
    MissingCapabilityError,
    NonFiniteError,
    UnknownOptionError,
)
from headwater.gates.families import Family, renumbered
from headwater.gates.linear import ATTENTION, DROPS, Linearized

if TYPE_CHECKING:
    from headwater.gates.inputs import InputPath

End = Literal["clean", "corrupted"]

INPUT_PATH = "input path"
"""Capability: slopes while the layer-0 input goes from the corrupted prompt's to the clean's."""


@dataclass
class Cost:
    """What was run, in passes over one prompt; a run from layer l of L counts (L - l) / L."""

    forwards: float = 0.0
    backwards: float = 0.0
    seconds: float = 0.0
    pairs: int = 0
    """Prompt pairs the cost is spread over."""
    listener: Callable[[float], None] | None = field(default=None, repr=False, compare=False)
    """Called with the forwards just run; drives progress bars."""

    def ran(self, forwards: float | int, *, backward: bool = False) -> None:
        """Count forwards over one prompt each, and as many backwards if a gradient is due."""
        self.forwards += forwards
        self.backwards += forwards if backward else 0.0
        if self.listener is not None:
            self.listener(float(forwards))

    def __str__(self) -> str:
        passes = [
            f"{count / max(self.pairs, 1):.3g} {name}{'' if count == self.pairs else 's'}"
            for count, name in ((self.forwards, "forward"), (self.backwards, "backward"))
        ]
        pairs = "1 pair" if self.pairs == 1 else f"{self.pairs} pairs"
        return f"{' and '.join(passes)} a pair ({pairs}), {self.seconds:.2f} s"


def lacking(
    missing: Collection[str], offered: Collection[str], who: str = "this"
) -> MissingCapabilityError:
    """Return the error that a gated function lacks capabilities."""
    if missing == {INPUT_PATH} and ATTENTION in offered:  # a model, then
        return MissingCapabilityError(
            f"{who} moves the layer-0 input from the corrupted prompt's to the clean one's, and "
            "this reference is not the corrupted prompts.\nWrite reference=hw.Corrupted()."
        )
    return MissingCapabilityError(
        f"{who} needs {', '.join(sorted(missing))}; this gated function "
        f"offers {', '.join(sorted(offered)) or 'none'}.\n"
        "hw.Gradient() and hw.Exact() need nothing beyond f(m)."
    )


@dataclass(frozen=True)
class Move:
    """Gates moved together from rest, by a share of the way to the other end."""

    columns: tuple[int, ...]
    share: float
    """0 leaves them at rest, 1 puts them at the other end."""


@dataclass(frozen=True)
class Slope:
    """The metric and its derivative where some gates have been moved."""

    value: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch index"]
    """`df/dm` for each of the moved columns."""


def refuse_flat(value: Tensor) -> None:
    """Refuse a value that no gradient flows from.

    Raises:
        GateError: Saying what to use instead.
    """
    if not value.requires_grad:
        raise GateError(
            "the gated function's value does not depend on the gates in a way autograd can follow "
            "(a comparison, .detach(), .item() or no_grad inside?), so it has no slope.\n"
            "Compute it by differentiable operations, or use hw.Exact(), which needs none."
        )


@dataclass
class GatedFunction:
    """A metric as a function of gates.

    Args:
        fn: Maps gates [setting, batch, component] to the metric [setting, batch];
            differentiable in the gates where an estimator takes gradients.
        names: One name a component.
        batch: How many examples `fn` holds.
        capabilities: What it offers beyond `f(m)`, by name; estimators name what they need.
        families: Components that are closed together; by default all are one family.

    Example:
        >>> import torch
        >>> f = GatedFunction(lambda m: (m * torch.tensor([3.0, -1.0])).sum(-1), ["a", "b"])
        >>> f.effects([0, 1]).tolist()
        [[3.0], [-1.0]]

    Raises:
        GateError: If gates or results have another shape than stated.
        NonFiniteError: If the metric is NaN or infinite.
    """

    fn: Callable[[Tensor], Tensor]
    names: Sequence[str]
    batch: int = 1
    capabilities: frozenset[str] = frozenset()
    families: Sequence[Family] = ()
    """Components that an estimator may close together; empty: all of them are one family."""
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    end: End = "clean"
    """The end of the path that effects are taken from: all gates 1 (clean) or 0 (corrupted)."""
    stationary: frozenset[str] = frozenset()
    """Ends at which the gradient is exactly zero by construction (KL to the clean run at clean)."""
    cost: Cost = field(default_factory=Cost)
    doubt: str = ""
    """Why slopes say little about effects here, in a sentence; empty where there is no reason."""
    examples: Sequence[int] = ()
    """Which pairs of a task the examples are; empty: the first ones."""

    def __post_init__(self) -> None:
        if self.end not in ("clean", "corrupted"):
            raise UnknownOptionError(f'at={self.end!r} is unknown. Write "clean" or "corrupted".')
        if not self.families:
            self.families = (Family("all", tuple(range(len(self.names)))),)

    @property
    def base(self) -> float:
        """Where every gate rests at this end: 1 at the clean end, 0 at the corrupted one."""
        return 1.0 if self.end == "clean" else 0.0

    def at(self, end: End) -> GatedFunction:
        """Return this function seen from an end; `self` if it is that end already."""
        if end == self.end:
            return self
        seen = copy.copy(self)  # of the same class: what it offers beyond f(m) stays
        seen.end = end
        seen.__post_init__()
        return seen

    @contextmanager
    def counting(self, pairs: int | None = None) -> Iterator[Cost]:
        """Count passes apart, in the cost this yields, and put the function's own back after.

        Args:
            pairs: Prompt pairs the cost is spread over; by default the examples.
        """
        before = self.cost
        self.cost = cost = Cost(pairs=self.batch if pairs is None else pairs)
        try:
            yield cost
        finally:
            self.cost, cost.listener = before, None

    def only(self, families: Sequence[Family]) -> GatedFunction:
        """Return the same function of some families' gates; the others stay at rest.

        The columns of the result are those of the families, one behind the other.
        """
        columns = [column for family in families for column in family.columns]

        def fn(m: Tensor) -> Tensor:
            places = torch.tensor(columns, device=m.device)
            return self.fn(self.gates(len(m)).index_copy(2, places, m))

        return GatedFunction(
            fn,
            [self.names[column] for column in columns],
            self.batch,
            frozenset(),
            renumbered(families),
            self.dtype,
            self.device,
            self.end,
            self.stationary,
            self.cost,
            self.doubt,
            self.pairs,
        )

    def gates(self, settings: int = 1) -> Float[Tensor, "setting batch component"]:
        """Return gates at rest, to be moved by the caller."""
        shape = (settings, self.batch, len(self.names))
        return torch.full(shape, self.base, dtype=self.dtype, device=self.device)

    def __call__(
        self, m: Float[Tensor, "setting batch component"]
    ) -> Float[Tensor, "setting batch"]:
        """Return the metric for each setting of the gates and each example."""
        expected = (self.batch, len(self.names))
        if m.ndim != 3 or tuple(m.shape[1:]) != expected:
            raise GateError(
                f"gates have shape {tuple(m.shape)}; expected [setting, batch={expected[0]}, "
                f"component={expected[1]}].\nStart from `function.gates(settings)`."
            )
        value = self._evaluate(m)
        if tuple(value.shape) != tuple(m.shape[:2]):
            raise GateError(
                f"the gated function returned shape {tuple(value.shape)} for gates "
                f"{tuple(m.shape)}; expected [setting, batch] = {tuple(m.shape[:2])}."
            )
        if not bool(torch.isfinite(value).all()):
            broken = ~torch.isfinite(value)
            bad = broken.any(0).nonzero().flatten().tolist()
            raise NonFiniteError(
                f"the function is NaN or infinite for examples {bad[:8]} with "
                f"{self._moved_names(m[broken.any(1)])}.\nLook at what it computes there; if "
                "numbers overflow, compute in a wider dtype."
            )
        return value

    def _moved_names(self, m: Float[Tensor, "setting batch component"]) -> str:
        """Say which gates are away from rest, the first few by name."""
        moved = (m.detach() != self.base).any(0).any(0).nonzero().flatten().tolist()
        if not moved:
            return "every gate at rest"
        names = ", ".join(str(self.names[column]) for column in moved[:5])
        more = f" and {len(moved) - 5:,} more" if len(moved) > 5 else ""
        return f"{names}{more} away from rest"

    def _evaluate(self, m: Tensor) -> Tensor:
        self.cost.ran(m.shape[0] * m.shape[1], backward=m.requires_grad)
        return self.fn(m)

    @torch.no_grad()
    def value(self) -> Float[Tensor, " batch"]:
        """Return the metric with every gate at rest."""
        return self(self.gates())[0]

    @torch.no_grad()
    def switched(self, columns: Sequence[int]) -> Float[Tensor, "index batch"]:
        """Return the metric with one gate at a time moved to the other end.

        Costs one run a column here; a model starts each run at the component's layer.
        """
        return self.moved([Move((column,), 1.0) for column in columns])

    @torch.no_grad()
    def moved(self, moves: Sequence[Move]) -> Float[Tensor, "move batch"]:
        """Return the metric with gates moved together, one run a move."""
        if not moves:
            return torch.empty(0, self.batch, dtype=self.dtype, device=self.device)
        chunks = (moves[i : i + self.stacked] for i in range(0, len(moves), self.stacked))
        return torch.cat([self(self._at(chunk)) for chunk in chunks])

    def slopes(self, moves: Sequence[Move]) -> list[Slope]:
        """Return the metric and its derivative in the moved gates, one run a move."""
        slopes = []
        for first in range(0, len(moves), self.stacked):
            part = moves[first : first + self.stacked]
            m = self._at(part).requires_grad_()
            with torch.enable_grad():
                value = self(m)
                refuse_flat(value)
                (gradient,) = torch.autograd.grad(value.sum(), m)
            for move, at, slope in zip(part, value.detach(), gradient, strict=True):
                slopes.append(Slope(at, slope[:, list(move.columns)]))
        return slopes

    def inputs(self) -> InputPath:
        """Return the path between the layer-0 inputs of the two prompts.

        Raises:
            MissingCapabilityError: If this function has none; `INPUT_PATH` says whether it has.
        """
        raise lacking({INPUT_PATH}, self.capabilities)

    def linearized(self, *, attention: bool, drops: bool) -> Linearized:
        """Return one clean run with its slopes.

        Args:
            attention: Whether attention rows are wanted (capability `ATTENTION`).
            drops: Whether layers will be held constant (capability `DROPS`).

        Raises:
            MissingCapabilityError: If this function offers no such thing.
        """
        raise lacking({DROPS if drops else ATTENTION}, self.capabilities)

    @property
    def pairs(self) -> Sequence[int]:
        """Which pairs of the task these examples are; each pair gets random draws of its own."""
        return self.examples or range(self.batch)

    @property
    def stacked(self) -> int:
        """Most settings to evaluate at once."""
        return max(1, math.floor(2**24 / max(1, self.batch * len(self.names))))

    def _at(self, moves: Sequence[Move]) -> Float[Tensor, "setting batch component"]:
        m = self.gates(len(moves))
        for setting, move in enumerate(moves):
            m[setting, :, list(move.columns)] = abs(self.base - move.share)
        return m

    def effects(self, columns: Sequence[int]) -> Float[Tensor, "index batch"]:
        """Return the exact effect of each gate: what the metric loses when it closes.

        At the clean end `f(1) - f(1 - e_i)` (leave one out), at the corrupted end
        `f(e_i) - f(0)` (add one in). Positive means the component supports the behavior.
        """
        difference = self.value() - self.switched(columns)
        return difference if self.end == "clean" else -difference
