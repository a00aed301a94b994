"""The adapter proves itself: on random tokens the model's parts must add up to the model.

Costs about eight forward passes over two rows of seven tokens. A record of the table that does
not fit this model is refused with every number; nothing about the model is changed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headwater.architectures.adapter import Adapter
from headwater.errors import FailedProofError
from headwater.identities import Check, all_checks
from headwater.interrupts import Held
from headwater.precision import context_for

if TYPE_CHECKING:
    from headwater.models import Model


@dataclass(frozen=True)
class Proof:
    """The checks an adapter went through, with their numbers."""

    model: str
    family: str
    dtype: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether every binding check holds."""
        return all(check.holds for check in self.checks if check.binding)

    @property
    def pads(self) -> bool:
        """Whether left padding changed no number."""
        return all(check.holds for check in self.checks if not check.binding)

    def error(self, claim: str) -> float:
        """The error of the check whose claim starts with `claim`."""
        return next(check.error for check in self.checks if check.claim.startswith(claim))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        checks = {check.claim: [check.error, check.allowed] for check in self.checks}
        return {"family": self.family, "dtype": self.dtype, "checks": checks}

    def __str__(self) -> str:
        width = max(len(check.claim) for check in self.checks)
        lines = [
            f"  {check.claim:<{width}}  error {check.error:.1e}  allowed {check.allowed:.1e}"
            + ("" if check.holds else f"  FAILED: look at {check.suspect}")
            for check in self.checks
        ]
        return "\n".join([f"{self.model} as {self.family}, {self.dtype}:", *lines])


def prove(model: Model) -> Proof:
    """Check on random tokens that a model's adapter says the truth.

    Args:
        model: A model with an adapter; its mode, flags and random state stay as they are.

    Returns:
        The checks with their numbers.

    Raises:
        FailedProofError: If a check fails; carries every number and the lines to look at.
    """
    adapter = model.anatomy()
    name = type(model.module).__name__
    try:
        with (
            model.lock,
            _evaluating(model.module),
            torch.no_grad(),
            context_for(model.module),
            _silent_fallbacks(model.device),
        ):
            checks = all_checks(model, adapter)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        _refuse_broken_weights(model.module)
        raise FailedProofError(
            f"{name} cannot be run as {adapter.family.name}: on random tokens it raised "
            f"{type(error).__name__}: {error}\n{_advice(adapter)}"
        ) from error
    proof = Proof(name, adapter.family.name, str(model.dtype).removeprefix("torch."), checks)
    if not proof.holds:
        _refuse_broken_weights(model.module)
        raise FailedProofError(
            f"the self-proof failed, so no attribution of this model could be trusted.\n{proof}\n"
            f"{_advice(adapter)}"
        )
    return proof


def _refuse_broken_weights(module: nn.Module) -> None:
    """Blame the weights, not the record, where weights are missing or no numbers."""
    broken = [
        f"parameter {name} {problem}"
        for name, parameter in module.named_parameters()
        if (problem := _problem(parameter)) is not None
    ]
    if broken:
        more = f", and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise FailedProofError(
            f"{type(module).__name__} cannot be run: {', '.join(broken[:3])}{more}.\n"
            "Load its weights again from the checkpoint; if they overflowed in float16, with "
            "dtype='bfloat16' or 'float32'."
        )


def _problem(parameter: torch.Tensor) -> str | None:
    if parameter.is_meta:
        return "is on the meta device, without values"
    if not parameter.is_floating_point():
        return None
    # some eight-bit types cannot be asked
    values = parameter.detach().float() if parameter.element_size() == 1 else parameter.detach()
    if values.isnan().any():
        return "holds NaN"
    return "holds infinity" if values.isinf().any() else None


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    # plain attributes, not .eval(): some models override train() to do more
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        with Held():
            for part in training:
                part.training = True


@contextmanager
def _silent_fallbacks(device: torch.device) -> Iterator[None]:
    """Drop transformers' advice to install CUDA kernels (once a process) where there is no CUDA."""
    if device.type != "cpu":
        yield
        return
    logger = logging.getLogger("transformers.integrations.hub_kernels")

    def keep(record: logging.LogRecord) -> bool:
        return "falling back to its reference PyTorch implementation" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _advice(adapter: Adapter) -> str:
    return (
        f"The record of {adapter.family.name} in headwater/architectures/table.py does not fit "
        "this model (a fork, other transformers, or a patched module).\n"
        "`hw.load(..., prove=False)` skips the proof; its numbers are then on your own account."
    )
