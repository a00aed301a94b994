"""A loaded model resolved into an adapter: for each site the module, the side and the shape.

Resolving runs nothing and touches no weight; whether the record fits is the self-proof's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from headwater.architectures.table import BY_MODEL_TYPE, Family
from headwater.errors import UnavailableSiteError, UnknownSiteError, UnsupportedModelError, closest
from headwater.sites import EMBED, LAYER_NAMES, Site

Side = Literal["input", "output", "query", "key", "value", "pattern", "split", "logits"]

_QKV = ("attn.q", "attn.k", "attn.v", "attn.pattern")
_GROUPS: dict[str, tuple[str, ...]] = {
    "attention": (*_QKV, "attn.z", "attn.out"),
    "q/k/v/pattern": _QKV,
    "neurons": ("mlp.pre", "mlp.gate", "mlp.up", "mlp.post"),
    "mlp": ("mlp.in", "mlp.pre", "mlp.gate", "mlp.up", "mlp.post", "mlp.out"),
    "mixer": ("mixer.in", "mixer.conv", "mixer.ssm", "mixer.y", "mixer.post", "mixer.out"),
    "state-space heads": ("mixer.y",),
}


_KEEPS_ITS_INPUT = ("silu", "swish", "gelu")
"""Activations whose output may be overwritten before the backward pass."""


@dataclass(frozen=True)
class Point:
    """Where a tap is installed and how the tensor there becomes the site's shape."""

    module: nn.Module
    """The module that is hooked; for q, k, v and pattern the attention module itself."""
    side: Side
    """Which tensor of that module: its input, its output, one inside the attention interface, or
    the one that it splits."""
    heads: int | None = None
    """Split the last axis into this many heads."""
    half: int | None = None
    """The site is the first (0) or second (1) half of the last axis."""
    span: tuple[int, int] | None = None
    """The site is these columns of the last axis, from the first up to the second."""
    parts: tuple[int, ...] | None = None
    """Sizes of the parts by which a tensor is known that the module splits."""
    inside: nn.Module | None = None
    """A module whose every call must come past here; a fused kernel may compute it another way."""
    in_place: bool = False
    """The block uses this very tensor again as its residual: a replacement is copied into it."""
    mutated: bool = False
    """The model changes this tensor in place afterwards, or uses it elsewhere too: the tap gets one
    of its own."""


@dataclass(frozen=True)
class Adapter:
    """A model's parts under headwater's names."""

    family: Family
    n_layers: int
    d_model: int
    n_heads: int | None
    """None for a family without attention."""
    n_kv_heads: int | None
    d_head: int | None
    d_mlp: int | None
    """Neurons a layer; None where there is no fixed list of them."""
    d_inner: int | None
    """Channels of a state-space mixer; None for a family without one."""
    d_conv: int | None
    """Channels of the mixer's convolution: `d_inner` in Mamba, more in Mamba-2."""
    n_ssm_heads: int | None
    """Heads of a state-space mixer; None where each channel has a state of its own."""
    vocab: int
    layers: tuple[nn.Module, ...]
    final_norm: nn.Module | None
    unembed: nn.Module
    write_scale: float
    """What `attn.out` and `mlp.out` are multiplied by when they are added to the residual."""
    parallel: bool
    """Attention and MLP of a layer read the same residual."""
    missing: Mapping[str, str]
    """Site name -> why this model does not offer it."""
    points: Mapping[Site, Point]
    pads: bool = True
    """Left padding changes no number; False: group prompts by length instead."""

    @property
    def interface(self) -> bool:
        """Whether the attention interface gives q, k, v and the pattern."""
        return self.family.interface and self.n_heads is not None

    @property
    def writes(self) -> tuple[str, ...]:
        """The site names in a layer whose tensors are added to the residual, in order."""
        return ("mixer.out",) if self.family.mixer else ("attn.out", "mlp.out")

    def sites(self) -> list[Site]:
        """Every site this model offers, in the order a forward pass computes them."""
        names = [name for name in LAYER_NAMES if name not in self.missing]
        inner = [Site(layer, name) for layer in range(self.n_layers) for name in names]
        last = [] if self.final_norm is None else [Site(None, "final_norm")]
        return [EMBED, *inner, *last, Site(None, "logits")]

    def point(self, site: Site) -> Point:
        """Where `site` is in this model.

        Args:
            site: A place, for example `Site(3, "attn.z")`.

        Returns:
            The module, the side and the shape.

        Raises:
            UnavailableSiteError: If this family does not offer the site; says why.
            UnknownSiteError: If the layer does not exist.
        """
        found = self.points.get(site)
        if found is not None:
            return found
        if site.layer is not None and site.layer >= self.n_layers:
            raise UnknownSiteError(
                f"no site '{site}': {self.family.example} has {self.n_layers} layers, "
                f"the last is 'layers.{self.n_layers - 1}.{site.name}'."
            )
        raise UnavailableSiteError(
            f"no '{site}' in {self.family.name}: {self.missing[site.name]}.\n"
            f"A layer offers: {', '.join(n for n in LAYER_NAMES if n not in self.missing)}."
        )

    def attention(self, layer: int) -> nn.Module:
        """The attention module of a layer, the one that calls the attention interface."""
        return _at(self.layers[layer], self.family.attn)

    def o_proj(self, layer: int) -> nn.Module:
        """The output projection of a layer's attention (of its mixer in Mamba)."""
        return _at(self.layers[layer], self.family.o_proj)


def family_of(config: Any) -> Family | None:
    """The record for a model's configuration, or None if there is none."""
    kind = getattr(_text_config(config), "model_type", None)
    return BY_MODEL_TYPE.get(kind) if kind else None


def no_family(described: str, config: Any) -> str:
    """Say that a model's family is unknown, and which one is closest.

    Args:
        described: The model's class.
        config: Its configuration.

    Returns:
        The message of the error.
    """
    kind = str(getattr(_text_config(config), "model_type", "?"))
    near = closest(kind, BY_MODEL_TYPE)
    likely = BY_MODEL_TYPE[near[0]] if near else BY_MODEL_TYPE["llama"]
    return (
        f"{described} (model_type {kind!r}) is not in headwater's table of "
        f"architectures; the closest family is {likely.name} ({likely.example}).\n"
        "`headwater models` lists the families that can be attributed."
    )


def lacking(family: Family, *, parallel: bool) -> dict[str, str]:
    """What a family does not offer.

    Args:
        family: The record.
        parallel: Whether attention and MLP read the same residual in this model.

    Returns:
        Site name -> why there is no such site.
    """
    missing: dict[str, str] = {}
    for group, reason in family.missing.items():
        missing |= dict.fromkeys(_GROUPS[group], reason)
    if family.mixer is not None:
        reason = family.missing["attention"]
        missing |= dict.fromkeys((*_GROUPS["attention"], *_GROUPS["mlp"], "resid_mid"), reason)
        return missing
    missing |= dict.fromkeys(_GROUPS["mixer"], "its layers hold attention and an MLP, no mixer")
    if parallel:
        missing["resid_mid"] = "attention and MLP read the same residual, nothing lies between"
    if family.pre is None:
        missing.setdefault("mlp.pre", "its MLP is gated: use mlp.gate and mlp.up")
    if family.gate is None:
        for name in ("mlp.gate", "mlp.up"):
            missing.setdefault(name, "its MLP has no gate: use mlp.pre")
    return missing


def resolve(module: nn.Module, family: Family | None = None) -> Adapter:
    """Find the parts of a causal language model.

    Args:
        module: A Hugging Face causal language model.
        family: The record to use; by default the one for the model's configuration.

    Returns:
        The adapter, not yet proved.

    Raises:
        UnsupportedModelError: If the family is unknown, refused, or its paths do not exist.
    """
    config = _text_config(module.config)
    family = family or family_of(module.config)
    if family is None:
        raise UnsupportedModelError(no_family(type(module).__name__, config))
    for name, (value, reason) in family.refuses.items():
        if getattr(config, name, None) == value:
            raise UnsupportedModelError(
                f"{type(module).__name__} with {name}={value}: {reason}, so its residual stream "
                "is not a sum of writes. `headwater models` lists what is supported."
            )
    try:
        return _resolved(module, config, family)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(module).__name__} has not the parts of {family.name}: {error}. "
            "`headwater models` lists what is supported."
        ) from error


def _resolved(module: nn.Module, config: Any, family: Family) -> Adapter:
    backbone = _backbone(module, family)
    layers = tuple(_at(backbone, family.layers))
    # OPT and others leave the final norm out in some checkpoints
    final_norm = getattr(backbone, family.final_norm)
    parallel = any(bool(getattr(config, name, False)) for name in family.parallel_if)
    parallel = parallel or (family.mid is None and family.mixer is None)
    heads = None if family.mixer else int(config.num_attention_heads)
    ssm_heads = int(config.num_heads) if family.ssm_norm else None
    missing = lacking(family, parallel=parallel) | _unreachable(config, family)
    points: dict[Site, Point] = {EMBED: Point(layers[0], "input")}
    for number, layer in enumerate(layers):
        parts = (
            _attention_points(layer, family, heads)
            if family.mixer is None
            else _mixer_points(layer, family, ssm_heads)
        )
        for name, point in (_ends(layer) | parts).items():
            if name not in missing:
                points[Site(number, name)] = point
    if final_norm is not None:
        points[Site(None, "final_norm")] = Point(final_norm, "output")
    unembed = getattr(module, "get_output_embeddings", lambda: None)()
    if unembed is None:
        raise AttributeError("it has no unembedding, so it predicts no next token")
    points[Site(None, "logits")] = Point(unembed, "logits")
    return Adapter(
        family=family,
        n_layers=len(layers),
        d_model=int(config.hidden_size),
        n_heads=heads,
        n_kv_heads=None if heads is None else _kv_heads(config, heads),
        d_head=None if heads is None else _head_size(config, heads),
        d_mlp=None if family.down is None or family.mixer else _width(_at(layers[0], family.down)),
        d_inner=_width(_at(layers[0], family.o_proj)) if family.mixer else None,
        d_conv=_at(layers[0], family.mixer).conv1d.in_channels if family.mixer else None,
        n_ssm_heads=ssm_heads,
        vocab=int(getattr(unembed, "out_features", config.vocab_size)),
        layers=layers,
        final_norm=final_norm,
        unembed=unembed,
        write_scale=1.0
        if family.write_scale is None
        else float(getattr(config, family.write_scale)),
        parallel=parallel,
        missing=missing,
        points=points,
    )


def _unreachable(config: Any, family: Family) -> dict[str, str]:
    """What a model does not offer because of its configuration."""
    activation = getattr(config, "hidden_act", None)
    if family.x_proj is None or activation in _KEEPS_ITS_INPUT:
        return {}
    return {
        "mixer.ssm": f"its activation {activation!r} keeps its output for the backward pass, and "
        f"only an activation that keeps its input ({', '.join(_KEEPS_ITS_INPUT)}) can be replaced "
        "there: use mixer.conv"
    }


def _ends(layer: nn.Module) -> dict[str, Point]:
    return {"resid_pre": Point(layer, "input"), "resid_post": Point(layer, "output")}


def _mixer_points(layer: nn.Module, family: Family, heads: int | None) -> dict[str, Point]:
    assert family.mixer is not None
    assert family.in_proj is not None
    mixer, in_proj = _at(layer, family.mixer), _at(layer, family.in_proj)
    points = {
        "mixer.in": Point(mixer, "input"),
        "mixer.post": Point(_at(layer, family.o_proj), "input", inside=mixer),
        "mixer.out": Point(mixer, "output"),
    }
    if family.x_proj is not None:
        points["mixer.conv"] = Point(in_proj, "output", half=0)
        # the scan reads this very tensor too
        points["mixer.ssm"] = Point(_at(layer, family.x_proj), "input", in_place=True, inside=mixer)
        return points
    inner, groups = mixer.intermediate_size, mixer.n_groups * mixer.ssm_state_size
    points["mixer.conv"] = Point(in_proj, "output", span=(inner, 2 * inner + 2 * groups))
    points["mixer.ssm"] = Point(mixer, "split", parts=(inner, groups, groups), inside=mixer)
    if family.ssm_norm is not None:
        norm = _at(layer, family.ssm_norm)
        points["mixer.y"] = Point(norm, "input", heads=heads, inside=mixer)
    return points


def _attention_points(layer: nn.Module, family: Family, heads: int | None) -> dict[str, Point]:
    points = {
        "attn.z": Point(_at(layer, family.o_proj), "input", heads=heads),
        "attn.out": Point(_at(layer, family.attn_write), "output"),
    }
    mlp_write = _at(layer, family.mlp_write)
    points["mlp.out"] = Point(mlp_write, "output", mutated="mlp.out" in family.mutates)
    attention = _at(layer, family.attn)
    if family.interface:
        for name, side in zip(_QKV, ("query", "key", "value", "pattern"), strict=True):
            points[name] = Point(attention, side)  # type: ignore[arg-type]
    mid = getattr(layer, family.mid, None) if family.mid else None
    if mid is not None and family.mid_is_output:
        points["resid_mid"] = Point(mid, "output")
    elif mid is not None:
        # the norm's input is also what the MLP's output is added to
        points["resid_mid"] = Point(mid, "input", in_place=True)
    # some blocks hand this very tensor to attention, or add it to the residual (OLMo 2)
    points["mlp.in"] = Point(_at(layer, family.mlp_reads), "input", mutated=True)
    for name, path in (("mlp.pre", family.pre), ("mlp.gate", family.gate), ("mlp.up", family.up)):
        if path is not None:
            half = int(name == "mlp.up") if family.fused_gate_up else None
            points[name] = Point(_at(layer, path), "output", half=half)
    if family.down is not None:
        points["mlp.post"] = Point(_at(layer, family.down), "input")
    return points


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _backbone(module: nn.Module, family: Family) -> nn.Module:
    text = f"{family.backbone}.language_model"
    for path in (family.backbone, text):
        try:
            backbone = _at(module, path)
            _at(backbone, family.layers)
        except AttributeError:
            continue
        return backbone
    raise AttributeError(
        f"neither '{family.backbone}.{family.layers}' nor '{text}.{family.layers}'"
    )


def _at(module: nn.Module, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise AttributeError(f"no '{path}' in {type(module).__name__}") from error
    return found


def _kv_heads(config: Any, heads: int) -> int:
    return int(getattr(config, "num_key_value_heads", None) or heads)


def _head_size(config: Any, heads: int) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _width(projection: nn.Module) -> int:
    # transformers' Conv1D calls its input width nx; quantized and LoRA layers keep in_features
    width = getattr(projection, "in_features", None) or getattr(projection, "nx", None)
    if width is None:
        raise AttributeError(f"{type(projection).__name__} has no in_features")
    return int(width)
