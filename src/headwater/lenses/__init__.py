"""The lens: what each layer of a model already predicts."""

from headwater.lenses.dataset import lens_dataset as lens_dataset
from headwater.lenses.result import Lens as Lens
from headwater.lenses.run import lens as lens
from headwater.lenses.summary import LensSummary as LensSummary
from headwater.lenses.translators import Translator as Translator
from headwater.lenses.translators import fit_lens as fit_lens
