"""One clean run of a model, kept with its graph: slopes, attention rows, and layers held constant.

Costs one forward and one backward. Holding layer l constant costs another backward through the
layers below it only: above it nothing changes, because the residual after the layer has the slope
it had, and hands it on to the residual before the layer as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headwater.attention import Attended, AttentionTaps, listening
from headwater.components import Group
from headwater.gates.linear import AttentionRows, Linearized, Replaced, Slopes
from headwater.gates.placement import places_of
from headwater.sites import Site
from headwater.taps import Tap

if TYPE_CHECKING:
    from headwater.gates.model import ModelGates

_BETWEEN_LAYERS = ("embed", "resid_post")
"""Sites that no layer's being dropped removes."""
_FIXED = {"query": "attn.q", "key": "attn.k"}


class Replay:
    """Runs the clean prompts once and keeps what a linearization needs.

    Args:
        function: The gated model at its clean end.
        attention: Whether attention rows are wanted.
        drops: Whether layers will be held constant.
    """

    def __init__(self, function: ModelGates, *, attention: bool, drops: bool) -> None:
        self.function = function
        self.adapter = function.model.anatomy()
        self.groups: dict[int, list[Group]] = defaultdict(list)
        for group in function.table.groups if attention else ():
            if group.kind in _FIXED:
                assert group.site.layer is not None
                self.groups[group.site.layer].append(group)
        self.drops = drops
        self.m = function.gates().requires_grad_()
        self.patterns: dict[int, Tensor] = {}
        self.before: dict[int, Tensor] = {}
        self.after: dict[int, Tensor] = {}
        self.rows: dict[int, AttentionRows] = {}
        self.replaced: list[Replaced] = []

    def linearized(self) -> Linearized:
        """Run, and differentiate once."""
        function = self.function
        with torch.enable_grad(), self._listening():
            (value,) = function.run(self.m, self._taps())
        wanted = [self.m, *self.patterns.values(), *self.after.values()]
        found = torch.autograd.grad(
            value.sum(), wanted, retain_graph=self.drops, materialize_grads=True
        )
        slopes = dict(zip(self.patterns, found[1:], strict=False))
        after = dict(zip(self.after, found[1 + len(self.patterns) :], strict=True))
        base = Slopes(found[0][0], slopes)
        inside = [
            None if group.site.name in _BETWEEN_LAYERS else group.site.layer
            for group in function.table.groups
            for _ in range(group.size)
        ]
        return Linearized(
            depth=self.adapter.n_layers,
            inside=inside,
            rows=self.rows,
            replaced=self.replaced,
            slopes=base,
            dropped=lambda layer: self._dropped(layer, base, after),
        )

    def _dropped(
        self,
        layer: int,
        base: Slopes,
        after: Mapping[int, Tensor],
    ) -> Slopes:
        below = [number for number in self.patterns if number < layer]
        above = {number: slope for number, slope in base.patterns.items() if number > layer}
        if layer in after and layer in self.before and self.before[layer].requires_grad:
            wanted = [self.m, *(self.patterns[number] for number in below)]
            gates, *patterns = torch.autograd.grad(
                self.before[layer],
                wanted,
                after[layer],
                retain_graph=True,
                materialize_grads=True,
            )
            self.function.cost.backwards += self.function.batch * layer / self.adapter.n_layers
            gates = gates[0]
        else:  # nothing that is gated lies below
            gates, patterns = torch.zeros_like(base.gates), []
        kept = self._heights > layer
        return Slopes(
            torch.where(kept, base.gates, gates), above | dict(zip(below, patterns, strict=True))
        )

    @cached_property
    def _heights(self) -> Float[Tensor, " component"]:
        """Where each component acts: in layer l at l, between l and l + 1 at l + 1/2."""
        heights = []
        for group in self.function.table.groups:
            layer = -1 if group.site.layer is None else group.site.layer
            height = layer + (group.site.name in _BETWEEN_LAYERS) / 2
            heights.append(torch.full((group.size,), height, device=self.m.device))
        return torch.cat(heights)

    def _taps(self) -> dict[Site, Tap]:
        taps: dict[Site, Tap] = {
            Site(layer, "attn.pattern"): self._keep_pattern(layer) for layer in self.groups
        }
        if self.drops:
            for layer in range(self.adapter.n_layers):
                taps[Site(layer, "resid_pre")] = _kept(self.before, layer)
                taps[Site(layer, "resid_post")] = _kept(self.after, layer)
        return taps

    def _keep_pattern(self, layer: int) -> Tap:
        def tap(pattern: Tensor) -> Tensor:
            if not pattern.requires_grad:  # nothing upstream is gated
                pattern = pattern.detach().requires_grad_()
            self.patterns[layer] = pattern
            return pattern

        return tap

    def _listening(self):
        readers: dict[nn.Module, AttentionTaps] = {
            self.adapter.attention(layer): AttentionTaps(reader=self._reader(layer))
            for layer in self.groups
        }
        return listening(readers) if readers else nullcontext()

    def _reader(self, layer: int):
        def read(attended: Attended) -> None:
            with torch.no_grad():
                scorer, query, key = attended.scorer, attended.query, attended.key
                pattern = scorer.pattern(attended.scores, query.dtype)
                self.rows[layer] = AttentionRows(pattern, attended.scores.detach(), scorer.sinks)
                for group in self.groups[layer]:
                    held = self.function.held(group.site).to(query)
                    is_query = group.kind == "query"
                    new_query = held.expand_as(query) if is_query else query
                    new_key = key if is_query else held.expand_as(key)
                    scores = scorer.scores(new_query.transpose(1, 2), new_key.transpose(1, 2))
                    places = None
                    if group.positions is not None:
                        places = places_of(group, self.function.rows).to(query.device)
                    self.replaced.append(
                        Replaced(
                            columns=group.columns,
                            kind="query" if is_query else "key",
                            layer=layer,
                            scores=scores,
                            places=places,
                            kv_heads=key.shape[2],
                        )
                    )

        return read


def _kept(kept: dict[int, Tensor], layer: int) -> Tap:
    """Return a tap that keeps the very tensor, where anything gated flows through it."""

    def tap(value: Tensor) -> None:
        if value.requires_grad:
            kept[layer] = value

    return tap
