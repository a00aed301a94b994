"""Dictionaries in plain formulas, and models whose sites are changed by plain hooks.

Nothing here uses headwater's gates or taps: where a site is, each family's own module names say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

import headwater as hw
from headwater.dictionaries import Activation, Dictionary, Gated, JumpRelu, Relu, TopK
from headwater.dictionaries.collection import Dictionaries
from headwater.gates import ModelGates
from headwater.models import Model
from headwater.sites import Site

Edit = Callable[[Tensor], Tensor]
"""From the value at a site, its heads side by side, to what goes on."""

_SEQUENTIAL = {
    "attn.out": ("self_attn", "output"),
    "attn.z": ("self_attn.o_proj", "input"),
    "resid_mid": ("post_attention_layernorm", "in place"),
    "mlp.in": ("mlp", "input"),
    "mlp.post": ("mlp.down_proj", "input"),
    "mlp.out": ("mlp", "output"),
    "resid_post": ("", "output"),
}
PLACES: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "Llama": ("model.layers", _SEQUENTIAL),
    "Granite": ("model.layers", _SEQUENTIAL),
    "GPT-2": (
        "transformer.h",
        {
            "attn.out": ("attn", "output"),
            "mlp.out": ("mlp", "output"),
            "resid_post": ("", "output"),
        },
    ),
    "GPT-NeoX": (
        "gpt_neox.layers",
        {
            "attn.out": ("attention", "output"),
            "mlp.out": ("mlp", "output"),
            "resid_post": ("", "output"),
        },
    ),
    "Gemma 2": (
        "model.layers",
        {
            "attn.out": ("post_attention_layernorm", "output"),
            "mlp.out": ("post_feedforward_layernorm", "output"),
            "resid_post": ("", "output"),
        },
    ),
    "Mamba": (
        "backbone.layers",
        {
            "mixer.post": ("mixer.out_proj", "input"),
            "mixer.out": ("mixer", "output"),
            "resid_post": ("", "output"),
        },
    ),
}
"""Where the layers are, and inside one the module and its side, by site."""


@contextmanager
def edited(model: Model, family: str, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Change values at sites by hooks on the family's own modules."""
    with ExitStack() as stack:
        for site, edit in edits.items():
            stack.callback(_hooked(model, family, site, edit).remove)
        yield


def _hooked(model: Model, family: str, site: Site, edit: Edit) -> Any:
    layers, places = PLACES[family]
    name, side = ("", "input") if site.name == "embed" else places[site.name]
    path = f"{layers}.{site.layer or 0}" + (f".{name}" if name else "")
    module = model.module.get_submodule(path)
    if side == "output":

        def after(_: Any, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (edit(output[0]), *output[1:])
            return edit(output)

        return module.register_forward_hook(after)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            value, rest = args[0], args[1:]
            if side == "in place":  # the block adds this very tensor again
                value.copy_(edit(value.clone()))
                return None
            return (edit(value), *rest), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(before, with_kwargs=True)


class Twin:
    """The metric of a batch with sites changed by plain hooks.

    Args:
        model: A tiny model.
        family: Its family.
        function: Of which only the prompts and the metric are used.
    """

    def __init__(self, model: Model, family: str, function: ModelGates) -> None:
        self.model, self.family, self.rows = model, family, function.rows
        self._metric = function.metric

    @property
    def corrupted(self) -> Tensor:
        """The corrupted prompts."""
        assert self.rows.corrupted is not None
        return self.rows.corrupted

    def metric(self, edits: Mapping[Site, Edit] | None = None, ids: Tensor | None = None) -> Tensor:
        """Return the metric of the clean prompts, or of others."""
        rows = self.rows
        with edited(self.model, self.family, edits or {}):
            logits = self.model.forward(
                rows.clean if ids is None else ids, mask=rows.mask, position_ids=rows.position_ids
            )
        return self._metric(logits[:, -1:], rows)

    def value(self, site: Site, ids: Tensor | None = None) -> Tensor:
        """Return the value at a site in a run of the clean prompts, or of others."""
        kept: list[Tensor] = []

        def keep(value: Tensor) -> Tensor:
            kept.append(value.detach().clone())
            return value

        with torch.no_grad():
            self.metric({site: keep}, ids)
        return kept[0]

    def slope(self, site: Site) -> Tensor:
        """Return the metric's total derivative in the value at a site."""
        kept: list[Tensor] = []

        def grow(value: Tensor) -> Tensor:
            kept.append(value.detach().clone().requires_grad_())
            return kept[0]

        with torch.enable_grad():
            (found,) = torch.autograd.grad(self.metric({site: grow}).sum(), kept)
        return found


def scaled(dictionary: Dictionary, x: Tensor) -> tuple[Tensor, Tensor | float]:
    """Return the input of an encoder, and the factor that its features get."""
    if dictionary.scaling == "layer_norm":
        std = x.std(-1, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (std + 1e-5), std
    if dictionary.scaling == "constant_norm":
        factor = (x.square().sum(-1, keepdim=True) / x.shape[-1]).sqrt()
        return x / factor, factor
    return x, 1.0


def features_of(dictionary: Dictionary, x: Tensor) -> Tensor:
    """Return the features of `x`, by the formulas of their kind."""
    x, factor = scaled(dictionary, x)
    pre = x @ dictionary.encoder + dictionary.encoder_bias
    kind = dictionary.activation
    if isinstance(kind, TopK):
        by = pre.argsort(dim=-1, descending=True).argsort(dim=-1)
        found = torch.where((by < kind.k) & (pre > 0), pre, torch.zeros_like(pre))
    elif isinstance(kind, JumpRelu):
        found = torch.where((pre > kind.threshold) & (pre > 0), pre, torch.zeros_like(pre))
    elif isinstance(kind, Gated):
        magnitude = (pre * kind.scale + kind.magnitude_bias).clamp(min=0)
        found = torch.where(pre + kind.gate_bias > 0, magnitude, torch.zeros_like(pre))
    else:
        found = pre.clamp(min=0)
    return found * factor


def error_of(dictionary: Dictionary, read: Tensor, written: Tensor) -> Tensor:
    """Return what the features of `read` leave out of `written`."""
    return written - features_of(dictionary, read) @ dictionary.decoder - dictionary.decoder_bias


ACTIVATIONS: dict[str, Callable[[int], Activation]] = {
    "relu": lambda _: Relu(),
    "topk": lambda _: TopK(5),
    "jumprelu": lambda n: JumpRelu(torch.full((n,), 0.3, dtype=torch.float64)),
    "gated": lambda n: Gated(
        torch.linspace(-0.3, 0.3, n, dtype=torch.float64),
        torch.linspace(0.2, -0.2, n, dtype=torch.float64),
        torch.linspace(0.5, 1.5, n, dtype=torch.float64),
    ),
}


def random_dictionary(
    width: int,
    features: int,
    seed: int,
    *,
    activation: str = "relu",
    reads: int | None = None,
    **fields: Any,
) -> Dictionary:
    """Return a random dictionary in float64; a transcoder if it reads another width."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    decoder = drawn(features, width)
    decoder = 0.7 * decoder / decoder.norm(dim=1, keepdim=True)
    encoder = decoder.T + 0.1 * drawn(width, features) if reads is None else drawn(reads, features)
    return Dictionary(
        encoder=encoder,
        encoder_bias=0.2 * drawn(features),
        decoder=decoder,
        decoder_bias=0.1 * drawn(width),
        activation=ACTIVATIONS[activation](features),
        transcoder=reads is not None,
        **fields,
    )


WIDTHS = {"attn.z": ("n_heads", "d_head"), "mlp.post": ("d_mlp",), "mixer.post": ("d_inner",)}


def random_dictionaries(
    model: Model, *places: str, features: int = 9, **fields: Any
) -> Dictionaries:
    """Return a random dictionary for each place: `0.mlp.out`, `embed`."""
    found = {}
    for seed, place in enumerate(places):
        layer, _, name = place.partition(".")
        site = Site(None, "embed") if place == "embed" else Site(int(layer), name)
        adapter = model.anatomy()
        width = 1
        for size in WIDTHS.get(site.name, ("d_model",)):
            width *= getattr(adapter, size)
        # all of different sizes
        found[site] = random_dictionary(width, features + seed, seed, **fields)
    return Dictionaries(found)


def toward(
    dictionary: Dictionary,
    index: int | str | None,
    off_features: Tensor | float,
    off_error: Tensor | float,
    where: Tensor | float = 1.0,
) -> Edit:
    """Return the edit that sets one feature, the error, or (None) all to off values.

    Args:
        dictionary: Of the site.
        index: Which feature; `"error"`; or None.
        off_features: Off values [..., feature], or a number.
        off_error: Off values [..., d_out], or a number.
        where: 1 at the positions that are changed, else 0; [pos, 1].
    """

    def edit(value: Tensor) -> Tensor:
        features = features_of(dictionary, value)
        change = (off_features - features) if index != "error" else torch.zeros_like(features)
        if isinstance(index, int):
            change = change * torch.eye(dictionary.features, dtype=change.dtype)[index]
        result = change @ dictionary.decoder
        if index in ("error", None):
            result = result + off_error - error_of(dictionary, value, value)
        return value + where * result

    return edit


def corrupted_code(twin: Twin, site: Site, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
    """Return features and error in the corrupted prompts' own run."""
    value = twin.value(site, twin.corrupted)
    return features_of(dictionary, value), error_of(dictionary, value, value)


def function_by_hand(
    twin: Twin,
    dictionaries: Dictionaries,
    names: tuple[str, ...],
) -> hw.GatedFunction:
    """Return `f(m)` of all features and errors, one run a setting, from plain hooks alone.

    Columns are those of `hw.features(dictionaries)`: site by site the features, then the error.
    """
    off = {
        site: corrupted_code(twin, site, dictionary) for site, dictionary in dictionaries.items()
    }

    def gate(dictionary: Dictionary, site: Site, m: Tensor) -> Edit:
        def edit(value: Tensor) -> Tensor:
            features = features_of(dictionary, value)
            error = error_of(dictionary, value, value)
            off_features, off_error = off[site]
            kept = m[:, None, :-1] * features + (1 - m[:, None, :-1]) * off_features
            rest = m[:, None, -1:] * error + (1 - m[:, None, -1:]) * off_error
            return kept @ dictionary.decoder + dictionary.decoder_bias + rest

        return edit

    def fn(m: Tensor) -> Tensor:
        values = []
        for setting in m:
            edits, start = {}, 0
            for site, dictionary in dictionaries.items():
                stop = start + dictionary.features + 1
                edits[site] = gate(dictionary, site, setting[:, start:stop])
                start = stop
            values.append(twin.metric(edits))
        return torch.stack(values)

    return hw.GatedFunction(fn, names, batch=len(twin.rows.pairs), dtype=torch.float64)
