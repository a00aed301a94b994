"""What users type to get a value."""

from __future__ import annotations

from functools import lru_cache

Named = str | tuple[str, str]
"""What the user would type to get a value, or the module's path and which of its values."""


def name_of(named: Named) -> str:
    """What the user would type to get a value."""
    return named if isinstance(named, str) else f"{typed(named[0])}.{named[1]}"


@lru_cache(maxsize=4096)
def typed(path: str) -> str:
    """What a user types to reach a path: `model.model.layers[1]` for `model.layers.1`.

    Args:
        path: The path in the module; empty for the model itself.

    Returns:
        The expression, for a model in a variable `model`.
    """
    found = "model"
    for name in path.split(".") if path else []:
        found += f"[{name}]" if name.isdigit() else f".{name}"
    return found
