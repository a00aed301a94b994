"""A run's folder: `run.json`, `scores.safetensors`, once audited `audit.json`, once verified
`verify.json`, and `exact.safetensors` with every exact run that was made of its components.

Every file is written under a temporary name and renamed. The manifest comes last and carries a hash
of the scores, so a folder is a whole run or none.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from headwater.attribution.manifest import SCHEMA, Manifest
from headwater.attribution.scores import Scores
from headwater.audits import Audit
from headwater.audits.ledger import Ledger
from headwater.components import parse_component
from headwater.errors import ResultError, RunFolderError
from headwater.estimators.trained_circuit import TrainedCircuit
from headwater.files import foreign, make_writable, write_atomically, write_text
from headwater.gates import Cost

MANIFEST, SCORES, AUDIT, PAGE = "run.json", "scores.safetensors", "audit.json", "page.html"
DIAGNOSIS, CURVES = "diagnosis.json", "curves.json"
VERIFIED, LEDGER = "verify.json", "exact.safetensors"
OF_SCORES = (AUDIT, PAGE, DIAGNOSIS, CURVES, VERIFIED, LEDGER)
"""Files that are about the scores beside them, and go when these change."""
OFF_VALUES = "off values at "
"""Before a site in the names of tensors."""

_OURS = {SCORES, *OF_SCORES}


def claim(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder that cannot take this run, before anything is computed.

    Raises:
        RunFolderError: If it is a file, cannot be written, or holds another run or other files.
    """
    make_writable(folder)
    if (folder / MANIFEST).exists():
        _refuse_other(folder, read_manifest(folder), manifest)
    elif others := foreign(folder, {MANIFEST, *_OURS}):
        raise RunFolderError(
            f"{folder} holds no run but other files ({', '.join(others[:3])}).\n"
            "Choose another folder."
        )


def refuse_other_scores(folder: Path, manifest: Manifest, scores: Scores) -> None:
    """Refuse to add to a folder what is about other scores than those in it.

    Raises:
        RunFolderError: If the folder holds no run, another one, or other numbers of the same one.
    """
    there = read_manifest(folder)
    _refuse_other(folder, there, manifest)
    if there.scores_hash != _hash(_tensors(scores)):
        raise RunFolderError(
            f"{folder} holds other scores of the same run (another machine, another function?).\n"
            f"Go on with those: hw.Attribution.load({str(folder)!r}); or save these: scores.save()."
        )


def _refuse_other(folder: Path, there: Manifest, manifest: Manifest) -> None:
    if there.specification == manifest.specification:
        return
    old, new = there.decisive(), manifest.decisive()
    if not manifest.knows_its_prompts:  # asked again once they have been read
        for fields in (old, new):
            fields["reference"] = {**fields["reference"], "over": None}
    differing = [key for key in new if json.dumps(old.get(key)) != json.dumps(new[key])]
    if not differing:
        return
    lines = [f"  {key}: {_short(old.get(key))} there, {_short(new[key])} now" for key in differing]
    raise RunFolderError(
        f"{folder} already holds another run. They differ in\n"
        + "\n".join(lines)
        + "\nChoose another --out, or delete the folder."
    )


def write(folder: Path, manifest: Manifest, scores: Scores, audit: Audit | None) -> None:
    """Write a run; an audit and page of the same numbers stay, of other numbers they go."""
    tensors = _tensors(scores)
    manifest = manifest.model_copy(update={"scores_hash": _hash(tensors)})
    same = (folder / MANIFEST).exists() and _still_holds(folder, manifest)
    if not same:
        for stale in (MANIFEST, *OF_SCORES):
            (folder / stale).unlink(missing_ok=True)
    write_atomically(folder / SCORES, lambda path: save_file(tensors, path))
    if audit is not None:
        write_audit(folder, audit)
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=1))


def write_audit(folder: Path, audit: Audit) -> None:
    """Write an audit beside the scores it is of."""
    write_text(folder / AUDIT, json.dumps(audit.to_dict(), indent=1))


def write_ledger(folder: Path, manifest: Manifest, ledger: Ledger) -> None:
    """Write every exact run of the scores: which components it closed, what was lost by pair."""
    if not ledger.lost:
        return
    sets, specification = list(ledger.lost), manifest.specification
    tensors = {
        # one set behind the other, and where each ends
        "closed": torch.tensor([column for columns in sets for column in columns]),
        "ends": torch.tensor([len(columns) for columns in sets]).cumsum(0),
        "chosen": torch.tensor([columns in ledger.chosen for columns in sets]),
        "lost": torch.from_numpy(np.stack(list(ledger.lost.values()))),
    }
    write_atomically(
        folder / LEDGER,
        lambda path: save_file(tensors, path, metadata={"specification": specification}),
    )


def read_ledger(folder: Path, manifest: Manifest) -> Ledger:
    """Return the exact runs made in this folder so far.

    Raises:
        RunFolderError: If the folder holds no run or another one, or a ledger that is not its own.
    """
    _refuse_other(folder, read_manifest(folder), manifest)
    path = folder / LEDGER
    if not path.is_file():
        return Ledger()
    try:
        with safe_open(path, "pt") as held:
            specification = (held.metadata() or {}).get("specification")
            closed, ends, chosen = (
                held.get_tensor(name).tolist() for name in ("closed", "ends", "chosen")
            )
            lost = held.get_tensor("lost").numpy()
    except (OSError, SafetensorError) as error:
        raise RunFolderError(
            f"{path} cannot be read: {error}.\nDelete it; the exact runs it held are then made "
            "again when they are needed."
        ) from error
    starts = [0, *ends[:-1]]
    sets = [tuple(closed[start:end]) for start, end in zip(starts, ends, strict=True)]
    if specification != manifest.specification or len(sets) != len(lost):
        raise RunFolderError(
            f"{path} does not belong to {folder / MANIFEST}: it holds runs of another "
            "specification.\nDelete it; the exact runs are then made again when they are needed."
        )
    return Ledger(
        dict(zip(sets, lost, strict=True)),
        {columns for columns, one in zip(sets, chosen, strict=True) if one},
    )


def read(folder: Path) -> tuple[Manifest, Scores, Audit | None]:
    """Read a run back.

    Raises:
        RunFolderError: If the folder holds no run, or files that do not belong together.
    """
    manifest = read_manifest(folder)
    try:
        tensors = load_file(folder / SCORES)
        values, clean = tensors["scores"], tensors["clean"]
    except (OSError, SafetensorError, KeyError) as error:
        raise RunFolderError(
            f"{folder} holds a manifest, but its scores cannot be read: {error}.\n"
            "Run `headwater attribute` again into an empty folder."
        ) from error
    if values.shape != (len(clean), len(manifest.names)) or _hash(tensors) != manifest.scores_hash:
        raise RunFolderError(
            f"{folder / SCORES} does not belong to {folder / MANIFEST}: the manifest names "
            f"{len(manifest.names):,} components, the scores are {tuple(values.shape)}, and the "
            "hash it holds is of other numbers.\n"
            "Run `headwater attribute` again into an empty folder."
        )
    of_model = manifest.task is not None
    scores = Scores(
        components=tuple(parse_component(name) if of_model else name for name in manifest.names),
        values=values,
        clean=clean,
        corrupted=tensors.get("corrupted"),
        sizes=tensors.get("sizes"),
        cost=Cost(**manifest.cost),  # pyright: ignore[reportArgumentType]
        is_cut=manifest.is_cut,
        tokens=tuple(manifest.tokens),
        errors=tensors.get("errors"),
        gaps=tensors.get("gaps"),
        gap_names=tuple(manifest.gap_names),
        notes=tuple(manifest.notes),
        magnitudes=manifest.magnitudes,
        exact=frozenset(manifest.exact),
        off_values={
            name.removeprefix(OFF_VALUES): tensor
            for name, tensor in tensors.items()
            if name.startswith(OFF_VALUES)
        },
        circuit=None if manifest.circuit is None else TrainedCircuit.from_dict(manifest.circuit),
    )
    return manifest, scores, _read_audit(folder)


def _read_audit(folder: Path) -> Audit | None:
    path = folder / AUDIT
    if not path.is_file():
        return None
    try:
        return Audit.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ResultError) as error:
        raise RunFolderError(
            f"{path} cannot be read: {str(error).splitlines()[0]}\n"
            "The scores beside it are whole: delete this file and audit again."
        ) from error


def read_manifest(folder: Path) -> Manifest:
    """Return a run folder's manifest.

    Raises:
        RunFolderError: If the folder holds no run, or one this release cannot read.
    """
    path = folder / MANIFEST
    if (folder / "comparison.json").is_file():
        runs = sorted(one.parent.name for one in folder.glob(f"*/{MANIFEST}"))
        raise RunFolderError(
            f"{folder} holds a comparison, one run an estimator: {', '.join(runs)}.\n"
            f"Name one of them: {folder / runs[0] if runs else folder / 'gradient'}."
        )
    if not path.is_file():
        raise RunFolderError(
            f"no run in {folder}: it has no run.json.\n"
            f"Make one: scores.save({str(folder)!r}), or on the command line headwater attribute "
            f"--model tiny --task ioi --out {folder}"
        )
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        lines = str(error).splitlines()
        raise RunFolderError(
            f"{path} is not a manifest this release can read (schema {SCHEMA}): {lines[0]}.\n"
            "Run `headwater attribute` again into an empty folder."
        ) from error


def _tensors(scores: Scores) -> dict[str, Tensor]:
    named = {
        "scores": scores.values,
        "clean": scores.clean,
        "corrupted": scores.corrupted,
        "sizes": scores.sizes,
        "errors": scores.errors,
        "gaps": scores.gaps,
        **{OFF_VALUES + site: tensor for site, tensor in scores.off_values.items()},
    }
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in named.items()
        if tensor is not None
    }


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _still_holds(folder: Path, manifest: Manifest) -> bool:
    there = read_manifest(folder)
    return there.specification == manifest.specification and (
        there.scores_hash == manifest.scores_hash
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
