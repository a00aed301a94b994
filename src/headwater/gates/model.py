"""A model with gates: each component at `lerp(reference, x, m)`, one metric out.

The only place in headwater where a model runs with a changed activation. One forward a call, with
all settings stacked in the batch. `switched` starts each run at the component's layer from the
cached residual, so that exact effects cost about half a forward each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.components import ComponentTable, Group, refuse_nested
from headwater.errors import UnfitReferenceError
from headwater.gates.function import Cost, End, GatedFunction
from headwater.gates.placement import spread_weight
from headwater.gates.sizes import Sizes
from headwater.metrics import Metric, kl
from headwater.models import Model
from headwater.prompts import Batch
from headwater.references import OffValues, capture
from headwater.sites import Site
from headwater.taps import Tap

Place = tuple[int, Group]
"""A gate's column and the group that holds it."""


@dataclass
class BaseRun:
    """What one run with all gates at rest leaves behind."""

    value: Float[Tensor, " batch"]
    residuals: dict[int, Float[Tensor, "batch pos d_model"]]
    """The residual entering each layer that holds components; suffix runs start from these."""


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
    ) -> None:
        self.model, self.metric, self.table, self.off = model, metric, table, off
        self.rows, self.corrupted_run, self.tokens = batch, corrupted_run, tokens
        super().__init__(
            fn=self._metric_of,
            names=table.names,
            batch=len(batch.pairs),
            # the gates' gradient is summed in float32 at least, whatever the model computes in
            dtype=torch.promote_types(model.dtype, torch.float32),
            device=model.device,
            end=end,
            stationary=frozenset({"clean"}) if isinstance(metric, kl) else frozenset(),
            cost=Cost() if cost is None else cost,
        )
        self.sizes = Sizes(model.anatomy(), table, batch)
        self._base: BaseRun | None = None
        self._value: Tensor | None = None
        self._held = off.values
        self._clean_logits: Tensor | None = None
        if end == "corrupted":
            self._held, self._clean_logits = capture(model, batch.clean, batch, off.values)
            self.cost.ran(self.batch)
        elif "clean_logits" in metric.needs:
            _, self._clean_logits = capture(model, batch.clean, batch, ())
            self.cost.ran(self.batch)
        if self._clean_logits is not None and "clean_logits" in metric.needs:
            self.rows = batch.with_clean_logits(self._clean_logits)

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
        )

    def _metric_of(self, m: Float[Tensor, "setting batch component"]) -> Tensor:
        moved = (m.detach() != self.base).any(1)
        if bool((moved.sum(1) > 1).any()):
            refuse_nested(self.table, moved)
        return self._run({group: m[..., group.columns] for group in self.table.groups}, len(m))

    def _evaluate(self, m: Tensor) -> Tensor:
        return self.fn(m)  # counted where the model runs

    def value(self) -> Float[Tensor, " batch"]:
        """Return the metric with all gates at rest, cached from whatever resting run came first."""
        return self._at_rest().value if self._value is None else self._value

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
    def switched(self, columns: Sequence[int]) -> Float[Tensor, "index batch"]:
        """Return the metric with one gate at a time moved to the other end.

        Runs start at the component's layer; many gates of one layer are stacked in the batch.
        """
        base = self._at_rest()
        by_layer: dict[int, list[Place]] = defaultdict(list)
        for column in columns:
            group = self.table.group_of(column)
            by_layer[group.site.layer or 0].append((column, group))
        results: dict[int, Tensor] = {}
        chunk = max(1, self.tokens // self.ids.numel())
        for layer, members in sorted(by_layer.items()):
            for first in range(0, len(members), chunk):
                places = members[first : first + chunk]
                values = self._switch(places, layer, base)
                results |= dict(zip((column for column, _ in places), values, strict=True))
        if not columns:
            return base.value.new_empty(0, self.batch)
        return torch.stack([results[column] for column in columns])

    def _switch(
        self, places: Sequence[Place], layer: int, base: BaseRun
    ) -> Float[Tensor, "setting batch"]:
        gates: dict[Group, Tensor] = {}
        for setting, (column, group) in enumerate(places):
            if group not in gates:
                shape = (len(places), self.batch, group.size)
                gates[group] = torch.full(shape, self.base, dtype=self.dtype, device=self.device)
            gates[group][setting, :, column - group.start] = 1.0 - self.base
        start = (layer, base.residuals[layer]) if layer > 0 else None
        return self._run(gates, len(places), start=start)

    def _run(
        self,
        gates: Mapping[Group, Float[Tensor, "setting batch component"]],
        settings: int,
        *,
        start: tuple[int, Tensor] | None = None,
    ) -> Float[Tensor, "setting batch"]:
        rows = self.rows.repeat(settings) if settings > 1 else self.rows
        ids = self.ids.repeat(settings, 1)
        at_site: dict[Site, list[Group]] = defaultdict(list)
        for group in gates:
            at_site[group.site].append(group)
        resting = all(bool((m.detach() == self.base).all()) for m in gates.values())
        measured = resting and settings == 1 and start is None and bool(gates)
        taps: dict[Site, Tap] = {
            site: self._gate(site, {group: gates[group] for group in members}, rows, measured)
            for site, members in at_site.items()
        }
        if measured:
            taps |= self._with_residuals_measured(taps)
        share = 1.0
        if start is not None:
            layer, residual = start
            start = (layer, residual.repeat(settings, 1, 1))
            share = 1 - layer / self._depth
        logits = self.model.forward(
            ids,
            mask=rows.mask,
            position_ids=rows.position_ids,
            taps=taps,
            start=start,
            read=rows.read,
        )
        differentiated = any(m.requires_grad for m in gates.values())
        self.cost.ran(settings * self.batch * share, backward=differentiated)
        value = self.metric(logits, rows).reshape(settings, self.batch)
        if measured:
            self._value = value[0].detach()
        return value

    def _gate(self, site: Site, gates: Mapping[Group, Tensor], rows: Batch, measured: bool) -> Tap:
        """Return the tap that gates every component at one site."""

        def tap(value: Tensor) -> Tensor:
            held = self._held[site].to(value.device, value.dtype)
            settings = len(value) // self.batch
            if settings > 1 and held.ndim and len(held) == self.batch:
                held = held.repeat(settings, *[1] * (held.ndim - 1))
            if measured:
                self.sizes.measure(site, value.detach(), held)
            for group, m in gates.items():
                weight = spread_weight(group, m.to(value), value, rows, self.base)
                if self.end == "clean":
                    value = torch.lerp(held, value, weight)
                else:
                    value = torch.lerp(value, held, weight)
            return value

        return tap

    def _at_rest(self) -> BaseRun:
        if self._base is None:
            residuals: dict[int, Tensor] = {}

            def keep(layer: int) -> Tap:
                def tap(value: Tensor) -> None:
                    residuals[layer] = value.detach().clone()

                return tap

            def measure(site: Site) -> Tap:
                return lambda value: self.sizes.measure(site, value, self._held[site])

            taps: dict[Site, Tap] = {site: measure(site) for site in self._held}
            taps |= self._with_residuals_measured(taps)
            for layer in self.table.layers:
                site = Site(layer, "resid_pre")
                taps[site] = _both(taps[site], keep(layer))
            with torch.no_grad():
                logits = self.model.forward(
                    self.ids,
                    mask=self.rows.mask,
                    position_ids=self.rows.position_ids,
                    taps=taps,
                    read=self.rows.read,
                )
                self.cost.ran(self.batch)
                self._base = BaseRun(self.metric(logits, self.rows), residuals)
        return self._base

    def _with_residuals_measured(self, taps: Mapping[Site, Tap]) -> dict[Site, Tap]:
        measured: dict[Site, Tap] = {}
        for layer in self.table.layers:
            site = Site(layer, "resid_pre")
            there = taps.get(site)
            tap = self.sizes.residual_tap(layer)
            measured[site] = tap if there is None else _both(tap, there)
        return measured

    @property
    def _depth(self) -> int:
        return self.model.anatomy().n_layers

    def relative_sizes(self) -> Float[Tensor, "batch component"]:
        """Return |x - reference| / |residual| for every component; see `Sizes`."""
        if not self.sizes.measured:
            self._at_rest()
        return self.sizes.relative().to(self.device)

    @torch.no_grad()
    def noise(self, columns: Sequence[int]) -> Float[Tensor, " batch"]:
        """Return how far rounding alone moves the metric: the largest of three sources.

        (1) The resting run in another batch shape; (2) a component's own value patched in, in a
        stacked suffix run; (3) its reference moved by one unit in the last place. (2) and (3)
        are tried on each of `columns`.
        """
        base = self._at_rest()
        sources = [(self._run({}, 2)[0] - base.value).abs()]
        places = [(column, self.table.group_of(column)) for column in columns]
        own, _ = capture(self.model, self.ids, self.rows, {g.site for _, g in places})
        ulp = 1 + torch.finfo(self.model.dtype).eps
        held = self._held
        try:
            for column, group in places:
                layer, site = group.site.layer or 0, group.site
                stacked = [(column, group)] * 2
                self._held = {**held, site: own[site]}
                sources.append((self._switch(stacked, layer, base)[1] - base.value).abs())
                self._held = held
                exact = self._switch(stacked, layer, base)[0]
                self._held = {**held, site: held[site] * ulp}
                sources.append((self._switch(stacked, layer, base)[0] - exact).abs())
        finally:
            self._held = held
        return torch.stack(sources).amax(0)


def _both(first: Tap, second: Tap) -> Tap:
    """Call two taps at one site; the first only looks."""

    def tap(value: Tensor) -> Tensor | None:
        first(value)
        return second(value)

    return tap
