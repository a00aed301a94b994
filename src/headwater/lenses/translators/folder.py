"""A translator's folder: `translator.safetensors`, then `translator.json`; so its evaluation's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headwater.errors import RunFolderError
from headwater.folders import Folder, without_versions
from headwater.lenses.rows import Row
from headwater.lenses.translators import identity
from headwater.lenses.translators.corpus import Corpus
from headwater.models import Model
from headwater.prompts.streams import Dataset

if TYPE_CHECKING:
    from headwater.lenses.translators.translator import Translator

REPORT, TENSORS = "translator.json", "translator.safetensors"
EVALUATION, SCORES = "evaluation.json", "evaluation.safetensors"
TRAINED = ("kl", "bias")
"""Methods that read as much of a corpus as their steps take."""
_PLAIN = ("method", "model", "corpus", "options", "details")


def identity_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a translator is of: the model, the corpus by its hash, and how it was fitted.

    Args:
        data: The translator as plain data, or as much of it as is known before it is fitted.
    """
    found = without_versions({key: data[key] for key in ("method", "model", "rows") if key in data})
    corpus = data.get("corpus")
    if corpus:
        found["corpus"] = corpus["sha256"]
    elif "sha256" in data:  # of a checkpoint nobody knows the corpus
        found["sha256"] = data["sha256"]
    return {**data["options"], **found}


FOLDER = Folder(
    report=REPORT,
    tensors=TENSORS,
    what="translator",
    made_by="hw.fit_lens(model, texts).save('FOLDER')",
    identity=identity_of,
    others=(EVALUATION, SCORES),
)
OF_EVALUATION = Folder(
    report=EVALUATION,
    tensors=SCORES,
    what="evaluation",
    made_by="translator.evaluate(model, held_out).save('FOLDER')",
    identity=lambda _: {},
    others=(REPORT, TENSORS),
)
"""A translator and its evaluation may stand in one folder; another evaluation takes its place."""


def tensors_of(translator: Translator) -> dict[str, Tensor]:
    """Return a translator's tensors by the names they have in the file."""
    groups = {"weight": translator.weights, "bias": translator.biases, "error": translator.errors}
    found = {
        f"{group}.{row}": value.contiguous()
        for group, values in groups.items()
        for row, value in values.items()
        if value is not None
    }
    return {**found, "seen": translator.seen}


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, formats and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype};".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def claim(
    path: Path,
    model: Model,
    dataset: Dataset,
    method: str,
    rows: Sequence[Row],
    *,
    limit: int | None = None,
    length: int | None = None,
    **options: Any,
) -> None:
    """Refuse a folder that cannot take the translator of these arguments, before it is fitted.

    Where the folder holds a translator, the corpus is read as far as that one was fitted to it.

    Args:
        path: The folder; made if it does not exist.
        model: As for `hw.fit_lens`.
        dataset: Likewise.
        method: Likewise.
        rows: What will be translated.
        limit: As for `hw.fit_lens`.
        length: Likewise.
        **options: Of the method, as the translator will name them; left out is None.

    Raises:
        RunFolderError: If it cannot be written, or holds other files or another translator.
        PromptError: If a prompt cannot be read.
    """
    FOLDER.claim(path)
    if not FOLDER.holds(path):
        return
    with FOLDER.reading(path):
        data = FOLDER.data(path)
        read, there = int(data["corpus"].get("prompts", 0)), data["options"]
    if method not in TRAINED:  # these read all there is
        read += 1
    corpus = Corpus(
        model, dataset, limit=max(1, min(read, limit or read)), length=length,
        batch_size=options["batch_size"],
    )  # fmt: skip
    for _ in corpus.batches():
        pass
    now = {
        "method": method,
        "model": identity.identity_of(model),
        "rows": [row.name for row in rows],
        "options": {key: options.get(key) for key in {**there, **options}},
        "corpus": corpus.described,
    }
    FOLDER.claim(path, identity_of(now))


def claim_evaluation(path: Path, sha256: str | None) -> None:
    """Refuse a folder that cannot take the evaluation of a translator.

    Args:
        path: The folder; made if it does not exist.
        sha256: The translator's hash; None if it is not known.

    Raises:
        RunFolderError: If it cannot be written, or holds other files or another translator.
    """
    OF_EVALUATION.claim(path)
    if sha256 and FOLDER.holds(path) and FOLDER.data(path).get("sha256") != sha256:
        raise RunFolderError(
            f"{path} holds another translator than the one that is judged.\n"
            "Choose its own folder, or a new one."
        )


def write(translator: Translator, path: Path, *, overwrite: bool) -> Path:
    """Write a translator, the JSON last; errors as for `Folder.write`."""
    data = {name: getattr(translator, name) for name in _PLAIN}
    data |= {
        "rows": list(translator.rows),
        "notes": list(translator.notes),
        "sha256": translator.sha256,
    }
    FOLDER.claim(path, None if overwrite else identity_of(data))
    if FOLDER.holds(path) and not _holds_tensors(path, translator.sha256):
        for stale in (EVALUATION, SCORES):  # of the other one
            (path / stale).unlink(missing_ok=True)
    return FOLDER.write(path, data, tensors_of(translator), overwrite=overwrite)


def read(path: Path) -> dict[str, Any]:
    """Return the fields of the translator in a folder.

    Raises:
        RunFolderError: If there is none that this release can read.
    """
    data, tensors = FOLDER.read(path)
    with FOLDER.reading(path):
        if hash_of(tensors) != data["sha256"]:
            raise ValueError(f"{TENSORS} and {REPORT} are of two translators")
        rows: list[str] = data["rows"]
        return {
            **{name: data[name] for name in _PLAIN},
            "weights": {row: tensors.get(f"weight.{row}") for row in rows},
            "biases": {row: tensors.get(f"bias.{row}") for row in rows},
            "errors": {row: tensors[f"error.{row}"] for row in rows if f"error.{row}" in tensors},
            "seen": tensors["seen"],
            "notes": tuple(data["notes"]),
        }


def _holds_tensors(path: Path, sha256: str) -> bool:
    try:
        return FOLDER.data(path).get("sha256") == sha256
    except RunFolderError:
        return False  # nothing that can be read
