"""Where a training run is kept, so that it can be continued with exactly the same numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headwater.errors import RunFolderError
from headwater.files import make_writable, write_atomically

if TYPE_CHECKING:
    from headwater.estimators.mask_training import Rounds
    from headwater.estimators.trained_mask import TrainedMask

FILE = "mask.safetensors"
ENDS = ("open", "closed")


@dataclass(frozen=True)
class Checkpoints:
    """One file in a folder: the state, the settings it is of, and the metric's ends.

    The file is written under a temporary name and renamed, so it is a whole state or none.
    """

    path: Path
    settings: dict[str, Any]
    """What decides the numbers; a state of other settings is refused."""
    ends: dict[str, Tensor]
    """The metric of every pair with all gates open and closed; tells one function from another."""

    @staticmethod
    def of(settings: TrainedMask, rounds: Rounds) -> Checkpoints | None:
        """Return the folder's checkpoints; None if there is no folder.

        Raises:
            RunFolderError: If the folder cannot be written.
        """
        if settings.checkpoints is None:
            return None
        folder = Path(settings.checkpoints)
        make_writable(folder)
        names = "\n".join(rounds.first.names)
        decides = settings.to_dict() | {
            "components": hashlib.sha256(names.encode()).hexdigest()[:16],
            "pairs in each batch": [len(values) for values in rounds.open],
            "dtype": str(rounds.first.dtype),
        }
        ends = {"open": torch.cat(rounds.open).cpu(), "closed": torch.cat(rounds.closed).cpu()}
        return Checkpoints(folder / FILE, decides, ends)

    def write(self, state: dict[str, Tensor]) -> None:
        """Replace the file by this state."""
        tensors = state | {f"end.{end}": value for end, value in self.ends.items()}
        said = {"settings": json.dumps(self.settings)}
        write_atomically(self.path, lambda there: save_file(tensors, there, metadata=said))

    def read(self, names: Collection[str]) -> dict[str, Tensor] | None:
        """Return the state saved; None if there is none yet.

        Args:
            names: Of the tensors that a state has.

        Raises:
            RunFolderError: If the file is broken, or of other settings or another function.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                there = json.loads((file.metadata() or {})["settings"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise self._unreadable(str(error)) from error
        self._refuse_other(there)
        self._refuse_incomplete(state, {*names, *(f"end.{end}" for end in ENDS)})
        self._refuse_moved(state)
        return state

    def _unreadable(self, problem: str) -> RunFolderError:
        return RunFolderError(
            f"{self.path} is no checkpoint this release can read: {problem}.\n"
            "Delete it to train from the start, or choose another folder."
        )

    def _refuse_incomplete(self, state: dict[str, Tensor], names: set[str]) -> None:
        lists = (
            ("lacks", sorted(names - state.keys())),
            ("holds the unknown", sorted(state.keys() - names)),
        )
        problems = [f"it {verb} {', '.join(differing)}" for verb, differing in lists if differing]
        if problems:
            raise self._unreadable(" and ".join(problems))

    def _refuse_other(self, there: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.settings))
        differing = [key for key in now | there if there.get(key) != now.get(key)]
        if differing:
            lines = [f"  {key}: {there.get(key)} there, {now.get(key)} now" for key in differing]
            raise RunFolderError(
                f"{self.path} is of a training with other settings. They differ in\n"
                + "\n".join(lines)
                + "\nChoose another folder for checkpoints=, or delete the file."
            )

    def _refuse_moved(self, state: dict[str, Tensor]) -> None:
        for end in ENDS:
            there, now = state.pop(f"end.{end}"), self.ends[end]
            # as for audits: other batch shapes round differently, another model is far away
            allowed = 1000 * torch.finfo(now.dtype).eps * float(now.abs().max())
            drift = (there - now).abs()
            if bool((drift > allowed).any()):
                pair = int(drift.argmax())
                raise RunFolderError(
                    f"{self.path} is of another model or task: with all gates {end} the metric of "
                    f"pair {pair} of the batches was {float(there[pair]):.6g} and is "
                    f"{float(now[pair]):.6g} now.\n"
                    "Choose another folder for checkpoints=, or delete the file."
                )
