"""Where a lens's numbers come from, as plain data."""

from __future__ import annotations

from typing import Any

from headwater.models import Model


def provenance(model: Model, **options: Any) -> dict[str, Any]:
    """Return the model's identity, the versions of what computed, and the options."""
    import torch
    import transformers

    import headwater

    return {
        "model": {
            "name": model.name,
            "class": type(model.module).__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
            **model.fingerprint(),
        },
        "versions": {
            "headwater": headwater.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "options": options,
    }
