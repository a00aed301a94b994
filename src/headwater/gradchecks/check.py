"""Check one gradient: sweep every direction, compare, judge, and say what the numbers mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import GradcheckError, ModelStateError, NonFiniteError, NoPathError
from headwater.finite_difference import Difference, Sweep, difference
from headwater.gates.value import ValueFunction
from headwater.gradchecks import effects
from headwater.gradchecks.directions import Coordinates, Direction, choose
from headwater.gradchecks.entries import entries_of
from headwater.gradchecks.hints import hint_of
from headwater.gradchecks.lines import Weighed, forward_slopes, spacing, sweeps
from headwater.gradchecks.result import Check, DirectionCheck, Precision
from headwater.gradchecks.verdicts import Compared, Verdict, along, overall
from headwater.progress import progress_bar

COUNTED = 512
"""Most entries of which all signs are counted without being asked."""


@dataclass(frozen=True)
class Plan:
    """How a gradient is checked."""

    coordinates: Coordinates = None
    directions: Float[Tensor, "direction *shape"] | None = None
    steps: int = 24
    rtol: float | None = None
    """Relative difference that always counts as agreement; None: root of the spacing at 1."""
    seed: int = 0
    progress: bool | None = None


@dataclass(frozen=True)
class About:
    """What a check is called, and what its hints may refer to."""

    name: str
    where: str = ""
    name_of: Callable[[int], str] = str
    """The name of an entry of the value."""
    inside: torch.dtype | None = None
    """A number format that the way to the objective is known to pass through."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Numbers by which a sum and a mean could be confused, by what they count."""
    notes: tuple[str, ...] = ()
    elsewhere: Callable[[Tensor], str] = lambda _: ""
    """Says of which other place a wrong gradient is the right one; empty if it knows none."""
    precision: Callable[[Tensor], Precision | None] = lambda _: None
    """Compares the gradient with the one in the model's own numbers."""


def check(
    function: ValueFunction,
    about: About,
    plan: Plan,
    *,
    weights: Float[Tensor, "*entry"] | None = None,
    claimed: Float[Tensor, "*shape"] | None = None,
) -> Check:
    """Check a gradient of a function at a value.

    Args:
        function: Value and objective.
        about: What it is called.
        plan: How it is checked.
        weights: `grad_outputs` of an objective with several entries.
        claimed: The gradient to check; autograd's if left out.

    Raises:
        GradcheckError: If there is no direction to check along.
        NoPathError: If neither autograd nor any change finds a way to the objective.
        ModelStateError: If two runs at the point differ.
        NonFiniteError: If the objective or its gradient is not finite.
    """
    value = function.value
    weighed = Weighed(function, weights)
    center, kind = _center(weighed, about)
    own = gradient_of(weighed)
    gradient = _gradient(about, value, own, claimed)
    size = _size(value)
    lines = _lines(about, plan, value, gradient, size)
    tried = _tried(function, lines)
    total = len(lines) * (2 * plan.steps + 1) + 3 * len(tried)
    with progress_bar(f"changing {about.name}", total, show=plan.progress) as advance:
        watched = Weighed(function, weights, advance)
        swept = sweeps(watched, lines, plan.steps, kind)
        changes = effects.measure(watched, gradient, tried, size) if tried else None
    differences = [difference(sweep) for sweep in swept]
    compared = _compared(lines, swept, differences, gradient, center, claimed)
    with torch.no_grad():
        loss = center - float(weighed.anywhere(torch.zeros_like(value)[None]).double())
    rtol = spacing(kind) ** 0.5 if plan.rtol is None else plan.rtol
    alone: list[Verdict] = [along(one, rtol) for one in compared]
    verdict, judged = overall(compared, alone, abs(loss) if math.isfinite(loss) else 0.0)
    if verdict == "constant" and own is None:
        raise NoPathError(
            f"no path from {about.name} to the objective: autograd sees none, and no change of it "
            f"moved the objective from {center:.6g}.\n"
            "Check where the objective computes with it: a later position, site or argument."
        )
    tangents, notes = _forward(weighed, lines)
    directions = _directions(weighed, lines, compared, judged, tangents)
    rows, signs = _signs(changes, directions, about, value, center)
    found = Check(
        name=about.name,
        where=about.where,
        objective=center,
        size=size,
        dtype=str(kind).removeprefix("torch."),
        claimed="autograd's" if claimed is None else "the given",
        verdict=verdict,
        hint="",
        directions=directions,
        effects=rows,
        signs=signs,
        reach=_reach(value, gradient, directions, loss),
        precision=about.precision(gradient) if claimed is None else None,
        entries=() if weights is None else entries_of(weighed, lines, tangents),
        notes=(*about.notes, *notes, *_coarse_note(claimed, value)),
        value=value.detach(),
        gradient=gradient.detach(),
    )

    def own_is_right() -> bool:
        right = gradient if own is None else own
        again = _compared(lines, swept, differences, right, center, None)
        return "disagree" not in {along(one, rtol) for one in again}

    return replace(found, hint=hint_of(found, own, own_is_right, about.counts, about.elsewhere))


def gradient_of(function: Weighed) -> Float[Tensor, "*shape"] | None:
    """Return autograd's gradient at the point; None if autograd sees no path."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = function.function.value.detach().clone().requires_grad_()
        total = function(leaf[None])[0]
        if not total.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    return gradient


def _size(value: Tensor) -> float:
    """Return the root mean square of a value, however large or small; 1 if it is zero."""
    largest = float(value.abs().max())
    return largest * float((value.double() / largest).square().mean().sqrt()) if largest else 1.0


def _center(function: Weighed, about: About) -> tuple[float, torch.dtype]:
    """Return the objective at the point, and the coarser number format of the two, or refuse."""
    point = function.function.value[None]
    with torch.no_grad():
        found = [function(point) for _ in range(2)]
    kind = max(point.dtype, found[0].dtype, about.inside or point.dtype, key=spacing)
    first, again = (float(one.double()) for one in found)
    if not math.isfinite(first):
        raise NonFiniteError(
            f"the objective is {first} at {about.name}, so it has no slope there.\n"
            "Look at its parts: a log of 0, a division by 0, an overflow?"
        )
    if abs(first - again) > 1e3 * spacing(kind) * max(abs(first), abs(again)):
        raise ModelStateError(
            f"two runs at the same point gave {first:.9g} and {again:.9g}: the objective is "
            "random, so its slope cannot be measured.\n"
            "Call model.eval(), and fix every seed inside f."
        )
    return first, kind


def _gradient(
    about: About, value: Tensor, own: Tensor | None, claimed: Tensor | None
) -> Float[Tensor, "*shape"]:
    """Return the gradient that is checked, or refuse one that is not finite."""
    if claimed is not None:
        gradient = claimed.detach().to(value)
    else:
        gradient = torch.zeros_like(value) if own is None else own
    finite = gradient.isfinite()
    if not bool(finite.all()):
        index = int((~finite).flatten().nonzero()[0])
        raise NonFiniteError(
            f"the gradient is {float(gradient.flatten()[index])} at {about.name_of(index)} of "
            f"{about.name} ({int((~finite).sum())} of {gradient.numel()} entries are not finite).\n"
            "The usual cause: a square root, norm or logarithm at 0. Check at another point."
        )
    return gradient


def _lines(
    about: About, plan: Plan, value: Tensor, gradient: Tensor, size: float
) -> list[Direction]:
    """Return the directions to check along, or refuse where there is none."""
    lines = choose(
        value, gradient, about.name_of, plan.coordinates, plan.directions, plan.seed, size
    )
    if not lines:
        raise GradcheckError(
            f"{about.name}: gradient and value are zero and no coordinate is chosen, so there is "
            "no direction to check.\nWrite coordinates=8, or give directions."
        )
    return lines


def _tried(function: ValueFunction, lines: Sequence[Direction]) -> Sequence[int]:
    """Return the entries whose signs are tried: those checked, or all where they are cheap."""
    checked = [one.index for one in lines if one.index is not None]
    cheap = function.value.numel() <= COUNTED and function.stacked > 1
    return range(function.value.numel()) if cheap and checked else checked


def _coarseness(claimed: Tensor, value: Tensor) -> float:
    """Return what a given gradient may be off by, as a share of its largest entry.

    It was computed in its own number format, whose rounding adds up over the layers; the model's
    own precision is measured apart. 0 where that format is as fine as the check's.
    """
    eps = torch.finfo(claimed.dtype).eps
    return min(1000 * eps, 0.05) if eps > torch.finfo(value.dtype).eps else 0.0


def _coarse_note(claimed: Tensor | None, value: Tensor) -> tuple[str, ...]:
    coarse = 0.0 if claimed is None else _coarseness(claimed, value)
    if claimed is None or not coarse:
        return ()
    kind = str(claimed.dtype).removeprefix("torch.")
    return (f"a gradient given in {kind} is held to {coarse:.1g} of its largest entry",)


def _compared(
    lines: Sequence[Direction],
    swept: Sequence[Sweep],
    differences: Sequence[Difference],
    gradient: Tensor,
    center: float,
    claimed: Tensor | None,
) -> list[Compared]:
    """Return gradient and differences along each direction, ready to be judged."""
    coarse = 0.0 if claimed is None else _coarseness(claimed, gradient)
    largest, found = float(gradient.abs().max()), list[Compared]()
    for line, sweep, measured in zip(lines, swept, differences, strict=True):
        product = (gradient * line.vector).double()
        off = coarse * largest * float(line.vector.double().norm())
        found.append(
            Compared(
                gradient=float(product.sum()),
                difference=measured,
                rounding=100 * sweep.eps * float(product.abs().sum()) + off,
                given_eps=0.0 if claimed is None else torch.finfo(claimed.dtype).eps,
                movement=sweep.movement(),
                reach=float(sweep.nominal.max(initial=0.0)),
                size=abs(center),
                eps=sweep.eps,
            )
        )
    return found


def _directions(
    function: Weighed,
    lines: Sequence[Direction],
    compared: Sequence[Compared],
    judged: Sequence[Verdict],
    tangents: Float[Tensor, "direction *entry"] | None,
) -> tuple[DirectionCheck, ...]:
    forward = [None] * len(lines) if tangents is None else function.sum(tangents).tolist()
    return tuple(
        DirectionCheck(
            name=line.name,
            kind=line.kind,
            index=line.index,
            gradient=both.gradient,
            forward=third,
            difference=both.difference,
            verdict=verdict,
        )
        for line, both, third, verdict in zip(lines, compared, forward, judged, strict=True)
    )


def _forward(
    function: Weighed, lines: Sequence[Direction]
) -> tuple[Float[Tensor, "direction *entry"] | None, tuple[str, ...]]:
    """Return the slopes by forward mode, or a note why there are none."""
    try:
        return forward_slopes(function, lines).double().cpu(), ()
    except (RuntimeError, NotImplementedError) as error:
        because = str(error).strip().splitlines()[0]
        return None, (f"no third opinion by forward mode: {because}",)


def _signs(
    changes: effects.Measured | None,
    directions: Sequence[DirectionCheck],
    about: About,
    value: Tensor,
    center: float,
) -> tuple[tuple[effects.Effects, ...], effects.SignCount | None]:
    """Return the effects of the checked entries, and how often each sign was right."""
    if changes is None:
        return (), None
    checked = {one.index: one for one in directions if one.index is not None}
    eps = torch.finfo(value.dtype).eps
    noise = max(*(one.difference.noise for one in checked.values()), eps * abs(center))
    rows = effects.rows(
        changes.only(list(checked)),
        about.name_of,
        [one.difference.linear for one in checked.values()],
    )
    return rows, effects.count(changes, noise)


def _reach(
    value: Tensor, gradient: Tensor, directions: Sequence[DirectionCheck], loss: float
) -> effects.Reach | None:
    """Return the whole value's removal beside the gradient's estimate of it."""
    along_value = next((one for one in directions if one.kind == "activation"), None)
    if along_value is None or not math.isfinite(loss):
        return None
    far, way = along_value.difference.linear, float(value.abs().max())
    return effects.Reach(
        estimate=float((value * gradient).double().sum()),
        exact=loss,
        linear=None if far is None else far / way,
    )
