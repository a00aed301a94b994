"""The lens: what each layer of a model already predicts."""

from headwater.lens.result import Lens as Lens
from headwater.lens.run import lens as lens
