"""JSON that every reader takes: a number that is not finite stands as null, and beside it, once
more, where it stood and what it was, so that reading gives back what was written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

NOT_FINITE = "not_finite"
"""The key of such numbers, by where they stood (a JSON pointer, RFC 6901)."""


def dumped(data: Mapping[str, Any]) -> str:
    """Return plain data as JSON; what JSON has no form for goes as its text.

    Args:
        data: Mappings, sequences, texts and numbers.
    """
    lost: dict[str, str] = {}
    whole = dict(_plain(data, "", lost))
    if lost:
        whole[NOT_FINITE] = lost
    return json.dumps(whole, indent=1, allow_nan=False, default=str)


def loaded(text: str) -> Any:
    """Return the data that `dumped` wrote, tuples as lists.

    Args:
        text: JSON.

    Raises:
        ValueError: If it is no JSON.
    """
    data = json.loads(text)
    if not isinstance(data, dict):
        return data
    lost = data.pop(NOT_FINITE, {})
    try:
        for pointer, number in lost.items():
            *way, last = _way(pointer)
            holder: Any = data
            for key in way:
                holder = holder[int(key) if isinstance(holder, list) else key]
            holder[int(last) if isinstance(holder, list) else last] = float(number)
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{NOT_FINITE} names no number: {error}") from error
    return data


def _plain(value: Any, pointer: str, lost: dict[str, str]) -> Any:
    """Return a value without numbers that are not finite; those go to `lost`."""
    if isinstance(value, float) and not math.isfinite(value):
        lost[pointer] = repr(float(value))
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(one, _under(pointer, key), lost) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, _under(pointer, place), lost) for place, one in enumerate(value)]
    return value


def _under(pointer: str, key: object) -> str:
    return f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"


def _way(pointer: str) -> Iterator[str]:
    return (key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:])
