"""What a user of a gradient check gives is refused here, before anything runs."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import Tensor

from headwater.errors import GradcheckError
from headwater.estimators.choices import is_number


def refuse_choices(dtype: str, steps: object, seed: object = 0, rtol: object = None) -> None:
    """Refuse a number format, a count, a seed or a tolerance that has no meaning.

    Raises:
        GradcheckError: Saying what to write.
    """
    if dtype not in ("float64", "native"):
        raise GradcheckError(f"dtype={dtype!r}: write 'float64' or 'native'.")
    for name, value, example in (("steps", steps, 24), ("seed", seed, 0)):
        try:
            operator.index(value)  # pyright: ignore[reportArgumentType]
        except TypeError:
            raise GradcheckError(
                f"{name}={value!r} is not a whole number.\nWrite {name}={example}."
            ) from None
    if operator.index(steps) < 8:  # pyright: ignore[reportArgumentType]
        raise GradcheckError(f"steps={steps}: at least 8, or no plateau can be told from noise.")
    if rtol is not None and not (is_number(rtol) and 0 <= rtol < math.inf):  # pyright: ignore[reportOperatorIssue]
        raise GradcheckError(
            f"rtol={rtol!r} is not a relative difference.\n"
            "Write a number from 0, such as rtol=1e-6, or leave it out."
        )


def refuse_no_tensors(**given: Any) -> None:
    """Refuse what is no real floating-point tensor; None is left out.

    Raises:
        GradcheckError: Naming the argument, and what to write.
    """
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            write = f"Write {name}=torch.as_tensor({name})."
            if isinstance(value, str):
                write = "Give a tensor."
            raise GradcheckError(f"{name} is {type(value).__name__}, not a tensor.\n{write}")
        if not value.is_floating_point():
            raise GradcheckError(
                f"{name} is {value.dtype}: it has to hold real floating-point numbers."
                + ("" if value.is_complex() else f"\nWrite {name}={name}.double().")
            )


def refuse_grad_outputs(grad_outputs: Any) -> None:
    """Refuse weights of entries that are neither a tensor nor `"ones"`.

    Raises:
        GradcheckError: Saying what to write.
    """
    if not isinstance(grad_outputs, str):
        refuse_no_tensors(grad_outputs=grad_outputs)
    elif grad_outputs != "ones":
        raise GradcheckError(f'grad_outputs={grad_outputs!r}: write "ones", or give a tensor.')
