"""Prompts: pairs of a clean and a corrupted text, read, encoded and aligned for a model.

`Pair` is one row, `Task` is the pairs and a metric, `Batch` is what a model runs on. The names are
imported on first use because metrics read batches while tasks choose metrics.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headwater.prompts.batches import Batch as Batch
    from headwater.prompts.pairs import Pair as Pair
    from headwater.prompts.task import Task as Task
    from headwater.prompts.task import prompt_batches as prompt_batches
    from headwater.prompts.usable import Usable as Usable

_HOME = {
    "Batch": "batches",
    "Pair": "pairs",
    "Task": "task",
    "Usable": "usable",
    "prompt_batches": "task",
}

__all__ = ["Batch", "Pair", "Task", "Usable", "prompt_batches"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
