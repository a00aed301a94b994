"""A circuit's folder: `circuit.json`, `circuit.safetensors`, and a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.folders import Folder, without_versions

CONTEXTS, ANNOTATIONS = "contexts.json", "annotations.jsonl"

FOLDER = Folder(
    report="circuit.json",
    tensors="circuit.safetensors",
    what="circuit",
    made_by="hw.feature_circuit(..., out='FOLDER')",
    identity=lambda data: without_versions(data["provenance"]),
    page="page.html",
    others=(CONTEXTS, ANNOTATIONS, "graph.json"),
)


def claim(path: Path, provenance: Mapping[str, Any]) -> None:
    """Refuse a folder that cannot take the circuit of these options, before it is computed.

    Args:
        path: The folder; made if it does not exist.
        provenance: What `described` returned.

    Raises:
        RunFolderError: If it cannot be written, or holds other files or another circuit.
    """
    known = without_versions(provenance)
    over = known["reference"].get("over")
    if isinstance(over, Mapping) and "sha256" not in over:
        del known["reference"]  # prompts that are streamed are known by what was read of them
    FOLDER.claim(path, known)


def holds_circuit(path: Path) -> bool:
    """Whether a folder holds a circuit."""
    return FOLDER.holds(path)


def beside(path: Path) -> dict[str, Path]:
    """Return what of a circuit's page stands beside it: contexts, annotations."""
    files = {"contexts": path / CONTEXTS, "annotations": path / ANNOTATIONS}
    return {name: file for name, file in files.items() if file.is_file()}
