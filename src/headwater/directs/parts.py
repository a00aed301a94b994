"""Which rows a decomposition has: what was asked for, and the rest whole, so that the sum is whole.

A layer's write is one row, or is split: into heads, neurons or channels, and a bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from headwater.architectures.adapter import Adapter
from headwater.components import (
    KINDS,
    Choice,
    ComponentTable,
    Group,
    Kind,
    Selection,
    refuse_nested,
)
from headwater.directs.linear import LinearMap
from headwater.directs.norms import Norm, probed
from headwater.errors import GateError
from headwater.models import Model
from headwater.sites import Site

WHOLE: dict[str, Kind] = {"attn.out": "attention", "mlp.out": "mlp", "mixer.out": "mixer"}
"""Kinds that are a layer's whole write, by its site."""
INSIDE: dict[Kind, str] = {"head": "attn.out", "neuron": "mlp.out", "channel": "mixer.out"}
"""Kinds that a write is a sum of: each enters one linear projection. By the write's site."""
_INSTEAD = {
    "token": "The row 'input' is there anyway: leave hw.tokens() out (hw.nodes() holds it), and "
    "write hw.heads() + hw.mlps().",
    "residual": "The sum of the rows up to a layer is its residual: found.by_layer().",
    "ssm_head": "A norm mixes heads before the output projection: use hw.channels().",
    "ssm": "It acts through the scan: use hw.channels() or hw.mixers().",
    "conv": "It acts through the scan: use hw.channels() or hw.mixers().",
}
_ROUNDING, _NORM_BIAS, _HEAD_BIAS = "rounding", "norm bias", "head bias"


@dataclass(frozen=True)
class Part:
    """One row of a decomposition."""

    name: str
    kind: str
    """A component's kind, or `input`, `bias`, `rounding`."""
    layer: int | None = None
    index: int | None = None
    asked: bool = False
    """Whether it is one of the components that were asked for."""


@dataclass(frozen=True, eq=False)
class Write:
    """What one sublayer adds to the residual stream, and how it is split."""

    site: Site
    groups: tuple[Group, ...]
    """The components asked for here: the whole write, its parts, or none."""
    adapter: Adapter
    dtype: torch.dtype
    """The model's."""
    home: torch.device
    """Where values come from and go to."""

    @property
    def split(self) -> Group | None:
        """The parts the write is split into; None if it is one row."""
        return next((group for group in self.groups if group.kind in INSIDE), None)

    @property
    def name(self) -> str:
        """As a component: `a3`, `m3`, `mixer3`."""
        return KINDS[WHOLE[self.site.name]].written.format(layer=self.site.layer)

    def projection(self, *, wide: bool = True) -> LinearMap:
        """Return what leads from the parts side by side to the write, or to its norm's input.

        Made anew at every call: float64 copies of all layers at once could be larger than the
        model.
        """
        group, adapter, layer = self.split, self.adapter, self.site.layer
        assert group is not None
        assert layer is not None
        neurons = group.kind == "neuron"
        module = adapter.point(group.site).module if neurons else adapter.o_proj(layer)
        width = group.count * (adapter.d_head or 1 if group.kind == "head" else 1)
        return LinearMap(module, width, self.dtype, self.home, wide=wide)

    @cached_property
    def norm(self) -> Norm:
        """What the projection's output passes before it is added: mostly nothing."""
        module = self.adapter.point(self.site).module if self.adapter.family.post_norm else None
        return probed(module, self.adapter.d_model, self.dtype, self.home)

    @cached_property
    def has_bias(self) -> bool:
        """Whether something is written that belongs to no part."""
        return bool(self.projection(wide=False).bias.any()) or bool(self.norm.bias.any())

    def parts(self) -> Iterator[Part]:
        """Yield the rows of this write."""
        layer, whole, group = self.site.layer, WHOLE[self.site.name], self.split
        if group is None:
            yield Part(self.name, whole, layer, asked=bool(self.groups))
            return
        for index, name in enumerate(group.names()):
            yield Part(name, group.kind, layer, index, asked=True)
        if self.has_bias:
            yield Part(f"{self.name} bias", "bias", layer)


class Plan:
    """The rows of a decomposition, in the order in which they are written.

    Args:
        model: Its adapter says what is written where.
        selection: What was asked for; None for every sublayer whole.
        biases: Whether the final norm and the unembedding have any.

    Raises:
        GateError: If something was selected that writes nothing of its own to the residual.
        UnavailableSiteError: If the model does not offer a selected kind.
        NestedComponentsError: If one selected component lies inside another.
    """

    def __init__(
        self, model: Model, selection: Selection | None, biases: tuple[bool, bool]
    ) -> None:
        adapter = model.anatomy()
        self.selection = whole(adapter) if selection is None else selection
        for choice in self.selection.choices:
            _refuse(choice)
        self.table: ComponentTable = self.selection.expand(adapter)
        refuse_nested(self.table, torch.ones(1, len(self.table), dtype=torch.bool))
        self.writes = tuple(
            Write(site, tuple(self._at(site)), adapter, model.dtype, model.device)
            for layer in range(adapter.n_layers)
            for site in (Site(layer, name) for name in adapter.writes)
        )
        ends = zip((_NORM_BIAS, _HEAD_BIAS), biases, strict=True)
        self.parts: tuple[Part, ...] = (
            Part("input", "input"),
            *(part for write in self.writes for part in write.parts()),
            *(Part(name, "bias") for name, there in ends if there),
            Part(_ROUNDING, _ROUNDING),
        )

    @property
    def sites(self) -> list[Site]:
        """The sites whose values are needed beside the residual."""
        inner = [write.split.site for write in self.writes if write.split is not None]
        return [*(write.site for write in self.writes), *inner]

    def _at(self, site: Site) -> Iterator[Group]:
        kinds = {WHOLE[site.name], *(kind for kind, write in INSIDE.items() if write == site.name)}
        return (g for g in self.table.groups if g.kind in kinds and g.site.layer == site.layer)


def whole(adapter: Adapter) -> Selection:
    """Return every sublayer of a model, whole."""
    return Selection(tuple(Choice(WHOLE[name]) for name in adapter.writes))


def _refuse(choice: Choice) -> None:
    rule = KINDS[choice.kind]
    if choice.kind not in INSIDE and choice.kind not in WHOLE.values():
        instead = _INSTEAD.get(choice.kind, "They act through their heads: use hw.heads().")
        raise GateError(f"hw.{rule.plural}() have no direct write to the logits.\n{instead}")
    if choice.positions != "all":
        raise GateError(
            f"hw.{rule.plural}(positions={choice.positions!r}): a direct effect on a prediction "
            "exists only at the position that predicts.\n"
            f"Leave positions out, and say which prediction: position={_a_number(choice)}."
        )


def _a_number(choice: Choice) -> int:
    return -1 if isinstance(choice.positions, str) else choice.positions[0]
