"""Off values without curvature: an MLP whose activation function is replaced by its tangent.

Costs one forward a batch, and one over the clean prompts if the tangent touches at means. Where the
activation function is, no table says: it is the part of the MLP without weights that turns what
enters it into the neurons, and that is checked on the numbers of every batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from headwater.architectures.adapter import Adapter
from headwater.coding import Coded, Place
from headwater.errors import UnfitReferenceError, UnknownOptionError, did_you_mean
from headwater.models import Model
from headwater.precision import context_for, true_float64
from headwater.prompts import Batch, Task
from headwater.references.means import Mean, PositionalMean
from headwater.references.reference import Off, OffValues, Reference, capture
from headwater.sites import Site

Touch = Literal["zero", "mean"]
"""The words for where a tangent touches."""

ROUNDING = 32
"""Units in the last place by which a recomputed value may differ from the run's, in norm."""
STEP = 2.0**-26
"""Of the one-sided slopes, relative to points beyond 1: rounding and curvature weigh the same."""
SMOOTH = 1e-4
"""By how much a one-sided slope may differ from the slope, relative to slopes beyond 1."""


@dataclass(frozen=True)
class Tangent(Reference):
    """Set a closed MLP or neuron to what it would be if its activation function were linear.

    The activation function `s` is replaced by its tangent at a point `c`, `s(c) + s'(c) (x - c)`,
    where `x` is what enters it in the clean run; in a gated MLP the tangent takes the place of the
    gate's activation and multiplies `up` as before. So an effect is what the metric loses without
    the function's curvature, and a component that is never far from `c` has none.

    For `hw.mlps()` (all neurons of a layer become linear) and `hw.neurons()`. Everything upstream
    is as in the clean run, also where several components are closed together: a later layer's off
    value is then still that of the clean run, not of a run in which earlier layers are linear.

    Example:
        ```python
        hw.Tangent()  # the tangent at zero
        hw.Tangent(at="mean")  # at each neuron's mean input over the task's clean prompts
        hw.Tangent(at=hw.Mean(over=texts))  # at its mean over prompts of your own
        ```
    """

    at: Touch | float | Mean = "zero"
    """Where the tangent touches: `"zero"`, a number, or each neuron's mean input, `"mean"` for that
    over the clean prompts' own tokens, or a mean of your own."""
    name: ClassVar[str] = "tangent"

    def __post_init__(self) -> None:
        at = self.at
        if isinstance(at, str):
            known = at in get_args(Touch)
        else:
            is_number = isinstance(at, int | float) and not isinstance(at, bool)
            known = isinstance(at, Mean) or (is_number and math.isfinite(at))
        if not known:
            near = did_you_mean(at, get_args(Touch)) if isinstance(at, str) else ""
            raise UnknownOptionError(
                f"hw.Tangent(at={at!r:.60}) touches nowhere.{near}\n"
                'Write at="zero", at="mean", a number such as at=1.0, or at=hw.Mean(over=prompts).'
            )

    def prepare(
        self, model: Model, task: Task, batches: Sequence[Batch], places: Sequence[Place]
    ) -> Off:
        """Return the off values; costs one forward over the prompts averaged, if it is at means.

        Raises:
            UnfitReferenceError: If a component has no activation function, or none that can be
                found. From the off values: if it has no tangent at the point.
        """
        adapter = model.anatomy()
        sites = _sites(adapter, places)
        layers = sorted({site.layer for site in sites if site.layer is not None})
        mlps = {layer: _MLP.of(adapter, layer) for layer in layers}
        mean = Mean(over="clean") if self.at == "mean" else self.at
        center: Off | float
        if isinstance(mean, Mean):
            entering = [mlp.entering for mlp in mlps.values()]
            center = mean.prepare(model, task, batches, entering)
            return _Linear(model, mlps, sites, center, center.prepared)
        center = 0.0 if isinstance(mean, str) else float(mean)
        return _Linear(model, mlps, sites, center)

    # --- what is kept ----------------------------------------------------------------------

    def keeping(self, off: Off) -> Tangent:
        """Return this reference with the means of a stream, so that it is read only once."""
        if not isinstance(self.at, Mean) or not isinstance(off, _Linear):
            return self
        assert isinstance(off.center, Off)
        kept = self.at.keeping(off.center)
        return self if kept is self.at else replace(self, at=kept)

    def anew(self) -> Tangent:
        """Return this reference without means that were measured on another model."""
        return replace(self, at=self.at.anew()) if isinstance(self.at, Mean) else self

    def tensors(self) -> dict[str, Tensor]:
        """Return the means of a stream by site."""
        return self.at.tensors() if isinstance(self.at, Mean) else {}

    def to_dict(self) -> dict[str, object]:
        """Return the name, where the tangent touches, and what a mean of your own is over."""
        if not isinstance(self.at, Mean):
            return {"name": self.name, "at": self.at}
        mean = self.at.to_dict()
        return {"name": self.name, "at": mean.pop("name"), **mean}

    @classmethod
    def read_back(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tangent:
        """Return the reference of a saved run.

        Args:
            options: What `to_dict` returned, without the name.
            tensors: What `tensors` returned.
        """
        mean = dict(options)
        at = mean.pop("at")
        if "over" not in mean:
            return cls(at)
        kinds = {kind.name: kind for kind in (Mean, PositionalMean)}
        return cls(kinds[at].read_back(mean, tensors))


def _sites(adapter: Adapter, places: Sequence[Place]) -> tuple[Site, ...]:
    """Return the sites of MLPs and neurons; refuse everything else."""
    for site in places:
        if isinstance(site, Coded) or site.name not in ("mlp.out", "mlp.post"):
            raise UnfitReferenceError(
                f"hw.Tangent() replaces the activation function of an MLP, and there is none at "
                f"'{site}'.\nScore hw.mlps() or hw.neurons() with it."
            )
        if "mlp.post" in adapter.missing:
            raise UnfitReferenceError(
                f"hw.Tangent() needs the MLP's neurons, and {adapter.family.name} shows none: "
                f"{adapter.missing['mlp.post']}.\nUse hw.Zero(), hw.Mean() or hw.Corrupted()."
            )
    return tuple(place for place in places if isinstance(place, Site))


@dataclass(frozen=True)
class _Linear(Off):
    model: Model
    mlps: Mapping[int, _MLP]
    sites: tuple[Site, ...]
    center: Off | float
    prepared: int = 0

    def __call__(self, batch: Batch, draw: int = 0) -> OffValues:
        wanted = [site for mlp in self.mlps.values() for site in mlp.sites]
        seen, _ = capture(self.model, batch.clean, batch, dict.fromkeys((*wanted, *self.sites)))
        centers = self.center(batch).values if isinstance(self.center, Off) else {}
        values: dict[Place, Tensor] = {}
        # what follows calls single modules, which outside a run enter no float64 of their own
        with torch.no_grad(), self.model.lock, context_for(self.model.module):
            for mlp in self.mlps.values():
                entering = seen[mlp.entering]
                at = centers.get(mlp.entering)
                if at is None:
                    at = entering.new_tensor(self.center, dtype=torch.float64)
                activation = mlp.activation(seen, batch.mask)
                neurons = mlp.linear(seen, activation, at.to(torch.float64))
                if mlp.post in self.sites:
                    values[mlp.post] = neurons
                if mlp.out in self.sites:
                    mlp.refuse_other_write(seen, batch.mask)
                    values[mlp.out] = mlp.written(neurons)
                for site in mlp.sites:
                    del seen[site]  # a model's neurons are large: only their off values stay
        return OffValues(values, forwards=len(batch))


@dataclass(frozen=True)
class _MLP:
    """One layer's MLP: what enters its activation, and what makes a write of its neurons."""

    family: str
    entering: Site
    up: Site | None
    post: Site
    out: Site
    candidates: tuple[nn.Module, ...]
    """Its parts without weights: the activation function, and perhaps dropout."""
    down: tuple[nn.Module, ...]
    """What follows the neurons: the down projection, and the norm behind it where there is one."""

    @classmethod
    def of(cls, adapter: Adapter, layer: int) -> _MLP:
        post, out = Site(layer, "mlp.post"), Site(layer, "mlp.out")
        down = adapter.point(post).module
        holder = next(
            module
            for module in adapter.layers[layer].modules()
            if any(child is down for child in module.children())
        )
        gated = "mlp.gate" not in adapter.missing
        return cls(
            family=adapter.family.name,
            entering=Site(layer, "mlp.gate" if gated else "mlp.pre"),
            up=Site(layer, "mlp.up") if gated else None,
            post=post,
            out=out,
            candidates=tuple(
                child for child in holder.children() if not any(True for _ in child.parameters())
            ),
            down=(down, adapter.point(out).module) if adapter.family.post_norm else (down,),
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        """What is read of a run, besides the write."""
        ends = (self.entering, self.post)
        return ends if self.up is None else (*ends, self.up)

    def activation(
        self, seen: Mapping[Place, Tensor], real: Bool[Tensor, "batch pos"]
    ) -> nn.Module:
        """Return the part that turned what enters into the neurons, as the run's numbers show."""
        allowed = _allowed(seen[self.post])
        errors: list[tuple[float, str]] = []
        for candidate in self.candidates:
            # flattened: a function that mixes neurons has no tangent of one number, and fails here
            found = _applied(candidate, seen[self.entering])
            found = found if self.up is None else found * seen[self.up]
            error = _off_by(found, seen[self.post], real)
            if error <= allowed:
                return candidate
            errors.append((error, type(candidate).__name__))
        entering = f"'{self.entering}'" + (f" and '{self.up}'" if self.up else "")
        closest = "it has no part without weights"
        if errors:
            error, named = min(errors)
            closest = f"{named} is off by {error:.2g}, where rounding explains {allowed:.2g}"
        raise UnfitReferenceError(
            f"no activation function found in {self.family} that makes '{self.post}' of "
            f"{entering}: {closest}. So hw.Tangent() does not know what to replace.\n"
            "Use hw.Zero(), hw.Mean() or hw.Corrupted()."
        )

    def linear(
        self, seen: Mapping[Place, Tensor], activation: nn.Module, at: Float[Tensor, "..."]
    ) -> Float[Tensor, "batch pos d_mlp"]:
        """Return the neurons with the activation's tangent at `at`; rounded once, at the end."""
        value, slope = _tangent(activation, at, self.entering)
        line = value + slope * (seen[self.entering].to(torch.float64) - at)
        if self.up is not None:
            line = line * seen[self.up].to(torch.float64)
        return line.to(seen[self.post].dtype)

    def written(self, neurons: Float[Tensor, "batch pos d_mlp"]) -> Tensor:
        """Return what the MLP writes to the residual if these are its neurons."""
        for module in self.down:
            neurons = module(neurons)
        return neurons

    def refuse_other_write(
        self, seen: Mapping[Place, Tensor], real: Bool[Tensor, "batch pos"]
    ) -> None:
        """Refuse an MLP that writes something else than what its neurons lead to."""
        error = _off_by(self.written(seen[self.post]), seen[self.out], real)
        allowed = _allowed(seen[self.out])
        if not error <= allowed:
            raise UnfitReferenceError(
                f"'{self.out}' of {self.family} is not what its down projection makes of "
                f"'{self.post}': off by {error:.2g}, where rounding explains {allowed:.2g}. "
                "So hw.Tangent() does not know what a linear MLP would write.\n"
                "Remove the hooks that change it, or score hw.neurons()."
            )


def _tangent(
    activation: nn.Module, at: Float[Tensor, "..."], entering: Site
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Return value and slope of a function at points; refuse those where it has no one slope."""
    step = STEP * at.abs().clamp(min=1)
    with true_float64():
        with torch.enable_grad():
            point = at.detach().clone().requires_grad_()
            value = _applied(activation, point)
            (slope,) = torch.autograd.grad(value.sum(), point)
        value = value.detach()
        left = (value - _applied(activation, at - step)) / step
        right = (_applied(activation, at + step) - value) / step
    # at a kink autograd takes a side; a function with a backward of its own may say anything
    apart = torch.maximum((left - slope).abs(), (right - slope).abs()) / (1 + slope.abs())
    if bool((~(apart <= SMOOTH)).any()):
        worst = int(apart.nan_to_num(math.inf).argmax())
        one, below, above, own = (x.flatten()[worst].item() for x in (at, left, right, slope))
        raise UnfitReferenceError(
            f"{type(activation).__name__}, which reads '{entering}', has no tangent at {one:.4g}: "
            f"its slope is {below:.4g} on the left and {above:.4g} on the right (autograd says "
            f"{own:.4g}).\nLet it touch elsewhere: hw.Tangent(at='mean'), or a number such as at=1."
        )
    return value, slope


def _applied(activation: nn.Module, entering: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Apply a function to every number by itself."""
    return activation(entering.flatten()).view_as(entering)


def _off_by(found: Tensor, expected: Tensor, real: Bool[Tensor, "batch pos"]) -> float:
    """Return the norm of the difference at real tokens, relative to what is expected."""
    here = real.to(expected.device)
    found, expected = found[here].to(torch.float64), expected[here].to(torch.float64)
    difference, norm = float((found - expected).norm()), float(expected.norm())
    return difference / norm if norm > 0 else difference


def _allowed(value: Tensor) -> float:
    return ROUNDING * torch.finfo(value.dtype).eps
