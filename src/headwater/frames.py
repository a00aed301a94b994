"""Rows as a pandas table, where pandas is installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from headwater.errors import MissingExtraError

if TYPE_CHECKING:
    import pandas


def frame(rows: Iterable[Mapping[str, Any]], otherwise: str) -> pandas.DataFrame:
    """Return rows as a pandas table.

    Args:
        rows: Plain data, one mapping a row.
        otherwise: What to write where pandas is not installed.

    Raises:
        MissingExtraError: If pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtraError(
            "to_frame() needs pandas, which is not installed.\n"
            f"Install it: pip install 'headwater[pandas]'. Without it: {otherwise}."
        ) from None
    return pandas.DataFrame(list(rows))
