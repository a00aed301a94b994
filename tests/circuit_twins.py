"""Slow, obvious twins of feature circuits: dense Jacobians through plain hooks on stock modules.

Nothing of headwater's adapters, taps, gates or feature circuits comes in here: `oracles.Twin` runs
the module, dictionaries are written out, and every edge is an entry of a Jacobian.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

import headwater as hw
from headwater.dictionaries import Dictionary, Gated, JumpRelu, Relu, TopK
from headwater.dictionaries.activations import Activation
from headwater.sites import Site
from oracles import Twin, logit_difference

KINDS = {
    "embed": "token",
    "attn.z": "head",
    "attn.out": "attention",
    "mlp.post": "neuron",
    "mlp.out": "mlp",
    "mixer.out": "mixer",
    "resid_post": "residual",
}
"""What `Twin` calls a site."""
ORDER = list(KINDS)
"""In which order a layer computes them."""


def random_dictionary(
    width: int, features: int, seed: int, activation: Activation | None = None, **fields: object
) -> Dictionary:
    """A dictionary whose encoder is near its decoder, about half of its features active."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    decoder = normal(features, width)
    decoder = 0.7 * decoder / decoder.norm(dim=1, keepdim=True)
    return Dictionary(
        encoder=decoder.T + 0.1 * normal(width, features),
        encoder_bias=0.1 * normal(features),
        decoder=decoder,
        decoder_bias=0.1 * normal(width),
        activation=Relu() if activation is None else activation,
        **fields,  # pyright: ignore[reportArgumentType]
    )


def activated(dictionary: Dictionary, pre: Tensor) -> Tensor:
    """Activations, as the formulas of the four kinds say."""
    kind = dictionary.activation
    if isinstance(kind, JumpRelu):
        return torch.where(pre > kind.threshold, pre.clamp(min=0), torch.zeros_like(pre))
    if isinstance(kind, Gated):
        return (pre * kind.scale + kind.magnitude_bias).clamp(min=0) * (pre > -kind.gate_bias)
    if isinstance(kind, TopK):
        least = pre.sort(-1, descending=True).values[..., kind.k - 1 : kind.k]
        return pre.clamp(min=0) * (pre >= least)
    return pre.clamp(min=0)


def encoded(dictionary: Dictionary, x: Tensor) -> Tensor:
    """Features of a value, in units of what they decode to."""
    scale: Tensor | float = 1.0
    moved = x
    if dictionary.scaling == "layer_norm":
        moved, scale = x - x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        moved = moved / (scale + 1e-5)
    elif dictionary.scaling == "constant_norm":
        scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        moved = x / scale
    pre = moved @ dictionary.encoder + dictionary.encoder_bias
    return activated(dictionary, pre) * scale


class CircuitTwin:
    """Features, effects and edges of one tiny model, one prompt pair at a time.

    Args:
        family: Of the model.
        dictionaries: By site; of no features where a site is one node as a whole.
        reads: What a transcoder reads: only `mlp.in`, of the layer that it writes.
    """

    def __init__(
        self, family: str, dictionaries: dict[Site, Dictionary], reads: Sequence[Site] = ()
    ) -> None:
        self.twin = twin_of(family)
        self.dictionaries = dictionaries
        self.sites = sorted(
            dictionaries,
            key=lambda site: (-1 if site.layer is None else site.layer, ORDER.index(site.name)),
        )
        self.transcoders = {site.layer for site in reads}
        self._known: dict[tuple[str, hw.Pair], dict[Site, Tensor]] = {}

    def run(self, ids: Tensor, changes: dict[Site, object]) -> Tensor:
        """Return all logits, with graph; each change gets [batch, pos, width]."""

        def flat(change):
            return lambda value: change(value.flatten(2)).view(value.shape)

        plain = {_place(site): flat(change) for site, change in changes.items()}
        return Twin.run.__wrapped__(self.twin, ids, plain)

    def code(self, site: Site, x: Tensor, read: Tensor | None = None) -> Tensor:
        """Return features and error side by side, [batch, pos, feature + width]."""
        dictionary = self.dictionaries[site]
        features = encoded(dictionary, x if read is None else read)
        error = x - features @ dictionary.decoder - dictionary.decoder_bias
        return torch.cat([features, error], -1)

    def decode(self, site: Site, coded: Tensor) -> Tensor:
        """Return the value that features and error stand for."""
        dictionary = self.dictionaries[site]
        features, error = coded[..., : dictionary.features], coded[..., dictionary.features :]
        return features @ dictionary.decoder + dictionary.decoder_bias + error

    def coded(
        self, ids: Tensor, sites: Sequence[Site], changes: dict[Site, object] | None = None
    ) -> tuple[dict[Site, Tensor], Tensor]:
        """Return sites in a run with changes, coded, and the logits."""
        values: dict[Site, Tensor] = {}
        reads: dict[int | None, Tensor] = {}
        changes = dict(changes or {})
        for site in sites:
            change = changes.get(site, lambda value: value)
            changes[site] = functools.partial(_keeping, values, site, change)
        handles = [
            self.twin.layers[layer]
            .get_submodule("mlp")
            .register_forward_pre_hook(functools.partial(_reading, reads, layer))
            for layer in self.transcoders
        ]
        logits = self.run(ids, changes)
        for handle in handles:
            handle.remove()
        return {
            site: self.code(
                site,
                values[site],
                reads[site.layer]
                if site.layer in self.transcoders and site.name == "mlp.out"
                else None,
            )
            for site in sites
        }, logits

    def slopes(self, pair: hw.Pair) -> dict[Site, Tensor]:
        """Return the metric's total derivative by each node's coordinate, [pos, feature + width].

        The value at a site plus a leaf of zeros has the site's total derivative at the leaf.
        """
        if ("slopes", pair) in self._known:
            return self._known["slopes", pair]
        ids = ids_of(pair.clean)
        width = {site: one.d_out for site, one in self.dictionaries.items()}
        leaves = {
            site: torch.zeros(1, ids.shape[1], width[site], dtype=torch.float64).requires_grad_()
            for site in self.sites
        }
        changes = {site: functools.partial(torch.add, other=leaf) for site, leaf in leaves.items()}
        metric = logit_difference(self.run(ids, changes), *_answers(pair))
        found = torch.autograd.grad(metric.sum(), list(leaves.values()))
        self._known["slopes", pair] = {
            site: torch.cat([slope @ self.dictionaries[site].decoder.T, slope], -1)[0]
            for site, slope in zip(leaves, found, strict=True)
        }
        return self._known["slopes", pair]

    def change(self, pair: hw.Pair) -> dict[Site, Tensor]:
        """Return clean minus corrupted, coded, [pos, feature + width]."""
        if ("change", pair) in self._known:
            return self._known["change", pair]
        clean, _ = self.coded(ids_of(pair.clean), self.sites)
        corrupted, _ = self.coded(ids_of(pair.corrupted), self.sites)
        self._known["change", pair] = {
            site: (clean[site] - corrupted[site])[0].detach() for site in self.sites
        }
        return self._known["change", pair]

    def effects(self, pair: hw.Pair) -> dict[Site, Tensor]:
        """Return first-order node effects, [pos, node]: features, then the error."""
        slopes, change = self.slopes(pair), self.change(pair)
        return {site: self._contracted(site, slopes[site] * change[site]) for site in self.sites}

    def exact(self, pair: hw.Pair, site: Site) -> float:
        """Return what the metric loses when a whole site is at its corrupted value."""
        answers = _answers(pair)
        corrupted, _ = self.coded(ids_of(pair.corrupted), [site])
        off = self.decode(site, corrupted[site])
        clean = self.run(ids_of(pair.clean), {})
        closed = self.run(ids_of(pair.clean), {site: lambda _: off})
        return float(logit_difference(clean, *answers) - logit_difference(closed, *answers))

    def reached(self, pair: hw.Pair, up: Site, down: Site, coded: Tensor) -> Tensor:
        """Return one site, coded, when another has given coordinates and the rest is as ever.

        Args:
            pair: Its clean prompt is run.
            up: What is set.
            down: What is read.
            coded: Of `up`, [pos, feature + width].
        """
        ids = ids_of(pair.clean)
        clean = self._clean(ids)
        changes = {
            site: functools.partial(_constant, self.decode(site, clean[site]))
            for site in self.sites[: self.sites.index(down)]
        }
        changes[up] = functools.partial(_constant, self.decode(up, coded[None]))
        found, _ = self.coded(ids, [down], changes)
        return found[down][0]

    def edges(self, pair: hw.Pair, up: Site, down: Site) -> Tensor:
        """Return every edge from one site to another, [pos, node, pos, node], downstream first."""
        clean = self._clean(ids_of(pair.clean))[up][0]
        rates = jacobian(
            functools.partial(self.reached, pair, up, down), clean.detach(), vectorize=True
        )
        weights = self.slopes(pair)[down][..., None, None] * rates * self.change(pair)[up]
        by_down = self._contracted(down, weights.movedim(1, -1)).movedim(-1, 1)
        return self._contracted(up, by_down)

    def _clean(self, ids: Tensor) -> dict[Site, Tensor]:
        return {site: value.detach() for site, value in self.coded(ids, self.sites)[0].items()}

    def _contracted(self, site: Site, coded: Tensor) -> Tensor:
        features = self.dictionaries[site].features
        return torch.cat(
            [coded[..., :features], coded[..., features:].sum(-1, keepdim=True)], -1
        ).detach()


@functools.cache
def twin_of(family: str) -> Twin:
    """The plain module of a family, parameters frozen."""
    twin = Twin(family)
    twin.module.requires_grad_(False)
    return twin


def ids_of(prompt: str) -> Tensor:
    """Token ids of a prompt of `tiny_tasks`, [1, pos]: `w17` is token 17."""
    return torch.tensor([[int(word[1:]) for word in prompt.split()]])


def _answers(pair: hw.Pair) -> tuple[Tensor, Tensor]:
    return torch.tensor([pair.answer]), torch.tensor([pair.wrong])


def _place(site: Site) -> tuple[str, int]:
    return KINDS[site.name], site.layer or 0


def _keeping(values, site, change, value):
    values[site] = change(value)
    return values[site]


def _reading(reads, layer, _, args):
    reads[layer] = args[0]


def _constant(held, value):
    return held.expand_as(value)
