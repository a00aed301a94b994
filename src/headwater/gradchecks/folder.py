"""A check's folder: `gradcheck.json`, `gradients.safetensors`, `page.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from headwater.errors import RunFolderError
from headwater.files import foreign, make_writable, write_atomically, write_text
from headwater.finite_difference import Difference
from headwater.gradchecks.effects import Effects, Reach, SignCount
from headwater.gradchecks.result import Check, DirectionCheck, Entry, Precision

REPORT, TENSORS, PAGE = "gradcheck.json", "gradients.safetensors", "page.html"
SCHEMA = 1
_ARRAYS = ("steps", "central", "forward", "backward", "error")


def holds_check(path: Path) -> bool:
    """Whether a folder holds a gradient check."""
    return (path / REPORT).is_file()


def write(
    path: Path, data: Mapping[str, Any], tensors: Mapping[str, Tensor], *, overwrite: bool
) -> Path:
    """Write a check, the JSON last.

    Raises:
        RunFolderError: If the folder cannot be written, or holds something else.
    """
    claim(path)
    if not overwrite:
        _refuse_other(path, data["provenance"])
    for stale in (REPORT, PAGE):
        (path / stale).unlink(missing_ok=True)
    write_atomically(path / TENSORS, lambda there: save_file(dict(tensors), there))
    text = json.dumps({"schema_version": SCHEMA, **data}, indent=1, default=str)
    write_text(path / REPORT, text)
    return path


def claim(path: Path) -> None:
    """Refuse a folder that can take no check, before anything is computed.

    Raises:
        RunFolderError: If it cannot be written, or holds other files.
    """
    make_writable(path)
    if others := foreign(path, {REPORT, TENSORS, PAGE}):
        raise RunFolderError(
            f"{path} holds other files than a gradient check ({', '.join(others[:3])}).\n"
            "Choose another folder."
        )


def _refuse_other(path: Path, provenance: Mapping[str, Any]) -> None:
    """Refuse to replace another check; one of the same, in another release, is replaced."""
    if not holds_check(path):
        return
    there, now = _json(path).get("provenance"), json.loads(json.dumps(provenance, default=str))
    if _decisive(there) != _decisive(now):
        raise RunFolderError(
            f"{path} already holds another gradient check.\n"
            "Choose another folder, delete this one, or write save(..., overwrite=True)."
        )


def _decisive(provenance: Any) -> Any:
    if not isinstance(provenance, dict):
        return provenance
    return {key: value for key, value in provenance.items() if key != "versions"}


def read(path: Path) -> tuple[dict[str, Any], tuple[Check, ...]]:
    """Read a check.

    Raises:
        RunFolderError: If there is none that this release can read.
    """
    data = _json(path)
    try:
        if data["schema_version"] != SCHEMA:
            raise ValueError(f"schema {data['schema_version']}, this release reads {SCHEMA}")
        tensors = load_file(path / TENSORS)
        return data, tuple(_check(one, tensors) for one in data["checks"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path / REPORT} is no gradient check that this release can read: "
            f"{type(error).__name__}: {error}."
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} holds no gradient check: {type(error).__name__}: {error}.\n"
            "Write one: headwater gradcheck ... --out FOLDER."
        ) from error


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
