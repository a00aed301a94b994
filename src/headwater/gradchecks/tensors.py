"""Check the gradient of any function of a tensor."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.attribution.manifest import versions
from headwater.errors import GradcheckError, HeadwaterError
from headwater.gates import GatedFunction
from headwater.gradchecks.arguments import (
    refuse_choices,
    refuse_grad_outputs,
    refuse_no_tensors,
)
from headwater.gradchecks.check import About, Plan, check
from headwater.gradchecks.directions import Coordinates
from headwater.gradchecks.given import DEFINE, refuse_edited
from headwater.gradchecks.labels import indexed
from headwater.gradchecks.lines import OUTSIDE
from headwater.gradchecks.provenance import asked_of
from headwater.gradchecks.report import GradientReport
from headwater.precision import true_float64

Dtype = Literal["float64", "native"]
STACKED = 1024
"""Most points in one call of a batched function."""
STACKED_ENTRIES = 2**22
"""Most entries of points that wait for a function that takes them one by one."""


def check_gradient(
    f: Callable[[Tensor], Tensor] | GatedFunction,
    x: Tensor | None = None,
    *,
    gradient: Tensor | None = None,
    grad_outputs: Tensor | Literal["ones"] | None = None,
    coordinates: Coordinates = None,
    directions: Tensor | None = None,
    dtype: Dtype = "float64",
    batched: bool = False,
    steps: int = 24,
    rtol: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> GradientReport:
    """Compare the gradient of a function at a point with central differences, and judge.

    Each direction is run at `2 * steps + 1` points: steps from the size of `x` down by half
    decades. The best step, its error bar, and the step up to which the function is a line are read
    from the values (Richardson's extrapolation where its error is smaller).

    Args:
        f: Takes a tensor like `x`; returns one number, or a vector if `grad_outputs` is given. Or
            a gated function, of which the mean over its batch is checked.
        x: The point; a gated function is checked with its gates at rest if it is left out.
        gradient: A gradient of yours to check instead of autograd's.
        grad_outputs: Weights of a vector's entries, as `torch.autograd.grad` takes them: what is
            differentiated is their weighted sum. `"ones"` for `torch.ones_like`.
        coordinates: Which entries of `x`, flattened, are checked one by one: `"all"`, a list, or
            a number `n` for the `n` steepest and `n` at random; 8 if left out.
        directions: Directions to check instead of the gradient's, three random ones and `x`'s own:
            [n, *x.shape].
        dtype: `"float64"`: `x` is converted and casts inside `f` to lower types are dropped.
            `"native"`: everything as it is. A gated function is always run as it is.
        batched: Whether `f` takes points stacked along a new first axis, [n, *x.shape], and
            returns [n] or [n, entries]; much faster.
        steps: How many steps, at least 8.
        rtol: Relative difference that counts as agreement whatever the error bar says; by default
            the root of the number format's spacing, 1.5e-8 in float64.
        seed: For random directions and coordinates.
        progress: True, False, or None to show a bar only on a terminal.

    Returns:
        The report: `.verdict`, `.checks[0]` with every direction, `.page(path)`.

    Raises:
        GradcheckError: If `x` or what `f` returns cannot be differentiated, or `f` fails.
        NoPathError: If `f` does not depend on `x` at all.
        ModelStateError: If two calls at the same point differ.
        NonFiniteError: If the objective or the gradient is not finite.
    """
    refuse_choices(dtype, steps, seed, rtol)
    refuse_no_tensors(gradient=gradient, directions=directions)
    refuse_grad_outputs(grad_outputs)
    if isinstance(f, GatedFunction):
        point, rows, stacked = gated(f, x)
        context: Callable[[], AbstractContextManager[None]] = nullcontext
        names = f.names
        name, name_of = "gates", lambda index: str(names[index])
    else:
        point = _point(f, x, dtype)
        context = true_float64 if dtype == "float64" else nullcontext
        # one by one, what is stacked only takes memory
        alone = max(3, min(2 * steps + 1, STACKED_ENTRIES // point.numel()))
        rows, stacked = (f, STACKED) if batched else (_one_by_one(f), alone)
        name, name_of = "x", indexed(tuple(point.shape)) if point.ndim else lambda _: "x"
    function = TensorFunction(rows, point, stacked, context)
    weights = function.first_call(grad_outputs)
    if batched and not isinstance(f, GatedFunction):
        function.refuse_mixed_rows()
    counts = {"entries of x": point.numel()}
    if weights is not None:
        counts["entries of the objective"] = weights.numel()
    if gradient is not None and gradient.shape != point.shape:
        raise GradcheckError(
            f"the gradient has shape {list(gradient.shape)}, x has {list(point.shape)}.\n"
            "Give the gradient with respect to x itself."
        )
    refuse_edited(gradient, "f", DEFINE)
    found = check(
        function,
        About(name=name, name_of=name_of, counts=counts),
        Plan(coordinates, directions, steps, rtol, seed, progress),
        weights=weights,
        claimed=gradient,
    )
    title = str(getattr(f, "__name__", type(f).__name__))
    return GradientReport(
        objective="f" if title == "<lambda>" else title,
        checks=(found,),
        provenance=asked_of(
            f=title,
            x=point,
            gradient=gradient,
            grad_outputs=grad_outputs,
            coordinates=coordinates,
            directions=directions,
            dtype=dtype,
            steps=steps,
            rtol=rtol,
            seed=seed,
            versions=versions(),
        ),
    )


class TensorFunction:
    """A function of a tensor as a gradient check runs it.

    Args:
        function: Points stacked along a first axis, to a row each.
        value: The point.
        stacked: Most points in one call.
        context: Entered around every call.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        value: Float[Tensor, "*shape"],
        stacked: int,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.value, self.stacked = value, stacked
        self._function, self._context = function, context

    def rows(self, points: Float[Tensor, "point *shape"]) -> Tensor:
        """Return the function at each point: [point, *entry]."""
        with self._context():
            return self._function(points)

    def refuse_mixed_rows(self) -> None:
        """Refuse a batched function of which one row depends on the others.

        Raises:
            GradcheckError: If the point's row changes with what stands beside it.
        """
        away = 2 * self.value + 1
        with torch.no_grad():
            alone = self.rows(self.value[None])[0]
            try:
                beside = self.rows(torch.stack([self.value, away]))[0]
            except OUTSIDE:
                return
        eps = torch.finfo(self.value.dtype).eps
        if not torch.allclose(alone, beside, rtol=1e4 * eps, atol=1e4 * eps, equal_nan=True):
            raise GradcheckError(
                "f is said to be batched, and the row of one point changes with the points beside "
                "it.\nMake each row depend on its own point alone (batch norm, a mean over "
                "the first axis?), or leave batched= out."
            )

    def first_call(self, grad_outputs: Tensor | str | None) -> Float[Tensor, "*entry"] | None:
        """See that the function can be called, and return the weights of its entries.

        Raises:
            GradcheckError: If it fails, or returns what has no gradient or other entries.
        """
        point = self.value[None].clone()
        try:
            with torch.no_grad():
                found = self.rows(point)
        except HeadwaterError:
            raise
        except Exception as error:
            raise GradcheckError(f"f failed at x: {error}{self._remedy(error)}") from error
        if not torch.equal(point[0], self.value):
            raise GradcheckError(
                "f changes x in place, so every run would start elsewhere.\n"
                "Write f so that it leaves its argument alone: x = x.clone() on its first line."
            )
        _refuse_output(found, grad_outputs)
        if len(found) != 1:
            raise GradcheckError(
                f"f is said to be batched and returned {list(found.shape)} for one point.\n"
                "Return one row a point: [n], or [n, entries]."
            )
        if grad_outputs is None:
            return None
        if isinstance(grad_outputs, str):
            return torch.ones_like(found[0])
        if grad_outputs.shape != found.shape[1:]:
            raise GradcheckError(
                f"grad_outputs has shape {list(grad_outputs.shape)}; f returns "
                f"{list(found.shape[1:])}. Give one weight an entry."
            )
        return grad_outputs.detach().to(found)

    def _remedy(self, error: Exception) -> str:
        if "does not require grad" in str(error):
            return (
                "\nf differentiates inside itself, and is run without gradients: write it with "
                "torch.func.grad, which needs none."
            )
        if isinstance(error, RuntimeError) and self.value.dtype == torch.float64:
            return (
                "\nx was converted to float64: if f holds weights in float32, convert them as well "
                "(module.double()), or write dtype='native'."
            )
        return ""


def _point(f: Any, x: Tensor | None, dtype: str) -> Tensor:
    """Return the point in the number format that is asked for, or refuse."""
    if not callable(f):
        raise GradcheckError(
            f"f is {type(f).__name__}, not a function.\nWrite check_gradient(lambda x: ..., x)."
        )
    if not isinstance(x, Tensor):
        shown = "left out" if x is None else f"{type(x).__name__}, not a tensor"
        raise GradcheckError(
            f"x is {shown}: it is the point at which f is differentiated.\n"
            "Give a tensor: torch.as_tensor(x)."
        )
    if x.layout != torch.strided or x.is_meta:
        kind = "on the meta device" if x.is_meta else f"stored as {x.layout}"
        raise GradcheckError(f"x is {kind}: give a dense tensor that has values.")
    if not x.is_floating_point():
        raise GradcheckError(
            f"x is {x.dtype}: there is no derivative with respect to integers such as token ids.\n"
            "Differentiate with respect to their embeddings: hw.gradcheck(..., site='embed')."
            if not x.is_complex()
            else "x is complex: check real and imaginary part as two real tensors."
        )
    if not x.numel():
        raise GradcheckError("x has no entries.")
    if not bool(x.isfinite().all()):
        index = int((~x.isfinite()).flatten().nonzero()[0])
        raise GradcheckError(
            f"x is {float(x.flatten()[index])} at entry {index}: nothing has a slope there.\n"
            "Check at a finite point."
        )
    with torch.inference_mode(False):
        return x.detach().clone().to(torch.float64 if dtype == "float64" else x.dtype)


def _one_by_one(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the function of stacked points that calls `f` on each."""

    def rows(points: Tensor) -> Tensor:
        found = [f(point) for point in points]
        if not isinstance(found[0], Tensor):
            raise GradcheckError(
                f"f returned {type(found[0]).__name__}, not a tensor: .item(), float() and numpy "
                "cut the graph.\nReturn the tensor itself."
            )
        # one number may come as [] or [1]
        return torch.stack([one.reshape(()) if one.numel() == 1 else one for one in found])

    return rows


def gated(f: GatedFunction, x: Tensor | None) -> tuple[Tensor, Callable[[Tensor], Tensor], int]:
    """Return point, function and most points of a gated function."""
    rest = f.gates()[0].mean(0)
    refuse_no_tensors(x=x)
    if x is not None and x.shape != rest.shape:
        raise GradcheckError(
            f"x has shape {list(x.shape)}; the gated function has {len(rest)} gates.\n"
            "Give one number a gate, or leave x out: gates at rest."
        )
    point = rest if x is None else x.detach().to(f.dtype)

    def rows(points: Tensor) -> Tensor:
        settings = points[:, None, :].expand(-1, f.batch, -1)
        return f.fn(settings).mean(1)

    return point, rows, getattr(f, "stacked", STACKED)


def _refuse_output(found: Any, grad_outputs: Any) -> None:
    if isinstance(found, Tensor) and not found.ndim:
        raise GradcheckError(
            "f is said to be batched and returned a single number.\n"
            "Return one row a point: [n], or [n, entries]."
        )
    if not isinstance(found, Tensor) or not found.is_floating_point():
        kind = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise GradcheckError(f"f returned {kind}; it must return a floating-point tensor.")
    entries = found.shape[1:]
    if grad_outputs is None and entries.numel() != 1:
        raise GradcheckError(
            f"f returned {list(entries)} numbers, and a gradient is of one.\n"
            "Return one entry (probs[token]), or say which sum of them is meant: "
            'grad_outputs="ones" is the gradient of the plain SUM, not of each entry.'
        )
    if grad_outputs is not None and not entries:
        raise GradcheckError(
            "grad_outputs weighs the entries of a vector, and f returned one number.\nLeave it out."
        )
