"""Dictionaries trained and looked into: sparse features of one site of a model."""

from headwater.saes.inspection import inspect_dictionary as inspect_dictionary
from headwater.saes.report import Figures as Figures
from headwater.saes.report import Inspection as Inspection
from headwater.saes.training import train_dictionary as train_dictionary
