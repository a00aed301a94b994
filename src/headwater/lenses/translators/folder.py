"""A translator's folder: `translator.safetensors`, then `translator.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from headwater.errors import RunFolderError
from headwater.files import foreign, make_writable, write_atomically, write_text

if TYPE_CHECKING:
    from headwater.lenses.translators.translator import Translator

REPORT, TENSORS = "translator.json", "translator.safetensors"
EVALUATION, SCORES = "evaluation.json", "evaluation.safetensors"
OURS = {REPORT, TENSORS, EVALUATION, SCORES}
"""A translator and its evaluation may stand in one folder."""
SCHEMA = 1
_MADE_BY = {
    REPORT: "hw.fit_lens(model, texts)",
    EVALUATION: "translator.evaluate(model, held_out)",
}
_PLAIN = ("method", "model", "corpus", "options", "details")


def tensors_of(translator: Translator) -> dict[str, Tensor]:
    """Return a translator's tensors by the names they have in the file."""
    groups = {"weight": translator.weights, "bias": translator.biases, "error": translator.errors}
    found = {
        f"{group}.{row}": value.contiguous()
        for group, values in groups.items()
        for row, value in values.items()
        if value is not None
    }
    return {**found, "seen": translator.seen}


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, formats and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype};".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write(translator: Translator, path: Path, *, overwrite: bool) -> Path:
    """Write a translator, the JSON last.

    Raises:
        RunFolderError: If the folder cannot be written, or holds something else.
    """
    claim(path, OURS, "translator")
    tensors, sha256 = tensors_of(translator), translator.sha256
    there = json_at(path / REPORT).get("sha256") if (path / REPORT).is_file() else sha256
    if there != sha256:
        if not overwrite:
            raise RunFolderError(
                f"{path} already holds another translator.\n"
                "Choose another folder, or write save(..., overwrite=True)."
            )
        for stale in (EVALUATION, SCORES):  # of the other one
            (path / stale).unlink(missing_ok=True)
    (path / REPORT).unlink(missing_ok=True)
    write_atomically(path / TENSORS, lambda there: save_file(tensors, there))
    data = {name: getattr(translator, name) for name in _PLAIN}
    data |= {"rows": list(translator.rows), "notes": list(translator.notes), "sha256": sha256}
    write_text(path / REPORT, json.dumps({"schema_version": SCHEMA, **data}, indent=1))
    return path


def read(path: Path) -> dict[str, Any]:
    """Return the fields of the translator in a folder.

    Raises:
        RunFolderError: If there is none that this release can read.
    """
    data = json_at(path / REPORT)
    try:
        if data["schema_version"] != SCHEMA:
            raise ValueError(f"schema {data['schema_version']}, this release reads {SCHEMA}")
        tensors = load_file(path / TENSORS)
        if hash_of(tensors) != data["sha256"]:
            raise ValueError(f"{TENSORS} and {REPORT} are of two translators")
        rows: list[str] = data["rows"]
        return {
            **{name: data[name] for name in _PLAIN},
            "weights": {row: tensors.get(f"weight.{row}") for row in rows},
            "biases": {row: tensors.get(f"bias.{row}") for row in rows},
            "errors": {row: tensors[f"error.{row}"] for row in rows if f"error.{row}" in tensors},
            "seen": tensors["seen"],
            "notes": tuple(data["notes"]),
        }
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path} holds no translator that this release can read: "
            f"{type(error).__name__}: {error}."
        ) from error


def claim(path: Path, ours: set[str], what: str) -> None:
    """Refuse a folder that can take no result of this kind.

    Raises:
        RunFolderError: If it cannot be written, or holds other files.
    """
    make_writable(path)
    if others := foreign(path, ours):
        raise RunFolderError(
            f"{path} holds other files than a {what} ({', '.join(others[:3])}).\n"
            "Choose another folder."
        )


def json_at(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds.

    Raises:
        RunFolderError: If there is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path.parent} holds no {path.stem}: {type(error).__name__}: {error}.\n"
            f"Write one: {_MADE_BY[path.name]}.save(folder)."
        ) from error
