"""Dictionaries: sparse features that an activation is written in, from any file on disk."""

from headwater.dictionaries.activations import Activation as Activation
from headwater.dictionaries.activations import Gated as Gated
from headwater.dictionaries.activations import JumpRelu as JumpRelu
from headwater.dictionaries.activations import Relu as Relu
from headwater.dictionaries.activations import TopK as TopK
from headwater.dictionaries.collection import Dictionaries as Dictionaries
from headwater.dictionaries.dictionary import Dictionary as Dictionary
from headwater.dictionaries.dictionary import Origin as Origin
from headwater.dictionaries.read import read_dictionary as read_dictionary
from headwater.dictionaries.write import write_dictionary as write_dictionary
