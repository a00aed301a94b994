"""Off values: what a component is set to when its gate closes.

A `Reference` is the user's choice; `prepare` turns it into an `Off`, which gives the values at the
gated sites for one batch. Estimates and exact effects both read the same `Off`.
"""

from headwater.references.means import Mean as Mean
from headwater.references.means import PositionalMean as PositionalMean
from headwater.references.reference import Corrupted as Corrupted
from headwater.references.reference import Off as Off
from headwater.references.reference import OffValues as OffValues
from headwater.references.reference import Reference as Reference
from headwater.references.reference import Values as Values
from headwater.references.reference import Zero as Zero
from headwater.references.reference import capture as capture
from headwater.references.resample import Resample as Resample
from headwater.references.table import REFERENCES as REFERENCES
from headwater.references.table import reference_from_dict as reference_from_dict
from headwater.references.tangent import Tangent as Tangent
