"""One file of weights with the configuration beside it: what every format is read from.

Tensors only: safetensors, numpy archives without objects, and torch files with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from headwater.errors import DictionaryError

SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin")
"""Ends of the names of files that may hold weights."""

MAIN = ("sae_weights.safetensors", "ae.pt", "sae.safetensors", "params.npz")
"""What formats that give a dictionary a folder of its own call its weights."""

BESIDE = (
    "sparsity.safetensors",
    "activations_store_state.safetensors",
    "activation_whitening.safetensors",
    "trainer_state.pt",
    "checkpoint.safetensors",
)
"""Files of tensors that stand beside a dictionary's weights."""

_CONFIGS = ("cfg.json", "config.yaml", "config.json")
_POINTER = b"version https://git-lfs"
"""Begins the file that a clone without LFS holds in place of another."""
_SHOWN = 12


@dataclass(frozen=True)
class Source:
    """What one file of weights holds, and what is said of it beside it."""

    path: Path
    """The file of weights."""
    content: Mapping[str, Any]
    """What it holds, by name: tensors, or what a backup keeps beside them."""
    config: Mapping[str, Any]
    """The configuration beside it; empty if there is none."""
    config_path: Path | None
    """The file of the configuration."""

    @property
    def keys(self) -> frozenset[str]:
        """The names in the file of weights."""
        return frozenset(self.content)

    @cached_property
    def sha256(self) -> str:
        """Of the file of weights."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; an empty one if there is no tensor of that name."""
        found = self.content.get(name)
        return tuple(found.shape) if isinstance(found, Tensor) else ()

    def tensors(
        self,
        shapes: Mapping[str, Sequence[int]],
        *,
        because: str,
        ignored: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """Return the tensors of a file, all of them known and of the right shape.

        Args:
            shapes: The names and shapes that there must be.
            because: Where the sizes come from: `d_in=6 and d_sae=10 (cfg.json)`.
            ignored: Names that may be there and are not needed.

        Returns:
            By name; numbers of less than 32 bits as float32.

        Raises:
            DictionaryError: If one is missing, unknown or has another shape; names file and keys.
        """
        missing = [name for name in shapes if name not in self.content]
        unknown = sorted(self.keys - shapes.keys() - set(ignored))
        if missing or unknown:
            wrong = [f"has no {', '.join(missing)}"] if missing else []
            wrong += [f"holds {', '.join(unknown)}, which nothing here reads"] if unknown else []
            raise DictionaryError(
                f"{self.path} {' and '.join(wrong)}: with {because} a file holds "
                f"{', '.join(shapes)}.\nIt holds: {self.listing()}."
            )
        for name, shape in shapes.items():
            if not isinstance(self.content[name], Tensor) or self.shape(name) != tuple(shape):
                raise DictionaryError(
                    f"{self.path}: {name} has shape {list(self.shape(name))}; with {because} "
                    f"it must be {list(shape)}."
                )
        return {name: at_least_float32(self.content[name]) for name in shapes}

    def integer(self, name: str) -> int | None:
        """Return a whole number that is kept as a tensor, or None if it is not there."""
        found = self.content.get(name)
        return int(found) if isinstance(found, Tensor) and found.numel() == 1 else None

    def listing(self) -> str:
        """Return the names in the file with their shapes, as many as fit a line or two."""
        named = [
            f"{name} {list(value.shape)}" if isinstance(value, Tensor) else name
            for name, value in sorted(self.content.items())
        ]
        more = len(named) - _SHOWN
        return ", ".join(named[:_SHOWN]) + (f" and {more} more" if more > 0 else "") or "nothing"


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return numbers in float32, or float64 if they are."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def weights_in(folder: Path) -> list[Path]:
    """Return the files of a folder that hold a dictionary's weights, by name.

    Args:
        folder: Of a format whose dictionaries have a folder each (then there is one file, whatever
            stands beside it), or of files that are a dictionary each.
    """
    main = [folder / name for name in MAIN if (folder / name).is_file()]
    if main:
        return main
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and path.is_file() and path.name not in BESIDE
        and not path.name.startswith(".")
    )  # fmt: skip


def open_source(path: Path) -> Source:
    """Open a dictionary's file, or the only one of a folder.

    Args:
        path: A file of weights, or a folder with one.

    Returns:
        What is there, unchecked.

    Raises:
        DictionaryError: If there is none, or more than one; if it holds other objects than numbers.
    """
    if path.is_dir():
        path = _only(path)
    elif not path.is_file():
        raise DictionaryError(f"there is no file or folder {path}.")
    config_path = _config_of(path)
    config = {} if config_path is None else _config(config_path)
    content = _content(path)
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise DictionaryError(
            f"{path} holds a {type(content).__name__}, not tensors by name.\n"
            "Save the dictionary's state_dict()."
        )
    return Source(path, content, config, config_path)


def _only(folder: Path) -> Path:
    found = weights_in(folder)
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(path.name for path in found[:_SHOWN])
        raise DictionaryError(
            f"{folder} holds {len(found)} files of weights: {shown}.\n"
            "Name one of them, or read all of them: hw.Dictionaries.read(folder)."
        )
    names = sorted(path.name for path in folder.iterdir())
    raise DictionaryError(
        f"{folder} holds no weights ({', '.join(SUFFIXES)}); it holds: "
        f"{', '.join(names[:_SHOWN]) or 'nothing'}.\n"
        "Name the folder of one dictionary; hw.Dictionaries.read(folder) looks into folders of it."
    )


def _content(path: Path) -> Any:
    _refuse_no_content(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: torch.from_numpy(archive[name]) for name in archive.files}
        if path.suffix in SUFFIXES:
            with warnings.catch_warnings():
                # what torch says of a pickle that it then refuses
                warnings.simplefilter("ignore", UserWarning)
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DictionaryError(
            f"{path} holds pickled objects besides tensors, and headwater opens no pickle.\n"
            "Load it with the library that wrote it and save its state_dict()."
        ) from error
    except (SafetensorError, ValueError, OSError, EOFError, RuntimeError, TypeError,
            zipfile.BadZipFile) as error:  # fmt: skip
        told = (str(error).splitlines() or [""])[0]
        raise DictionaryError(
            f"{path} cannot be read: {told or type(error).__name__}\n"
            "Fetch the file again, or save it anew as safetensors."
        ) from error
    raise DictionaryError(f"{path} is no file of weights ({', '.join(SUFFIXES)}).")


def _refuse_no_content(path: Path) -> None:
    try:
        with path.open("rb") as file:
            begins = file.read(len(_POINTER))
    except OSError as error:
        raise DictionaryError(f"{path} cannot be read: {error.strerror}.") from error
    if not begins:
        raise DictionaryError(f"{path} is empty.\nFetch the file again.")
    if begins == _POINTER:
        raise DictionaryError(
            f"{path} is a pointer of Git LFS, not the file itself.\nFetch that: git lfs pull."
        )


def _config_of(path: Path) -> Path | None:
    # checkpoints of a run stand in a folder of their own, below its configuration
    folders = [path.parent, *([path.parent.parent] if path.parent.name == "checkpoints" else [])]
    found = (folder / name for folder in folders for name in _CONFIGS)
    return next((config for config in found if config.is_file()), None)


def _config(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        config = _yaml(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise DictionaryError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, Mapping):
        raise DictionaryError(f"{path} holds a {type(config).__name__}, no configuration by name.")
    return config


def _yaml(text: str) -> Any:
    import yaml  # transformers needs it; most dictionaries don't

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
