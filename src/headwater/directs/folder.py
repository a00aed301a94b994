"""A decomposed logit's folder: `logits.json` and `contributions.safetensors`."""

from __future__ import annotations

from pathlib import Path

from headwater.attribution.manifest import describe_model
from headwater.components import Selection
from headwater.directs.metric import LogitMetric
from headwater.folders import Folder, without_versions
from headwater.models import Model
from headwater.prompts import Task

FOLDER = Folder(
    report="logits.json",
    tensors="contributions.safetensors",
    what="logit's attribution",
    made_by="hw.attribute_logit(...).save('FOLDER')",
    identity=lambda data: without_versions(data["provenance"]),
)


def claim(path: Path, model: Model, task: Task, components: Selection) -> None:
    """Refuse a folder that cannot take what these arguments will give, before it is computed.

    Args:
        path: The folder; made if it does not exist.
        model: In the number format in which it will run.
        task: From `task_of`: prompts, answers, position.
        components: What gets rows of its own.

    Raises:
        RunFolderError: If it cannot be written, or holds other files or another result.
    """
    assert isinstance(task.metric, LogitMetric)
    asked = {
        "model": describe_model(model),
        "task": task.to_dict(),
        "against": task.metric.against,
        "position": task.metric.position,
        "components": components.to_list(),
    }
    FOLDER.claim(path, without_versions(asked))
