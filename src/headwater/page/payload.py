"""Page data as JSON that can stand inside a `<script>` element and never ends it.

Components go out as columns, which takes a third of the bytes of one object each.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

TEXT_COLUMNS = ("name", "kind", "stratum", "ranks")
WHOLE_COLUMNS = ("layer", "index", "position")
NUMBER_COLUMNS = ("score", "spread", "se", "size", "exact")
BAR_COLUMNS = ("low", "high")

# `<` and `&` could end or confuse the script element, U+2028/9 end a line in older JavaScript,
# and a lone surrogate has no UTF-8 form at all.
UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def payload(data: Mapping[str, Any]) -> str:
    """Return `data` as escaped JSON, with components as columns and no NaN or infinity."""
    rows: Sequence[Mapping[str, Any]] = data["components"]
    columns: dict[str, list[Any]] = {
        key: [row.get(key) for row in rows] for key in TEXT_COLUMNS + WHOLE_COLUMNS
    }
    columns |= {key: [rounded(row.get(key)) for row in rows] for key in NUMBER_COLUMNS}
    if any(row.get("low") is not None for row in rows):
        columns |= {key: [rounded(row.get(key)) for row in rows] for key in BAR_COLUMNS}
    columns["flags"] = [list(row.get("flags") or []) for row in rows]
    # An audited component whose exact effect is not finite differs from one never audited.
    columns["checked"] = [int(row.get("exact") is not None) for row in rows]
    # Warnings, headline and provenance are written into the page itself.
    kept = {
        key: data[key]
        for key in ("estimator", "metric", "shown", "statistics", "pairs", "pairs_shown")
        if key in data
    }
    return encoded(finite(kept) | {"components": columns})


def encoded(data: Mapping[str, Any]) -> str:
    """Return plain data without NaN and infinity as JSON that never ends a script element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def rounded(value: float | int | None) -> float | int | None:
    """Return `value` to seven digits (what float32 holds), or None if it is None, NaN or inf."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.7g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def finite(value: Any) -> Any:
    """Return `value` with every NaN and infinity inside it replaced by None."""
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def count_non_finite(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return how many components have a number that is NaN or infinite."""
    return sum(
        any(
            isinstance(row.get(key), float) and not math.isfinite(row[key])
            for key in NUMBER_COLUMNS
        )
        for row in rows
    )
