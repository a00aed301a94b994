"""Read one dictionary, whatever wrote it: the format is told by keys and configuration."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from headwater.dictionaries import folding
from headwater.dictionaries.dictionary import Dictionary
from headwater.dictionaries.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    saelens,
    sparsify,
)
from headwater.dictionaries.hooks import named_by
from headwater.dictionaries.source import Source, open_source
from headwater.errors import DictionaryError

FORMATS: dict[str, ModuleType] = {
    "SAELens": saelens,
    "Gemma Scope": gemma_scope,
    "circuit-tracer": circuit_tracer,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
}
"""By name, in the order in which they are tried."""


def read_dictionary(
    path: str | os.PathLike[str], *, scale: float | None = None, centered: bool | None = None
) -> Dictionary:
    """Read a dictionary.

    What a file leaves to be done to the input (a bias taken away, a factor, centering) is folded
    into the weights, and `origin.notes` says so.

    Args:
        path: Its folder, or its file of weights with the configuration beside it.
        scale: What activations were multiplied by in training, for SAELens'
            `expected_average_only_in`; refused for any other.
        centered: Whether it was trained on residuals whose mean over the width was taken away
            (TransformerLens' `center_writing_weights`); None to go by its configuration.

    Returns:
        The dictionary, on the CPU, in float32 at least.

    Raises:
        DictionaryError: If there is none, if its format is unknown, or if its tensors do not fit
            together; names file, tensor and shape.
        UnsupportedDictionaryError: If it is of a kind that is no sum of features of one input.
    """
    return dictionary_of(open_source(Path(path)), scale=scale, centered=centered)


def dictionary_of(
    source: Source, *, scale: float | None = None, centered: bool | None = None
) -> Dictionary:
    """Read a dictionary from a file that is open.

    Args:
        source: The file.
        scale: As in `read_dictionary`.
        centered: As in `read_dictionary`.

    Raises:
        DictionaryError: As in `read_dictionary`.
    """
    if saelens.fits(source):
        return _placed(saelens.read(source, scale, centered))
    if scale is not None:
        raise DictionaryError(
            f"{source.path}: scale={scale:g} was given, but only SAELens' "
            "'expected_average_only_in' has an unknown factor.\nLeave out scale."
        )
    for one in FORMATS.values():
        if one.fits(source):
            dictionary = _placed(one.read(source))
            return folding.centered(dictionary) if centered else dictionary
    said = ", ".join(sorted(source.config)) or "nothing"
    beside = "no configuration beside it" if source.config_path is None else (
        f"{source.config_path.name} beside it says: {said}"
    )  # fmt: skip
    raise DictionaryError(
        f"{source.path} is of no known format. It holds: {source.listing()}; {beside}.\n"
        f"Read are: {', '.join(FORMATS)}. A SAELens folder needs its cfg.json."
    )


def _placed(dictionary: Dictionary) -> Dictionary:
    """Name a dictionary's place by its folder if its file does not."""
    origin = dictionary.origin
    if origin.hook is not None or dictionary.transcoder:
        return dictionary
    hook = named_by(Path(origin.path))
    if hook is None:
        return dictionary
    placed = replace(dictionary, origin=replace(origin, hook=hook))
    return folding.noted(placed, f"Its place is taken from its folder's name, {hook}.")
