"""Which values of a run are read as predictions: the rows of every table and plot.

The residual stream that enters layer 0 is the first row (`input`), the one that leaves the last
layer the last; both are always there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headwater.architectures.adapter import Adapter
from headwater.errors import UnknownOptionError, did_you_mean
from headwater.sites import Site

Kind = Literal["input", "residual", "mid", "write"]
_LETTERS = {"attn.out": "a", "mlp.out": "m", "mixer.out": "x"}
_WORDS = {"attn.out": "attention", "mlp.out": "the MLP", "mixer.out": "the mixer"}


@dataclass(frozen=True)
class Row:
    """One place along the model whose value is read as a prediction."""

    name: str
    """`input`, `r3` (residual after layer 3), `r3.mid`, or a write: `a3`, `m3`, `x3`."""
    kind: Kind
    site: Site

    @property
    def title(self) -> str:
        """What is read, in words."""
        if self.kind == "input":
            return "residual stream entering layer 0"
        if self.kind == "residual":
            return f"residual stream after layer {self.site.layer}"
        if self.kind == "mid":
            return f"residual stream between attention and MLP of layer {self.site.layer}"
        return f"what {_WORDS[self.site.name]} of layer {self.site.layer} writes, renormalized"

    @property
    def is_stream(self) -> bool:
        """Whether it is the residual stream itself, rather than one write to it."""
        return self.kind != "write"


def rows_of(
    adapter: Adapter,
    layers: Sequence[int] | int | None = None,
    *,
    sublayers: bool = False,
    writes: bool = False,
) -> tuple[Row, ...]:
    """Return the rows to read, from the input to the final residual.

    Args:
        adapter: Of the model.
        layers: Only these layers, negative ones counted from the end; None for all. The input and
            the last layer are always among the rows.
        sublayers: Whether to read between attention and MLP too.
        writes: Whether to read what attention and MLP write, each through a norm of its own.

    Raises:
        UnknownOptionError: If there is no such layer.
        UnavailableSiteError: If the model has nothing between attention and MLP.
    """
    chosen = _chosen(adapter, layers)
    rows = [Row("input", "input", Site(0, "resid_pre"))]
    for layer in range(adapter.n_layers):
        last = layer == adapter.n_layers - 1
        if layer not in chosen and not last:
            continue
        inner = layer in chosen
        for name in adapter.writes if writes and inner else ():
            rows.append(Row(f"{_LETTERS[name]}{layer}", "write", Site(layer, name)))
        if sublayers and inner:
            mid = Site(layer, "resid_mid")
            adapter.point(mid)  # refuses by name
            place = len(rows) - (writes and len(adapter.writes) == 2)
            rows.insert(place, Row(f"r{layer}.mid", "mid", mid))
        rows.append(Row(f"r{layer}", "residual", Site(layer, "resid_post")))
    return tuple(rows)


def index_of(rows: Sequence[Row], which: str | int) -> int:
    """Return the number of a row.

    Args:
        rows: All rows.
        which: `"final"`, `"first"`, a row's name, or the number of a layer.

    Raises:
        UnknownOptionError: If there is no such row.
    """
    if which == "final":
        return len(rows) - 1
    name = which
    if which == "first":
        name = "input"
    elif isinstance(which, int):
        name = rows[-1].name if which == -1 else f"r{which}"
    names = [row.name for row in rows]
    if name not in names:
        known = ["final", "first", *names]
        raise UnknownOptionError(
            f"no row {which!r}.{did_you_mean(str(which), known)}\n"
            f"Rows: {', '.join(names)}; the last is also called final, the first one first."
        )
    return names.index(str(name))


def _chosen(adapter: Adapter, layers: Any) -> set[int]:
    depth = adapter.n_layers
    if layers is None:
        return set(range(depth))
    found: set[int] = set()
    for layer in [layers] if isinstance(layers, int) else layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not -depth <= layer < depth:
            raise UnknownOptionError(
                f"no layer {layer!r}: {adapter.family.example} has {depth} layers, 0 to "
                f"{depth - 1}.\nWrite layers=range({depth}), or a list such as [0, -1]."
            )
        found.add(layer % depth)
    return found
