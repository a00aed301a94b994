"""Taps made of taps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from headwater.taps import Tap


def keeper(kept: dict[Any, Tensor], key: Any) -> Tap:
    """Return a tap that keeps a copy of what it sees."""

    def tap(value: Tensor) -> None:
        kept[key] = value.detach().clone()

    return tap


def in_turn(first: Tap, second: Tap) -> Tap:
    """Call two taps at one site; the second sees what the first returned."""

    def tap(value: Tensor) -> Tensor:
        for one in (first, second):
            replacement = one(value)
            value = value if replacement is None else replacement
        return value

    return tap
