"""Gradients that a user gives: one read in a trace after an edit has to come with the edit."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from headwater.errors import GradcheckError
from headwater.gradchecks.result import Check
from headwater.trace.edited import edits_before

DECLARE = (
    "Declare each edit: edits={site: factor} says by what the gradient at a site was multiplied (0 "
    "cuts a path), edits={} that no edit lies between the value and the metric."
)
"""What to type where edits can be declared."""
DEFINE = (
    "Have f do what the edit does: where the gradient of a value h was multiplied by c, let f go "
    "on with h0 + c * (h - h0), h0 being what h is at x."
)
"""What to type where the function is the user's."""
_NAMED = 3
"""Most edited values that are named one by one."""


def refuse_edited(gradient: Tensor | None, objective: str, remedy: str) -> None:
    """Refuse a gradient read in a trace after others were edited: it may be no derivative.

    Args:
        gradient: The given gradient; None if there is none.
        objective: What it would be the derivative of.
        remedy: What to type where the edits are known.

    Raises:
        GradcheckError: Naming the values whose gradients were edited.
    """
    edits = () if gradient is None else edits_before(gradient)
    if edits:
        raise GradcheckError(
            f"this gradient was read in a trace after an edit of the gradient of {_listed(edits)}, "
            f"in one backward pass: it may be no derivative of {objective} alone.\n"
            f"{remedy} Or give the gradient of a block without edits."
        )


def with_doubt(check: Check) -> Check:
    """Say of a given gradient that is wrong, nobody knows why, what cannot be known of it."""
    if check.verdict != "disagree" or check.hint:
        return check
    doubt = (
        "a gradient read in a trace after an edit of another is no derivative of the metric alone, "
        "and a copy of one (.clone(), another number format or device) is not recognized; if this "
        "is one, write edits={site: factor}"
    )
    return replace(check, notes=(*check.notes, doubt))


def _listed(names: tuple[str, ...]) -> str:
    once = list(dict.fromkeys(names))
    more = len(once) - _NAMED
    return ", ".join(once[:_NAMED]) + (f" and {more} more" if more > 0 else "")
