"""Random analytic functions, whose slopes are known in extended precision, and their sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from headwater.finite_difference import Difference, Sweep, difference, steps

Array = np.ndarray[Any, Any]
Function = Callable[[Array], Array]
F32, F64 = np.float32, np.float64


def measured(kind: str, numbers: Iterable[int]) -> Iterator[tuple[int, Difference, float]]:
    """Yield random functions' measured slopes beside the true ones.

    Args:
        kind: `float64`, `float32`, `float32 inside` a function of float64, or `noise` added.
        numbers: One seed a function.
    """
    dtype = F32 if kind == "float32" else F64
    for number in numbers:
        rng = np.random.default_rng(number)
        size = int(rng.choice([1, 2, 5, 20]))
        exact = _random_function(rng, size)
        x = (rng.normal(size=size) * 10 ** rng.uniform(-2, 0.5)).astype(dtype)
        v = rng.normal(size=size)
        v = (v / np.abs(v).max()).astype(dtype)
        wrap = {"float32 inside": inside, "noise": noisy}.get(kind)
        f = exact if wrap is None else partial(wrap, exact)
        yield number, difference(swept(f, x, v, dtype=dtype)), _by_complex_step(exact, x, v)


def swept(
    f: Function,
    x: Array | float,
    v: Array | float = 1.0,
    *,
    dtype: type = F64,
    scale: float | None = None,
    count: int = 24,
) -> Sweep:
    """Run `f`, of `[points, entries]`, at both sides of `x` along `v`, as a gradient check does."""
    point, line = np.atleast_1d(np.asarray(x, dtype)), np.atleast_1d(np.asarray(v, dtype))
    size = float(np.sqrt(np.mean(point.astype(F64) ** 2))) or 1.0
    nominal = steps(size if scale is None else scale, count)
    length = nominal.astype(dtype)[:, None]
    plus, minus = point + length * line, point - length * line
    values = f(np.concatenate([point[None], plus, minus])).astype(F64)
    wide = line.astype(F64)
    return Sweep(
        nominal=nominal,
        ahead=(plus - point).astype(F64) @ wide / (wide @ wide),
        behind=(point - minus).astype(F64) @ wide / (wide @ wide),
        plus=values[1 : count + 1],
        minus=values[count + 1 :],
        center=np.full(count, values[0]),
        eps=float(np.finfo(dtype).eps),
    )


def bars_off(result: Difference, truth: float) -> float:
    """Return by how many of its error bars a slope is off."""
    return abs(result.slope - truth) / result.bar


def _log_softmax(z: Array) -> Array:
    shifted = z - z.real.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _random_function(rng: np.random.Generator, size: int) -> Function:
    """A random analytic function, computed in the number format of its points."""
    weight = rng.normal(size=(8, size)) * 10 ** rng.uniform(-1, 0.7)
    mix, bias, last = rng.normal(size=(8, 8)), rng.normal(size=8), rng.normal(size=8)
    sharp, offset = 10 ** rng.uniform(-1, 1.3), 10 ** rng.uniform(-6, 3)

    def hidden(z: Array) -> Array:
        own = np.longdouble if z.dtype.kind == "c" else z.dtype
        inner = np.tanh(z @ weight.astype(own).T + bias.astype(own))
        return inner @ (sharp * mix).astype(own).T

    def cast(value: Array | float, z: Array) -> Array:
        return np.asarray(value, np.longdouble if z.dtype.kind == "c" else z.dtype)

    choices: list[Function] = [
        lambda z: np.tanh(hidden(z)) @ cast(last, z),
        lambda z: np.exp(_log_softmax(hidden(z))[:, 0]),
        lambda z: _log_softmax(hidden(z))[:, 0],
        lambda z: cast(offset, z) + np.tanh(z @ cast(weight, z)[0]),
        lambda z: np.sin(z @ cast(weight * sharp, z)[0]),
        lambda z: np.exp(z @ cast(weight, z)[0]),
        lambda z: 1 / (1 + (z @ cast(weight, z).T) ** 2).sum(-1),
        lambda z: np.log(1 + ((z @ cast(weight, z).T) ** 2).sum(-1)),
        lambda z: (z @ cast(weight, z).T).prod(-1),
        lambda z: ((z @ cast(weight, z).T) ** 4).sum(-1),
    ]
    return choices[rng.integers(len(choices))]


def _by_complex_step(f: Function, x: Array, v: Array) -> float:
    """The derivative of an analytic function without any difference, in extended precision."""
    tiny = np.longdouble(1e-40)
    point = x.astype(np.clongdouble) + 1j * tiny * v.astype(np.longdouble)
    return float(f(point[None])[0].imag / tiny)


def inside(f: Function, z: Array) -> Array:
    """Run a function of float64 in float32."""
    return f(z.astype(F32)).astype(F64)


def noisy(f: Function, z: Array) -> Array:
    """Add noise of a millionth that depends on every bit of the point."""
    bits = np.ascontiguousarray(z).view(np.uint64)
    odd = np.arange(3, 3 + 2 * bits.shape[1], 2, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = (bits * odd).sum(1) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return f(z) * (1 + 1e-6 * (mixed.astype(F64) / 2**63 - 1))
