"""`attribute()` and its result."""

from headwater.attribution.attribute import attribute
from headwater.attribution.result import Attribution

__all__ = ["Attribution", "attribute"]
