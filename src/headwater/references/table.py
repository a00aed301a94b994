"""The references by the command line's words, and how one comes back from a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headwater.errors import UnknownOptionError, did_you_mean
from headwater.references.means import Mean, PositionalMean
from headwater.references.reference import Corrupted, Reference, Zero
from headwater.references.resample import Resample
from headwater.references.tangent import Tangent

REFERENCES: dict[str, type[Reference]] = {
    kind.name: kind for kind in (Corrupted, Mean, PositionalMean, Resample, Tangent, Zero)
}
"""The command line's words."""


def reference_from_dict(
    data: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> Reference:
    """Return the reference that `to_dict` described.

    Args:
        data: What `to_dict` returned.
        tensors: What `tensors` returned, for means over prompts that were streamed.

    Raises:
        UnknownOptionError: If there is no such reference.
    """
    options = dict(data)
    name = str(options.pop("name"))
    if name not in REFERENCES:
        raise UnknownOptionError(
            f"no reference {name!r}.{did_you_mean(name, REFERENCES)} "
            f"References: {', '.join(REFERENCES)}."
        )
    kind = REFERENCES[name]
    if issubclass(kind, Mean | Tangent):
        return kind.read_back(options, tensors or {})
    return kind(**options)
