"""The folder of a corpus lens: `tally.safetensors` after every chunk, `corpus.json` at the end.

The tensors and how far they go are one file, renamed into place, so that a killed run leaves the
last whole chunk. The JSON says that the run is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headwater.errors import RunFolderError
from headwater.files import foreign, make_writable, write_atomically, write_text

REPORT, TENSORS, PAGE = "corpus.json", "tally.safetensors", "page.html"
SCHEMA = 1


def holds_corpus(path: Path) -> bool:
    """Whether a folder holds a complete corpus lens."""
    return (path / REPORT).is_file()


def claim(path: Path, specification: Mapping[str, Any], sha256: str | None = None) -> None:
    """Refuse a folder that cannot take this run.

    Args:
        path: The folder; made if it does not exist.
        specification: What decides the run's numbers, but for its prompts.
        sha256: Of the prompts, where they are known.

    Raises:
        RunFolderError: If it cannot be written, or holds another run or other files.
    """
    make_writable(path)
    if others := foreign(path, {REPORT, TENSORS, PAGE}):
        raise RunFolderError(
            f"{path} holds other files than a lens over a corpus ({', '.join(others[:3])}).\n"
            "Choose another folder."
        )
    if not (path / TENSORS).exists():
        return
    data, ours = read(path)[0], _plain(specification)
    there = dict(data.get("specification", {}))
    if sha256 is not None:
        there["prompts"], ours["prompts"] = data.get("sha256"), sha256
    differing = [key for key in ours if there.get(key) != ours[key]]
    if differing:
        lines = [
            f"  {key}: {there.get(key)!s:.60} there, {ours[key]!s:.60} now" for key in differing
        ]
        raise RunFolderError(
            f"{path} already holds another lens over a corpus. They differ in\n"
            + "\n".join(lines)
            + "\nChoose another folder, or delete this one."
        )


def write(path: Path, data: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a chunk: how far it goes, and the sums up to there.

    Args:
        path: A folder that was claimed.
        data: Plain data, with the run's `specification`.
        state: The tally's tensors.
    """
    (path / REPORT).unlink(missing_ok=True)
    # one field: of several the file's order would be another each time
    metadata = {"run": json.dumps({"schema_version": SCHEMA, **data})}
    write_atomically(path / TENSORS, lambda there: save_file(dict(state), there, metadata=metadata))


def finish(path: Path, report: Mapping[str, Any]) -> None:
    """Write what was found, for people and other programs; the run is complete."""
    whole = {"schema_version": SCHEMA, "tensors": _hash(path), **report}
    write_text(path / REPORT, json.dumps(whole, indent=1, allow_nan=False))


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the last chunk that was written: plain data and tensors.

    Raises:
        RunFolderError: If there is none, or none that this release can read.
    """
    file = path / TENSORS
    try:
        with safe_open(file, framework="pt") as stream:
            data = json.loads((stream.metadata() or {}).get("run", "{}"))
            if data.get("schema_version") != SCHEMA:
                raise RunFolderError(f"{file} was written by another release.\nMake it again.")
            state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        return data, state
    except (OSError, SafetensorError, ValueError) as error:
        if isinstance(error, RunFolderError):
            raise
        if not file.exists():
            raise RunFolderError(
                f"{path} holds no lens over a corpus: there is no {TENSORS}.\n"
                f"Make one: hw.lens_dataset(model, dataset, out={str(path)!r})."
            ) from None
        raise RunFolderError(
            f"{file} cannot be read ({str(error).splitlines()[0]}).\nDelete it and run again."
        ) from error


def refuse_incomplete(path: Path) -> None:
    """Refuse a folder whose run was not finished, or whose files are not of one run.

    Raises:
        RunFolderError: If it is so.
    """
    if not holds_corpus(path):
        done = read(path)[0].get("prompts", 0)
        raise RunFolderError(
            f"{path} holds a run that was not finished: {done:,} prompts were read.\n"
            f"Run it again with out={str(path)!r}: it goes on from there."
        )
    try:
        report = json.loads((path / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path / REPORT} cannot be read: {error}.\nRun again with this folder."
        ) from error
    if report.get("tensors") != _hash(path):
        raise RunFolderError(
            f"{path / REPORT} is not about the {TENSORS} beside it.\nRun again with this folder."
        )


def _hash(path: Path) -> str:
    with (path / TENSORS).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
