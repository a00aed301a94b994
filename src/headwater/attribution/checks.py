"""What `attribute` refuses before it starts: arguments of another kind, and torch's odd modes."""

from __future__ import annotations

from typing import Any

import torch

from headwater.components import Selection
from headwater.errors import (
    GateError,
    HeadwaterError,
    ModelStateError,
    PromptError,
    ResultError,
    UnfitReferenceError,
    UnsupportedModelError,
)
from headwater.estimators import Estimator, Exact
from headwater.models import Model
from headwater.prompts import Task
from headwater.references import Reference

_EXPECTED: dict[str, tuple[type, type[HeadwaterError], str]] = {
    "model": (
        Model,
        UnsupportedModelError,
        "Write hw.wrap(module, tokenizer), or hw.load(name).",
    ),
    "task": (
        Task,
        PromptError,
        'Write hw.task("ioi"), hw.Task.read("pairs.jsonl"), or hw.Task([{"clean": ...}, ...]).',
    ),
    "components": (Selection, GateError, "Write for example hw.heads() + hw.mlps()."),
    "estimator": (Estimator, GateError, "Write hw.Gradient() or hw.Exact()."),
    "reference": (
        Reference,
        UnfitReferenceError,
        "Write hw.Corrupted(), hw.Mean(), hw.PositionalMean(), hw.Resample() or hw.Zero().",
    ),
}


def refuse_arguments(**given: Any) -> None:
    """Refuse arguments that are not of the kind `attribute` takes; None is left to defaults.

    Raises:
        HeadwaterError: Naming the argument, what was given, and what to write.
    """
    for name, value in given.items():
        kind, error, advice = _EXPECTED[name]
        if isinstance(value, kind) or (value is None and name == "reference"):
            continue
        shown = "nothing" if value is None else f"{value!r:.60}"
        if value is not None:
            shown += f" ({'a class' if isinstance(value, type) else type(value).__name__})"
        article = "an" if name == "estimator" else "a"
        raise error(f"{name}: expected {article} {kind.__name__}, got {shown}.\n{advice}")


def refuse_given(why: str, **given: Any) -> None:
    """Refuse arguments that have no meaning for what was given as the model.

    Args:
        why: Why they have none, and what to write.
        given: Arguments; None where they were left out.

    Raises:
        PromptError: Naming those that were given.
    """
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        verb = "was" if len(extra) == 1 else "were"
        raise PromptError(f"{' and '.join(extra)} {verb} given, but {why}.")


def refuse_exact(estimator: Estimator | None) -> None:
    """Refuse error bars for exact effects.

    Raises:
        ResultError: Saying what to leave out.
    """
    if isinstance(estimator, Exact):
        raise ResultError(
            "tolerance= is for estimates: exact effects have no error bars.\n"
            "Leave tolerance= out, or estimate: estimator=hw.Gradient()."
        )


def refuse_modes() -> None:
    """Refuse modes of torch under which the numbers would silently be others, or none.

    Raises:
        ModelStateError: If inference mode or autocast is active.
    """
    if torch.is_inference_mode_enabled():
        raise ModelStateError(
            "torch.inference_mode() is active: no gradient can be taken inside it.\n"
            "Leave that block; headwater turns gradients off itself where it needs none."
        )
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            raise ModelStateError(
                f"torch.autocast is active on {device}: the model would run in "
                f"{torch.get_autocast_dtype(device)} here, and in its own dtype in an audit.\n"
                "Leave that block, and choose a dtype: hw.load(name, dtype='bfloat16')."
            )
