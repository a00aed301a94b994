"""Checkpoints of the package tuned-lens: `config.json` and `params.pt`.

Its translator i belongs to the residual stream that enters block i and is, like ours, kept as a
difference to the identity: `T(h) = h + W h + b`.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headwater.errors import RunFolderError

CONFIG, PARAMETERS = "config.json", "params.pt"
_KIND = "linear_tuned_lens"


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds a checkpoint of tuned-lens."""
    return (path / CONFIG).is_file() and (path / PARAMETERS).is_file()


def read(path: Path) -> dict[str, Any]:
    """Return the fields of the translator in a checkpoint.

    Raises:
        RunFolderError: If it is another kind of lens, or its tensors do not fit its configuration.
    """
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        # tensors only: nothing in the file is run
        state = torch.load(path / PARAMETERS, map_location="cpu", weights_only=True)
        layers, width = int(config["num_hidden_layers"]), int(config["d_model"])
        kind = config.get("lens_type", _KIND)
        if kind != _KIND:
            raise ValueError(f"lens_type is {kind!r}, only {_KIND!r} is read")
        rows = ["input", *(f"r{layer}" for layer in range(layers - 1))]
        weights = {row: _taken(state, f"{i}.weight", (width, width)) for i, row in enumerate(rows)}
        biased = config.get("bias", True)
        biases = {
            row: _taken(state, f"{i}.bias", (width,)) if biased else None
            for i, row in enumerate(rows)
        }
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.PickleError) as error:
        raise RunFolderError(
            f"{path} is no checkpoint of tuned-lens that can be read: "
            f"{type(error).__name__}: {error}."
        ) from error
    unembed_hash = config.get("unembed_hash")
    notes = () if unembed_hash else ("The checkpoint does not say which unembedding it is for.",)
    return {
        "method": "tuned-lens",
        "weights": weights,
        "biases": biases,
        "model": {
            "name": config.get("base_model_name_or_path"),
            "revision": config.get("base_model_revision"),
            "n_layers": layers,
            "d_model": width,
            "unembed_hash": unembed_hash,
        },
        "notes": notes,
    }


def _taken(state: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    found = state[name]
    if found.shape != shape:
        raise ValueError(f"{name} has shape {list(found.shape)}, not {list(shape)}")
    return found.to(torch.promote_types(found.dtype, torch.float32))
