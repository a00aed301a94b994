"""A response curve in characters, for terminals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COLUMNS, LINES = 57, 13
CURVE, CHORD, TANGENT, NODE = "*", "-", ".", "o"


def text_plot(data: Mapping[str, Any]) -> str:
    """Return the curve `*`, the chord `-`, the tangent `.` and the quadrature points `o`.

    Args:
        data: The summary of a curve.
    """
    gates, values = np.array(data["gates"]), np.array(data["values"])
    across = np.linspace(0.0, 1.0, COLUMNS)
    curve = np.interp(across, gates, values)
    chord = values[0] + across * (values[-1] - values[0])
    resting = values[-1] if data["rest"] == 1 else values[0]
    tangent = resting + (across - data["rest"]) * data["tangent"]
    low, high = float(curve.min()), float(curve.max())
    spare = 0.05 * (high - low) or 0.5
    low, high = low - spare, high + spare
    grid = [[" "] * COLUMNS for _ in range(LINES)]
    nodes = np.rint(np.array(data["nodes"]) * (COLUMNS - 1)).astype(int)
    for mark, columns, heights in (
        (CHORD, range(COLUMNS), chord),
        (TANGENT, range(COLUMNS), tangent),
        (CURVE, range(COLUMNS), curve),
        (NODE, nodes, curve[nodes]),
    ):
        _put(grid, mark, columns, heights, low, high)
    labels = [f"{high:>+9.3g}"] + [" " * 9] * (LINES - 2) + [f"{low:>+9.3g}"]
    lines = [f"{label} |{''.join(row)}" for label, row in zip(labels, grid, strict=True)]
    ruler = f"{'':9} +{'-' * COLUMNS}"
    foot = f"{'':11}0{'gate':^{COLUMNS - 2}}1"
    legend = f"{'':11}{CURVE} f(m)   {CHORD} chord   {TANGENT} tangent   {NODE} slopes taken"
    return "\n".join([*lines, ruler, foot, legend])


def _put(
    grid: list[list[str]],
    mark: str,
    columns: Sequence[int] | np.ndarray,
    heights: np.ndarray,
    low: float,
    high: float,
) -> None:
    """Put marks where the heights are; those outside the picture are left out."""
    for column, height in zip(columns, heights, strict=True):
        line = round((high - height) / (high - low) * (LINES - 1))
        if 0 <= line < LINES:
            grid[line][column] = mark
