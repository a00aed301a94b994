"""A model with gates: each component at `lerp(reference, x, m)`, one metric out.

The only place in headwater where a model runs with a changed activation. One forward a call, with
all settings stacked in the batch. `switched` starts each run at the component's layer from the
cached residual, so that exact effects cost about half a forward each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.coding import Coded, Place, joined, keepers, looking
from headwater.components import ComponentTable, Group, refuse_nested
from headwater.errors import UnfitReferenceError
from headwater.gates.coded import CodedGates
from headwater.gates.families import Family, families_of
from headwater.gates.function import (
    INPUT_PATH,
    Cost,
    End,
    GatedFunction,
    Move,
    Slope,
)
from headwater.gates.inputs import InputPath
from headwater.gates.linear import ATTENTION, DROPS, Linearized
from headwater.gates.placement import Placed, spread_weight
from headwater.gates.replay import Replay
from headwater.gates.sizes import Sizes
from headwater.metrics import Metric, kl
from headwater.models import Model
from headwater.prompts import Batch
from headwater.references import OffValues, capture
from headwater.sites import Site
from headwater.taps import Tap, keeper


@dataclass
class BaseRun:
    """What one run with all gates at rest leaves behind."""

    value: Float[Tensor, " batch"]
    residuals: dict[int, Float[Tensor, "batch pos d_model"]]
    """The residual entering each layer that holds components; suffix runs start from these."""
    kept: Mapping[Place, Tensor]
    """Values at the places that were asked for."""

    def start(self, layer: int) -> tuple[int, Tensor] | None:
        """Return where a run begins that moves nothing before `layer`; None: at the prompt."""
        return (layer, self.residuals[layer]) if layer > 0 else None


class ModelGates(GatedFunction):
    """The metric of one batch as a function of its components' gates.

    Args:
        model: A frozen model.
        batch: Clean and corrupted prompts, padded on the left.
        metric: Reads the logits.
        table: The gated components.
        off: Their values when closed.
        corrupted_run: Whether `off` holds the corrupted prompts' own values; only then does the
            corrupted end exist, because closing all gates must lead to that run.
        end: Which prompt runs: clean, with gates lowered towards `off`, or corrupted, with
            gates raised towards the clean values.
        tokens: Most tokens in one stacked run; bounds memory.
        doubt: Why slopes say little about effects here; empty where there is no reason.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        metric: Metric,
        table: ComponentTable,
        off: OffValues,
        *,
        corrupted_run: bool = False,
        end: End = "clean",
        tokens: int = 4096,
        cost: Cost | None = None,
        doubt: str = "",
    ) -> None:
        self.model, self.metric, self.table, self.off = model, metric, table, off
        self.rows, self.corrupted_run, self.tokens = batch, corrupted_run, tokens
        super().__init__(
            fn=self._metric_of,
            names=table.names,
            batch=len(batch.pairs),
            families=families_of(table, model.anatomy().n_layers),
            capabilities=_capabilities(corrupted_run),
            # the gates' gradient is summed in float32 at least, whatever the model computes in
            dtype=torch.promote_types(model.dtype, torch.float32),
            device=model.device,
            end=end,
            stationary=frozenset({"clean"}) if isinstance(metric, kl) else frozenset(),
            cost=Cost() if cost is None else cost,
            doubt=doubt,
        )
        self.sizes = Sizes(model.anatomy(), table, batch)
        self._base: BaseRun | None = None
        self._value: Tensor | None = None
        self._held = off.values
        self._clean_logits: Tensor | None = None
        if end == "corrupted":
            self._held, self._clean_logits = capture(model, batch.clean, batch, off.values)
            self.cost.ran(self.batch)
        elif "clean_logits" in metric.needs and batch.clean_logits is None:
            _, self._clean_logits = capture(model, batch.clean, batch, ())
            self.cost.ran(self.batch)
        if self._clean_logits is not None and "clean_logits" in metric.needs:
            self.rows = batch.with_clean_logits(self._clean_logits)

    def only(self, families: Sequence[Family]) -> ModelGates:
        """Return the same model with the gates of some families only."""
        groups: list[Group] = []
        for family in families:
            own = set(family.columns)
            for group in self.table.groups:
                if group.start in own:
                    start = groups[-1].columns.stop if groups else 0
                    groups.append(replace(group, start=start))
        part = ModelGates(
            self.model,
            self.rows,
            self.metric,
            ComponentTable(groups, repeats=self.table.repeats),
            self.off,
            corrupted_run=self.corrupted_run,
            end=self.end,
            tokens=self.tokens,
            cost=self.cost,
            doubt=self.doubt,
        )
        part._base = self._base  # it rests where this does
        return part

    @property
    def ids(self) -> Tensor:
        """The prompts that run at this end."""
        if self.end == "clean":
            return self.rows.clean
        assert self.rows.corrupted is not None
        return self.rows.corrupted

    def at(self, end: End) -> ModelGates:
        """Return the same gates seen from the other end.

        Raises:
            UnfitReferenceError: If closing the gates does not lead to the corrupted prompt's run.
        """
        if end == self.end:
            return self
        if not self.corrupted_run:
            raise UnfitReferenceError(
                'at="corrupted" runs the corrupted prompt and restores clean values in it, so it '
                "needs the corrupted prompts' own values.\nWrite reference=hw.Corrupted()."
            )
        return ModelGates(
            self.model,
            self.rows,
            self.metric,
            self.table,
            self.off,
            corrupted_run=True,
            end=end,
            tokens=self.tokens,
            cost=self.cost,
            doubt=self.doubt,
        )

    @property
    def pairs(self) -> Sequence[int]:
        """Which pairs of the task are in this batch."""
        return self.rows.pairs

    @property
    def stacked(self) -> int:
        """Most settings to run at once, in one batch."""
        return max(1, self.tokens // self.ids.numel())

    def _metric_of(self, m: Float[Tensor, "setting batch component"]) -> Tensor:
        moved = (m.detach() != self.base).any(1)
        if bool((moved.sum(1) > 1).any()):
            refuse_nested(self.table, moved)
        return self._run({group: m[..., group.columns] for group in self.table.groups}, len(m))

    def _evaluate(self, m: Tensor) -> Tensor:
        return self.fn(m)  # counted where the model runs

    def value(self) -> Float[Tensor, " batch"]:
        """Return the metric with all gates at rest, cached from whatever resting run came first."""
        return self.at_rest().value if self._value is None else self._value

    def clean_value(self) -> Float[Tensor, " batch"]:
        """Return the metric of the clean prompts, whichever end the gates are at."""
        if self.end == "clean":
            return self.value()
        assert self._clean_logits is not None
        return self.metric(self._clean_logits, self.rows)

    def corrupted_value(self) -> Float[Tensor, " batch"] | None:
        """Return the metric of the corrupted prompts, if the reference ran them."""
        return None if self.off.logits is None else self.metric(self.off.logits, self.rows)

    @torch.no_grad()
    def moved(self, moves: Sequence[Move]) -> Float[Tensor, "move batch"]:
        """Return the metric with gates moved together, one run a move.

        Runs start at the first layer that is moved; many moves of one layer are stacked in the
        batch.

        Raises:
            NestedComponentsError: If one move holds a component and one that lies inside it.
        """
        if not moves:
            return torch.empty(0, self.batch, dtype=self.dtype, device=self.device)
        results: dict[int, Tensor] = {}
        placed = self._placed_by_columns(moves)
        for layer, chunk in self._stacks(moves, placed):
            gates = self._gates_of([moves[i] for i in chunk], placed)
            values = self._run(gates, len(chunk), start=self._start(layer))
            results |= dict(zip(chunk, values, strict=True))
        return torch.stack([results[i] for i in range(len(moves))])

    def slopes(self, moves: Sequence[Move]) -> list[Slope]:
        """Return the metric and its derivative in the moved gates, one run a move."""
        results: dict[int, Slope] = {}
        placed = self._placed_by_columns(moves)
        for layer, chunk in self._stacks(moves, placed):
            gates = self._gates_of([moves[i] for i in chunk], placed)
            for m in gates.values():
                m.requires_grad_()
            with torch.enable_grad():
                values = self._run(gates, len(chunk), start=self._start(layer))
                gradients = torch.autograd.grad(values.sum(), list(gates.values()))
            by_group = dict(zip(gates, gradients, strict=True))
            for setting, i in enumerate(chunk):
                slope = placed[moves[i].columns].picked(by_group, setting)
                results[i] = Slope(values[setting].detach(), slope)
        return [results[i] for i in range(len(moves))]

    def _placed_by_columns(self, moves: Sequence[Move]) -> dict[tuple[int, ...], Placed]:
        """Return where the columns of each move stand, once for all moves of the same ones."""
        distinct = dict.fromkeys(move.columns for move in moves)
        return {columns: Placed.of(self.table, columns) for columns in distinct}

    def _start(self, layer: int) -> tuple[int, Tensor] | None:
        """Return where a run begins that moves nothing before `layer`; None: at the prompt."""
        return self.at_rest().start(layer) if layer > 0 else None

    def _stacks(
        self, moves: Sequence[Move], placed: Mapping[tuple[int, ...], Placed]
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield the layer to start at and the moves that run together from there."""
        by_layer: dict[int, list[int]] = defaultdict(list)
        for i, move in enumerate(moves):
            by_layer[placed[move.columns].layer].append(i)
        chunk = self.stacked
        for layer, members in sorted(by_layer.items()):
            for first in range(0, len(members), chunk):
                yield layer, members[first : first + chunk]

    def _gates_of(
        self, moves: Sequence[Move], placed: Mapping[tuple[int, ...], Placed]
    ) -> dict[Group, Tensor]:
        """Return gates [move, batch, component] of the groups that these moves touch."""
        gates: dict[Group, Tensor] = {}
        for setting, move in enumerate(moves):
            for group, offsets, _ in placed[move.columns].parts:
                if group not in gates:
                    shape = (len(moves), self.batch, group.size)
                    rest = torch.full(shape, self.base, dtype=self.dtype, device=self.device)
                    gates[group] = rest
                gates[group][setting, :, offsets] = abs(self.base - move.share)
        if any(len(move.columns) > 1 for move in moves):
            away = torch.zeros(len(moves), len(self.table), dtype=torch.bool)
            for setting, move in enumerate(moves):
                away[setting, placed[move.columns].columns] = True
            refuse_nested(self.table, away)
        return gates

    def _run(
        self,
        gates: Mapping[Group, Float[Tensor, "setting batch component"]],
        settings: int,
        *,
        start: tuple[int, Tensor] | None = None,
        taps: Mapping[Site, Tap] | None = None,
    ) -> Float[Tensor, "setting batch"]:
        rows = self.rows.repeat(settings) if settings > 1 else self.rows
        ids = self.ids.repeat(settings, 1)
        at_place: dict[Place, list[Group]] = defaultdict(list)
        for group in gates:
            at_place[group.place].append(group)
        # the cheap questions first: the last one waits for the device
        measured = settings == 1 and start is None and bool(gates)
        measured = measured and all(bool((m.detach() == self.base).all()) for m in gates.values())
        # what a transcoder reads is what the gates before it hand on, whatever was selected first
        gating = joined(
            self._gates_at(place, {group: gates[group] for group in at_place[place]}, rows)
            for place in sorted(at_place, key=_written_at)
        )
        if measured:
            gating = joined([*self._measuring(), gating])
        gating = joined([gating, taps or {}])
        share = 1.0
        if start is not None:
            layer, residual = start
            start = (layer, residual.repeat(settings, 1, 1))
            share = 1 - layer / self._depth
        logits = self.model.forward(
            ids,
            mask=rows.mask,
            position_ids=rows.position_ids,
            taps=gating,
            start=start,
            read=rows.read,
        )
        differentiated = any(m.requires_grad for m in gates.values())
        self.cost.ran(settings * self.batch * share, backward=differentiated)
        value = self.metric(logits, rows).reshape(settings, self.batch)
        if measured:
            self._value = value[0].detach()
        return value

    def _gates_at(
        self, place: Place, gates: Mapping[Group, Tensor], rows: Batch
    ) -> dict[Site, Tap]:
        """Return the taps that gate every component of one place."""
        if isinstance(place, Coded):
            held = self._held[place]
            return CodedGates(place, gates, held, rows, self.batch, self.base).taps()
        return {place: self._gate(place, gates, rows)}

    def _gate(self, site: Site, gates: Mapping[Group, Tensor], rows: Batch) -> Tap:
        """Return the tap that gates every component at one site."""

        def tap(value: Tensor) -> Tensor:
            held = self._held[site].to(value.device, value.dtype)
            settings = len(value) // self.batch
            if settings > 1 and held.ndim and len(held) == self.batch:
                held = held.repeat(settings, *[1] * (held.ndim - 1))
            for group, m in gates.items():
                weight = spread_weight(group, m.to(value), value, rows, self.base)
                if self.end == "clean":
                    value = torch.lerp(held, value, weight)
                else:
                    value = torch.lerp(value, held, weight)
            return value

        return tap

    def at_rest(self, keep: Iterable[Place] = ()) -> BaseRun:
        """Return the run with all gates at rest; run once, and again only for values not kept.

        Args:
            keep: Places whose values are wanted too.
        """
        wanted = set(keep)
        if self._base is not None and wanted <= set(self._base.kept):
            return self._base
        residuals: dict[int, Tensor] = {}
        kept: dict[Place, Tensor] = {}
        entering = {
            Site(layer, "resid_pre"): keeper(residuals, layer) for layer in self.table.layers
        }
        taps = joined([*self._measuring(), entering, keepers(kept, wanted)])
        with torch.no_grad():
            logits = self.model.forward(
                self.ids,
                mask=self.rows.mask,
                position_ids=self.rows.position_ids,
                taps=taps,
                read=self.rows.read,
            )
            self.cost.ran(self.batch)
            self._base = BaseRun(self.metric(logits, self.rows), residuals, kept)
        return self._base

    def _measuring(self) -> Iterator[Mapping[Site, Tap]]:
        """Yield the taps that measure sizes in a run at rest."""
        for layer in self.table.layers:
            yield {Site(layer, "resid_pre"): self.sizes.residual_tap(layer)}
        # of a part there may be off values of more places
        for place in dict.fromkeys(group.place for group in self.table.groups):
            yield looking(place, partial(self.sizes.measure, place, held=self._held[place]))

    def held(self, place: Place) -> Tensor:
        """Return the off value at a place, broadcastable to [batch, pos, ...]."""
        return self._held[place]

    def run(
        self, m: Float[Tensor, "setting batch component"], taps: Mapping[Site, Tap]
    ) -> Float[Tensor, "setting batch"]:
        """Return the metric with gates `m`, and with taps that see values after their gates."""
        return self._run(
            {group: m[..., group.columns] for group in self.table.groups}, len(m), taps=taps
        )

    def linearized(self, *, attention: bool, drops: bool) -> Linearized:
        """Run once and differentiate; see `Replay`."""
        return Replay(self, attention=attention, drops=drops).linearized()

    def inputs(self) -> InputPath:
        """Return the path between the layer-0 inputs of the two prompts."""
        return InputPath(self)

    @property
    def _depth(self) -> int:
        return self.model.anatomy().n_layers

    def relative_sizes(self) -> Float[Tensor, "batch component"]:
        """Return |x - reference| / |residual| for every component; see `Sizes`."""
        if not self.sizes.measured:
            self.at_rest()
        return self.sizes.relative().to(self.device)

    @torch.no_grad()
    def noise(self, columns: Sequence[int]) -> Float[Tensor, " batch"]:
        """Return how far rounding alone moves the metric: the largest of three sources.

        (1) The resting run in another batch shape; (2) a component's own value patched in, in a
        stacked suffix run; (3) its reference moved by one unit in the last place. (2) and (3)
        are tried on each of `columns`.
        """
        base = self.at_rest()
        sources = [(self._run({}, 2)[0] - base.value).abs()]
        places = [(column, self.table.group_of(column)) for column in columns]

        def closed(column: int, layer: int) -> Float[Tensor, "two batch"]:
            moves = [Move((column,), 1.0)] * 2
            gates = self._gates_of(moves, self._placed_by_columns(moves))
            return self._run(gates, 2, start=self._start(layer))

        own, _ = capture(self.model, self.ids, self.rows, {g.place for _, g in places})
        ulp = 1 + torch.finfo(self.model.dtype).eps
        held = self._held
        try:
            for column, group in places:
                layer, place = group.site.layer or 0, group.place
                self._held = {**held, place: own[place]}
                sources.append((closed(column, layer)[1] - base.value).abs())
                self._held = held
                exact = closed(column, layer)[0]
                self._held = {**held, place: held[place] * ulp}
                sources.append((closed(column, layer)[0] - exact).abs())
        finally:
            self._held = held
        return torch.stack(sources).amax(0)


def _written_at(place: Place) -> tuple[float, int]:
    """Return what sorts places by where they are written."""
    return (place if isinstance(place, Site) else place.site).order


def _capabilities(corrupted_run: bool) -> frozenset[str]:
    inside = {ATTENTION, DROPS}
    return frozenset(inside | {INPUT_PATH} if corrupted_run else inside)
