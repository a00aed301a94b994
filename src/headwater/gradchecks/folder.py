"""A check's folder: `gradcheck.json`, `gradients.safetensors`, `page.html`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from headwater.finite_difference import Difference
from headwater.folders import Folder, without_versions
from headwater.gradchecks.effects import Effects, Reach, SignCount
from headwater.gradchecks.result import Check, DirectionCheck, Entry, Precision

REPORT, TENSORS, PAGE = "gradcheck.json", "gradients.safetensors", "page.html"
_ARRAYS = ("steps", "central", "forward", "backward", "error")


FOLDER = Folder(
    report=REPORT,
    tensors=TENSORS,
    page=PAGE,
    what="gradient check",
    made_by="headwater gradcheck ... --out FOLDER",
    identity=lambda data: without_versions(data["provenance"]),
)


def holds_check(path: Path) -> bool:
    """Whether a folder holds a gradient check."""
    return FOLDER.holds(path)


def write(
    path: Path, data: Mapping[str, Any], tensors: Mapping[str, Tensor], *, overwrite: bool
) -> Path:
    """Write a check, the JSON last; errors as for `Folder.write`."""
    return FOLDER.write(path, data, tensors, overwrite=overwrite)


def claim(path: Path) -> None:
    """Refuse a folder that can take no check, before anything is computed.

    Raises:
        RunFolderError: If it cannot be written, or holds other files.
    """
    FOLDER.claim(path)


def read(path: Path) -> tuple[dict[str, Any], tuple[Check, ...]]:
    """Read a check.

    Raises:
        RunFolderError: If there is none that this release can read.
    """
    data, tensors = FOLDER.read(path)
    with FOLDER.reading(path):
        return data, tuple(_check(one, tensors) for one in data["checks"])


def _check(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Check:
    signs, reach, precision = data["signs"], data["reach"], data["precision"]
    rebuilt: dict[str, Any] = {
        "directions": tuple(_direction(one) for one in data["directions"]),
        "effects": tuple(_effects(one) for one in data["effects"]),
        "signs": None if signs is None else SignCount(**_tuples(signs)),
        "reach": None if reach is None else Reach(**reach),
        "precision": None if precision is None else Precision(**precision),
        "entries": tuple(Entry(**_tuples(one)) for one in data["entries"]),
        "notes": tuple(data["notes"]),
        "value": tensors[f"value at {data['name']}"],
        "gradient": tensors[f"gradient at {data['name']}"],
    }
    return Check(**{**data, **rebuilt})


def _direction(data: Mapping[str, Any]) -> DirectionCheck:
    found = _tuples(data["difference"])
    arrays = {name: np.array(found[name], dtype=float) for name in _ARRAYS}
    return DirectionCheck(**{**data, "difference": Difference(**{**found, **arrays})})


def _effects(data: Mapping[str, Any]) -> Effects:
    return Effects(**{key: value for key, value in data.items() if key not in ("product", "score")})


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(one) if isinstance(one, list) else one for key, one in data.items()}
