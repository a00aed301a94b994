"""A lens put to the test: residuals are changed, and the output is compared with what it said."""

from headwater.lenses.causal.check import check as check
from headwater.lenses.causal.reader import Reader as Reader
from headwater.lenses.causal.result import LensCheck as LensCheck
