"""Dictionaries for a model: those that ship with an embedded one, or any on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from headwater.dictionaries.collection import Dictionaries, Paths, Place
from headwater.errors import DictionaryError
from headwater.loading import embedded_folder
from headwater.models import Model

EMBEDDED = "embedded"
"""The source that means what ships with headwater."""


def load_dictionaries(
    model: Model,
    source: Paths | Dictionaries = EMBEDDED,
    *,
    sites: Place | Mapping[str, Place] | None = None,
) -> Dictionaries:
    """Read the dictionaries of a model, checked against it and on its device.

    Args:
        model: The model.
        source: `"embedded"` for those that ship with an embedded model; a path or several, as
            `hw.Dictionaries.read` takes them; or dictionaries that are read already.
        sites: Where dictionaries are whose files name no place; see `hw.Dictionaries.read`.

    Returns:
        In float64 for a model in float64, else in float32.

    Raises:
        DictionaryError: If there are none, or one does not fit the model; names file, tensor and
            shape.
        UnsupportedModelError: If the model has no adapter.
    """
    adapter = model.anatomy()
    if not isinstance(source, Dictionaries):
        path = _embedded(model.name) if source == EMBEDDED else source
        source = Dictionaries.read(path, sites=sites)
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    return source.fitted(adapter).to(dtype=dtype, device=model.device)


def _embedded(name: str) -> Path:
    """The folder of the dictionaries that ship for an embedded model."""
    folder = embedded_folder() / name / "dictionaries"
    if folder.is_dir():
        return folder
    have = sorted(path.parent.name for path in embedded_folder().glob("*/dictionaries"))
    raise DictionaryError(
        f"no dictionaries ship for the model {name!r}; they do for: {', '.join(have) or 'none'}.\n"
        "Give a file or folder: hw.load_dictionaries(model, 'path/to/dictionaries')."
    )
