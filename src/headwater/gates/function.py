"""The gated function: a metric as a function of gates, which is all that an estimator sees.

`f(m)` takes gates `m`, [setting, batch, component], and returns the metric, [setting, batch].
A gate at 1 leaves its component as it is in the clean run, a gate at 0 puts the reference there.
Estimators and audits accept any `GatedFunction`: a model's, a closed form, or your own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import GateError, NonFiniteError, UnknownOptionError

End = Literal["clean", "corrupted"]


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


@dataclass
class GatedFunction:
    """A metric as a function of gates.

    Args:
        fn: Maps gates [setting, batch, component] to the metric [setting, batch];
            differentiable in the gates where an estimator takes gradients.
        names: One name a component.
        batch: How many examples `fn` holds.
        capabilities: What `fn` offers beyond `f(m)`, by name; estimators name what they need.

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
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    end: End = "clean"
    """The end of the path that effects are taken from: all gates 1 (clean) or 0 (corrupted)."""
    stationary: frozenset[str] = frozenset()
    """Ends at which the gradient is exactly zero by construction (KL to the clean run at clean)."""
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        if self.end not in ("clean", "corrupted"):
            raise UnknownOptionError(f'at={self.end!r} is unknown. Write "clean" or "corrupted".')

    @property
    def base(self) -> float:
        """Where every gate rests at this end: 1 at the clean end, 0 at the corrupted one."""
        return 1.0 if self.end == "clean" else 0.0

    def at(self, end: End) -> GatedFunction:
        """Return this function seen from an end; `self` if it is that end already."""
        if end == self.end:
            return self
        return GatedFunction(
            self.fn,
            self.names,
            self.batch,
            self.capabilities,
            self.dtype,
            self.device,
            end,
            self.stationary,
            self.cost,
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
            bad = (~torch.isfinite(value)).any(0).nonzero().flatten().tolist()
            raise NonFiniteError(
                f"the metric is NaN or infinite for examples {bad[:8]} of this batch.\n"
                "Run in a wider dtype (dtype='float32'), or look at these prompts' logits."
            )
        return value

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
        chunk = max(1, math.floor(2**24 / max(1, self.batch * len(self.names))))
        results = []
        for start in range(0, len(columns), chunk):
            part = list(columns[start : start + chunk])
            m = self.gates(len(part))
            m[torch.arange(len(part)), :, part] = 1.0 - self.base
            results.append(self(m))
        if not results:
            return torch.empty(0, self.batch, dtype=self.dtype, device=self.device)
        return torch.cat(results)

    def effects(self, columns: Sequence[int]) -> Float[Tensor, "index batch"]:
        """Return the exact effect of each gate: what the metric loses when it closes.

        At the clean end `f(1) - f(1 - e_i)` (leave one out), at the corrupted end
        `f(e_i) - f(0)` (add one in). Positive means the component supports the behavior.
        """
        difference = self.value() - self.switched(columns)
        return difference if self.end == "clean" else -difference
