"""A result's folder: tensors, beside them a report in JSON, which is written last, and a page.

What a result is of (model, prompts, options) is its *identity*: a folder takes a result of the same
identity again, of another one only when told to. Versions of packages decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from headwater import strict_json
from headwater.errors import ResultError, RunFolderError
from headwater.files import foreign, make_writable, write_atomically, write_text

SCHEMA = 1
_SHOWN = 6
"""Differences that a refusal lists."""
_ABSENT = "nothing"


@dataclass(frozen=True)
class Folder:
    """What the folders of one kind of result hold."""

    report: str
    """The file of plain data: while it is not there, there is no result."""
    tensors: str
    """The file of tensors."""
    what: str
    """The kind in words: `lens`."""
    made_by: str
    """What to type to make one; `FOLDER` stands for the path."""
    identity: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """Returns what a result is of, from its plain data."""
    page: str | None = None
    """A file that is about the result, and goes when that is written again."""
    others: tuple[str, ...] = ()
    """Files that may stand beside it."""

    def holds(self, path: Path) -> bool:
        """Whether a folder holds such a result."""
        return (path / self.report).is_file()

    def claim(self, path: Path, identity: Mapping[str, Any] | None = None) -> None:
        """Refuse a folder that cannot take a result, before anything is computed.

        Args:
            path: The folder; made if it does not exist.
            identity: What the result will be of, or as much of it as is known; None to leave open
                whether it is the one that the folder may hold.

        Raises:
            RunFolderError: If it cannot be written, or holds other files or another result.
        """
        make_writable(path)
        if strangers := foreign(path, self._ours):
            raise RunFolderError(
                f"{path} holds other files than {self._a} ({', '.join(strangers[:3])}).\n"
                "Choose another folder."
            )
        if identity is None or not self.holds(path):
            return
        with self.reading(path):
            differing = list(_differing(self.identity(self.data(path)), identity))
        if differing:
            raise RunFolderError(
                f"{path} already holds another {self.what}. They differ in\n"
                + "\n".join(differing[:_SHOWN])
                + (f"\n  and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else "")
                + "\nChoose another folder, delete this one, or write save(..., overwrite=True)."
            )

    def write(
        self,
        path: Path,
        data: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        *,
        overwrite: bool = False,
    ) -> Path:
        """Write a result, the report last.

        Args:
            path: The folder; made if it does not exist.
            data: Plain data.
            tensors: By name.
            overwrite: Replace another result instead of refusing.

        Raises:
            RunFolderError: If the folder cannot be written, or holds something else.
        """
        self.claim(path, None if overwrite else self.identity(data))
        for stale in (self.report, self.page):
            if stale is not None:
                (path / stale).unlink(missing_ok=True)
        kept = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
        write_atomically(path / self.tensors, lambda there: save_file(kept, there))
        write_text(path / self.report, strict_json.dumped({"schema_version": SCHEMA, **data}))
        return path

    def read(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what `write` wrote: plain data and tensors.

        Raises:
            RunFolderError: If there is no result that this release can read.
        """
        with self.reading(path):
            return self.data(path), load_file(path / self.tensors)

    def data(self, path: Path) -> dict[str, Any]:
        """Return the plain data alone.

        Raises:
            RunFolderError: If there is no report that this release can read.
        """
        if not self.holds(path):
            raise RunFolderError(
                f"{path} holds no {self.what}: there is no {self.report}.\n{self._make(path)}"
            )
        with self.reading(path):
            data = strict_json.loaded((path / self.report).read_text(encoding="utf-8"))
            if data.get("schema_version") != SCHEMA:
                raise ValueError(
                    f"{self.report} has schema {data.get('schema_version')}, and {SCHEMA} is read"
                )
        return data

    @contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """Refuse data that turn out not to be what this release writes.

        Raises:
            RunFolderError: In place of whatever a damaged file leads to.
        """
        try:
            yield
        except RunFolderError:
            raise
        except (
            OSError, SafetensorError, ResultError,
            ValueError, LookupError, TypeError, AttributeError,
        ) as error:  # fmt: skip
            told = str(error).splitlines() or [""]
            raise RunFolderError(
                f"{path} holds no {self.what} that this release can read: "
                f"{type(error).__name__}: {told[0]}.\n{self._make(path)}"
            ) from error

    def _make(self, path: Path) -> str:
        return f"Make one: {self.made_by.replace('FOLDER', str(path))}"

    @property
    def _ours(self) -> set[str]:
        return {self.report, self.tensors, *self.others, *([self.page] if self.page else ())}

    @property
    def _a(self) -> str:
        return f"{'an' if self.what[0] in 'aeiou' else 'a'} {self.what}"


def without_versions(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides a result: the model by its hashes and number format, and the options.

    The model's name and device, and versions, say where numbers come from; they make no other
    result.

    Args:
        provenance: With `model`, `versions` and whatever was asked for.
    """
    found = {key: value for key, value in provenance.items() if key != "versions"}
    model = found.get("model")
    if isinstance(model, Mapping):
        decides = ("weights_hash", "config_hash", "tokenizer_hash", "dtype")
        found["model"] = {key: model[key] for key in decides if key in model} or model
    return found


def _differing(there: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for every difference in the keys of `now`."""
    # as they will be read again: tuples as lists, and what has no form in JSON as its text
    now = strict_json.loaded(strict_json.dumped(now))
    for key, value in now.items():
        for name, old, new in _apart(there.get(key, _ABSENT), value, key):
            yield f"  {name}: {old!s:.60} there, {new!s:.60} now"


def _apart(there: Any, now: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield what is not the same in two pieces of plain data, with its place."""
    if there == now:
        return
    if isinstance(there, dict) and isinstance(now, dict):
        for key in {**there, **now}:
            yield from _apart(there.get(key, _ABSENT), now.get(key, _ABSENT), f"{name}.{key}")
    elif isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        for place, pair in enumerate(zip(there, now, strict=True)):
            yield from _apart(*pair, f"{name}[{place}]")
    else:
        yield name, there, now
