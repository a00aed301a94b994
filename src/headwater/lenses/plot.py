"""A lens as a static picture (PNG, SVG, PDF), by matplotlib, which is an optional extra."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import MissingExtraError, UnknownOptionError
from headwater.files import write_atomically
from headwater.lenses.statistics import BY_KEY
from headwater.lenses.words import CONVENTION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headwater.lenses.result import Lens

FORMATS = (".png", ".svg", ".pdf")
WIDEST = 40
"""Most positions in a picture; more are unreadable."""
_CELL = (0.62, 0.28)
"""Inches of a cell."""


def heat_map(lens: Lens, statistic: str, prompt: int, positions: slice | None) -> Figure:
    """Return the heat map of one statistic, rows by positions, the final row on top.

    Args:
        lens: What was read.
        statistic: Its key.
        prompt: The prompt's number.
        positions: Which positions; None for the first forty.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        UnknownOptionError: If there is no such statistic or prompt.
    """
    try:
        from matplotlib.colors import LogNorm, Normalize
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            "lens.plot() draws with matplotlib, which is not installed.\n"
            "Install it: pip install 'headwater[matplotlib]'; lens.page() needs nothing."
        ) from None
    if not 0 <= prompt < len(lens.texts):
        raise UnknownOptionError(
            f"no prompt {prompt}: there are {len(lens.texts)}, counted from 0."
        )
    length = int(lens.mask[prompt].sum())
    shown = list(range(length))[positions or slice(0, WIDEST)]
    if not shown:
        raise UnknownOptionError(
            f"positions={positions}: prompt {prompt} has {length}, and none of them is there."
        )
    values = lens[statistic][:, prompt, shown].double()
    is_log = BY_KEY[statistic].scale == "log"
    low, high = _ends(values, is_log=is_log)
    norm: Any = LogNorm(low, high) if is_log else Normalize(low, high)
    figure = Figure(
        figsize=(1.8 + _CELL[0] * len(shown), 1.6 + _CELL[1] * len(values)), layout="constrained"
    )
    axes = figure.subplots()
    drawn = values.clamp(min=low) if is_log else values
    image = axes.imshow(drawn.numpy(), aspect="auto", origin="lower", cmap="cividis", norm=norm)
    _write_tokens(axes, lens, prompt, shown, norm, drawn)
    axes.set_yticks(range(len(lens.names)), lens.names)
    read = [_clipped(lens.text_of(int(lens.arrays.ids[prompt, one]))) for one in shown]
    # a pair of dollar signs would be taken for a formula
    axes.set_xticks(range(len(shown)), read, rotation=60, ha="right", fontsize=7, parse_math=False)
    axes.set_xlabel(f"token read at each position. {CONVENTION}", fontsize=6, wrap=True)
    title = BY_KEY[statistic].title
    left_out = f" (positions {shown[0]} to {shown[-1]} of {length})" if len(shown) < length else ""
    axes.set_title(f"{title}; in each cell the best token{left_out}", fontsize=8)
    figure.colorbar(image, ax=axes, label=BY_KEY[statistic].unit or title)
    return figure


def refuse_format(path: Path) -> None:
    """Refuse a file whose ending is no format that is drawn.

    Raises:
        UnknownOptionError: With the formats.
    """
    if path.suffix.lower() not in FORMATS:
        raise UnknownOptionError(
            f"{str(path)!r} does not end like a picture.\nWrite one of {', '.join(FORMATS)}."
        )


def written(figure: Figure, path: Path) -> None:
    """Write a figure, at once or not at all; its format is that of the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix.lower().removeprefix(".")
    write_atomically(path, lambda there: figure.savefig(there, format=kind, dpi=150))


def _ends(values: Float[Tensor, "row position"], *, is_log: bool) -> tuple[float, float]:
    """Return the 1st and 99th percentile of what can be drawn; never one number twice."""
    usable = values[values.isfinite() & ((values > 0) | (not is_log))]
    if not len(usable):
        return (0.1, 1.0)
    low, high = torch.quantile(usable, torch.tensor([0.01, 0.99]).double()).tolist()
    if is_log:
        low = max(low, high * 1e-4)  # four decades; what is smaller looks alike
    return (low, high) if high > low else (low, low * 2 if is_log else low + 1)


def _write_tokens(
    axes: Any, lens: Lens, prompt: int, shown: list[int], norm: Any, values: Tensor
) -> None:
    best = lens.topk(1).ids[:, prompt, shown, 0]
    for row in range(len(values)):
        for column in range(len(shown)):
            value = float(values[row, column])
            bright = not math.isnan(value) and float(norm(value)) > 0.6
            axes.text(
                column,
                row,
                _clipped(lens.text_of(int(best[row, column]))),
                ha="center",
                va="center",
                fontsize=6,
                color="black" if bright else "white",
                clip_on=True,
                parse_math=False,
            )


def _clipped(text: str) -> str:
    shown = text.replace("\n", "\\n").replace("\t", "\\t")
    return shown if len(shown) <= 9 else shown[:8] + "\u2026"
