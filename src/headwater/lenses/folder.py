"""A lens's folder: `lens.json`, `lens.safetensors`, `page.html`. The JSON is written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater.folders import Folder, without_versions
from headwater.lenses.asked import Prompts, encoded
from headwater.lenses.provenance import provenance
from headwater.lenses.rows import Row
from headwater.lenses.tokens import token_ids
from headwater.models import Model

REPORT, TENSORS, PAGE = "lens.json", "lens.safetensors", "page.html"


def identity_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a lens is of: the model, what was read of which prompts, and how.

    Args:
        data: The lens as plain data.
    """
    decisive = without_versions(data["provenance"])
    options = decisive.pop("options")
    asked = ("texts", "prompts_hash", "names", "tokens", "best", "mixtures")
    return {**decisive, **options, **{key: data[key] for key in asked}}


FOLDER = Folder(
    report=REPORT,
    tensors=TENSORS,
    page=PAGE,
    what="lens",
    made_by="headwater lens --out FOLDER",
    identity=identity_of,
)


def holds_lens(path: Path) -> bool:
    """Whether a folder holds a lens."""
    return FOLDER.holds(path)


def claim(
    path: Path,
    model: Model,
    prompts: Prompts,
    rows: Sequence[Row],
    *,
    tokens: Sequence[str | int] = (),
    best: int = 10,
    mixtures: bool = True,
    **options: Any,
) -> None:
    """Refuse a folder that cannot take the lens of these arguments, before it is made.

    Args:
        path: The folder; made if it does not exist.
        model: As for `hw.lens`.
        prompts: Likewise.
        rows: What will be read.
        tokens: As for `hw.lens`.
        best: Likewise.
        mixtures: Likewise.
        **options: What stands in the provenance of the lens: readout, translator, seed, ...

    Raises:
        RunFolderError: If it cannot be written, or holds other files or another lens.
        PromptError: If a prompt cannot be read.
    """
    asked = encoded(model, prompts)
    told = {
        "provenance": provenance(model, **options),
        "texts": [one.text for one in asked],
        "prompts_hash": hash_of(one.ids for one in asked),
        "names": [row.name for row in rows],
        "tokens": token_ids(model, tokens)[0],
        "best": min(best, model.anatomy().vocab),
        "mixtures": mixtures,
    }
    FOLDER.claim(path, identity_of(told))


def hash_of(prompts: Iterable[Sequence[int]]) -> str:
    """Return a hash of token ids."""
    return hashlib.sha256(json.dumps([list(ids) for ids in prompts]).encode()).hexdigest()
