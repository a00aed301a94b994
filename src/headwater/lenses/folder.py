"""A lens's folder: `lens.json`, `lens.safetensors`, `page.html`. The JSON is written last."""

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

REPORT, TENSORS, PAGE = "lens.json", "lens.safetensors", "page.html"
SCHEMA = 1


def holds_lens(path: Path) -> bool:
    """Whether a folder holds a lens."""
    return (path / REPORT).is_file()


def claim(path: Path) -> None:
    """Refuse a folder that can take no lens, before anything is computed.

    Raises:
        RunFolderError: If it cannot be written, or holds other files.
    """
    make_writable(path)
    if others := foreign(path, {REPORT, TENSORS, PAGE}):
        raise RunFolderError(
            f"{path} holds other files than a lens ({', '.join(others[:3])}).\n"
            "Choose another folder."
        )


def write(
    path: Path, data: Mapping[str, Any], tensors: Mapping[str, Tensor], *, overwrite: bool
) -> Path:
    """Write a lens, the JSON last.

    Raises:
        RunFolderError: If the folder cannot be written, or holds something else.
    """
    claim(path)
    if holds_lens(path) and not overwrite:
        asked = ("provenance", "texts", "names", "lengths")
        there = _read(path)
        if any(there.get(key) != _plain(data[key]) for key in asked):
            raise RunFolderError(
                f"{path} holds another lens.\nChoose another folder, or write overwrite=True."
            )
    for stale in (REPORT, PAGE):
        (path / stale).unlink(missing_ok=True)
    whole = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    write_atomically(path / TENSORS, lambda there: save_file(whole, there))
    write_text(path / REPORT, json.dumps({"schema_version": SCHEMA, **data}, default=str))
    return path


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write` wrote.

    Raises:
        RunFolderError: If the folder holds no lens that this release can read.
    """
    if not holds_lens(path):
        raise RunFolderError(
            f"{path} holds no lens: there is no {REPORT}.\nMake one: headwater lens --out {path}"
        )
    data = _read(path)
    try:
        return data, load_file(path / TENSORS)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(
            f"{path / TENSORS} cannot be read ({str(error).splitlines()[0]}).\nMake the lens again."
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads((path / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path / REPORT} cannot be read: {error}") from error
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA:
        raise RunFolderError(
            f"{path / REPORT} was written by another release.\nMake the lens again."
        )
    return data


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
