"""Faithfulness and completeness: what of the behavior the kept nodes carry, and what the others do.

`f(C)` is the metric with every node outside C at its reference; features are encoded anew at every
site, from what the changed run holds there. `f(all)` is the clean run, `f(none)` everything closed.

    faithfulness = (f(C) - f(none)) / (f(all) - f(none))          1: C alone does it all
    completeness = (f(not C) - f(none)) / (f(all) - f(none))      0: nothing is done without C

Source: Marks et al., "Sparse feature circuits" (arXiv 2403.19647), section 3.3.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from headwater.attribution.checks import refuse_arguments
from headwater.components import features
from headwater.errors import ResultError, UnknownOptionError
from headwater.feature_circuits.again import again
from headwater.feature_circuits.choice import refuse_no_count
from headwater.feature_circuits.exact import NodeKey
from headwater.frames import frame
from headwater.gates import Averages, GatedTask
from headwater.references import Reference
from headwater.sites import Site

if TYPE_CHECKING:
    import pandas

    from headwater.dictionaries.collection import Dictionaries
    from headwater.feature_circuits.result import FeatureCircuit
    from headwater.models import Model

Errors = Literal["circuit", "keep", "remove"]
"""What becomes of error nodes: as the circuit has them; all of them stay; all are closed."""
SIZES = 6
"""Sizes between one node and the whole circuit that are tried by default."""


@dataclass(frozen=True)
class Size:
    """The strongest nodes of a circuit, so many of them."""

    nodes: int
    metric: float
    """With everything else closed."""
    faithfulness: float | None
    """None where the clean run and the closed one have the same metric."""
    without: float
    """The metric with these closed."""
    completeness: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Faithfulness:
    """A circuit's faithfulness and completeness, by how many of its nodes are kept."""

    clean: float
    """The metric with nothing closed, mean over pairs."""
    closed: float
    """The metric with every node of every site closed."""
    reference: str
    errors: Errors
    sizes: tuple[Size, ...]
    """From few nodes to the whole circuit."""

    @property
    def faithfulness(self) -> float | None:
        """Of the whole circuit."""
        return self.sizes[-1].faithfulness

    @property
    def completeness(self) -> float | None:
        """Of the whole circuit."""
        return self.sizes[-1].completeness

    def __repr__(self) -> str:
        lines = [
            f"metric {self.clean:+.3f} clean, {self.closed:+.3f} with every node at its reference "
            f"({self.reference}; errors: {self.errors})",
            f"{'nodes':>7}{'metric':>10}{'faithful':>10}{'without':>10}{'complete':>10}",
        ]
        for size in self.sizes:
            shares = [
                "-" if one is None else f"{round(one, 3) + 0.0:.3f}"
                for one in (size.faithfulness, size.completeness)
            ]
            lines.append(
                f"{size.nodes:>7,}{size.metric:>+10.3f}{shares[0]:>10}{size.without:>+10.3f}"
                f"{shares[1]:>10}"
            )
        return "\n".join([*lines, "faithful: 1 is all of it; complete: 0 is nothing left."])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a size as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame((size.to_dict() for size in self.sizes), "found.sizes")

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "sizes": [size.to_dict() for size in self.sizes]}


def evaluate_circuit(
    circuit: FeatureCircuit,
    *,
    reference: Reference | None,
    errors: Errors,
    sizes: Sequence[int] | None,
    layers: Sequence[int] | None,
    model: Model | None,
    dictionaries: Dictionaries | None,
    batch_size: int | None,
) -> Faithfulness:
    """Measure a circuit; see `FeatureCircuit.evaluate`.

    Raises:
        UnknownOptionError: If `errors` or `sizes` cannot be used.
        ResultError: If no node lies in `layers`.
    """
    if errors not in ("circuit", "keep", "remove"):
        raise UnknownOptionError(
            f"errors={errors!r} is unknown.\nWrite errors='circuit', 'keep' or 'remove'."
        )
    refuse_arguments(reference=reference)
    refuse_no_count(batch_size=batch_size)
    with again(circuit, model=model, dictionaries=dictionaries, batch_size=batch_size) as ready:
        reference = ready.reference if reference is None else reference
        aligned = circuit.provenance["aggregation"] == "none"
        positions = "each" if aligned else "all"
        selection = features(ready.nodes.dictionaries, positions=positions, layers=layers)
        gated = GatedTask(
            ready.model, ready.task, selection, reference, batch_size=ready.batch_size
        )
        columns = _columns(gated)
        keys = [ready.key(node) for node in circuit.top(len(circuit.nodes))]
        inside = [columns[key] for key in keys if key in columns]
        if not inside:
            raise ResultError(f"no node of this circuit lies in layers={layers}.")
        counts = _counts(sizes, len(inside))
        settings = torch.stack(list(_settings(gated, inside, counts, errors)))
        values = _means(gated, settings)
    clean, closed = values[0], values[1]
    return Faithfulness(
        clean=clean,
        closed=closed,
        reference=reference.name,
        errors=errors,
        sizes=tuple(
            Size(count, kept, _share(kept, clean, closed), left, _share(left, clean, closed))
            for count, kept, left in zip(counts, values[2::2], values[3::2], strict=True)
        ),
    )


def _columns(gated: GatedTask) -> dict[NodeKey, int]:
    """Return the gate of each node."""
    counts: dict[Site, int] = {}
    for group in gated.table.groups:
        if group.kind == "feature":
            counts[group.site] = group.count
    found = {}
    for group in gated.table.groups:
        for offset in range(group.size):
            slot, index = divmod(offset, group.count)
            index = counts.get(group.site, 0) if group.kind == "error" else index
            position = None if group.positions is None else group.positions[slot]
            found[NodeKey(group.site, index, position)] = group.start + offset
    return found


def _counts(sizes: Sequence[int] | None, most: int) -> list[int]:
    if sizes is None:
        steps = {round(math.exp(math.log(most) * n / SIZES)) for n in range(1, SIZES + 1)}
        return sorted({*steps, most})
    if isinstance(sizes, int):
        raise UnknownOptionError(f"sizes={sizes} is one number.\nWrite sizes=[{sizes}].")
    bad = [size for size in sizes if type(size) is not int or not 0 < size <= most]
    if bad or not sizes:
        raise UnknownOptionError(
            f"sizes={list(sizes)}: the circuit has 1 to {most} nodes here.\nWrite sizes=[{most}]."
        )
    return sorted(set(sizes))


def _settings(
    gated: GatedTask, inside: Sequence[int], counts: Sequence[int], errors: Errors
) -> Iterator[Bool[Tensor, " component"]]:
    """Yield which gates are open: all, none, then for each size these nodes and all the others."""
    total = len(gated.table)
    is_error = torch.zeros(total, dtype=torch.bool)
    for group in gated.table.groups:
        # a whole site is no error of a dictionary: it is a node like a feature
        has_features = any(
            one.kind == "feature" and one.site == group.site for one in gated.table.groups
        )
        if group.kind == "error" and has_features:
            is_error[group.columns] = True
    nothing = torch.zeros(total, dtype=torch.bool)
    yield ~nothing
    yield is_error if errors == "keep" else nothing
    for count in counts:
        kept = nothing.clone()
        kept[list(inside[:count])] = True
        for chosen in (kept, ~kept):
            if errors == "keep":
                yield chosen | is_error
            elif errors == "remove":
                yield chosen & ~is_error
            else:
                yield chosen


def _means(gated: GatedTask, settings: Bool[Tensor, "setting component"]) -> list[float]:
    found = Averages(len(gated.task.pairs), torch.float64)
    for batch, function in gated:
        values = []
        for one in settings:
            m = function.gates()
            m[:] = one.to(m)
            with torch.no_grad():
                values.append(function(m)[0])
        found.add(batch, torch.stack(values, 1))
    return found.mean().mean(0).tolist()


def _share(value: float, clean: float, closed: float) -> float | None:
    return None if clean == closed else (value - closed) / (clean - closed)
