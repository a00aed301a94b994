"""The embedded models: their tasks, the text they were trained on, and how they were trained.

`tiny` is a Llama with grouped heads and `tiny-gpt2` a GPT-2, both trained by
`python -m headwater.zoo.train` and shipped under `data/`. The names below are imported on first
use, so that listing the tasks does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headwater.zoo.behaviors import BEHAVIORS as BEHAVIORS
    from headwater.zoo.behaviors import Behavior as Behavior
    from headwater.zoo.examination import Accuracy as Accuracy
    from headwater.zoo.examination import accuracy as accuracy
    from headwater.zoo.tasks import task as task

_HOME = {
    "BEHAVIORS": "behaviors",
    "Behavior": "behaviors",
    "Accuracy": "examination",
    "accuracy": "examination",
    "task": "tasks",
}

__all__ = ["BEHAVIORS", "Accuracy", "Behavior", "accuracy", "task"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
