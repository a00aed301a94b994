"""Small circuits of tiny random models, found with random dictionaries, to be looked at."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

import headwater as hw
import tiny_tasks
from headwater.dictionaries import Dictionary
from headwater.dictionaries.activations import Activation, Relu
from headwater.dictionaries.collection import Dictionaries
from headwater.feature_circuits.result import FeatureCircuit
from headwater.sites import Site

NAMES = ("attn.out", "mlp.out", "resid_post")
FEATURES = 24


def dictionary(width: int, features: int, seed: int, activation: Activation) -> Dictionary:
    """A random dictionary in float64 whose features are on about half of the time."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    decoder = normal(features, width)
    decoder = decoder / decoder.norm(dim=1, keepdim=True)
    encoder = decoder.T + 0.1 * normal(width, features)
    return Dictionary(encoder, 0.1 * normal(features), 0.7 * decoder, normal(width), activation)


def dictionaries(
    model: hw.Model, activation: Callable[[], Activation] = Relu, names: tuple[str, ...] = NAMES
) -> Dictionaries:
    """One dictionary for each of some sites of every layer, no two of the same size."""
    adapter = model.anatomy()
    sites = [Site(layer, name) for layer in range(adapter.n_layers) for name in names]
    return Dictionaries(
        {
            site: dictionary(adapter.d_model, FEATURES + seed, seed, activation())
            for seed, site in enumerate(sites)
        }
    )


def circuit(
    family: str = "Llama", activation: Callable[[], Activation] = Relu, **options: Any
) -> FeatureCircuit:
    """A circuit of six prompt pairs."""
    model = tiny_tasks.model(family)
    task = hw.Task([tiny_tasks.pair(6, seed=seed, changed=(1, 3)) for seed in range(6)])
    how = {"nodes": 30, "edge_threshold": 1e-4, "estimator": hw.Gradient()} | options
    return hw.feature_circuit(model, task, dictionaries(model, activation), progress=False, **how)


@functools.cache
def known(aggregation: str = "sum") -> FeatureCircuit:
    """One such circuit, made once; tests must leave it as it is."""
    return circuit(aggregation=aggregation)
