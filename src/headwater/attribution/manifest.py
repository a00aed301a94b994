"""What is written beside the scores: everything needed to say where they came from.

A run folder holds `run.json` (this manifest), `scores.safetensors`, and once audited `audit.json`.
Files are written under a temporary name and renamed, so a folder is never half a run.
"""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from headwater.errors import MetricError, RunFolderError
from headwater.metrics import Metric
from headwater.metrics import metric as as_metric
from headwater.models import Model
from headwater.prompts import Batch, Task

SCHEMA = 1
"""Raised when a folder written by an older release can no longer be read."""


class Provenance(BaseModel):
    """What was computed, on what, and with which choices."""

    model: dict[str, Any]
    estimator: dict[str, Any]
    reference: dict[str, Any]
    components: list[dict[str, Any]]
    batch_size: int
    seed: int


class Manifest(BaseModel):
    """The content of `run.json`."""

    schema_version: int = SCHEMA
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    versions: dict[str, str] = Field(default_factory=lambda: versions())
    provenance: Provenance
    task: dict[str, Any] | None
    prompts_hash: str | None
    names: list[str]
    is_cut: bool
    tokens: list[dict[str, list[str] | None]]
    cost: dict[str, int | float]
    specification: str
    """Hash of what decides the numbers; two runs of one folder must agree in it."""

    def decisive(self) -> dict[str, Any]:
        """Return the fields that decide the numbers, for comparing two runs in words."""
        fields = self.provenance.model_dump()
        fields.pop("batch_size")
        model = fields.pop("model")
        metric = None if self.task is None else self.task.get("metric")
        decides = ("weights_hash", "config_hash", "tokenizer_hash", "dtype")
        return {
            **{key: model.get(key) for key in decides},
            **fields,
            "prompts": self.prompts_hash,
            "metric": metric,
        }


def saved_task(manifest: Manifest, metric: Any = None) -> Task | None:
    """Return the task a run was made with; None for a gated function's.

    A metric that was a Python function is not saved. Unless it is given again, the task gets one
    that bears its name and refuses to compute.
    """
    if manifest.task is None:
        return None
    saved = manifest.task["metric"]
    if metric is None and "function" in saved:
        metric = _lost_metric(saved["name"], saved["function"])
    return Task.from_dict(manifest.task, metric=metric)


def _lost_metric(name: str, function: str) -> Metric:
    def refuse(logits: Tensor, batch: Batch) -> Tensor:
        raise MetricError(
            f"the metric {name} was the Python function {function}, of which only the name is "
            "saved.\nGive it again: hw.Attribution.load(folder, metric=...)."
        )

    return as_metric(refuse, name=name)


def versions() -> dict[str, str]:
    """Return the versions that can change a number."""
    packages = ("headwater", "torch", "transformers", "tokenizers", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def describe_model(model: Model) -> dict[str, Any]:
    """Return what identifies a model: name, class, family, dtype, device and hashes."""
    return {
        "name": model.name,
        "class": type(model.module).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        **model.fingerprint(),
    }


def specification_hash(decisive: dict[str, Any]) -> str:
    """Return a hash of the fields that decide the numbers."""
    text = json.dumps(decisive, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the same folder, then rename it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_manifest(folder: Path) -> Manifest:
    """Return a run folder's manifest.

    Raises:
        RunFolderError: If the folder holds no run, or one this release cannot read.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise RunFolderError(
            f"no run in {folder}: it has no run.json.\n"
            f"Make one: headwater attribute --model tiny --task ioi --out {folder}"
        )
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        lines = str(error).splitlines()
        raise RunFolderError(
            f"{path} is not a manifest this release can read (schema {SCHEMA}): {lines[0]}.\n"
            "Run `headwater attribute` again into an empty folder."
        ) from error


def refuse_other_run(folder: Path, manifest: Manifest) -> None:
    """Refuse to mix two runs in one folder.

    Raises:
        RunFolderError: If the folder holds a run of another specification, or other files.
    """
    if not (folder / "run.json").exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise RunFolderError(
                f"{folder} exists, is not empty and holds no run.\nChoose another --out."
            )
        return
    there = read_manifest(folder)
    if there.specification == manifest.specification:
        return
    old, new = there.decisive(), manifest.decisive()
    differing = [key for key in new if json.dumps(old.get(key)) != json.dumps(new[key])]
    lines = [f"  {key}: {_short(old.get(key))} there, {_short(new[key])} now" for key in differing]
    raise RunFolderError(
        f"{folder} already holds another run. They differ in\n"
        + "\n".join(lines)
        + "\nChoose another --out, or delete the folder."
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
