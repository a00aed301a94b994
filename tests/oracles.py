"""Slow, obvious twins of gated runs: plain PyTorch hooks, one component and one run at a time.

Nothing of headwater's adapters, taps or gates comes in here. Where a part of a model is was read
off each family's modeling file; a value at a part is always shown as [batch, pos, unit, width],
where a unit is a head, a key-value head, a neuron, or the whole site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from tiny_models import build

Place = tuple[str, int]
"""A kind of part, and its layer."""


@dataclass(frozen=True)
class Names:
    """Module names of one family, from the layer on."""

    layers: str = "model.layers"
    o_proj: str = "self_attn.o_proj"
    attn: str = "self_attn"
    """The module whose output is added to the residual for attention."""
    mlp: str = "mlp"
    """The same for the MLP."""
    down: str | None = "mlp.down_proj"
    """The module whose input is the neurons; None where experts are chosen token by token."""
    calls: str | None = "self_attn"
    """The module that calls transformers' attention interface; None where none does."""
    mixer: str | None = None


GPT_J = Names("transformer.h", "attn.out_proj", "attn", "mlp", "mlp.fc_out", calls=None)
NEOX = Names(
    "gpt_neox.layers", "attention.dense", "attention", "mlp", "mlp.dense_4h_to_h", "attention"
)
FALCON = Names(
    "transformer.h",
    "self_attention.dense",
    "self_attention",
    "mlp",
    "mlp.dense_4h_to_h",
    calls=None,
)
BOTH_NORMS = Names(attn="post_attention_layernorm", mlp="post_feedforward_layernorm")
EXPERTS = Names(down=None)
MAMBA = Names("backbone.layers", down=None, calls=None, mixer="mixer")

NAMES: dict[str, Names] = {
    "GPT-2": Names("transformer.h", "attn.c_proj", "attn", "mlp", "mlp.c_proj", "attn"),
    "GPT-NeoX": NEOX,
    "GPT-NeoX sequential": NEOX,
    "Gemma 2": BOTH_NORMS,
    "Gemma 3": BOTH_NORMS,
    "OLMo 2": BOTH_NORMS,
    "Phi": Names(o_proj="self_attn.dense", down="mlp.fc2"),
    "OPT": Names("model.decoder.layers", "self_attn.out_proj", mlp="fc2", down="fc2"),
    "Mixtral": EXPERTS,
    "gpt-oss": EXPERTS,
    "GPT-J": GPT_J,
    "BLOOM": Names(
        "transformer.h",
        "self_attention.dense",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "mlp.dense_4h_to_h",
        calls=None,
    ),
    "Falcon": FALCON,
    "Falcon sequential": FALCON,
    "Falcon new": FALCON,
    "GPT-Neo": Names(
        "transformer.h", "attn.attention.out_proj", "attn", "mlp", "mlp.c_proj", calls=None
    ),
    "Mamba": MAMBA,
    "Mamba-2": MAMBA,
}
"""Families that differ from Llama."""


@dataclass(frozen=True)
class Part:
    """One component, told in plain numbers."""

    kind: str
    layer: int = 0
    unit: int = 0
    position: int | None = None

    @property
    def place(self) -> Place:
        """Kind and layer."""
        return self.kind, self.layer

    def name(self, twin: Twin) -> str:
        """What headwater calls it."""
        layer, unit = self.layer, self.unit
        kv = "kv" if twin.units("key") < twin.units("head") else "h"
        bare = {
            "token": "input",
            "head": f"a{layer}.h{unit}",
            "query": f"a{layer}.h{unit}<q>",
            "key": f"a{layer}.{kv}{unit}<k>",
            "value": f"a{layer}.{kv}{unit}<v>",
            "attention": f"a{layer}",
            "mlp": f"m{layer}",
            "neuron": f"m{layer}.n{unit}",
            "residual": f"r{layer}",
            "mixer": f"mixer{layer}",
        }[self.kind]
        return bare if self.position is None else f"{bare}@{self.position}"


class Float64(TorchFunctionMode):
    """Asked for float32, a float64 tensor stays as it is."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if one is torch.float32 else one for one in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


class Twin:
    """A tiny model of one family, run by plain hooks with at most one part changed."""

    def __init__(self, family: str, dtype: torch.dtype = torch.float64) -> None:
        self.names = NAMES.get(family, Names())
        self.module = build(family, dtype=dtype)
        self.config = self.module.config
        if self.names.calls is not None:
            self.module.set_attn_implementation("eager")
        if self.names == EXPERTS:
            self.module.set_experts_implementation("eager")
        self.layers = self.module.get_submodule(self.names.layers)

    @property
    def kinds(self) -> list[str]:
        """What this family has."""
        if self.names.mixer is not None:
            return ["token", "residual", "mixer"]
        inside = [] if self.names.calls is None else ["query", "key", "value"]
        neurons = [] if self.names.down is None else ["neuron"]
        return ["token", "residual", "head", "attention", "mlp", *inside, *neurons]

    def units(self, kind: str) -> int:
        """Heads, key-value heads or neurons of a layer; 1 for a whole site."""
        if self.names.mixer is not None:
            return 1
        heads = self.config.num_attention_heads
        if kind in ("key", "value"):
            return getattr(self.config, "num_key_value_heads", None) or heads
        if kind == "neuron":
            down = self.layers[0].get_submodule(self.names.down)
            return getattr(down, "nx", None) or down.in_features
        return heads if kind in ("head", "query") else 1

    @torch.no_grad()
    def run(self, ids: Tensor, changes: dict[Place, Callable[[Tensor], Tensor]]) -> Tensor:
        """Return all logits, [batch, pos, vocab], with each place's value passed through a change.

        Every run starts at the first token and ends at the last, without cache or mask.
        """
        with ExitStack() as stack:
            stack.enter_context(Float64())
            for place, change in changes.items():
                stack.enter_context(self._changed(place, change, ids.shape))
            return self.module(ids, use_cache=False).logits

    def values(self, ids: Tensor, places: Sequence[Place]) -> dict[Place, Tensor]:
        """Return the value at each place, [batch, pos, unit, width]."""
        kept: dict[Place, Tensor] = {}

        def keeping(place: Place) -> Callable[[Tensor], Tensor]:
            return lambda value: kept.setdefault(place, value.clone())

        self.run(ids, {place: keeping(place) for place in places})
        return kept

    def mixed(self, ids: Tensor, part: Part, reference: Tensor, m: float) -> Tensor:
        """Return all logits with one part at `reference + m * (value - reference)`.

        Args:
            ids: Prompts of one length.
            part: What is changed; nothing else is.
            reference: Broadcasts against [batch, pos, unit, width].
            m: 0 for the reference itself.
        """

        def change(value: Tensor) -> Tensor:
            off = reference.expand_as(value)
            changed = value.clone()
            at = slice(None) if part.position is None else part.position
            old, new = value[:, at, part.unit], off[:, at, part.unit]
            changed[:, at, part.unit] = new + m * (old - new) if m else new
            return changed

        return self.run(ids, {part.place: change})

    @contextmanager
    def _changed(
        self, place: Place, change: Callable[[Tensor], Tensor], shape: torch.Size
    ) -> Iterator[None]:
        kind, number = place
        layer, names = self.layers[number], self.names

        def shown(value: Tensor) -> Tensor:
            seen = value.reshape(*shape, self.units(kind), -1)
            return change(seen).reshape(value.shape).clone()

        def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (shown(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": shown(kwargs["hidden_states"])}

        def on_output(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (shown(output[0]), *output[1:])
            return shown(output)

        if kind in ("query", "key", "value"):
            attention = layer.get_submodule(names.calls)
            self.module.set_attn_implementation("oracle")
            inside = _inside.setdefault(attention, {})
            inside[kind] = lambda value: shown(value.transpose(1, 2)).transpose(1, 2)
            try:
                yield
            finally:
                _inside.clear()
                self.module.set_attn_implementation("eager")
            return
        inputs = {"token": "", "head": names.o_proj, "neuron": names.down}
        outputs = {"residual": "", "attention": names.attn, "mlp": names.mlp, "mixer": names.mixer}
        if kind in inputs:
            module = layer.get_submodule(inputs[kind] or "")
            handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
        else:
            handle = layer.get_submodule(outputs[kind] or "").register_forward_hook(on_output)
        try:
            yield
        finally:
            handle.remove()


_inside: dict[nn.Module, dict[str, Callable[[Tensor], Tensor]]] = {}
"""What the oracle's attention changes: by the module that calls it, then query, key or value."""


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Attend head by head, as the formula says; queries and keys come after rotary."""
    changes = _inside.get(module, {})
    query = changes["query"](query) if "query" in changes else query
    key = changes["key"](key) if "key" in changes else key
    value = changes["value"](value) if "value" in changes else value
    heads, size = query.shape[1], query.shape[-1]
    group = heads // key.shape[1]
    scaling = size**-0.5 if scaling is None else scaling
    outputs, patterns = [], []
    for head in range(heads):
        q, k, v = query[:, head], key[:, head // group], value[:, head // group]
        scores = scaling * torch.einsum("bqd,bkd->bqk", q, k)
        if options.get("softcap") is not None:
            scores = options["softcap"] * torch.tanh(scores / options["softcap"])
        scores = scores.masked_fill(attention_mask[:, 0] < 0, -torch.inf)
        sink = options.get("s_aux")
        if sink is not None:
            column = sink[head].expand(*scores.shape[:2], 1)
            pattern = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
        else:
            pattern = torch.softmax(scores, -1)
        patterns.append(pattern)
        outputs.append(pattern @ v)
    return torch.stack(outputs, 2).contiguous(), torch.stack(patterns, 1)


AttentionInterface.register("oracle", plain_attention)
AttentionMaskInterface.register("oracle", eager_mask)


def logit_difference(logits: Tensor, answer: Tensor, wrong: Tensor) -> Tensor:
    """The answer's logit minus the wrong one's, at the last position, [batch]."""
    last = logits[:, -1]
    rows = torch.arange(len(last))
    return last[rows, answer] - last[rows, wrong]
