"""A comparison's folder: a run folder an estimator, and `comparison.json`, written last."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from headwater.attribution import folders
from headwater.errors import RunFolderError
from headwater.files import foreign, make_writable, write_text

COMPARISON = "comparison.json"
LONGEST = 80
"""Characters of a run's folder; a name may be any text."""

Estimators = Mapping[str, Mapping[str, Any]]
"""By name, what each estimator is."""


def run_folders(names: Iterable[str]) -> dict[str, str]:
    """Return a folder for each name: plain characters only, and no two the same on any disk."""
    taken = {COMPARISON, folders.PAGE}
    chosen: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._=+-]+", "-", name)[:LONGEST].strip("-.") or "run"
        numbered = (f"{plain}-{number}" for number in count(2))
        free = (
            plain
            if plain.casefold() not in taken
            else next(one for one in numbered if one.casefold() not in taken)
        )
        taken.add(free.casefold())
        chosen[name] = free
    return chosen


def claim(folder: Path, estimators: Estimators) -> None:
    """Refuse a folder that cannot take this comparison, before anything is computed.

    Each run's own folder is claimed when its estimator starts.

    Raises:
        RunFolderError: If it cannot be written, or holds another comparison or other files.
    """
    make_writable(folder)
    _refuse_run(folder)
    ours, there = _runs(estimators), _runs_in(folder)
    if there is not None:
        if there != ours:
            raise RunFolderError(
                f"{folder} already holds another comparison.\n"
                f"  there: {_listed(there)}\n  now: {_listed(ours)}\n"
                "Choose another folder, or delete this one."
            )
        return
    expected = {run["folder"] for run in ours.values()} | {folders.PAGE, COMPARISON}
    if others := foreign(folder, expected):
        raise RunFolderError(
            f"{folder} holds no comparison but other files ({', '.join(others[:3])}).\n"
            "Choose another folder."
        )


def clear(folder: Path, estimators: Estimators) -> None:
    """Take away what is there of another comparison and would not be replaced by this one.

    Raises:
        RunFolderError: If the folder holds a run.
    """
    _refuse_run(folder)
    there, ours = _runs_in(folder) or {}, _runs(estimators)
    # a file that was edited may name any place: only names that are ours to give are touched
    stale = set(run_folders(there).values()) - {run["folder"] for run in ours.values()}
    for run in stale:
        for file in (folders.MANIFEST, folders.SCORES, *folders.OF_SCORES):
            (folder / run / file).unlink(missing_ok=True)
        if (folder / run).is_dir() and not any((folder / run).iterdir()):
            (folder / run).rmdir()


def _refuse_run(folder: Path) -> None:
    """Refuse to put a comparison beside a run, whose page and name it would take."""
    if (folder / folders.MANIFEST).exists():
        raise RunFolderError(
            f"{folder} holds a run, and a comparison takes a folder of its own.\n"
            "Choose another folder."
        )


def write(folder: Path, comparison: Mapping[str, Any], estimators: Estimators) -> None:
    """Write `comparison.json`: the table, and which run lies in which folder."""
    text = json.dumps({**comparison, "runs": _runs(estimators)}, indent=1)
    write_text(folder / COMPARISON, text)


def _runs(estimators: Estimators) -> dict[str, dict[str, Any]]:
    """Return folder and estimator of each run, as JSON gives them back."""
    chosen = run_folders(estimators)
    runs = {
        name: {"folder": chosen[name], "estimator": dict(one)} for name, one in estimators.items()
    }
    return json.loads(json.dumps(runs, default=str))


def _runs_in(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return the runs of the comparison in a folder; None if there is none."""
    path = folder / COMPARISON
    if not path.is_file():
        return None
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return {
            name: {"folder": run["folder"], "estimator": run["estimator"]}
            for name, run in runs.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{path} is not a comparison this release can read: {type(error).__name__}: {error}.\n"
            "Choose another folder, or delete this one."
        ) from error


def _listed(runs: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{name} = {json.dumps(run['estimator'])}" for name, run in runs.items())
