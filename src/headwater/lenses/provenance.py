"""Where a lens's numbers come from, as plain data."""

from __future__ import annotations

from typing import Any

from headwater.attribution.manifest import describe_model, versions
from headwater.models import Model


def provenance(model: Model, **options: Any) -> dict[str, Any]:
    """Return the model's identity, the versions of what computed, and the options.

    The device is left out: a corpus that was begun on one goes on, on another.
    """
    described = describe_model(model)
    del described["device"]
    return {"model": described, "versions": versions(), "options": options}
