"""The lens: what each layer of a model already predicts."""

from headwater.lenses.result import Lens as Lens
from headwater.lenses.run import lens as lens
