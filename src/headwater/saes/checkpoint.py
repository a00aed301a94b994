"""The folder of a training: its state while it runs, the dictionary and a record when it is done.

checkpoint.safetensors    the state: a whole one or none; deleted at the end
sae_weights.safetensors, cfg.json    the dictionary
training.json             settings, corpus and figures; written last, so it says "done"
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headwater import strict_json
from headwater.dictionaries import Dictionary, read_dictionary, write_dictionary
from headwater.dictionaries.hooks import hook_of
from headwater.errors import RunFolderError
from headwater.files import make_writable, write_atomically, write_text
from headwater.saes.learner import Learner
from headwater.saes.stream import Place
from headwater.sites import Site

STATE, RECORD, DONE = "checkpoint.safetensors", "training.json", "cfg.json"


@dataclass(frozen=True)
class Checkpoints:
    """Where a training is kept.

    Args:
        folder: The folder.
        settings: What decides the numbers; a folder of other settings is refused.
    """

    folder: Path
    settings: Mapping[str, Any]

    def claim(self) -> None:
        """Refuse a folder that holds something else, before anything runs.

        Raises:
            RunFolderError: If it cannot be written, or holds another training or dictionary.
        """
        make_writable(self.folder)
        if self.done:
            self._refuse_other(self.folder / RECORD, self._record().get("settings", {}))
        elif (self.folder / DONE).exists() and not (self.folder / STATE).exists():
            raise RunFolderError(
                f"{self.folder} holds a dictionary that was not trained here.\n"
                "Choose another folder."
            )

    @property
    def done(self) -> bool:
        """Whether the training that the folder holds is finished."""
        return (self.folder / RECORD).exists() and (self.folder / DONE).exists()

    def reached(self) -> Place:
        """Return where the stream of a finished training had come.

        Raises:
            RunFolderError: If the record does not say it.
        """
        try:
            return Place(**self._record()["reached"])
        except (KeyError, TypeError) as error:
            raise self._unreadable(RECORD, f"it does not say what was read ({error})") from error

    def write(self, tensors: dict[str, Tensor], place: Place) -> None:
        """Replace the state by this one."""
        said = {"settings": json.dumps(self.settings), "place": json.dumps(asdict(place))}
        write_atomically(
            self.folder / STATE, lambda there: save_file(tensors, there, metadata=said)
        )

    def read(self) -> tuple[dict[str, Tensor], Place] | None:
        """Return the state saved, and where the stream was; None if there is none.

        Raises:
            RunFolderError: If the file is broken, or of other settings.
        """
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                said = file.metadata() or {}
                settings, place = json.loads(said["settings"]), Place(**json.loads(said["place"]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise self._unreadable(STATE, str(error)) from error
        self._refuse_other(path, settings)
        if missing := sorted(Learner.names() - tensors.keys()):
            raise self._unreadable(STATE, f"it lacks {', '.join(missing)}")
        return tensors, place

    def finish(
        self, dictionary: Dictionary, record: Mapping[str, Any], site: Site, model: str
    ) -> Dictionary:
        """Write the dictionary and the record, and take the state away.

        Args:
            dictionary: What was trained.
            record: What is known of it, as plain data.
            site: What it is of.
            model: The model's name.

        Returns:
            The dictionary, as it is read from the folder.
        """
        write_dictionary(dictionary, self.folder, hook=hook_of(site), model=model, overwrite=True)
        told = {"settings": self.settings, **record}
        write_text(self.folder / RECORD, strict_json.dumped(told) + "\n")
        (self.folder / STATE).unlink(missing_ok=True)
        return read_dictionary(self.folder)

    def _record(self) -> Mapping[str, Any]:
        try:
            found = strict_json.loaded((self.folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._unreadable(RECORD, str(error)) from error
        if not isinstance(found, Mapping):
            raise self._unreadable(RECORD, f"it is a {type(found).__name__}")
        return found

    def _refuse_other(self, path: Path, there: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(self.settings))
        differing = [key for key in now | dict(there) if there.get(key) != now.get(key)]
        if differing:
            lines = [f"  {key}: {there.get(key)} there, {now.get(key)} now" for key in differing]
            raise RunFolderError(
                f"{path} is of a training with other settings. They differ in\n"
                + "\n".join(lines)
                + "\nChoose another folder, or delete this one."
            )

    def _unreadable(self, file: str, problem: str) -> RunFolderError:
        return RunFolderError(
            f"{self.folder / file} is of no training that this release can read: {problem}.\n"
            "Delete the folder to train from the start, or choose another one."
        )
