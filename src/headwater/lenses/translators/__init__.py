"""Translators: what is applied to a row's residual stream before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headwater.errors import UnknownOptionError
from headwater.lenses.rows import Row
from headwater.lenses.translators.evaluate import evaluate_lens as evaluate_lens
from headwater.lenses.translators.evaluation import Evaluation as Evaluation
from headwater.lenses.translators.fit import fit_lens as fit_lens
from headwater.lenses.translators.translator import Translator as Translator
from headwater.models import Model


def as_translator(
    translator: Translator | str | Path | None, model: Model, rows: Sequence[Row]
) -> Translator | None:
    """Return a translator that fits a model and the rows that shall be read.

    Args:
        translator: One, the folder of one or of a tuned-lens checkpoint, or None.
        model: The model.
        rows: What shall be read.

    Raises:
        ResultError: If it was fitted to another model, or lacks a row.
        RunFolderError: If the folder holds none.
        UnknownOptionError: If it is nothing of the kind.
    """
    if translator is None:
        return None
    where = ""
    if isinstance(translator, str | Path):
        where, translator = str(translator), Translator.load(translator)
    if not isinstance(translator, Translator):
        raise UnknownOptionError(
            f"translator={translator!r:.60} ({type(translator).__name__}) is none.\n"
            "Give what hw.fit_lens returned, or its folder."
        )
    translator.refuse(model, rows, where=where)
    return translator


def refuse_other_reading(readout: str, decode_with: str) -> None:
    """Refuse to read through a translator with another norm or table than it was fitted with.

    Raises:
        UnknownOptionError: Naming both.
    """
    if readout != "final-norm" or decode_with != "unembedding":
        raise UnknownOptionError(
            f"translator= with readout={readout!r}, decode_with={decode_with!r}: translators are "
            "fitted to be read through the final norm and the unembedding.\n"
            "Leave these two options out, or the translator."
        )
