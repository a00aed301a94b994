"""Random dictionaries at the sites of tiny models, and prompt pairs: cases for feature circuits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

import headwater as hw
from headwater.dictionaries import Activation, Dictionary, Relu
from headwater.dictionaries.collection import Dictionaries
from headwater.models import Model
from headwater.sites import Site
from tiny_tasks import pair

SITES = ("attn.out", "mlp.out", "resid_post")


def dictionary(
    width: int,
    features: int,
    seed: int,
    activation: Activation | None = None,
    scaling: str = "none",
) -> Dictionary:
    """A random dictionary: encoder near the decoder's transpose, about half of it active."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    decoder = normal(features, width)
    decoder = decoder / decoder.norm(dim=1, keepdim=True)
    return Dictionary(
        encoder=decoder.T + 0.1 * normal(width, features),
        encoder_bias=0.1 * normal(features),
        decoder=0.7 * decoder,
        decoder_bias=0.1 * normal(width),
        activation=Relu() if activation is None else activation,
        scaling=scaling,  # pyright: ignore[reportArgumentType]
    )


def dictionaries(
    model: Model,
    *,
    names: Sequence[str] = SITES,
    features: int = 12,
    activation: Callable[[int], Activation] = lambda features: Relu(),
    scaling: str = "none",
) -> Dictionaries:
    """One dictionary a site of each layer, each with one feature more than the last."""
    adapter = model.anatomy()
    found = {}
    for layer in range(adapter.n_layers):
        for name in names:
            count = features + len(found)
            found[Site(layer, name)] = dictionary(
                adapter.d_model, count, len(found), activation(count), scaling
            )
    return Dictionaries(found)


def task(pairs: int = 3, length: int = 6, changed: Sequence[int] = (1, 3)) -> hw.Task:
    """Pairs of one length that differ at some positions."""
    return hw.Task([pair(length, seed=seed, changed=changed) for seed in range(pairs)])
