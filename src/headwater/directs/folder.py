"""A decomposed logit's folder: `logits.json` and `contributions.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from headwater.errors import RunFolderError
from headwater.files import foreign, make_writable, write_atomically, write_text

REPORT, TENSORS = "logits.json", "contributions.safetensors"
SCHEMA = 1


def write(
    path: Path, data: Mapping[str, Any], tensors: Mapping[str, Tensor], *, overwrite: bool
) -> Path:
    """Write a result, the JSON last.

    Raises:
        RunFolderError: If the folder cannot be written, or holds something else.
    """
    make_writable(path)
    if others := foreign(path, {REPORT, TENSORS}):
        raise RunFolderError(
            f"{path} holds other files than a logit's attribution ({', '.join(others[:3])}).\n"
            "Choose another folder."
        )
    if not overwrite and (path / REPORT).is_file():
        _refuse_other(path, data["provenance"])
    (path / REPORT).unlink(missing_ok=True)
    kept = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    write_atomically(path / TENSORS, lambda there: save_file(kept, there))
    text = json.dumps({"schema_version": SCHEMA, **data}, indent=1, default=str)
    write_text(path / REPORT, text)
    return path


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a result.

    Raises:
        RunFolderError: If there is none that this release can read.
    """
    data = _json(path)
    if data.get("schema_version") != SCHEMA:
        raise RunFolderError(
            f"{path / REPORT} has schema {data.get('schema_version')}; this release reads "
            f"{SCHEMA}.\nCompute it again: hw.attribute_logit(...).save(path)."
        )
    try:
        return data, load_file(path / TENSORS)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(
            f"{path / TENSORS} cannot be read: {error}.\n"
            "Compute it again: hw.attribute_logit(...).save(path)."
        ) from error


def _refuse_other(path: Path, provenance: Mapping[str, Any]) -> None:
    there, now = _json(path).get("provenance"), json.loads(json.dumps(provenance, default=str))
    if _decisive(there) != _decisive(now):
        raise RunFolderError(
            f"{path} already holds another logit's attribution.\n"
            "Choose another folder, delete this one, or write save(..., overwrite=True)."
        )


def _decisive(provenance: Any) -> Any:
    if not isinstance(provenance, dict):
        return provenance
    return {key: value for key, value in provenance.items() if key != "versions"}


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads((path / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} holds no logit's attribution: {type(error).__name__}: {error}.\n"
            "Write one: hw.attribute_logit(...).save(path)."
        ) from error
    return data if isinstance(data, dict) else {}
