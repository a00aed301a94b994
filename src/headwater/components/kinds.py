"""The kinds of component: where each lives, along which axis it is cut, how it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "token",
    "head",
    "query",
    "key",
    "value",
    "attention",
    "mlp",
    "neuron",
    "residual",
    "mixer",
    "channel",
    "ssm_head",
    "ssm",
    "conv",
    "feature",
    "error",
]
Unit = Literal["whole", "head", "kv_head", "neuron", "channel", "ssm_head", "feature"]


@dataclass(frozen=True)
class KindRule:
    """Where a kind of component lives, along which axis it is cut, and how it is written."""

    site: str
    """The site's name inside a layer, or the whole path for `embed`; of dictionaries none."""
    unit: Unit
    """The axis that the components of this kind share: `whole` means one component a site."""
    written: str
    """The name, with `{layer}`, `{index}`, `{h}` (`h`, or `kv` when kv heads are fewer) and, of
    dictionaries, `{at}` as in `CODED`."""
    plural: str
    """The function and command-line word that selects this kind."""


KINDS: dict[Kind, KindRule] = {
    "token": KindRule("embed", "whole", "input", "tokens"),
    "head": KindRule("attn.z", "head", "a{layer}.h{index}", "heads"),
    "query": KindRule("attn.q", "head", "a{layer}.h{index}<q>", "queries"),
    "key": KindRule("attn.k", "kv_head", "a{layer}.{h}{index}<k>", "keys"),
    "value": KindRule("attn.v", "kv_head", "a{layer}.{h}{index}<v>", "values"),
    "attention": KindRule("attn.out", "whole", "a{layer}", "attentions"),
    "mlp": KindRule("mlp.out", "whole", "m{layer}", "mlps"),
    "neuron": KindRule("mlp.post", "neuron", "m{layer}.n{index}", "neurons"),
    "residual": KindRule("resid_post", "whole", "r{layer}", "residual"),
    "mixer": KindRule("mixer.out", "whole", "mixer{layer}", "mixers"),
    "channel": KindRule("mixer.post", "channel", "mixer{layer}.c{index}", "channels"),
    "ssm_head": KindRule("mixer.y", "ssm_head", "mixer{layer}.h{index}", "ssm_heads"),
    "ssm": KindRule("mixer.ssm", "whole", "mixer{layer}<ssm>", "ssm"),
    "conv": KindRule("mixer.conv", "whole", "mixer{layer}<conv>", "conv"),
    "feature": KindRule("", "feature", "{at}.f{index}", "features"),
    "error": KindRule("", "whole", "{at}.error", "features"),
}

CODED: dict[str, str] = {
    "embed": "input",
    "attn.z": "a{layer}.z",
    "attn.out": "a{layer}",
    "resid_mid": "r{layer}.mid",
    "mlp.post": "m{layer}.post",
    "mlp.out": "m{layer}",
    "mixer.post": "mixer{layer}.post",
    "mixer.out": "mixer{layer}",
    "resid_post": "r{layer}",
}
"""Sites that dictionaries may write, and what their features' names begin with: `m3.f77`."""

INSIDE: dict[Kind, tuple[Kind, ...]] = {
    "attention": ("head", "query", "key", "value"),
    "head": ("query", "key", "value"),
    "mlp": ("neuron",),
    "mixer": ("channel", "ssm_head", "ssm", "conv"),
    "ssm": ("conv",),
}
"""Which kinds lie inside which: closing the outer one makes the inner one's gate meaningless. The
features of a dictionary lie inside the component that is the whole of their site, or has a part of
it (heads, neurons, channels)."""


@dataclass(frozen=True)
class Component:
    """One scored part of a model."""

    name: str
    kind: Kind
    layer: int | None
    index: int | None
    """Head, kv head, neuron or channel; None when the whole site is the component."""
    position: int | None
    """Counted from the first real token (negative: from the end); None means every position."""


assert set(KINDS) == set(get_args(Kind))  # a kind without a rule is a programming error
