"""What is written beside the scores: everything needed to say where they came from.

This is the content of a run folder's `run.json`.
"""

import hashlib
import json
import platform
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, Field
from torch import Tensor

from headwater.errors import MetricError
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
    gap_names: list[str] = []
    notes: list[str] = []
    magnitudes: bool = False
    exact: list[int] = []
    circuit: dict[str, Any] | None = None
    scores_hash: str = ""
    """Of the numbers in `scores.safetensors`; a folder whose files do not belong together is
    refused."""
    cost: dict[str, int | float]
    specification: str
    """Hash of what decides the numbers; two runs of one folder must agree in it."""

    @property
    def knows_its_prompts(self) -> bool:
        """Whether the prompts of the reference are known: those of a stream are once it is read."""
        over = self.provenance.reference.get("over")
        return not isinstance(over, dict) or "sha256" in over

    def decisive(self) -> dict[str, Any]:
        """Return the fields that decide the numbers, for comparing two runs in words."""
        fields = self.provenance.model_dump()
        fields.pop("batch_size")
        model = fields.pop("model")
        over = fields["reference"].get("over")
        if isinstance(over, dict):  # the same prompts from another place are the same
            known = {key: over[key] for key in ("prompts", "sha256") if key in over}
            fields["reference"] = {**fields["reference"], "over": known}
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
    return dict(_versions())


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    packages = ("headwater", "torch", "transformers", "tokenizers", "safetensors")
    return ("python", platform.python_version()), *((name, version(name)) for name in packages)


def describe_model(model: Model) -> dict[str, Any]:
    """Return what identifies a model: name, class, family, dtype, device and hashes."""
    return {
        "name": model.name,
        "class": type(model.module).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        **model.fingerprint(),
    }


def planned(provenance: Provenance, task: Task | None) -> Manifest:
    """Return the manifest of a run not done yet: everything that decides its numbers."""
    manifest = Manifest(
        provenance=provenance,
        task=None if task is None else task.to_dict(),
        prompts_hash=None if task is None else task.prompts_hash(),
        names=[],
        is_cut=False,
        tokens=[],
        cost={},
        specification="",
    )
    text = json.dumps(manifest.decisive(), sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return manifest.model_copy(update={"specification": digest})
